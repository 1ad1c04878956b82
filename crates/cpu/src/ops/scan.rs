//! Looking for values that are not finite, at the speed of memory.

use crate::simd::{self, Kernel, Simd};
use crate::{Cpu, DType};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Scan<'a> {
    data: &'a [u8],
    dtype: DType,
}

/// Bytes that are looked at before the next decision.
const STEP: usize = 1024;

#[inline(always)]
fn bad16(bytes: &[u8], mask: u16) -> bool {
    bytes.as_chunks::<2>().0.iter().fold(false, |bad, b| bad | (u16::from_ne_bytes(*b) & mask == mask))
}

#[inline(always)]
fn bad32(bytes: &[u8], mask: u32) -> bool {
    bytes.as_chunks::<4>().0.iter().fold(false, |bad, b| bad | (u32::from_ne_bytes(*b) & mask == mask))
}

#[inline(always)]
fn bad(bytes: &[u8], dtype: DType) -> bool {
    match dtype {
        DType::F32 => bad32(bytes, 0x7f80_0000),
        DType::F16 => bad16(bytes, 0x7c00),
        DType::Bf16 => bad16(bytes, 0x7f80),
    }
}

impl Kernel for Scan<'_> {
    type Out = Option<usize>;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Option<usize> {
        for (i, step) in self.data.chunks(STEP).enumerate() {
            if bad(step, self.dtype) {
                let size = self.dtype.size();
                let at = step.chunks_exact(size).position(|v| bad(v, self.dtype))?;
                return Some(i * (STEP / size) + at);
            }
        }
        None
    }
}

/// The index of the first value that is infinite or not a number; bytes beyond the last whole value are ignored.
pub fn first_not_finite(cpu: &Cpu, data: &[u8], dtype: DType) -> Option<usize> {
    const PIECE: usize = 256 << 10;
    let size = dtype.size();
    let data = &data[..data.len() / size * size];
    let first = AtomicUsize::new(usize::MAX);
    cpu.pool().run(data.len().div_ceil(PIECE), &|i| {
        let from = i * PIECE;
        if first.load(Ordering::Relaxed) <= from / size {
            return;
        }
        let piece = &data[from..data.len().min(from + PIECE)];
        // SAFETY: the kernel has no conditions beyond its level.
        if let Some(at) = unsafe { simd::run(cpu.level(), Scan { data: piece, dtype }) } {
            first.fetch_min(from / size + at, Ordering::Relaxed);
        }
    });
    Some(first.into_inner()).filter(|&i| i != usize::MAX)
}
