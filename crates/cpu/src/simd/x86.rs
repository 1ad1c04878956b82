//! AVX2 with FMA and F16C: sixteen lanes in two registers.

use super::{Kernel, Level, Simd};
use std::arch::x86_64::*;

/// The AVX2 level.
#[derive(Clone, Copy)]
pub struct Avx2;

/// Runs a kernel with AVX2, FMA and F16C enabled.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<Avx2>() }
}

macro_rules! both {
    ($f:ident, $($a:expr),+) => {
        [$f($($a[0]),+), $f($($a[1]),+)]
    };
}

#[inline(always)]
unsafe fn widen(v: __m128i) -> __m256 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(v))) }
}

#[inline(always)]
unsafe fn even(v: __m256i) -> __m256 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)) }
}

#[inline(always)]
unsafe fn odd(v: __m256i) -> __m256 {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(0xffff_0000u32 as i32))) }
}

#[inline(always)]
unsafe fn pow2(n: __m256) -> __m256 {
    // SAFETY: only called with the level's features enabled.
    unsafe {
        let e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(e))
    }
}

/// Rounds eight values to `bf16` bits in the low halves of 32-bit lanes; a value that is not a number stays one.
#[inline(always)]
unsafe fn round_bf16(v: __m256) -> __m256i {
    // SAFETY: only called with the level's features enabled.
    unsafe {
        let b = _mm256_castps_si256(v);
        let lsb = _mm256_and_si256(_mm256_srli_epi32::<16>(b), _mm256_set1_epi32(1));
        let r = _mm256_add_epi32(b, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
        let quiet = _mm256_or_si256(b, _mm256_set1_epi32(0x40_0000));
        let r = _mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(r), _mm256_castsi256_ps(quiet), nan));
        _mm256_srli_epi32::<16>(r)
    }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx2 {
    type B = [__m256i; 2];
    const LEVEL: Level = Level::Avx2;
    const BF16: bool = false;
    const MR: usize = 2;
    const NR: usize = 3;
    const QR: usize = 3;

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { [_mm256_set1_ps(v); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, v[0]);
            _mm256_storeu_ps(p.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        unsafe { [widen(_mm_loadu_si128(p.cast())), widen(_mm_loadu_si128(p.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast()))] }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u8) -> (Self::F, Self::F) {
        unsafe {
            let v: [__m256i; 2] = [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())];
            ([even(v[0]), even(v[1])], [odd(v[0]), odd(v[1])])
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u8, v: Self::F) {
        unsafe {
            let packed = _mm256_packus_epi32(round_bf16(v[0]), round_bf16(v[1]));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u8, v: Self::F) {
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<0>(v[0]));
            _mm_storeu_si128(p.add(16).cast(), _mm256_cvtps_ph::<0>(v[1]));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_add_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_sub_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_mul_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_div_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { both!(_mm256_fmadd_ps, a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_max_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { both!(_mm256_min_ps, a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe { [_mm256_round_ps::<8>(a[0]), _mm256_round_ps::<8>(a[1])] }
    }
    #[inline(always)]
    unsafe fn exp2i(n: Self::F) -> Self::F {
        unsafe { [pow2(n[0]), pow2(n[1])] }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        unsafe {
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])),
                _mm256_blendv_ps(y[1], x[1], _mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn first(n: usize, x: Self::F, y: Self::F) -> Self::F {
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            let m0 = _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lane);
            let m1 = _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32 - 8), lane);
            [
                _mm256_blendv_ps(y[0], x[0], _mm256_castsi256_ps(m0)),
                _mm256_blendv_ps(y[1], x[1], _mm256_castsi256_ps(m1)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        unsafe {
            let v = _mm256_add_ps(a[0], a[1]);
            let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        unsafe {
            let v = _mm256_max_ps(a[0], a[1]);
            let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
    #[inline(always)]
    unsafe fn load_quarters(p: *const f32) -> Self::F {
        unsafe { [_mm256_broadcast_ps(&p.cast::<__m128>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn zip_quarters(a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        unsafe { (both!(_mm256_unpacklo_ps, a, b), both!(_mm256_unpackhi_ps, a, b)) }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const u8) -> Self::B {
        unsafe { [_mm256_set1_epi32(p.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn keep_first(b: Self::B) -> Self::B {
        unsafe {
            let low = _mm256_set1_epi32(0xffff);
            [_mm256_and_si256(b[0], low), _mm256_and_si256(b[1], low)]
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::F, a: Self::B, b: Self::B) -> Self::F {
        unsafe {
            let mut out = acc;
            for i in 0..2 {
                out[i] = _mm256_fmadd_ps(even(a[i]), even(b[i]), out[i]);
                out[i] = _mm256_fmadd_ps(odd(a[i]), odd(b[i]), out[i]);
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
