//! Integers: symmetric around a fixed zero, with a zero point for each group, or with an edge (MLX).

use super::grid::{Factors, Grid, Rounding, extremes, largest, nearest};

/// Parts of the range that a search tries, below the whole: fewer codes leave out more of the tails.
fn parts(bits: u32) -> impl Iterator<Item = f32> {
    let steps = match bits {
        2 => 15,
        3 => 12,
        4 => 9,
        _ => 6,
    };
    (1..steps).map(|i| 1.0 - 0.05 * i as f32)
}

/// Codes `0..2^bits` of `scale x (code - zero)`, zero being half the range: GPTQ's and compressed-tensors' `sym`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symmetric {
    pub bits: u32,
    pub rounding: Rounding,
}

impl Symmetric {
    fn zero(&self) -> f32 {
        (1u32 << (self.bits - 1)) as f32
    }

    fn factors(&self, scale: f32) -> Factors {
        Factors { scale: positive(self.rounding, scale), offset: self.zero() }
    }
}

impl Grid for Symmetric {
    fn plain(&self, weights: &[f32]) -> Factors {
        // The largest magnitude at the last code of both sides.
        self.factors(largest(weights) / (self.zero() - 1.0))
    }

    fn others(&self, weights: &[f32], each: &mut dyn FnMut(Factors)) {
        let most = largest(weights);
        parts(self.bits).for_each(|part| each(self.factors(part * most / (self.zero() - 1.0))));
        // The negative side has one code more.
        each(self.factors(most / self.zero()));
    }

    #[inline(always)]
    fn round(&self, factors: Factors, weight: f32) -> f32 {
        let steps = nearest((weight / factors.scale).clamp(-factors.offset, factors.offset - 1.0));
        factors.scale * steps
    }
}

/// Codes of `scale x (code - zero)` with a zero point for each group: GPTQ's and compressed-tensors' `sym: false`. Zero is
/// always among the values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Affine {
    pub bits: u32,
    pub rounding: Rounding,
    /// The least zero point that the format has no trouble with.
    pub least_zero: f32,
}

impl Affine {
    fn most(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    fn factors(&self, (lo, hi): (f32, f32), part: f32) -> Factors {
        let (lo, hi) = (part * lo.min(0.0), part * hi.max(0.0));
        let scale = positive(self.rounding, (hi - lo) / self.most());
        Factors { scale, offset: nearest((-lo / scale).clamp(self.least_zero, self.most())) }
    }
}

impl Grid for Affine {
    fn plain(&self, weights: &[f32]) -> Factors {
        self.factors(extremes(weights), 1.0)
    }

    fn others(&self, weights: &[f32], each: &mut dyn FnMut(Factors)) {
        let range = extremes(weights);
        parts(self.bits).for_each(|part| each(self.factors(range, part)));
    }

    #[inline(always)]
    fn round(&self, factors: Factors, weight: f32) -> f32 {
        let steps = (weight / factors.scale).clamp(-factors.offset, self.most() - factors.offset);
        factors.scale * nearest(steps)
    }
}

/// Codes of `scale x code + bias`, as MLX chooses them: the edge of the larger magnitude is met exactly, and so is zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Edge {
    pub bits: u32,
    pub rounding: Rounding,
}

impl Edge {
    fn most(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// For a part of the range, around its middle.
    fn factors(&self, (lo, hi): (f32, f32), part: f32) -> Factors {
        let (middle, radius) = ((hi + lo) / 2.0, part * (hi - lo) / 2.0);
        let (lo, hi) = (middle - radius, middle + radius);
        let step = ((hi - lo) / self.most()).max(1e-7);
        let (step, edge) = if lo.abs() > hi.abs() { (step, lo) } else { (-step, hi) };
        let steps = nearest(edge / step);
        let (scale, bias) = if steps == 0.0 { (step, 0.0) } else { (edge / steps, edge) };
        Factors { scale: self.rounding.apply(scale), offset: self.rounding.apply(bias) }
    }

    #[inline(always)]
    fn steps(&self, factors: Factors, weight: f32) -> f32 {
        nearest(((weight - factors.offset) / factors.scale).clamp(0.0, self.most()))
    }
}

impl Grid for Edge {
    fn plain(&self, weights: &[f32]) -> Factors {
        self.factors(extremes(weights), 1.0)
    }

    fn others(&self, weights: &[f32], each: &mut dyn FnMut(Factors)) {
        let range = extremes(weights);
        parts(self.bits).for_each(|part| each(self.factors(range, part)));
    }

    #[inline(always)]
    fn round(&self, factors: Factors, weight: f32) -> f32 {
        factors.scale * self.steps(factors, weight) + factors.offset
    }

    fn code(&self, factors: Factors, value: f32) -> u8 {
        self.steps(factors, value) as u8
    }

    fn value(&self, factors: Factors, code: u8) -> f32 {
        factors.scale * f32::from(code) + factors.offset
    }
}

/// A factor as the file has it, 1 where it would be zero: every weight of the group is zero (or below what the type can
/// tell from it).
pub(super) fn positive(rounding: Rounding, scale: f32) -> f32 {
    let scale = rounding.apply(scale);
    if scale == 0.0 { 1.0 } else { scale }
}
