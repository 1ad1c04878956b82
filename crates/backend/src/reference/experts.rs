//! Routing and experts, one row at a time.

use super::{Matrix, apply, sigmoid};
use crate::blocks::{RouterRule, Scoring};
use crate::{Backend, Expert, Reference, Result};

/// The experts of one row of router logits, best first, with their weights.
pub(super) fn route(logits: &[f32], bias: Option<&[f32]>, rule: &RouterRule) -> Vec<(u32, f32)> {
    let scores: Vec<f32> = match rule.scoring {
        Scoring::Sigmoid => logits.iter().map(|l| sigmoid(*l)).collect(),
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = logits.iter().map(|l| (l - max).exp()).sum();
            logits.iter().map(|l| (l - max).exp() / total).collect()
        }
    };
    let mut biased: Vec<f32> = match bias {
        None => scores.clone(),
        Some(bias) => scores.iter().zip(bias).map(|(s, b)| s + b).collect(),
    };
    if rule.groups > 1 {
        let size = biased.len() / rule.groups;
        let best_two = |group: &[f32]| {
            let mut sorted = group.to_vec();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted.iter().take(2).sum::<f32>()
        };
        let totals: Vec<f32> = biased.chunks_exact(size).map(best_two).collect();
        let kept = best(&totals, rule.top_groups);
        for (g, group) in biased.chunks_exact_mut(size).enumerate() {
            if !kept.contains(&g) {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }
    let chosen = best(&biased, rule.top_k);
    let total: f32 = chosen.iter().map(|e| scores[*e]).sum();
    let divisor = if rule.normalise { total + 1e-20 } else { 1.0 };
    chosen.into_iter().map(|e| (e as u32, scores[e] / divisor * rule.scale)).collect()
}

/// Indices of the `count` greatest values, greatest first, ties to the lower index.
fn best(values: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    order.truncate(count);
    order
}

pub(super) fn apply_experts(
    b: &Reference,
    x: &Matrix,
    experts: &[Expert],
    routing: &[Vec<(u32, f32)>],
) -> Result<Matrix> {
    let mut out = Vec::with_capacity(x.data.len());
    for (i, chosen) in routing.iter().enumerate() {
        let row = Matrix::new(x.cols, x.row(i).to_vec());
        let mut sum = vec![0.0; x.cols];
        for (e, weight) in chosen {
            let expert = &experts[*e as usize];
            let hidden = b.swiglu(apply(&expert.gate, &row)?, &apply(&expert.up, &row)?)?;
            let y = apply(&expert.down, &hidden)?;
            sum.iter_mut().zip(y.row(0)).for_each(|(sum, y)| *sum += weight * y);
        }
        out.extend(sum);
    }
    Ok(Matrix::new(x.cols, out))
}
