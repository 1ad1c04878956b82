//! The dense MLP and the mixture of experts.

use super::{Norm, linear, linears};
use crate::{Backend, LinearHandle, Pass, Result};

/// SwiGLU (arXiv 2002.05202): down( silu(gate x) * up x ).
pub struct Mlp<B: Backend> {
    /// `post_attention_layernorm`
    pub norm: Norm<B>,
    /// `[intermediate, hidden]`
    pub gate_proj: B::Linear,
    /// `[intermediate, hidden]`
    pub up_proj: B::Linear,
    /// `[hidden, intermediate]`
    pub down_proj: B::Linear,
}

/// Norm, gate and up, SwiGLU, down, and the residual `h`.
pub fn mlp<B: Backend>(b: &B, w: &Mlp<B>, h: B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
    let x = w.norm.apply(b, &h)?;
    let y = swiglu_mlp(b, [&w.gate_proj, &w.up_proj, &w.down_proj], &x, pass)?;
    b.add(h, &y)
}

fn swiglu_mlp<B: Backend>(
    b: &B,
    [gate, up, down]: [&B::Linear; 3],
    x: &B::Tensor,
    pass: &Pass<B>,
) -> Result<B::Tensor> {
    let [gate, up] = linears(b, [gate, up], x, pass)?;
    linear(b, down, &b.swiglu(gate, &up)?, pass)
}

/// How a router turns logits into scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts (Qwen).
    Softmax,
    /// Sigmoid of each logit (DeepSeek-V3, GLM).
    Sigmoid,
}

/// How experts are chosen: the best `top_k` by score plus bias, weighed by score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterRule {
    /// What a score is.
    pub scoring: Scoring,
    /// Experts a token goes to.
    pub top_k: usize,
    /// Whether the chosen weights are divided by their sum.
    pub normalise: bool,
    /// Factor of the weights, after normalisation.
    pub scale: f32,
    /// Groups of experts, of which only the best `top_groups` (by the sum of their two best biased scores) take part.
    pub groups: usize,
    /// Groups that take part.
    pub top_groups: usize,
}

/// Chooses experts.
pub struct Router<B: Backend> {
    /// `[experts, hidden]`
    pub gate: B::Linear,
    /// Added to scores for the choice only: `e_score_correction_bias`.
    pub bias: Option<B::Vector>,
    /// How.
    pub rule: RouterRule,
}

/// An expert that sees every token.
pub struct SharedExpert<B: Backend> {
    /// `[intermediate, hidden]`
    pub gate_proj: B::Linear,
    /// `[intermediate, hidden]`
    pub up_proj: B::Linear,
    /// `[hidden, intermediate]`
    pub down_proj: B::Linear,
    /// `[1, hidden]`: its sigmoid scales the output (Qwen2-MoE).
    pub gate: Option<B::Linear>,
}

/// A mixture of experts.
pub struct Moe<B: Backend> {
    /// `post_attention_layernorm`
    pub norm: Norm<B>,
    /// Chooses experts.
    pub router: Router<B>,
    /// The routed experts.
    pub experts: B::Experts,
    /// The shared expert, if the model has one.
    pub shared: Option<SharedExpert<B>>,
}

/// Norm, router, experts, shared expert, and the residual `h`.
pub fn moe<B: Backend>(b: &B, w: &Moe<B>, h: B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
    let x = w.norm.apply(b, &h)?;
    let routing = b.route(&x, &w.router.gate, w.router.bias.as_ref(), &w.router.rule)?;
    let routed = match pass.observer {
        None => b.apply_experts(&x, &w.experts, &routing)?,
        Some(_) => {
            // The router computes its logits itself; the observer is shown them.
            linear(b, &w.router.gate, &x, pass)?;
            observed_experts(b, w, &x, &routing, pass)?
        }
    };
    let h = b.add(h, &routed)?;
    let Some(shared) = &w.shared else { return Ok(h) };
    let y = swiglu_mlp(b, [&shared.gate_proj, &shared.up_proj, &shared.down_proj], &x, pass)?;
    match &shared.gate {
        None => b.add(h, &y),
        Some(gate) => {
            let gate = linear(b, gate, &x, pass)?;
            b.add(h, &b.gated(y, &gate)?)
        }
    }
}

/// Experts one at a time on the rows routed to them, so that the observer sees each linear. Waits for the routing.
fn observed_experts<B: Backend>(
    b: &B,
    w: &Moe<B>,
    x: &B::Tensor,
    routing: &B::Routing,
    pass: &Pass<B>,
) -> Result<B::Tensor> {
    b.submit()?;
    let choices = b.read_routing(routing)?;
    if let Some(observer) = pass.observer {
        observer.routing(b, &w.router.gate, &choices)?;
    }
    let values = b.read(x)?;
    let hidden = w.router.gate.cols();
    // Outputs of each (row, slot), summed in slot order below.
    let mut slots: Vec<Vec<f32>> = vec![Vec::new(); choices.iter().map(Vec::len).sum()];
    let starts: Vec<usize> = choices.iter().scan(0, |n, c| Some(std::mem::replace(n, *n + c.len()))).collect();
    for expert in 0..w.router.gate.rows() {
        let chosen: Vec<(usize, usize)> = choices
            .iter()
            .enumerate()
            .flat_map(|(row, c)| {
                c.iter().enumerate().filter(|(_, e)| e.0 as usize == expert).map(move |(slot, _)| (row, slot))
            })
            .collect();
        if chosen.is_empty() {
            continue;
        }
        let gathered = chosen.iter().flat_map(|(row, _)| &values[row * hidden..(row + 1) * hidden]).copied().collect();
        let input = b.write(chosen.len(), hidden, gathered)?;
        let y = swiglu_mlp(b, b.expert(&w.experts, expert), &input, pass)?;
        b.submit()?;
        for ((row, slot), y) in chosen.into_iter().zip(b.read(&y)?.chunks_exact(hidden)) {
            slots[starts[row] + slot] = y.to_vec();
        }
    }
    let mut sum = vec![0.0; choices.len() * hidden];
    for (row, sum) in sum.chunks_exact_mut(hidden).enumerate() {
        for (slot, (_, weight)) in choices[row].iter().enumerate() {
            for (sum, y) in sum.iter_mut().zip(&slots[starts[row] + slot]) {
                *sum += weight * y;
            }
        }
    }
    b.write(choices.len(), hidden, sum)
}
