//! Sixteen lanes in plain Rust, operation for operation what the vector levels compute.

use super::{Level, Simd};
use half::{bf16, f16};
use std::array::from_fn;

/// The level that runs everywhere.
#[derive(Clone, Copy)]
pub struct Scalar;

fn tree(mut a: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            a[i] = f(a[i], a[i + half]);
        }
    }
    a[0]
}

fn half_at(p: *const u8, i: usize) -> u16 {
    // SAFETY: private to this file; callers pass pointers valid for index `i`.
    unsafe { p.add(i * 2).cast::<u16>().read_unaligned() }
}

fn pick(a: f32, b: f32, first: bool) -> f32 {
    if first { a } else { b }
}

// SAFETY comments: each memory method is covered by the trait's contract on its pointer.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Scalar {
    type B = [u16; 32];
    const LEVEL: Level = Level::Scalar;
    const BF16: bool = false;
    const MR: usize = 1;
    const NR: usize = 3;
    const QR: usize = 2;

    unsafe fn zero() -> Self::F {
        [0.0; 16]
    }
    unsafe fn splat(v: f32) -> Self::F {
        [v; 16]
    }
    unsafe fn load(p: *const f32) -> Self::F {
        unsafe { p.cast::<[f32; 16]>().read_unaligned() }
    }
    unsafe fn store(p: *mut f32, v: Self::F) {
        unsafe { p.cast::<[f32; 16]>().write_unaligned(v) }
    }
    unsafe fn load_bf16(p: *const u8) -> Self::F {
        from_fn(|i| f32::from_bits(u32::from(half_at(p, i)) << 16))
    }
    unsafe fn load_f16(p: *const u8) -> Self::F {
        from_fn(|i| f16::from_bits(half_at(p, i)).to_f32_const())
    }
    unsafe fn load_bf16_pairs(p: *const u8) -> (Self::F, Self::F) {
        let at = |i| f32::from_bits(u32::from(half_at(p, i)) << 16);
        (from_fn(|i| at(2 * i)), from_fn(|i| at(2 * i + 1)))
    }
    unsafe fn store_bf16(p: *mut u8, v: Self::F) {
        for (i, x) in v.into_iter().enumerate() {
            unsafe { p.add(i * 2).cast::<u16>().write_unaligned(bf16::from_f32(x).to_bits()) }
        }
    }
    unsafe fn store_f16(p: *mut u8, v: Self::F) {
        for (i, x) in v.into_iter().enumerate() {
            unsafe { p.add(i * 2).cast::<u16>().write_unaligned(f16::from_f32_const(x).to_bits()) }
        }
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] / b[i])
    }
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| pick(a[i], b[i], a[i] > b[i]))
    }
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| pick(a[i], b[i], a[i] < b[i]))
    }
    unsafe fn round(a: Self::F) -> Self::F {
        a.map(f32::round_ties_even)
    }
    unsafe fn exp2i(n: Self::F) -> Self::F {
        n.map(|n| f32::from_bits((((n as i32).clamp(-126, 127) + 127) as u32) << 23))
    }
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F {
        from_fn(|i| pick(x[i], y[i], a[i] < b[i]))
    }
    unsafe fn first(n: usize, x: Self::F, y: Self::F) -> Self::F {
        from_fn(|i| pick(x[i], y[i], i < n))
    }
    unsafe fn sum(a: Self::F) -> f32 {
        tree(a, |x, y| x + y)
    }
    unsafe fn largest(a: Self::F) -> f32 {
        tree(a, |x, y| pick(x, y, x > y))
    }
    unsafe fn load_quarters(p: *const f32) -> Self::F {
        let v = unsafe { p.cast::<[f32; 4]>().read_unaligned() };
        from_fn(|i| v[i % 4])
    }
    unsafe fn zip_quarters(a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        let at = |i: usize, from: usize| if i.is_multiple_of(2) { a[from] } else { b[from] };
        (from_fn(|i| at(i, i / 4 * 4 + i % 4 / 2)), from_fn(|i| at(i, i / 4 * 4 + 2 + i % 4 / 2)))
    }
    unsafe fn load_pairs(p: *const u8) -> Self::B {
        from_fn(|i| half_at(p, i))
    }
    unsafe fn splat_pair(p: *const u8) -> Self::B {
        from_fn(|i| half_at(p, i % 2))
    }
    unsafe fn keep_first(b: Self::B) -> Self::B {
        from_fn(|i| if i % 2 == 0 { b[i] } else { 0 })
    }
    unsafe fn dot(acc: Self::F, a: Self::B, b: Self::B) -> Self::F {
        let at = |v: &Self::B, i: usize| f32::from_bits(u32::from(v[i]) << 16);
        from_fn(|i| at(&a, 2 * i + 1).mul_add(at(&b, 2 * i + 1), at(&a, 2 * i).mul_add(at(&b, 2 * i), acc[i])))
    }
}
