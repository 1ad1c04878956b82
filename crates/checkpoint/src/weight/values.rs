//! Small floating-point numbers of 4 and 8 bits, as f32.

/// E2M1 (FP4), by code; bit 3 is the sign.
pub const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// E4M3 without infinities (OCP "fn"): bias 7, largest 448, `0x7f` and `0xff` are NaN.
pub fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * exp2(-9),
        _ => (8.0 + mantissa) * exp2(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// E5M2: the upper byte of an f16, infinities and NaN included.
pub fn e5m2(code: u8) -> f32 {
    half::f16::from_bits(u16::from(code) << 8).to_f32()
}

/// E8M0: 2^(code - 127); 255 is NaN.
pub fn e8m0(code: u8) -> f32 {
    if code == 255 { f32::NAN } else { exp2(i32::from(code) - 127) }
}

/// 2^n for n in -127..=127.
fn exp2(n: i32) -> f32 {
    // 2^-127 is subnormal: one bit of the mantissa.
    if n == -127 { f32::from_bits(1 << 22) } else { f32::from_bits(((n + 127) as u32) << 23) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published examples of each format.
    #[test]
    fn published_values() {
        for (code, value) in
            [(0x38, 1.0), (0x45, 3.25), (0x08, 0.015625), (0x01, 0.001953125), (0x7e, 448.0), (0xb8, -1.0)]
        {
            assert_eq!(e4m3(code), value, "{code:#x}");
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        for (code, value) in [(0x3c, 1.0), (0x7b, 57344.0), (0x01, 2f32.powi(-16)), (0xc0, -2.0)] {
            assert_eq!(e5m2(code), value, "{code:#x}");
        }
        assert!(e5m2(0x7c).is_infinite() && e5m2(0x7f).is_nan());
        assert_eq!((e8m0(127), e8m0(0x80), e8m0(254)), (1.0, 2.0, 2f32.powi(127)));
        assert_eq!(f64::from(e8m0(0)), 2f64.powi(-127));
        assert_eq!(f64::from(e8m0(1)), 2f64.powi(-126));
        assert!(e8m0(255).is_nan());
        assert_eq!(E2M1[9], -0.5);
    }
}
