//! The paged key/value memory of grouped-query attention.

use super::core::{Source, TILE, Tile};
use super::stored::{SCALE, Stored};
use crate::mat::{Error, Result, at_least};
use crate::simd::{LANES, Simd};

/// The shape of one layer's key and value memory.
///
/// Blocks of `block` tokens lie back to back, keys and values in memory of their own. Within a block, elements are in
/// groups of `P` (2 for `bf16`, whose products come in pairs; 4 for bytes; else 1): keys `[kv_heads][k_dim / P][block][P]`, values
/// `[kv_heads][block / P][v_dim][P]`. So a walk over a head's keys is one over memory, positions are the lanes of the
/// scores, and nothing has to be turned or paired when it is read.
///
/// Bytes have scales: after the keys of each head `[block]` of them in `f32`, and the same after its values. Keys are
/// then padded to a multiple of 4 elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a key (even).
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Tokens of a block: a power of two, at least 2, for bytes 4.
    pub block: usize,
    /// Element type.
    pub stored: Stored,
}

impl KvShape {
    /// Elements of a group.
    pub(super) fn pair(&self) -> usize {
        self.stored.group()
    }

    /// Elements of a key as they are stored.
    pub(super) fn k_stored(&self) -> usize {
        self.k_dim.next_multiple_of(self.pair())
    }

    /// Bytes of `width` elements of each of a block's tokens, and of their scales.
    fn head_bytes(&self, width: usize) -> usize {
        self.block * (width * self.stored.size() + if self.stored.scaled() { SCALE } else { 0 })
    }

    /// Bytes of one head's keys in a block.
    pub(super) fn k_head_bytes(&self) -> usize {
        self.head_bytes(self.k_stored())
    }

    /// Bytes of one head's values in a block.
    pub(super) fn v_head_bytes(&self) -> usize {
        self.head_bytes(self.v_dim)
    }

    /// Bytes of the keys of a block.
    pub fn k_block_bytes(&self) -> usize {
        self.kv_heads * self.k_head_bytes()
    }

    /// Bytes of the values of a block.
    pub fn v_block_bytes(&self) -> usize {
        self.kv_heads * self.v_head_bytes()
    }

    /// The element of a head's keys in a block that is element `e` of the key of token `t`.
    pub fn k_index(&self, t: usize, e: usize) -> usize {
        let p = self.pair();
        (e / p * self.block + t) * p + e % p
    }

    /// The element of a head's values in a block that is element `e` of the value of token `t`.
    pub fn v_index(&self, t: usize, e: usize) -> usize {
        let p = self.pair();
        (t / p * self.v_dim + e) * p + t % p
    }

    /// The byte of a head's keys in a block where the scales begin.
    pub fn k_scales(&self) -> usize {
        self.block * self.k_stored() * self.stored.size()
    }

    /// The byte of a head's values in a block where the scales begin.
    pub fn v_scales(&self) -> usize {
        self.block * self.v_dim * self.stored.size()
    }

    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        if !self.block.is_power_of_two() || self.block < self.pair().max(2) {
            return Err(Error { op, what: "tokens of a block, a power of two", expected: 32, found: self.block });
        }
        if !self.k_dim.is_multiple_of(2) {
            return Err(Error { op, what: "elements of a key, even", expected: self.k_dim + 1, found: self.k_dim });
        }
        at_least(op, "key/value heads", 1, self.kv_heads)
    }
}

/// The keys and values of one head of one sequence.
#[derive(Clone, Copy)]
pub(super) struct PagedSource<'a> {
    pub shape: KvShape,
    pub k: *const u8,
    pub v: *const u8,
    pub table: &'a [u32],
    pub head: usize,
}

impl PagedSource<'_> {
    /// Whether tiles can be read where they lie.
    fn direct(shape: &KvShape) -> bool {
        shape.block.is_multiple_of(TILE) && shape.v_dim.is_multiple_of(LANES)
    }

    pub(super) fn bytes(shape: &KvShape) -> usize {
        if Self::direct(shape) {
            return 0;
        }
        let width = shape.k_stored() + shape.v_dim.next_multiple_of(LANES);
        TILE * (width * shape.stored.size() + 2 * SCALE) + 4 * 64
    }

    /// The keys and the values of this head in the block of a position.
    unsafe fn block(&self, position: usize) -> (*const u8, *const u8) {
        let s = &self.shape;
        let block = self.table[position / s.block] as usize;
        // SAFETY: the caller checked the table against the pool.
        unsafe {
            (
                self.k.add((block * s.kv_heads + self.head) * s.k_head_bytes()),
                self.v.add((block * s.kv_heads + self.head) * s.v_head_bytes()),
            )
        }
    }
}

impl Source for PagedSource<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, start: usize, len: usize, scratch: *mut u8) -> Tile {
        let s = &self.shape;
        let p = s.pair();
        let group = p * s.stored.size();
        // SAFETY: the caller vouches for the positions, the table and the scratch.
        unsafe {
            if Self::direct(s) {
                let (k, v) = self.block(start);
                let t = start % s.block;
                let v_ld = s.v_dim * group;
                // Without scales these are addresses that nobody follows.
                let scales = [
                    k.wrapping_add(s.k_scales() + t * SCALE).cast::<f32>(),
                    v.wrapping_add(s.v_scales() + t * SCALE).cast::<f32>(),
                ];
                return Tile { k: k.add(t * group), k_ld: s.block * group, v: v.add(t / p * v_ld), v_ld, scales };
            }
            let v_ld = s.v_dim.next_multiple_of(LANES) * group;
            let to_v = scratch.add((TILE * s.k_stored() * s.stored.size()).next_multiple_of(64));
            let to_ks = to_v.add((TILE / p * v_ld).next_multiple_of(64));
            let (to_k, to_vs) = (scratch, to_ks.add(TILE * SCALE));
            let run = s.block.min(TILE);
            let mut t = 0;
            while t < len {
                let (k, v) = self.block(start + t);
                let at = (start + t) % s.block;
                for g in 0..s.k_stored() / p {
                    let from = k.add((g * s.block + at) * group);
                    std::ptr::copy_nonoverlapping(from, to_k.add((g * TILE + t) * group), run * group);
                }
                for j in 0..run / p {
                    let from = v.add((at / p + j) * s.v_dim * group);
                    std::ptr::copy_nonoverlapping(from, to_v.add((t / p + j) * v_ld), s.v_dim * group);
                }
                if s.stored.scaled() {
                    let bytes = run * SCALE;
                    std::ptr::copy_nonoverlapping(k.add(s.k_scales() + at * SCALE), to_ks.add(t * SCALE), bytes);
                    std::ptr::copy_nonoverlapping(v.add(s.v_scales() + at * SCALE), to_vs.add(t * SCALE), bytes);
                }
                t += run;
            }
            Tile { k: to_k, k_ld: TILE * group, v: to_v, v_ld, scales: [to_ks.cast(), to_vs.cast()] }
        }
    }

    #[inline(always)]
    unsafe fn ahead(&self, start: usize) -> [*const u8; 2] {
        let s = &self.shape;
        if !Self::direct(s) {
            return [std::ptr::null(); 2];
        }
        // SAFETY: the caller vouches for the positions.
        let (k, v) = unsafe { self.block(start) };
        let t = start % s.block;
        [k.wrapping_add(t * s.pair() * s.stored.size()), v.wrapping_add(t * s.v_dim * s.stored.size())]
    }
}
