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

    fn factors(&self, scale: f32) -> Factors {
        let scale = match self.0 {
            Scale::F16 => positive(Rounding::F16, scale),
            Scale::E4m3 { global } => e4m3(encode_e4m3(scale * global).max(1)) / global,
            Scale::E8m0 => scale,
        };
        Factors { scale, offset: 0.0 }
    }
}

/// OCP's exponent: the largest magnitude's power of two becomes that of 6, which is 4.
fn floor(most: f32) -> i32 {
    const BIAS: i32 = 127;
    if most == 0.0 { BIAS } else { i32::from((most.to_bits() >> 23) as u8) - 2 }
}

/// The power of two with this exponent, of those that are neither 2^-127 (subnormal) nor beyond 2^127.
fn power(exponent: i32) -> Factors {
    Factors { scale: e8m0(exponent.clamp(1, 254) as u8), offset: 0.0 }
}

impl Grid for Fp4 {
    fn plain(&self, weights: &[f32]) -> Factors {
        let most = largest(weights);
        match self.0 {
            Scale::E8m0 => power(floor(most)),
            _ => self.factors(most / MOST),
        }
    }

    fn others(&self, weights: &[f32], each: &mut dyn FnMut(Factors)) {
        let most = largest(weights);
        if let Scale::E8m0 = self.0 {
            each(power(floor(most) + 1));
            return;
        }
        // The largest magnitude somewhat beyond the last value, then around the last but one, 4.
        for i in 1..9 {
            each(self.factors((1.0 - 0.05 * i as f32) * most / MOST));
        }
        for i in 0..7 {
            each(self.factors((1.0 - 0.05 * i as f32) * most / 4.0));
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
        let halves = nearest((value / factors.scale).abs() * 2.0) as u8;
        let code = match halves {
            0..4 => halves,
            4..8 => halves / 2 + 2,
            _ => halves / 4 + 4,
        };
        if value < 0.0 && code > 0 { code | 8 } else { code }
    }

    fn value(&self, factors: Factors, code: u8) -> f32 {
        factors.scale * E2M1[usize::from(code & 15)]
    }
}

/// The E4M3 code nearest to `x` of no sign, ties to even; what is beyond the largest becomes the largest.
pub(crate) fn encode_e4m3(x: f32) -> u8 {
    let x = x.min(MOST_E4M3);
    if x < 1.0 / 64.0 {
        // Subnormal: steps of 2^-9.
        return nearest(x * 512.0) as u8;
    }
    // Twenty bits of the mantissa are rounded away; the bias is 7 instead of 127.
    let bits = x.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    ((rounded >> 20) - (120 << 3)) as u8
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
            (0.0029296875, 2),
            (0.0156, 8),
            (0.0147, 8),
            (0.0146, 7),
            (431.0, 0x7d),
            (432.0, 0x7e),
            (433.0, 0x7e),
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
