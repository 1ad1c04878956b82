//! aarch64 NEON: sixteen lanes in four registers, with or without the `bf16` dot product.

use super::{Kernel, Level, Simd};
use std::arch::aarch64::*;
use std::arch::asm;

/// The NEON level; `DOT` says whether the machine has FEAT_BF16.
#[derive(Clone, Copy)]
pub struct Neon<const DOT: bool>;

/// Runs a kernel with NEON enabled.
///
/// # Safety
/// The machine must have it.
#[target_feature(enable = "neon")]
pub unsafe fn run_plain<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<Neon<false>>() }
}

/// Runs a kernel with NEON and FEAT_BF16 enabled.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "neon,bf16")]
pub unsafe fn run_bf16<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<Neon<true>>() }
}

macro_rules! each {
    ($f:ident, $($a:expr),+) => {
        [$f($($a[0]),+), $f($($a[1]),+), $f($($a[2]),+), $f($($a[3]),+)]
    };
}

#[inline(always)]
unsafe fn even(v: uint16x8_t) -> float32x4_t {
    // SAFETY: only called with the level's features enabled.
    unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_u16(v))) }
}

#[inline(always)]
unsafe fn odd(v: uint16x8_t) -> float32x4_t {
    // SAFETY: only called with the level's features enabled.
    unsafe { vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u16(v), vdupq_n_u32(0xffff_0000))) }
}

#[inline(always)]
unsafe fn round_bf16(v: float32x4_t) -> uint16x4_t {
    // SAFETY: only called with the level's features enabled.
    unsafe {
        let b = vreinterpretq_u32_f32(v);
        let lsb = vandq_u32(vshrq_n_u32::<16>(b), vdupq_n_u32(1));
        let r = vaddq_u32(b, vaddq_u32(lsb, vdupq_n_u32(0x7fff)));
        let number = vceqq_f32(v, v);
        vshrn_n_u32::<16>(vbslq_u32(number, r, vorrq_u32(b, vdupq_n_u32(0x40_0000))))
    }
}

/// `FCVTL`: four `f16` to `f32` (the intrinsic's type is not stable).
#[inline(always)]
unsafe fn widen_f16(v: uint16x4_t) -> float32x4_t {
    let out: float32x4_t;
    // SAFETY: a register operation of the baseline instruction set.
    unsafe {
        asm!("fcvtl {o:v}.4s, {i:v}.4h", o = lateout(vreg) out, i = in(vreg) v, options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// `FCVTN`: four `f32` to `f16`.
#[inline(always)]
unsafe fn narrow_f16(v: float32x4_t) -> uint16x4_t {
    let out: uint16x4_t;
    // SAFETY: a register operation of the baseline instruction set.
    unsafe {
        asm!("fcvtn {o:v}.4h, {i:v}.4s", o = lateout(vreg) out, i = in(vreg) v, options(pure, nomem, nostack, preserves_flags));
    }
    out
}

#[inline(always)]
unsafe fn bfdot(acc: float32x4_t, a: uint16x8_t, b: uint16x8_t) -> float32x4_t {
    let mut acc = acc;
    // SAFETY: only called where FEAT_BF16 is enabled; a register operation.
    unsafe {
        asm!("bfdot {c:v}.4s, {a:v}.8h, {b:v}.8h", c = inout(vreg) acc, a = in(vreg) a, b = in(vreg) b, options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

#[inline(always)]
unsafe fn pow2(n: float32x4_t) -> float32x4_t {
    // SAFETY: only called with the level's features enabled.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)))) }
}

#[inline(always)]
unsafe fn pick_gt(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: only called with the level's features enabled.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

#[inline(always)]
unsafe fn pick_lt(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: only called with the level's features enabled.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

#[inline(always)]
unsafe fn fused(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    // SAFETY: only called with the level's features enabled.
    unsafe { vfmaq_f32(c, a, b) }
}

#[inline(always)]
unsafe fn blend_lt(a: float32x4_t, b: float32x4_t, x: float32x4_t, y: float32x4_t) -> float32x4_t {
    // SAFETY: only called with the level's features enabled.
    unsafe { vbslq_f32(vcltq_f32(a, b), x, y) }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Simd for Neon<DOT> {
    type B = [uint16x8_t; 4];
    const LEVEL: Level = if DOT { Level::NeonBf16 } else { Level::Neon };
    const BF16: bool = DOT;
    const MR: usize = 2;
    const NR: usize = 3;
    const QR: usize = 3;

    #[inline(always)]
    unsafe fn zero() -> Self::F {
        unsafe { [vdupq_n_f32(0.0); 4] }
    }
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self::F {
        unsafe { [vdupq_n_f32(v); 4] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe {
            vst1q_f32(p, v[0]);
            vst1q_f32(p.add(4), v[1]);
            vst1q_f32(p.add(8), v[2]);
            vst1q_f32(p.add(12), v[3]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        unsafe {
            let a = vld1q_u8(p);
            let b = vld1q_u8(p.add(16));
            let z = vdupq_n_u16(0);
            let (a, b) = (vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b));
            [
                vreinterpretq_f32_u16(vzip1q_u16(z, a)),
                vreinterpretq_f32_u16(vzip2q_u16(z, a)),
                vreinterpretq_f32_u16(vzip1q_u16(z, b)),
                vreinterpretq_f32_u16(vzip2q_u16(z, b)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u8) -> Self::F {
        unsafe {
            let a = vreinterpretq_u16_u8(vld1q_u8(p));
            let b = vreinterpretq_u16_u8(vld1q_u8(p.add(16)));
            [
                widen_f16(vget_low_u16(a)),
                widen_f16(vget_high_u16(a)),
                widen_f16(vget_low_u16(b)),
                widen_f16(vget_high_u16(b)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u8) -> (Self::F, Self::F) {
        unsafe {
            let v = Self::load_pairs(p);
            (each!(even, v), each!(odd, v))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u8, v: Self::F) {
        unsafe {
            let a = vcombine_u16(round_bf16(v[0]), round_bf16(v[1]));
            let b = vcombine_u16(round_bf16(v[2]), round_bf16(v[3]));
            vst1q_u8(p, vreinterpretq_u8_u16(a));
            vst1q_u8(p.add(16), vreinterpretq_u8_u16(b));
        }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut u8, v: Self::F) {
        unsafe {
            let a = vcombine_u16(narrow_f16(v[0]), narrow_f16(v[1]));
            let b = vcombine_u16(narrow_f16(v[2]), narrow_f16(v[3]));
            vst1q_u8(p, vreinterpretq_u8_u16(a));
            vst1q_u8(p.add(16), vreinterpretq_u8_u16(b));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vaddq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vsubq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vmulq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(vdivq_f32, a, b) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { each!(fused, a, b, c) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(pick_gt, a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        unsafe { each!(pick_lt, a, b) }
    }
    #[inline(always)]
    unsafe fn round(a: Self::F) -> Self::F {
        unsafe { each!(vrndnq_f32, a) }
    }
    #[inline(always)]
    unsafe fn exp2i(n: Self::F) -> Self::F {
        unsafe { each!(pow2, n) }
    }
    #[inline(always)]
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        unsafe { each!(blend_lt, a, b, x, y) }
    }
    #[inline(always)]
    unsafe fn first(n: usize, x: Self::F, y: Self::F) -> Self::F {
        const LANE: [f32; 16] = [0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.];
        unsafe {
            let lane = Self::load(LANE.as_ptr());
            Self::select_lt(lane, Self::splat(n as f32), x, y)
        }
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F) -> f32 {
        unsafe {
            let v = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let v = vadd_f32(vget_low_f32(v), vget_high_f32(v));
            vget_lane_f32::<0>(v) + vget_lane_f32::<1>(v)
        }
    }
    #[inline(always)]
    unsafe fn largest(a: Self::F) -> f32 {
        unsafe { vmaxvq_f32(pick_gt(pick_gt(a[0], a[2]), pick_gt(a[1], a[3]))) }
    }
    #[inline(always)]
    unsafe fn load_quarters(p: *const f32) -> Self::F {
        unsafe { [vld1q_f32(p); 4] }
    }
    #[inline(always)]
    unsafe fn zip_quarters(a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        unsafe { (each!(vzip1q_f32, a, b), each!(vzip2q_f32, a, b)) }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const u8) -> Self::B {
        unsafe {
            [
                vreinterpretq_u16_u8(vld1q_u8(p)),
                vreinterpretq_u16_u8(vld1q_u8(p.add(16))),
                vreinterpretq_u16_u8(vld1q_u8(p.add(32))),
                vreinterpretq_u16_u8(vld1q_u8(p.add(48))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn splat_pair(p: *const u8) -> Self::B {
        unsafe { [vreinterpretq_u16_u32(vdupq_n_u32(p.cast::<u32>().read_unaligned())); 4] }
    }
    #[inline(always)]
    unsafe fn keep_first(b: Self::B) -> Self::B {
        unsafe {
            let low = vreinterpretq_u16_u32(vdupq_n_u32(0xffff));
            [vandq_u16(b[0], low), vandq_u16(b[1], low), vandq_u16(b[2], low), vandq_u16(b[3], low)]
        }
    }
    #[inline(always)]
    unsafe fn dot(acc: Self::F, a: Self::B, b: Self::B) -> Self::F {
        unsafe {
            if DOT {
                each!(bfdot, acc, a, b)
            } else {
                let acc = Self::fma(each!(even, a), each!(even, b), acc);
                Self::fma(each!(odd, a), each!(odd, b), acc)
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe {
            asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly));
        }
    }
}
