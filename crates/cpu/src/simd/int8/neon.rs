//! aarch64: four registers, with the dot product of FEAT_DotProd.

use super::Int8;
use crate::simd::neon::Neon;
use std::arch::aarch64::*;
use std::arch::asm;
use std::array::from_fn;

/// `v >> S << T`, in bytes.
#[inline(always)]
unsafe fn shift<const S: u32, const T: u32>(v: uint8x16_t) -> uint8x16_t {
    // A shift by a register, left where positive; the counts are constants and hoisted.
    // SAFETY: only called with the level's features enabled.
    unsafe { vshlq_u8(v, vdupq_n_s8(T as i8 - S as i8)) }
}

/// `SDOT`: adds to each lane the four products of its signed bytes (the intrinsic is not stable).
#[inline(always)]
unsafe fn sdot(acc: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    let mut out = acc;
    // SAFETY: a register operation of FEAT_DotProd, which both NEON levels need.
    unsafe {
        asm!(".arch_extension dotprod", "sdot {o:v}.4s, {a:v}.16b, {b:v}.16b", o = inout(vreg) out, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    out
}

/// Four bytes as floats.
#[inline(always)]
unsafe fn widen(v: uint16x8_t) -> [float32x4_t; 2] {
    // SAFETY: only called with the level's features enabled.
    unsafe { [vcvtq_f32_u32(vmovl_u16(vget_low_u16(v))), vcvtq_f32_u32(vmovl_high_u16(v))] }
}

/// Sixteen bytes as 32-bit words.
#[inline(always)]
unsafe fn words(p: *const u8) -> [uint32x4_t; 4] {
    // SAFETY: the caller vouches for sixteen bytes and the level's features.
    unsafe {
        let v = vld1q_u8(p);
        let (low, high) = (vmovl_u8(vget_low_u8(v)), vmovl_high_u8(v));
        [vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)]
    }
}

/// Byte `j` of each 32-bit lane, moved to the top of the lane.
#[inline(always)]
unsafe fn top(p: *const u8, j: usize) -> [int32x4_t; 4] {
    // SAFETY: the caller vouches for 64 bytes and the level's features.
    unsafe {
        let by = vdupq_n_s32(24 - 8 * j as i32);
        from_fn(|i| vshlq_s32(vreinterpretq_s32_u8(vld1q_u8(p.add(16 * i))), by))
    }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Int8 for Neon<DOT> {
    type F = [float32x4_t; 4];
    type V = [uint8x16_t; 4];
    type I = [int32x4_t; 4];
    const FULL: bool = false;
    const BYTE_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Self::V {
        from_fn(|i| unsafe { vld1q_u8(p.add(16 * i)) })
    }
    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: Self::V) {
        for (i, v) in v.into_iter().enumerate() {
            unsafe { vst1q_u8(p.add(16 * i), v) }
        }
    }
    #[inline(always)]
    unsafe fn field<const S: u32, const MASK: u8>(v: Self::V) -> Self::V {
        v.map(|v| unsafe { vandq_u8(shift::<S, 0>(v), vdupq_n_u8(MASK)) })
    }
    #[inline(always)]
    unsafe fn insert<const S: u32, const MASK: u8, const T: u32>(base: Self::V, v: Self::V) -> Self::V {
        from_fn(|i| unsafe { vorrq_u8(base[i], vandq_u8(shift::<S, T>(v[i]), vdupq_n_u8(MASK << T))) })
    }
    #[inline(always)]
    unsafe fn table(p: *const u8) -> Self::V {
        [unsafe { vld1q_u8(p) }; 4]
    }
    #[inline(always)]
    unsafe fn look_up(table: Self::V, v: Self::V) -> Self::V {
        from_fn(|i| unsafe { vqtbl1q_u8(table[i], v[i]) })
    }
    #[inline(always)]
    unsafe fn splat_i32(p: *const i32) -> Self::I {
        [unsafe { vdupq_n_s32(p.read_unaligned()) }; 4]
    }
    #[inline(always)]
    unsafe fn dot_bytes<const WIDE: bool>(acc: Self::I, w: Self::V, x: *const u8) -> Self::I {
        unsafe {
            let x = vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned()));
            if !WIDE {
                return from_fn(|i| sdot(acc[i], w[i], x));
            }
            // w = (w ^ 0x80 as a signed byte) + 64 + 64.
            let half = vdupq_n_u8(64);
            let more = sdot(sdot(vdupq_n_s32(0), half, x), half, x);
            from_fn(|i| sdot(vaddq_s32(acc[i], more), veorq_u8(w[i], vdupq_n_u8(0x80)), x))
        }
    }
    #[inline(always)]
    unsafe fn no_sums() -> Self::I {
        unsafe { [vdupq_n_s32(0); 4] }
    }
    #[inline(always)]
    unsafe fn add_sums(a: Self::I, b: Self::I) -> Self::I {
        unsafe { from_fn(|i| vaddq_s32(a[i], b[i])) }
    }
    #[inline(always)]
    unsafe fn to_f32(acc: Self::I) -> Self::F {
        acc.map(|v| unsafe { vcvtq_f32_s32(v) })
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> Self::F {
        unsafe {
            let v = vld1q_u8(p);
            let ([a, b], [c, d]) = (widen(vmovl_u8(vget_low_u8(v))), widen(vmovl_high_u8(v)));
            [a, b, c, d]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const u8) -> Self::F {
        unsafe { words(p).map(|v| vcvtq_f32_s32(vshrq_n_s32::<24>(vreinterpretq_s32_u32(vshlq_n_u32::<24>(v))))) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut u8, v: Self::F) {
        unsafe {
            let words = v.map(|v| vmovn_s32(vcvtnq_s32_f32(v)));
            let low = vmovn_s16(vcombine_s16(words[0], words[1]));
            let high = vmovn_s16(vcombine_s16(words[2], words[3]));
            vst1q_s8(p.cast(), vcombine_s8(low, high));
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self::F {
        unsafe {
            words(p).map(|v| {
                let magnitude = vshlq_n_u32::<20>(vandq_u32(v, vdupq_n_u32(0x7f)));
                let sign = vshlq_n_u32::<24>(vandq_u32(v, vdupq_n_u32(0x80)));
                let small = vreinterpretq_f32_u32(vorrq_u32(magnitude, sign));
                vmulq_f32(small, vdupq_n_f32(f32::from_bits((127 + 120) << 23)))
            })
        }
    }
    #[inline(always)]
    unsafe fn load_i8_quads(p: *const u8) -> [Self::F; 4] {
        from_fn(|j| unsafe { top(p, j).map(|v| vcvtq_f32_s32(vshrq_n_s32::<24>(v))) })
    }
    #[inline(always)]
    unsafe fn load_e4m3_quads(p: *const u8) -> [Self::F; 4] {
        from_fn(|j| unsafe {
            top(p, j).map(|v| {
                // Sign, exponent and mantissa where f32 has them, 2^120 too small.
                let small = vandq_s32(vshrq_n_s32::<4>(v), vdupq_n_s32(0x87f0_0000u32 as i32));
                vmulq_f32(vreinterpretq_f32_s32(small), vdupq_n_f32(f32::from_bits((127 + 120) << 23)))
            })
        })
    }
    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        unsafe { words(p).map(|v| vreinterpretq_f32_u32(vmaxq_u32(vshlq_n_u32::<23>(v), vdupq_n_u32(1 << 22)))) }
    }
}
