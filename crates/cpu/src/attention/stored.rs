//! What key/value memory stores, and how floats become bytes.
//!
//! Bytes belong to a vector (the key or the value of one head of one token, or a part of a latent) and share its scale,
//! an `f32`: a value is its byte's number times the scale. The largest magnitude of the vector becomes the largest
//! number of the type, 127 or 448. E4M3 needs the scale too: keys beyond 448 exist (layers with a bias on their keys),
//! and numbers below 2^-6 lose precision.

use crate::DType;

/// An element type of key/value memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// As numbers of their own.
    Float(DType),
    /// Signed bytes, -127 to 127, with a scale for each vector: off by at most 1/254 of the vector's largest magnitude.
    Int8,
    /// E4M3 (OCP 8-bit floating point, no infinities) with a scale for each vector: off by at most 2^-4 of itself, or
    /// 2^-16 of the vector's largest.
    Fp8,
}

impl From<DType> for Stored {
    fn from(dtype: DType) -> Self {
        Stored::Float(dtype)
    }
}

/// Bytes of a scale.
pub(super) const SCALE: usize = 4;

impl Stored {
    /// Bytes of an element, without its share of a scale.
    pub const fn size(self) -> usize {
        match self {
            Stored::Float(dtype) => dtype.size(),
            Stored::Int8 | Stored::Fp8 => 1,
        }
    }

    /// Whether vectors have a scale.
    pub const fn scaled(self) -> bool {
        !matches!(self, Stored::Float(_))
    }

    /// Elements that lie together, as products take them: along a key, and along the positions of values.
    pub(super) const fn group(self) -> usize {
        match self {
            Stored::Float(DType::Bf16) => 2,
            Stored::Float(_) => 1,
            Stored::Int8 | Stored::Fp8 => 4,
        }
    }

    /// The scale of a vector, and what its values are multiplied with before they are rounded.
    pub(super) fn scale(self, values: &[f32]) -> (f32, f32) {
        let top = if self == Stored::Fp8 { TOP } else { 127.0 };
        // A value that is not a number makes the scale one that is not, and so is not lost.
        let most = values.iter().fold(0.0f32, |m, x| if m >= x.abs() { m } else { x.abs() });
        if most == 0.0 { (0.0, 0.0) } else { (most / top, top / most) }
    }

    /// The byte nearest to a value that has been divided by its scale.
    pub(super) fn code(self, v: f32) -> u8 {
        match self {
            Stored::Fp8 => to_e4m3(v),
            _ => v.round_ties_even().clamp(-127.0, 127.0) as i8 as u8,
        }
    }
}

/// The largest E4M3 number.
const TOP: f32 = 448.0;

/// The smallest normal E4M3 number, 1/28672 of the largest.
const LEAST: f32 = 1.0 / 64.0;

/// The nearest normal E4M3 number or zero, ties to even, at most 448. The seven subnormal numbers are left out: where
/// they are widened, each would cost a hundred cycles, and they are far below the error of the vector's other values.
fn to_e4m3(v: f32) -> u8 {
    let sign = (v.to_bits() >> 24) as u8 & 0x80;
    let v = v.abs().min(TOP);
    if v < LEAST {
        return if v > LEAST / 2.0 { sign | 8 } else { sign };
    }
    let bits = v.to_bits();
    let rounded = bits + 0x7_ffff + (bits >> 20 & 1);
    sign | ((rounded >> 20) - (120 << 3)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use marlin_checkpoint::weight::values::e4m3;

    #[test]
    fn every_normal_number_of_e4m3_is_its_own_nearest() {
        for code in (0..=0xffu8).filter(|c| c & 0x7f == 0 || (8..0x7f).contains(&(c & 0x7f))) {
            assert_eq!(to_e4m3(e4m3(code)), code, "{code:#x}");
        }
        assert_eq!((to_e4m3(1e9), to_e4m3(-1e9)), (0x7e, 0xfe));
    }

    #[test]
    fn between_two_numbers_the_nearer_is_taken_and_ties_go_to_even() {
        assert_eq!((to_e4m3(LEAST / 2.0), to_e4m3((LEAST / 2.0).next_up())), (0, 8));
        for code in 8..0x7eu8 {
            let (a, b) = (e4m3(code), e4m3(code + 1));
            let middle = (a + b) / 2.0;
            assert_eq!(to_e4m3(middle), code + (code & 1), "{code:#x}");
            assert_eq!((to_e4m3(middle.next_down()), to_e4m3(middle.next_up())), (code, code + 1));
        }
    }
}
