//! The order of words in memory, made once from the order on disk.
//!
//! A tile (16 inputs x 16 outputs) is a circular stream of 256 codes. Sixteen consecutive codes take `bits` whole words
//! of 16 bits, so a tile is sixteen segments of `bits` words, and a window needs only its own segment's words and the
//! last one of the segment before. Lane s of a vector holds segment s: vector j is word j of every segment, and code i
//! of all segments is one funnel shift of two vectors by a constant. Two tiles of neighbouring outputs fill 32 lanes.
//!
//! Pairs of tiles lie in the order `[rows / 32, cols / 16, bits, 32]` words: for each 32 outputs, all inputs downwards. A
//! single last tile is paired with zeros.

use crate::Cpu;
use crate::buffer::Shared;
use crate::memory::Memory;
use marlin_checkpoint::Trellis;
use marlin_checkpoint::weight::Codebook;

/// Bytes of the source after which its pages are given back.
const STRIDE: usize = 16 << 20;
/// Bytes that one task re-lays.
const TASK: usize = 256 << 10;

/// An EXL3 matrix in the order that the kernels read.
pub struct TrellisMat {
    memory: Memory,
    rows: usize,
    cols: usize,
    bits: usize,
    codebook: Codebook,
}

impl TrellisMat {
    /// Re-lays a weight in parallel, giving back pages of a mapped file as they have been read. Takes the same number of
    /// bytes, but for a last odd tile of outputs.
    pub fn new(cpu: &Cpu, w: &Trellis) -> marlin_backend::Result<TrellisMat> {
        let (rows, cols, bits) = (w.rows(), w.cols(), w.bits());
        let (across, blocks) = (rows / 16, cols / 16);
        let mat = TrellisMat {
            memory: Memory::new(across.div_ceil(2) * blocks * 64 * bits)?,
            rows,
            cols,
            bits,
            codebook: w.codebook(),
        };
        let line = across * 32 * bits;
        let (source, to) = (w.words(), Shared(mat.memory.ptr()));
        let per_task = (TASK / line.max(1)).clamp(1, 16);
        let mut from = 0;
        while from < blocks && line > 0 {
            let some = (STRIDE / line).next_multiple_of(per_task).max(per_task).min(blocks - from);
            // Few and long lines, as of a head, are split across; short ones are not.
            let pieces = line.div_ceil(TASK).min(across.div_ceil(2));
            cpu.pool().run(some.div_ceil(per_task) * pieces, &|t| {
                let (group, piece) = (t / pieces, t % pieces);
                let first = from + group * per_task;
                let last = (first + per_task).min(from + some);
                let pairs = across.div_ceil(2);
                for pair in pairs * piece / pieces..pairs * (piece + 1) / pieces {
                    for block in first..last {
                        // SAFETY: the pair and block are inside both, and each is written by one task.
                        unsafe {
                            let tile = source.as_ptr().add(block * line + pair * 64 * bits);
                            let to = { to }.0.add((pair * blocks + block) * 64 * bits);
                            relay(bits, tile, to, 2 * pair + 1 < across);
                        }
                    }
                }
            });
            if let Some(done) = source.slice(from * line..(from + some) * line) {
                done.release();
            }
            from += some;
        }
        Ok(mat)
    }

    /// Output features, padding included; a multiple of 16.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features, padding included; a multiple of 16.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bits of a code, 1 to 8.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// The codebook.
    pub fn codebook(&self) -> Codebook {
        self.codebook
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.rows.div_ceil(32) * self.cols / 16 * 64 * self.bits
    }

    /// Pairs of tiles of outputs.
    pub(super) fn pairs(&self) -> usize {
        self.rows.div_ceil(32)
    }

    /// The words of 32 outputs from tile of inputs `block` on.
    pub(super) fn words(&self, pair: usize, block: usize) -> *const u8 {
        self.memory.ptr().wrapping_add((pair * (self.cols / 16) + block) * 64 * self.bits)
    }
}

/// Re-lays the two tiles at `from`, or the only one.
///
/// # Safety
/// `from` holds one or two tiles and `to` has room for two.
unsafe fn relay(bits: usize, from: *const u8, to: *mut u8, two: bool) {
    // SAFETY: the caller's promises.
    unsafe {
        match bits {
            1 => relay_bits::<1>(from, to, two),
            2 => relay_bits::<2>(from, to, two),
            3 => relay_bits::<3>(from, to, two),
            4 => relay_bits::<4>(from, to, two),
            5 => relay_bits::<5>(from, to, two),
            6 => relay_bits::<6>(from, to, two),
            7 => relay_bits::<7>(from, to, two),
            _ => relay_bits::<8>(from, to, two),
        }
    }
}

unsafe fn relay_bits<const BITS: usize>(from: *const u8, to: *mut u8, two: bool) {
    for half in 0..2 {
        // SAFETY: as above; word w of the stream is stored at w ^ 1, since the stream is 32-bit words from the top.
        unsafe {
            let (from, to) = (from.add(half * 32 * BITS), to.add(half * 32));
            if half == 1 && !two {
                (0..BITS).for_each(|j| to.add(64 * j).write_bytes(0, 32));
                continue;
            }
            for j in 0..BITS {
                let words: [u16; 16] =
                    std::array::from_fn(|s| u16::from_le(from.cast::<u16>().add((s * BITS + j) ^ 1).read_unaligned()));
                to.add(64 * j).cast::<[u16; 16]>().write_unaligned(words);
            }
        }
    }
}
