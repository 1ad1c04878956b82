//! AVX-512: one register; VNNI where the level has it.

use super::Int8;
use crate::simd::x86_512::Avx512;
use std::arch::x86_64::*;

/// `v >> S` in 16-bit lanes; what crosses a byte is masked away by the caller.
#[inline(always)]
unsafe fn shift<const S: u32, const T: u32>(v: __m512i) -> __m512i {
    // SAFETY: only called with the level's features enabled.
    unsafe {
        match T as i32 - S as i32 {
            -7 => _mm512_srli_epi16::<7>(v),
            -6 => _mm512_srli_epi16::<6>(v),
            -5 => _mm512_srli_epi16::<5>(v),
            -4 => _mm512_srli_epi16::<4>(v),
            -3 => _mm512_srli_epi16::<3>(v),
            -2 => _mm512_srli_epi16::<2>(v),
            -1 => _mm512_srli_epi16::<1>(v),
            0 => v,
            1 => _mm512_slli_epi16::<1>(v),
            2 => _mm512_slli_epi16::<2>(v),
            3 => _mm512_slli_epi16::<3>(v),
            4 => _mm512_slli_epi16::<4>(v),
            5 => _mm512_slli_epi16::<5>(v),
            _ => _mm512_slli_epi16::<6>(v),
        }
    }
}

/// Signed bytes in the upper eighth of 32-bit lanes as floats.
#[inline(always)]
unsafe fn top_i8(v: __m512i) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(v)) }
}

/// E4M3 numbers in the upper eighth of 32-bit lanes as floats.
#[inline(always)]
unsafe fn top_e4m3(v: __m512i) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe {
        // Sign, exponent and mantissa where f32 has them, 2^120 too small.
        let small = _mm512_and_si512(_mm512_srai_epi32::<4>(v), _mm512_set1_epi32(0x87f0_0000u32 as i32));
        _mm512_mul_ps(_mm512_castsi512_ps(small), _mm512_set1_ps(f32::from_bits((127 + 120) << 23)))
    }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Int8 for Avx512<DOT> {
    type F = __m512;
    type V = __m512i;
    type I = __m512i;
    const FULL: bool = DOT;
    const BYTE_ROWS: usize = 6;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn field<const S: u32, const MASK: u8>(v: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(shift::<S, 0>(v), _mm512_set1_epi8(MASK as i8)) }
    }
    #[inline(always)]
    unsafe fn insert<const S: u32, const MASK: u8, const T: u32>(base: __m512i, v: __m512i) -> __m512i {
        // base | (shifted & mask) in one instruction: truth table of a | (b & c).
        unsafe {
            _mm512_ternarylogic_epi32::<0xf8>(
                base,
                shift::<S, T>(v),
                _mm512_set1_epi8(((MASK as u32) << T) as u8 as i8),
            )
        }
    }
    #[inline(always)]
    unsafe fn table(p: *const u8) -> __m512i {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn look_up(table: __m512i, v: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(table, v) }
    }
    #[inline(always)]
    unsafe fn splat_i32(p: *const i32) -> __m512i {
        unsafe { _mm512_set1_epi32(p.read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const WIDE: bool>(acc: __m512i, w: __m512i, x: *const u8) -> __m512i {
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read_unaligned());
            if DOT {
                return _mm512_dpbusd_epi32(acc, w, x);
            }
            let ones = _mm512_set1_epi16(1);
            if !WIDE {
                return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), ones));
            }
            // Sums of two products of a full byte do not fit 16 bits: low and high halves apart.
            let low = _mm512_maddubs_epi16(Self::field::<0, 15>(w), x);
            let high = _mm512_maddubs_epi16(Self::field::<4, 15>(w), x);
            let high = _mm512_madd_epi16(high, _mm512_set1_epi16(16));
            _mm512_add_epi32(acc, _mm512_add_epi32(_mm512_madd_epi16(low, ones), high))
        }
    }
    #[inline(always)]
    unsafe fn no_sums() -> Self::I {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn add_sums(a: Self::I, b: Self::I) -> Self::I {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn to_f32(acc: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(acc) }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut u8, v: __m512) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> __m512 {
        unsafe {
            let v = _mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()));
            // Sign, four bits of exponent and three of mantissa where f32 has them, 2^120 too small.
            let magnitude = _mm512_slli_epi32::<20>(_mm512_and_si512(v, _mm512_set1_epi32(0x7f)));
            let sign = _mm512_and_si512(v, _mm512_set1_epi32(i32::MIN));
            let small = _mm512_castsi512_ps(_mm512_or_si512(magnitude, sign));
            _mm512_mul_ps(small, _mm512_set1_ps(f32::from_bits((127 + 120) << 23)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8_quads(p: *const u8) -> [__m512; 4] {
        unsafe {
            let v = _mm512_loadu_si512(p.cast());
            let (a, b, c) = (_mm512_slli_epi32::<24>(v), _mm512_slli_epi32::<16>(v), _mm512_slli_epi32::<8>(v));
            [top_i8(a), top_i8(b), top_i8(c), top_i8(v)]
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3_quads(p: *const u8) -> [__m512; 4] {
        unsafe {
            let v = _mm512_loadu_si512(p.cast());
            let (a, b, c) = (_mm512_slli_epi32::<24>(v), _mm512_slli_epi32::<16>(v), _mm512_slli_epi32::<8>(v));
            [top_e4m3(a), top_e4m3(b), top_e4m3(c), top_e4m3(v)]
        }
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> __m512 {
        unsafe {
            let v = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            // 2^-127 is subnormal: half of 2^-126.
            let bits = _mm512_max_epu32(_mm512_slli_epi32::<23>(v), _mm512_set1_epi32(1 << 22));
            _mm512_castsi512_ps(bits)
        }
    }
}
