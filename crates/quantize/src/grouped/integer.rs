//! Integers: symmetric around a fixed zero, with a zero point for each group, or with an edge (MLX).

use super::grid::{Factors, Grid, Rounding, extremes, largest, nearest};

/// Parts of the range that a search tries, from the whole down: fewer codes leave out more of the tails.
fn parts(bits: u32) -> impl Iterator<Item = f32> {
    let steps = match bits {
        2 => 15,
        3 => 12,
        4 => 9,
        _ => 6,
    };
    (0..steps).map(|i| 1.0 - 0.05 * i as f32)
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
}

impl Grid for Symmetric {
    fn candidates(&self, weights: &[f32], each: &mut dyn FnMut(Factors)) {
        let (most, offset) = (largest(weights), self.zero());
        let factors = |scale: f32| Factors { scale: positive(self.rounding, scale), offset };
        // The largest magnitude at the last code of both sides, then at the one more that the negative side has.
        let step = most / (offset - 1.0);
        parts(self.bits).for_each(|part| each(factors(part * step)));
        each(factors(most / offset));
    }

    #[inline(always)]
    fn round(&self, factors: Factors, weight: f32) -> f32 {
        let steps = nearest((weight / factors.scale).clamp(-factors.offset, factors.offset - 1.0));
        factors.scale * steps
    }

    fn code(&self, factors: Factors, value: f32) -> u8 {
        (nearest(value / factors.scale) + factors.offset) as u8
    }

    fn value(&self, factors: Factors, code: u8) -> f32 {
        factors.scale * (f32::from(code) - factors.offset)
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
}

impl Grid for Affine {
    fn candidates(&self, weights: &[f32], each: &mut dyn FnMut(Factors)) {
        let (lo, hi) = extremes(weights);
        let (lo, hi) = (lo.min(0.0), hi.max(0.0));
        for part in parts(self.bits) {
            let scale = positive(self.rounding, part * (hi - lo) / self.most());
            let offset = nearest((-part * lo / scale).clamp(self.least_zero, self.most()));
            each(Factors { scale, offset });
        }
    }

    #[inline(always)]
    fn round(&self, factors: Factors, weight: f32) -> f32 {
        let steps = (weight / factors.scale).clamp(-factors.offset, self.most() - factors.offset);
        factors.scale * nearest(steps)
    }

    fn code(&self, factors: Factors, value: f32) -> u8 {
        (nearest(value / factors.scale) + factors.offset) as u8
    }

    fn value(&self, factors: Factors, code: u8) -> f32 {
        factors.scale * (f32::from(code) - factors.offset)
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

    #[inline(always)]
    fn steps(&self, factors: Factors, weight: f32) -> f32 {
        nearest(((weight - factors.offset) / factors.scale).clamp(0.0, self.most()))
    }
}

impl Grid for Edge {
    fn candidates(&self, weights: &[f32], each: &mut dyn FnMut(Factors)) {
        let (lo, hi) = extremes(weights);
        let (middle, radius) = ((hi + lo) / 2.0, (hi - lo) / 2.0);
        for part in parts(self.bits) {
            let (lo, hi) = (middle - part * radius, middle + part * radius);
            let step = ((hi - lo) / self.most()).max(1e-7);
            let (step, edge) = if lo.abs() > hi.abs() { (step, lo) } else { (-step, hi) };
            let steps = nearest(edge / step);
            let (scale, bias) = if steps == 0.0 { (step, 0.0) } else { (edge / steps, edge) };
            each(Factors { scale: self.rounding.apply(scale), offset: self.rounding.apply(bias) });
        }
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
