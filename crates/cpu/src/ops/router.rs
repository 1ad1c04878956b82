//! Choosing experts from a router's logits.

use super::elementwise::sigmoid;
use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::{Cpu, Error, Result};

/// How experts are chosen: the best `top_k` by score plus bias, weighed by score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// Scores are sigmoids of the logits; otherwise their softmax.
    pub sigmoid: bool,
    /// Experts of a token.
    pub top_k: usize,
    /// Whether the chosen weights are divided by their sum.
    pub normalise: bool,
    /// Factor of the weights, after normalisation.
    pub scale: f32,
    /// Groups of experts, of which the best `top_groups` by the sum of their two best biased scores take part.
    pub groups: usize,
    /// Groups that take part.
    pub top_groups: usize,
}

/// The experts and weights `[rows, top_k]` of each row of logits `[rows, experts]`, best first; of equal ones the lower
/// number wins.
pub fn route(
    cpu: &Cpu,
    router: &Router,
    logits: &[f32],
    experts: usize,
    bias: Option<&[f32]>,
    chosen: &mut [u32],
    weights: &mut [f32],
) -> Result<()> {
    const OP: &str = "router";
    let rows = logits.len() / experts.max(1);
    same(OP, "logits, a multiple of the experts", rows * experts, logits.len())?;
    same(OP, "biases", experts, bias.map_or(experts, <[f32]>::len))?;
    same(OP, "chosen experts", rows * router.top_k, chosen.len())?;
    same(OP, "weights", rows * router.top_k, weights.len())?;
    let groups = router.groups.max(1);
    same(OP, "experts, a multiple of the groups", experts / groups * groups, experts)?;
    at_least(OP, "experts of the groups that take part", router.top_k, experts / groups * router.top_groups.min(groups))?;
    if router.top_k == 0 {
        return Err(Error { op: OP, what: "experts of a token, at least", expected: 1, found: 0 });
    }
    let k = router.top_k;
    let (chosen, weights) = (Shared::of(chosen), Shared::of(weights));
    cpu.pool.ranges(rows, 32, &|r| {
        let (mut scores, mut biased) = (vec![0.0; experts], vec![0.0; experts]);
        for row in r {
            scores.copy_from_slice(&logits[row * experts..(row + 1) * experts]);
            // SAFETY: every row belongs to one task.
            let (chosen, weights) = unsafe { ({ chosen }.part(row * k, k), { weights }.part(row * k, k)) };
            score(router.sigmoid, &mut scores);
            biased.copy_from_slice(&scores);
            if let Some(bias) = bias {
                biased.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
            }
            if groups > 1 {
                keep_groups(&mut biased, experts / groups, router.top_groups);
            }
            best(&mut biased, chosen);
            weights.iter_mut().zip(&*chosen).for_each(|(w, e)| *w = scores[*e as usize]);
            let divisor = if router.normalise { weights.iter().sum::<f32>() + 1e-20 } else { 1.0 };
            weights.iter_mut().for_each(|w| *w = *w / divisor * router.scale);
        }
    });
    Ok(())
}

fn score(by_sigmoid: bool, logits: &mut [f32]) {
    if by_sigmoid {
        logits.iter_mut().for_each(|l| *l = sigmoid(*l));
        return;
    }
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    logits.iter_mut().for_each(|l| *l = (*l - max).exp());
    let total: f32 = logits.iter().sum();
    logits.iter_mut().for_each(|l| *l /= total);
}

/// Makes the scores of all but the best groups of `size` experts minus infinity.
fn keep_groups(biased: &mut [f32], size: usize, top_groups: usize) {
    let two_best = |group: &[f32]| {
        let (mut a, mut b) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
        for &s in group {
            if s > a {
                (a, b) = (s, a);
            } else if s > b {
                b = s;
            }
        }
        a + if group.len() > 1 { b } else { 0.0 }
    };
    let mut totals: Vec<f32> = biased.chunks_exact(size).map(two_best).collect();
    let mut kept = vec![0; top_groups.min(totals.len())];
    best(&mut totals, &mut kept);
    for (g, group) in biased.chunks_exact_mut(size).enumerate() {
        if !kept.contains(&(g as u32)) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

/// The places of the `into.len()` greatest values, greatest first, of equal ones the first. Destroys the values.
fn best(values: &mut [f32], into: &mut [u32]) {
    for slot in into {
        let mut at = 0;
        for (i, v) in values.iter().enumerate() {
            if *v > values[at] || values[at].is_nan() {
                at = i;
            }
        }
        *slot = at as u32;
        values[at] = f32::NAN;
    }
}
