//! AVX-512: sixteen lanes in one register, with or without the `bf16` dot product.

use super::{Kernel, Level, Simd};
use std::arch::x86_64::*;

/// The AVX-512 level; `DOT` says whether the machine has AVX512-BF16.
#[derive(Clone, Copy)]
pub struct Avx512<const DOT: bool>;

/// Runs a kernel with AVX-512 F, BW, DQ and VL enabled.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub unsafe fn run_plain<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<Avx512<false>>() }
}

/// Runs a kernel with AVX-512 F, BW, DQ, VL and BF16 and VNNI enabled.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")]
pub unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<Avx512<true>>() }
}

#[inline(always)]
unsafe fn even(v: __m512i) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)) }
}

#[inline(always)]
unsafe fn odd(v: __m512i) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(0xffff_0000u32 as i32))) }
}

/// Sums by halves of two vectors: eight lanes of `a`, then eight of `b`.
#[inline(always)]
unsafe fn halve8(a: __m512, b: __m512) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b)) }
}

/// Two results of [`halve8`] to four lanes of each of the four vectors.
#[inline(always)]
unsafe fn halve4(a: __m512, b: __m512) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)) }
}

/// Within each quarter: lanes (0+2, 1+3) of `a`, then of `b`.
#[inline(always)]
unsafe fn halve2(a: __m512, b: __m512) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x44>(a, b), _mm512_shuffle_ps::<0xee>(a, b)) }
}

/// Within each quarter: the sums of neighbours of `a`, then of `b`.
#[inline(always)]
unsafe fn halve1(a: __m512, b: __m512) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm512_add_ps(_mm512_shuffle_ps::<0x88>(a, b), _mm512_shuffle_ps::<0xdd>(a, b)) }
}

/// One quarter for each of four vectors, four lanes each.
#[inline(always)]
unsafe fn quarter(a: __m512, b: __m512, c: __m512, d: __m512) -> __m512 {
    // SAFETY: only called with the level's features enabled.
    unsafe { halve4(halve8(a, b), halve8(c, d)) }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Simd for Avx512<DOT> {
    type B = __m512i;
    const LEVEL: Level = if DOT { Level::Avx512Bf16 } else { Level::Avx512 };
    const BF16: bool = DOT;
    const MR: usize = 4;
    const NR: usize = 6;
    const QR: usize = 12;

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { _mm512_set1_ps(v) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        unsafe {
            let v = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u8) -> (Self::F, Self::F) {
        unsafe {
            let v = _mm512_loadu_si512(p.cast());
            (even(v), odd(v))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u8, v: Self::F) {
        unsafe {
            let b = _mm512_castps_si512(v);
            let lsb = _mm512_and_si512(_mm512_srli_epi32::<16>(b), _mm512_set1_epi32(1));
            let r = _mm512_add_epi32(b, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let r = _mm512_mask_or_epi32(r, nan, b, _mm512_set1_epi32(0x40_0000));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(r)));
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u8, v: Self::F) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<0>(v)) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe { _mm512_roundscale_ps::<8>(a) }
    }
    #[inline(always)]
    unsafe fn exp2i(n: Self::F) -> Self::F {
        unsafe {
            let e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(e))
        }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), y, x) }
    }
    #[inline(always)]
    unsafe fn first(n: usize, x: Self::F, y: Self::F) -> Self::F {
        unsafe { _mm512_mask_blend_ps(((1u32 << n.min(16)) - 1) as u16, y, x) }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        unsafe {
            let v = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        unsafe {
            let v = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
    #[inline(always)]
    unsafe fn load_quarters(p: *const f32) -> Self::F {
        unsafe { _mm512_broadcast_f32x4(_mm_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn zip_quarters(a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        unsafe { (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> Self::B {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const u8) -> Self::B {
        unsafe { _mm512_set1_epi32(p.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn keep_first(b: Self::B) -> Self::B {
        unsafe { _mm512_and_si512(b, _mm512_set1_epi32(0xffff)) }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::F, a: Self::B, b: Self::B) -> Self::F {
        unsafe {
            if DOT {
                _mm512_dpbf16_ps(
                    acc,
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                )
            } else {
                _mm512_fmadd_ps(odd(a), odd(b), _mm512_fmadd_ps(even(a), even(b), acc))
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn sum_tile<const M: usize, const N: usize>(acc: &[[Self::F; N]; M], out: *mut f32, ld: usize) {
        unsafe {
            if M == 4 && N == 6 {
                // Quarters in the order of rows, and in each quarter the four columns: stored without a shuffle.
                let a = quarter(acc[0][0], acc[1][0], acc[2][0], acc[3][0]);
                let b = quarter(acc[0][1], acc[1][1], acc[2][1], acc[3][1]);
                let c = quarter(acc[0][2], acc[1][2], acc[2][2], acc[3][2]);
                let d = quarter(acc[0][3], acc[1][3], acc[2][3], acc[3][3]);
                let v = halve1(halve2(a, b), halve2(c, d));
                _mm_storeu_ps(out, _mm512_castps512_ps128(v));
                _mm_storeu_ps(out.add(ld), _mm512_extractf32x4_ps::<1>(v));
                _mm_storeu_ps(out.add(2 * ld), _mm512_extractf32x4_ps::<2>(v));
                _mm_storeu_ps(out.add(3 * ld), _mm512_extractf32x4_ps::<3>(v));
                let a = quarter(acc[0][4], acc[1][4], acc[2][4], acc[3][4]);
                let b = quarter(acc[0][5], acc[1][5], acc[2][5], acc[3][5]);
                let ab = halve2(a, b);
                let v = halve1(ab, ab);
                _mm_store_sd(out.add(4).cast(), _mm_castps_pd(_mm512_castps512_ps128(v)));
                _mm_store_sd(out.add(ld + 4).cast(), _mm_castps_pd(_mm512_extractf32x4_ps::<1>(v)));
                _mm_store_sd(out.add(2 * ld + 4).cast(), _mm_castps_pd(_mm512_extractf32x4_ps::<2>(v)));
                _mm_store_sd(out.add(3 * ld + 4).cast(), _mm_castps_pd(_mm512_extractf32x4_ps::<3>(v)));
            } else {
                for (m, row) in acc.iter().enumerate() {
                    for (n, v) in row.iter().enumerate() {
                        *out.add(m * ld + n) = Self::sum(*v);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn zip(a: *const u8, b: *const u8, dst: *mut u8) {
        unsafe {
            let a = _mm512_cvtepu16_epi32(_mm256_loadu_si256(a.cast()));
            let b = _mm512_cvtepu16_epi32(_mm256_loadu_si256(b.cast()));
            _mm512_storeu_si512(dst.cast(), _mm512_or_si512(a, _mm512_slli_epi32::<16>(b)));
        }
    }

    #[inline(always)]
    unsafe fn transpose(src: *const u8, src_ld: usize, dst: *mut u8, dst_ld: usize) {
        unsafe {
            let zero = _mm512_setzero_si512();
            let mut r = [zero; 16];
            for i in 0..16 {
                r[i] = _mm512_loadu_si512(src.add(i * src_ld * 4).cast());
            }
            let mut t = [zero; 16];
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
                r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
                r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
            }
            // r[4 g + c]: rows 4 g..4 g + 4 of columns c, c + 4, c + 8, c + 12, a quarter each.
            for c in 0..4 {
                let ab_lo = _mm512_shuffle_i32x4::<0x88>(r[c], r[4 + c]);
                let ab_hi = _mm512_shuffle_i32x4::<0xdd>(r[c], r[4 + c]);
                let cd_lo = _mm512_shuffle_i32x4::<0x88>(r[8 + c], r[12 + c]);
                let cd_hi = _mm512_shuffle_i32x4::<0xdd>(r[8 + c], r[12 + c]);
                let row = |k: usize| dst.add((k * 4 + c) * dst_ld * 4);
                _mm512_storeu_si512(row(0).cast(), _mm512_shuffle_i32x4::<0x88>(ab_lo, cd_lo));
                _mm512_storeu_si512(row(2).cast(), _mm512_shuffle_i32x4::<0xdd>(ab_lo, cd_lo));
                _mm512_storeu_si512(row(1).cast(), _mm512_shuffle_i32x4::<0x88>(ab_hi, cd_hi));
                _mm512_storeu_si512(row(3).cast(), _mm512_shuffle_i32x4::<0xdd>(ab_hi, cd_hi));
            }
        }
    }
}
