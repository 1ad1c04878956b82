//! Looking for values that are not finite.

use crate::{Cpu, DType};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Index of the first value that is infinite or not a number, read at memory speed.
pub fn first_not_finite(cpu: &Cpu, data: &[u8], dtype: DType) -> Option<usize> {
    const PIECE: usize = 1 << 20;
    let first = AtomicUsize::new(usize::MAX);
    let size = dtype.size();
    let pieces = data.len().div_ceil(PIECE);
    cpu.pool.run(pieces, &|i| {
        let from = i * PIECE;
        if from / size >= first.load(Ordering::Relaxed) {
            return;
        }
        let piece = &data[from..data.len().min(from + PIECE)];
        if let Some(at) = find(piece, dtype) {
            first.fetch_min(from / size + at, Ordering::Relaxed);
        }
    });
    let first = first.into_inner();
    (first != usize::MAX).then_some(first)
}

/// All bits of the exponent are set in infinities and in what is not a number.
fn find(piece: &[u8], dtype: DType) -> Option<usize> {
    let half = |mask: u16| {
        let bad = |b: &[u8; 2]| u16::from_le_bytes(*b) & mask == mask;
        let words = piece.as_chunks::<2>().0;
        // Counting a block at once is a loop that compilers turn into vector instructions.
        let block = words.chunks(4096).position(|block| block.iter().filter(|b| bad(b)).count() > 0)?;
        words[block * 4096..].iter().position(bad).map(|i| block * 4096 + i)
    };
    match dtype {
        DType::Bf16 => half(0x7F80),
        DType::F16 => half(0x7C00),
        DType::F32 => piece.as_chunks::<4>().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite()),
    }
}
