//! Plain Rust over arrays: right everywhere; a compiler turns most of it into vectors of the target (NEON, SSE2).

use super::{Isa, Lanes};
use half::f16;
use std::array::from_fn;

#[derive(Clone, Copy)]
pub struct Portable;

type V = [u16; 32];

// Conversions of halves are long where they are not instructions, and the callers are unrolled: kept apart.
#[inline(never)]
fn affine(v: V, k: f32, c: f32) -> V {
    v.map(|v| f16::from_f32((f32::from(v) + 1024.0) * k + c).to_bits())
}

#[inline(never)]
fn sum_of_halves(a: V, b: V) -> V {
    from_fn(|i| f16::from_f32(f16::from_bits(a[i]).to_f32() + f16::from_bits(b[i]).to_f32()).to_bits())
}

// SAFETY comments: every method is covered by the trait's contract on pointers.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Portable {
    type V = V;
    type A = [i32; 16];
    const ISA: Isa = Isa::Portable;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> V {
        unsafe { p.cast::<V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: V) {
        unsafe { p.cast::<V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn wrap(v: V) -> V {
        from_fn(|i| v[(i & 16) | (i + 15) & 15])
    }
    #[inline(always)]
    unsafe fn funnel(high: V, low: V, n: u32) -> V {
        from_fn(|i| high[i] << n | low[i] >> (16 - n))
    }
    #[inline(always)]
    unsafe fn mul_low(a: V, c: u16) -> V {
        a.map(|a| a.wrapping_mul(c))
    }
    #[inline(always)]
    unsafe fn mul_high(a: V, c: u16) -> V {
        a.map(|a| ((u32::from(a) * u32::from(c)) >> 16) as u16)
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn add_const(a: V, c: u16) -> V {
        a.map(|a| a.wrapping_add(c))
    }
    #[inline(always)]
    unsafe fn add_wide(low: V, high: V, c: u32) -> (V, V) {
        let sum = low.map(|a| a.wrapping_add(c as u16));
        let carry = |i: usize| u16::from(sum[i] < c as u16);
        (sum, from_fn(|i| high[i].wrapping_add((c >> 16) as u16).wrapping_add(carry(i))))
    }
    #[inline(always)]
    unsafe fn and_xor(a: V, mask: u16, flip: u16) -> V {
        a.map(|a| (a & mask) ^ flip)
    }
    #[inline(always)]
    unsafe fn byte_sum(low: V, high: V) -> V {
        from_fn(|i| (low[i] & 255) + (low[i] >> 8) + (high[i] & 255) + (high[i] >> 8))
    }
    #[inline(always)]
    unsafe fn average(a: V, b: V) -> V {
        from_fn(|i| ((a[i] & 255) + (b[i] & 255) + 1) >> 1 | ((a[i] >> 8) + (b[i] >> 8) + 1) >> 1 << 8)
    }
    #[inline(always)]
    unsafe fn bytes_of(low: V, high: V) -> V {
        from_fn(|i| low[i] & 255 | high[i] & 0xff00)
    }
    #[inline(always)]
    unsafe fn upper_bytes(low: V, high: V) -> V {
        from_fn(|i| low[i] >> 8 | high[i] & 0xff00)
    }
    #[inline(always)]
    unsafe fn fixed(x: V) -> V {
        x.map(|x| {
            let size = ((x & 0x3ff) ^ 0x760) << ((x >> 10 & 3) ^ 2);
            if x & 0x8000 == 0 { size } else { size.wrapping_neg() }
        })
    }
    #[inline(always)]
    unsafe fn affine_f16(v: V, k: f32, c: f32) -> V {
        affine(v, k, c)
    }
    #[inline(always)]
    unsafe fn add_f16(a: V, b: V) -> V {
        sum_of_halves(a, b)
    }

    #[inline(always)]
    unsafe fn splat(v: i32) -> [i32; 16] {
        [v; 16]
    }
    #[inline(always)]
    unsafe fn dot(acc: [i32; 16], w: V, pair: *const i16) -> [i32; 16] {
        let [x0, x1] = unsafe { pair.cast::<[i16; 2]>().read_unaligned() }.map(i32::from);
        let w = |i: usize| i32::from(w[i] as i16);
        from_fn(|i| acc[i].wrapping_add(w(2 * i) * x0).wrapping_add(w(2 * i + 1) * x1))
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: [i32; 16], w: V, x: *const i8) -> [i32; 16] {
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() }.map(i32::from);
        let w = |i: usize, b: usize| i32::from(w[2 * i + b / 2] >> (8 * (b % 2)) & 255);
        from_fn(|i| (0..4).fold(acc[i], |sum, b| sum.wrapping_add(w(i, b) * x[b])))
    }
    #[inline(always)]
    unsafe fn flush(acc: [i32; 16], scale: f32, out: *mut f32) {
        for (i, a) in acc.into_iter().enumerate() {
            unsafe {
                let o = out.add(i);
                *o = (a as f32).mul_add(scale, *o);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_split(v: V, to: [*mut u16; 4]) {
        for (quarter, to) in to.into_iter().enumerate() {
            let from: [u16; 8] = from_fn(|q| v[quarter / 2 * 16 + 2 * q + quarter % 2]);
            unsafe { to.cast::<[u16; 8]>().write_unaligned(from) }
        }
    }
    #[inline(always)]
    unsafe fn store_split_zip(low: V, high: V, to: [*mut u8; 4]) {
        for (quarter, to) in to.into_iter().enumerate() {
            let at = |q: usize| quarter / 2 * 16 + 2 * q + quarter % 2;
            let from: [[u16; 2]; 8] = from_fn(|q| [low[at(q)], high[at(q)]]);
            unsafe { to.cast::<[[u16; 2]; 8]>().write_unaligned(from) }
        }
    }
}
