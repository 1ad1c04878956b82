//! NEON's FEAT_FP16: thirty-two `f16` lanes in four registers.

use super::quarters::{HalfKernel, Quarters};
use half::f16;
use std::arch::aarch64::*;

/// The lanes.
struct NeonF16;

/// Runs a kernel with NEON and FEAT_FP16 enabled.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "neon,fp16")]
pub unsafe fn run<K: HalfKernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<NeonF16>() }
}

macro_rules! each {
    ($f:ident, $($a:expr),+) => {
        [$f($($a[0]),+), $f($($a[1]),+), $f($($a[2]),+), $f($($a[3]),+)]
    };
}

#[inline(always)]
unsafe fn load(p: *const f16) -> float16x8_t {
    // SAFETY: the caller vouches for eight values.
    unsafe { vreinterpretq_f16_u16(vld1q_u16(p.cast())) }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Quarters for NeonF16 {
    type N = f16;
    type V = [float16x8_t; 4];
    const SIZE: usize = 8;
    const SUMS: usize = 4;

    #[inline(always)]
    unsafe fn load(p: *const f16) -> Self::V {
        unsafe { [load(p), load(p.add(8)), load(p.add(16)), load(p.add(24))] }
    }
    #[inline(always)]
    unsafe fn load_quarters(p: *const f16) -> Self::V {
        unsafe { [load(p); 4] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f16, v: Self::V) {
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                vst1q_u16(p.add(8 * i).cast(), vreinterpretq_u16_f16(v));
            }
        }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        unsafe { each!(vsubq_f16, a, b) }
    }
    #[inline(always)]
    unsafe fn add_square(a: Self::V, b: Self::V) -> Self::V {
        unsafe { each!(vfmaq_f16, b, a, a) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { each!(vminq_f16, a, b) }
    }
    #[inline(always)]
    unsafe fn zip(a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        unsafe { (each!(vzip1q_f16, a, b), each!(vzip2q_f16, a, b)) }
    }
}
