//! Which experts a token takes.

use super::rows::{Exponentials, select};
use super::rows_of;
use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, Simd, load_some, sigmoid, store_some};
use crate::{Cpu, Result};

/// How logits become scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Softmax over all experts.
    Softmax,
    /// The logistic function of each.
    Sigmoid,
}

/// A routing rule.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    /// Scores from logits.
    pub score: Score,
    /// Added to the scores for the choice alone `[experts]`.
    pub bias: Option<&'a [f32]>,
    /// Experts of a token.
    pub k: usize,
    /// Whether the chosen scores are divided by their sum (and 1e-20).
    pub normalise: bool,
    /// What they are multiplied with at last.
    pub scale: f32,
    /// Groups of equally many experts, of which `top_groups` take part; 0 or 1 is no grouping.
    pub groups: usize,
    /// Groups that take part: those with the greatest sums of their two best (biased) scores (arXiv 2412.19437).
    pub top_groups: usize,
}

/// Excludes the experts of all but the best groups.
fn keep_groups(biased: &mut [f32], groups: usize, top_groups: usize, best: &mut Vec<(f32, u32)>) {
    let size = biased.len() / groups;
    let totals: Vec<f32> = biased
        .chunks_exact(size)
        .map(|group| {
            select(group, 2.min(size), best);
            best.iter().map(|b| b.0).sum()
        })
        .collect();
    select(&totals, top_groups.min(groups), best);
    for (g, group) in biased.chunks_exact_mut(size).enumerate() {
        if !best.iter().any(|b| b.1 as usize == g) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

struct Sigmoids {
    x: *const f32,
    out: *mut f32,
    n: usize,
}

impl Kernel for Sigmoids {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: n values in and out.
        unsafe {
            let mut i = 0;
            while i < self.n {
                let some = LANES.min(self.n - i);
                let v = if some == LANES { S::load(self.x.add(i)) } else { load_some::<S>(self.x.add(i), some) };
                let y = sigmoid::<S>(v);
                if some == LANES {
                    S::store(self.out.add(i), y)
                } else {
                    store_some::<S>(self.out.add(i), some, y)
                }
                i += some;
            }
        }
    }
}

/// Chooses experts from logits `[m, n]`: numbers and weights `[m, k]`, best first, the lower number among equals.
pub fn route(
    cpu: &Cpu,
    rule: Router<'_>,
    logits: &[f32],
    n: usize,
    experts: &mut [u32],
    weights: &mut [f32],
) -> Result<()> {
    const OP: &str = "route";
    let k = rule.k;
    at_least(OP, "experts", k.max(1), n)?;
    at_least(OP, "experts of a token", 1, k)?;
    let m = experts.len() / k;
    same(OP, "chosen experts, whole rows", m * k, experts.len())?;
    same(OP, "weights", experts.len(), weights.len())?;
    at_least(OP, "logits", m * n, logits.len())?;
    if let Some(bias) = rule.bias {
        same(OP, "values of the bias", n, bias.len())?;
    }
    let groups = rule.groups.max(1);
    same(OP, "experts, a multiple of the groups", n / groups * groups, n)?;
    if groups > 1 {
        at_least(OP, "experts of the groups that take part", k, n / groups * rule.top_groups.min(groups))?;
    }
    let (to_e, to_w) = (Shared::of(experts), Shared::of(weights));
    cpu.pool().ranges(m, rows_of(n * 8), &|rows| {
        let (mut scores, mut biased) = (vec![0.0f32; n], vec![0.0f32; n]);
        let mut best = Vec::with_capacity(k + 1);
        for r in rows {
            let x = logits[r * n..(r + 1) * n].as_ptr();
            // SAFETY: n logits and n scores; each row of results belongs to one task.
            let (e, w) = unsafe {
                match rule.score {
                    Score::Sigmoid => simd::run(cpu.level(), Sigmoids { x, out: scores.as_mut_ptr(), n }),
                    Score::Softmax => {
                        let (_, sum) = simd::run(cpu.level(), Exponentials { x, n, out: scores.as_mut_ptr() });
                        let inverse = (1.0 / sum) as f32;
                        scores.iter_mut().for_each(|s| *s *= inverse);
                    }
                }
                ({ to_e }.part(r * k, k), { to_w }.part(r * k, k))
            };
            biased.copy_from_slice(&scores);
            if let Some(bias) = rule.bias {
                biased.iter_mut().zip(bias).for_each(|(b, add)| *b += add);
            }
            if groups > 1 {
                keep_groups(&mut biased, groups, rule.top_groups, &mut best);
            }
            select(&biased, k, &mut best);
            for (j, &(_, i)) in best.iter().enumerate() {
                e[j] = i;
                w[j] = scores[i as usize];
            }
            let divisor = if rule.normalise { w.iter().sum::<f32>() + 1e-20 } else { 1.0 };
            w.iter_mut().for_each(|w| *w = *w / divisor * rule.scale);
        }
    });
    Ok(())
}
