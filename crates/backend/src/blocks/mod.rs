//! The blocks a decoder layer is made of: the weights they take, and default bodies composed of primitives.

mod attention;
mod feed_forward;

pub use attention::{Attention, LatentAttention, attention_input, attention_output, latent_input, latent_output};
pub use feed_forward::{Mlp, Moe, Router, RouterRule, Scoring, SharedExpert, mlp, moe};

use crate::{Backend, Pass, Result};
use std::sync::Arc;

/// A norm's weight and epsilon.
pub struct Norm<B: Backend> {
    /// Scale of each column.
    pub weight: B::Vector,
    /// Added to the mean square.
    pub eps: f32,
}

impl<B: Backend> Norm<B> {
    /// The norm of every group of `weight.len()` columns of `x`.
    pub fn apply(&self, b: &B, x: &B::Tensor) -> Result<B::Tensor> {
        b.rms_norm(x, &self.weight, self.eps)
    }
}

/// Final norm and output projection.
pub struct Head<B: Backend> {
    /// `model.norm`
    pub norm: Norm<B>,
    /// `lm_head`, or the embedding when tied.
    pub lm_head: Arc<B::Linear>,
}

/// Logits `[outputs, vocab]` of the step's wanted rows.
pub fn head<B: Backend>(b: &B, w: &Head<B>, h: &B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
    let rows = b.outputs(h, pass.batch)?;
    let x = w.norm.apply(b, &rows)?;
    linear(b, &w.lm_head, &x, pass)
}

/// Several linears on one input, shown to the observer.
pub(crate) fn linears<B: Backend, const N: usize>(
    b: &B,
    linears: [&B::Linear; N],
    x: &B::Tensor,
    pass: &Pass<B>,
) -> Result<[B::Tensor; N]> {
    let outputs = b.linears(&linears, x)?;
    if let Some(observer) = pass.observer {
        for (linear, y) in linears.iter().zip(&outputs) {
            observer.linear(b, linear, x, y)?;
        }
    }
    outputs.try_into().map_err(|found: Vec<_>| crate::Error::shape("linears", format!("{N} outputs"), found.len()))
}

/// One linear, shown to the observer.
pub(crate) fn linear<B: Backend>(b: &B, linear: &B::Linear, x: &B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
    linears(b, [linear], x, pass).map(|[y]| y)
}
