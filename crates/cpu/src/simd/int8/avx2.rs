//! AVX2: two registers.

use super::Int8;
use crate::simd::x86::Avx2;
use std::arch::x86_64::*;

/// `v >> S` in 16-bit lanes, or `v << -S`; what crosses a byte is masked away by the caller.
#[inline(always)]
unsafe fn shift<const S: u32, const T: u32>(v: __m256i) -> __m256i {
    // SAFETY: only called with the level's features enabled.
    unsafe {
        match T as i32 - S as i32 {
            -7 => _mm256_srli_epi16::<7>(v),
            -6 => _mm256_srli_epi16::<6>(v),
            -5 => _mm256_srli_epi16::<5>(v),
            -4 => _mm256_srli_epi16::<4>(v),
            -3 => _mm256_srli_epi16::<3>(v),
            -2 => _mm256_srli_epi16::<2>(v),
            -1 => _mm256_srli_epi16::<1>(v),
            0 => v,
            1 => _mm256_slli_epi16::<1>(v),
            2 => _mm256_slli_epi16::<2>(v),
            3 => _mm256_slli_epi16::<3>(v),
            4 => _mm256_slli_epi16::<4>(v),
            5 => _mm256_slli_epi16::<5>(v),
            _ => _mm256_slli_epi16::<6>(v),
        }
    }
}

/// Sums of four products of unsigned bytes below 128 with signed ones.
#[inline(always)]
unsafe fn quads(w: __m256i, x: __m256i, factor: i16) -> __m256i {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(factor)) }
}

/// Signed bytes in the upper eighth of 32-bit lanes as floats.
#[inline(always)]
unsafe fn top_i8(v: __m256i) -> __m256 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(v)) }
}

/// E4M3 numbers in the upper eighth of 32-bit lanes as floats.
#[inline(always)]
unsafe fn top_e4m3(v: __m256i) -> __m256 {
    // SAFETY: only called with the level's features enabled.
    unsafe {
        // Sign, exponent and mantissa where f32 has them, 2^120 too small.
        let small = _mm256_and_si256(_mm256_srai_epi32::<4>(v), _mm256_set1_epi32(0x87f0_0000u32 as i32));
        _mm256_mul_ps(_mm256_castsi256_ps(small), _mm256_set1_ps(f32::from_bits((127 + 120) << 23)))
    }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Int8 for Avx2 {
    type F = [__m256; 2];
    type V = [__m256i; 2];
    type I = [__m256i; 2];
    const FULL: bool = false;
    const BYTE_ROWS: usize = 1;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::V {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::V) {
        unsafe {
            _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(32).cast(), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn field<const S: u32, const MASK: u8>(v: Self::V) -> Self::V {
        unsafe {
            let mask = _mm256_set1_epi8(MASK as i8);
            [_mm256_and_si256(shift::<S, 0>(v[0]), mask), _mm256_and_si256(shift::<S, 0>(v[1]), mask)]
        }
    }
    #[inline(always)]
    unsafe fn insert<const S: u32, const MASK: u8, const T: u32>(base: Self::V, v: Self::V) -> Self::V {
        unsafe {
            let mask = _mm256_set1_epi8(((MASK as u32) << T) as u8 as i8);
            let one = |i: usize| _mm256_or_si256(base[i], _mm256_and_si256(shift::<S, T>(v[i]), mask));
            [one(0), one(1)]
        }
    }
    #[inline(always)]
    unsafe fn table(p: *const u8) -> Self::V {
        unsafe { [_mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())); 2] }
    }
    #[inline(always)]
    unsafe fn look_up(table: Self::V, v: Self::V) -> Self::V {
        unsafe { [_mm256_shuffle_epi8(table[0], v[0]), _mm256_shuffle_epi8(table[1], v[1])] }
    }
    #[inline(always)]
    unsafe fn splat_i32(p: *const i32) -> Self::I {
        unsafe { [_mm256_set1_epi32(p.read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const WIDE: bool>(acc: Self::I, w: Self::V, x: *const u8) -> Self::I {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            if !WIDE {
                let one = |i: usize| _mm256_add_epi32(acc[i], quads(w[i], x, 1));
                return [one(0), one(1)];
            }
            let (low, high) = (Self::field::<0, 15>(w), Self::field::<4, 15>(w));
            let one = |i: usize| _mm256_add_epi32(acc[i], _mm256_add_epi32(quads(low[i], x, 1), quads(high[i], x, 16)));
            [one(0), one(1)]
        }
    }
    #[inline(always)]
    unsafe fn no_sums() -> Self::I {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn add_sums(a: Self::I, b: Self::I) -> Self::I {
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn to_f32(acc: Self::I) -> Self::F {
        unsafe { [_mm256_cvtepi32_ps(acc[0]), _mm256_cvtepi32_ps(acc[1])] }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe {
            let one = |i: usize| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast())));
            [one(0), one(1)]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        unsafe {
            let one = |i: usize| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * i).cast())));
            [one(0), one(1)]
        }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut u8, v: Self::F) {
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self::F {
        unsafe {
            let one = |i: usize| {
                let v = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()));
                let magnitude = _mm256_slli_epi32::<20>(_mm256_and_si256(v, _mm256_set1_epi32(0x7f)));
                let sign = _mm256_and_si256(v, _mm256_set1_epi32(i32::MIN));
                let small = _mm256_castsi256_ps(_mm256_or_si256(magnitude, sign));
                _mm256_mul_ps(small, _mm256_set1_ps(f32::from_bits((127 + 120) << 23)))
            };
            [one(0), one(1)]
        }
    }
    #[inline(always)]
    unsafe fn load_i8_quads(p: *const u8) -> [Self::F; 4] {
        unsafe {
            let v = [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())];
            let a = [_mm256_slli_epi32::<24>(v[0]), _mm256_slli_epi32::<24>(v[1])];
            let b = [_mm256_slli_epi32::<16>(v[0]), _mm256_slli_epi32::<16>(v[1])];
            let c = [_mm256_slli_epi32::<8>(v[0]), _mm256_slli_epi32::<8>(v[1])];
            [
                [top_i8(a[0]), top_i8(a[1])],
                [top_i8(b[0]), top_i8(b[1])],
                [top_i8(c[0]), top_i8(c[1])],
                [top_i8(v[0]), top_i8(v[1])],
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3_quads(p: *const u8) -> [Self::F; 4] {
        unsafe {
            let v = [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())];
            let a = [_mm256_slli_epi32::<24>(v[0]), _mm256_slli_epi32::<24>(v[1])];
            let b = [_mm256_slli_epi32::<16>(v[0]), _mm256_slli_epi32::<16>(v[1])];
            let c = [_mm256_slli_epi32::<8>(v[0]), _mm256_slli_epi32::<8>(v[1])];
            [
                [top_e4m3(a[0]), top_e4m3(a[1])],
                [top_e4m3(b[0]), top_e4m3(b[1])],
                [top_e4m3(c[0]), top_e4m3(c[1])],
                [top_e4m3(v[0]), top_e4m3(v[1])],
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        unsafe {
            let one = |i: usize| {
                let v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.add(8 * i).cast()));
                _mm256_castsi256_ps(_mm256_max_epu32(_mm256_slli_epi32::<23>(v), _mm256_set1_epi32(1 << 22)))
            };
            [one(0), one(1)]
        }
    }
}
