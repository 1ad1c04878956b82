//! FP4 (E2M1) with factors of three types.

use marlin_checkpoint::weight::values::{E2M1, e4m3, e8m0};

use super::grid::{Factors, Grid, Rounding, largest, nearest};
use super::integer::positive;

/// The largest value of E2M1.
const MOST: f32 = 6.0;
/// The largest value of E4M3.
const MOST_E4M3: f32 = 448.0;

/// What the factor of a group is stored as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scale {
    /// F16: our own FP4.
    F16,
    /// E4M3, divided by a number of the whole tensor: NVFP4.
    E4m3 {
        /// 448 x 6 / the tensor's largest magnitude.
        global: f32,
    },
    /// A power of two: MXFP4.
    E8m0,
}

/// E2M1 codes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fp4(pub Scale);

/// What NVFP4 divides the factors of a tensor of this largest magnitude by, so that the largest factor is E4M3's largest.
pub(crate) fn global(largest: f32) -> f32 {
    let global = MOST_E4M3 * MOST / largest;
    if global.is_finite() && global > 0.0 { global } else { 1.0 }
}

impl Fp4 {
    /// The byte that stores a factor (of E4M3 and E8M0).
    pub fn byte(&self, scale: f32) -> u8 {
        match self.0 {
            Scale::E4m3 { global } => encode_e4m3(scale * global),
            Scale::F16 | Scale::E8m0 => (scale.to_bits() >> 23) as u8,
        }
    }

    fn rounded(&self, scale: f32) -> f32 {
        match self.0 {
            Scale::F16 => positive(Rounding::F16, scale),
            Scale::E4m3 { global } => match encode_e4m3(scale * global) {
                0 => e4m3(1) / global,
                code => e4m3(code) / global,
            },
            Scale::E8m0 => scale,
        }
    }
}

impl Grid for Fp4 {
    fn candidates(&self, weights: &[f32], each: &mut dyn FnMut(Factors)) {
        let most = largest(weights);
        let mut put = |scale: f32| each(Factors { scale: self.rounded(scale), offset: 0.0 });
        if let Scale::E8m0 = self.0 {
            // OCP's rule: the largest magnitude's power of two becomes that of 6, which is 4; then the next larger.
            let exponent = i32::from((most.to_bits() >> 23) as u8) - 2;
            let power = |byte: i32| e8m0(byte.clamp(1, 254) as u8);
            let floor = if most == 0.0 { 127 } else { exponent };
            put(power(floor));
            put(power(floor + 1));
            return;
        }
        // The largest magnitude somewhat beyond the last value, then around the last but one, 4.
        for i in 0..9 {
            put((1.0 - 0.05 * i as f32) * most / MOST);
        }
        for i in 0..7 {
            put((1.0 - 0.05 * i as f32) * most / 4.0);
        }
    }

    #[inline(always)]
    fn round(&self, factors: Factors, weight: f32) -> f32 {
        let size = (weight / factors.scale).abs();
        // Values are 0.5 apart below 2, 1 apart below 4, then 2.
        let step = if size < 2.0 { 0.5 } else { 1.0 };
        let step = if size < 4.0 { step } else { 2.0 };
        let rounded = (nearest(size.min(MOST) / step) * step).min(MOST);
        (factors.scale * rounded).copysign(weight)
    }

    fn code(&self, factors: Factors, value: f32) -> u8 {
        let size = nearest((value / factors.scale).abs() * 2.0) / 2.0;
        let code = E2M1[..8].iter().position(|v| *v >= size).unwrap_or(7) as u8;
        if value < 0.0 && code > 0 { code | 8 } else { code }
    }

    fn value(&self, factors: Factors, code: u8) -> f32 {
        factors.scale * E2M1[usize::from(code & 15)]
    }
}

/// The E4M3 code nearest to `x` of no sign, ties to even; what is beyond the largest becomes the largest.
pub(crate) fn encode_e4m3(x: f32) -> u8 {
    const LAST: u8 = 0x7e;
    let (mut low, mut high) = (0, LAST);
    // The last code whose value is at most x.
    while low < high {
        let middle = (low + high).div_ceil(2);
        if e4m3(middle) <= x { low = middle } else { high = middle - 1 }
    }
    if low == LAST {
        return LAST;
    }
    let (below, above) = (x - e4m3(low), e4m3(low + 1) - x);
    if above < below || (above == below && low % 2 == 1) { low + 1 } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published pairs, halfway points by hand, and the ends.
    #[test]
    fn e4m3_is_rounded_to_nearest_even() {
        for (x, code) in [
            (1.0, 0x38),
            (3.25, 0x45),
            (0.015625, 0x08),
            (448.0, 0x7e),
            (1e9, 0x7e),
            (0.0, 0),
            (0.001953125, 1),
            // Between 1 and 1.125, and between 1.125 and 1.25.
            (1.0625, 0x38),
            (1.1875, 0x3a),
            (1.07, 0x39),
            (0.0009765625, 0),
        ] {
            assert_eq!(encode_e4m3(x), code, "{x}");
        }
    }

    /// Thresholds of E2M1's rounding to nearest even.
    #[test]
    fn e2m1_is_rounded_to_nearest_even() {
        let grid = Fp4(Scale::F16);
        let factors = Factors { scale: 1.0, offset: 0.0 };
        for (x, value, code) in [
            (0.25, 0.0, 0),
            (0.26, 0.5, 1),
            (0.75, 1.0, 2),
            (1.25, 1.0, 2),
            (1.26, 1.5, 3),
            (1.75, 2.0, 4),
            (2.5, 2.0, 4),
            (2.6, 3.0, 5),
            (3.5, 4.0, 6),
            (5.0, 4.0, 6),
            (5.1, 6.0, 7),
            (100.0, 6.0, 7),
            (-0.25, 0.0, 0),
            (-0.3, -0.5, 9),
            (-5.1, -6.0, 15),
        ] {
            let found = grid.round(factors, x);
            assert_eq!(found, value, "{x}");
            assert_eq!(grid.code(factors, found), code, "{x}");
        }
    }
}
