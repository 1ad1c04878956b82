//! Plain Rust.

use super::Int8;
use crate::simd::scalar::Scalar;
use marlin_checkpoint::weight::values::{e4m3, e8m0};
use std::array::from_fn;

// SAFETY comments: each memory method is covered by the trait's contract on its pointer.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Int8 for Scalar {
    type F = [f32; 16];
    type V = [u8; 64];
    type I = [i32; 16];
    const FULL: bool = true;
    const BYTE_ROWS: usize = 1;

    unsafe fn bytes(p: *const u8) -> Self::V {
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    unsafe fn store_bytes(p: *mut u8, v: Self::V) {
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    unsafe fn field<const S: u32, const MASK: u8>(v: Self::V) -> Self::V {
        v.map(|b| b >> S & MASK)
    }
    unsafe fn insert<const S: u32, const MASK: u8, const T: u32>(base: Self::V, v: Self::V) -> Self::V {
        from_fn(|i| base[i] | (v[i] >> S & MASK) << T)
    }
    unsafe fn table(p: *const u8) -> Self::V {
        from_fn(|i| unsafe { *p.add(i % 16) })
    }
    unsafe fn look_up(table: Self::V, v: Self::V) -> Self::V {
        v.map(|b| table[usize::from(b & 15)])
    }
    unsafe fn splat_i32(p: *const i32) -> Self::I {
        [unsafe { p.read_unaligned() }; 16]
    }
    unsafe fn dot_bytes<const WIDE: bool>(acc: Self::I, w: Self::V, x: *const u8) -> Self::I {
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        from_fn(|i| (0..4).fold(acc[i], |sum, j| sum + i32::from(w[4 * i + j]) * i32::from(x[j])))
    }
    unsafe fn no_sums() -> Self::I {
        [0; 16]
    }
    unsafe fn add_sums(a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i] + b[i])
    }
    unsafe fn to_f32(acc: Self::I) -> Self::F {
        acc.map(|v| v as f32)
    }
    unsafe fn load_u8(p: *const u8) -> Self::F {
        from_fn(|i| f32::from(unsafe { *p.add(i) }))
    }
    unsafe fn load_i8(p: *const u8) -> Self::F {
        from_fn(|i| f32::from(unsafe { *p.add(i) } as i8))
    }
    unsafe fn store_i8(p: *mut u8, v: Self::F) {
        for (i, v) in v.into_iter().enumerate() {
            unsafe { *p.add(i) = v as i32 as u8 }
        }
    }
    unsafe fn load_e4m3(p: *const u8) -> Self::F {
        from_fn(|i| e4m3(unsafe { *p.add(i) }))
    }
    unsafe fn load_i8_quads(p: *const u8) -> [Self::F; 4] {
        from_fn(|j| from_fn(|i| f32::from(unsafe { *p.add(4 * i + j) } as i8)))
    }
    unsafe fn load_e4m3_quads(p: *const u8) -> [Self::F; 4] {
        // Not a number is 480, as on the other levels: memory that was never written has a weight of zero.
        let widen = |v: u8| match v {
            0x7f => 480.0,
            0xff => -480.0,
            _ => e4m3(v),
        };
        from_fn(|j| from_fn(|i| widen(unsafe { *p.add(4 * i + j) })))
    }
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        from_fn(|i| e8m0(unsafe { *p.add(i) }))
    }
}
