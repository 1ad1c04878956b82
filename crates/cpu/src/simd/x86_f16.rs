//! AVX512-FP16: thirty-two `f16` lanes in one register.

use super::quarters::{HalfKernel, Quarters};
use half::f16;
use std::arch::x86_64::*;

/// The lanes.
struct Avx512F16;

/// Runs a kernel with AVX-512 F, BW, DQ, VL and FP16 enabled.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512fp16")]
pub unsafe fn run<K: HalfKernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<Avx512F16>() }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Quarters for Avx512F16 {
    type N = f16;
    type V = __m512h;
    const SIZE: usize = 8;
    const SUMS: usize = 8;

    #[inline(always)]
    unsafe fn load(p: *const f16) -> __m512h {
        unsafe { _mm512_castsi512_ph(_mm512_loadu_si512(p.cast())) }
    }
    #[inline(always)]
    unsafe fn load_quarters(p: *const f16) -> __m512h {
        unsafe { _mm512_castsi512_ph(_mm512_broadcast_i32x4(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f16, v: __m512h) {
        unsafe { _mm512_storeu_si512(p.cast(), _mm512_castph_si512(v)) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512h, b: __m512h) -> __m512h {
        unsafe { _mm512_sub_ph(a, b) }
    }
    #[inline(always)]
    unsafe fn add_square(a: __m512h, b: __m512h) -> __m512h {
        unsafe { _mm512_fmadd_ph(a, a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512h, b: __m512h) -> __m512h {
        unsafe { _mm512_min_ph(a, b) }
    }
    #[inline(always)]
    unsafe fn zip(a: __m512h, b: __m512h) -> (__m512h, __m512h) {
        unsafe {
            let (a, b) = (_mm512_castph_si512(a), _mm512_castph_si512(b));
            (_mm512_castsi512_ph(_mm512_unpacklo_epi16(a, b)), _mm512_castsi512_ph(_mm512_unpackhi_epi16(a, b)))
        }
    }
}
