//! The paged key/value memory of grouped-query attention.

use super::core::{Source, TILE, Tile};
use crate::DType;
use crate::mat::{Error, Result, at_least};
use crate::simd::{LANES, Simd};

/// The shape of one layer's key and value memory.
///
/// Blocks of `block` tokens lie back to back, keys and values in memory of their own. Within a block, elements are in
/// groups of `P` (2 for `bf16`, whose products come in pairs; else 1): keys `[kv_heads][k_dim / P][block][P]`, values
/// `[kv_heads][block / P][v_dim][P]`. So a walk over a head's keys is one over memory, positions are the lanes of the
/// scores, and nothing has to be turned or paired when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a key (even).
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Tokens of a block: a power of two, at least 2.
    pub block: usize,
    /// Element type.
    pub dtype: DType,
}

impl KvShape {
    /// Elements of a group.
    pub(super) fn pair(&self) -> usize {
        if self.dtype == DType::Bf16 { 2 } else { 1 }
    }

    /// Bytes of the keys of a block.
    pub fn k_block_bytes(&self) -> usize {
        self.kv_heads * self.k_dim * self.block * self.dtype.size()
    }

    /// Bytes of the values of a block.
    pub fn v_block_bytes(&self) -> usize {
        self.kv_heads * self.v_dim * self.block * self.dtype.size()
    }

    /// The element of a block's keys that is element `e` of the key of token `t` and head `h`.
    pub fn k_index(&self, h: usize, t: usize, e: usize) -> usize {
        let p = self.pair();
        ((h * (self.k_dim / p) + e / p) * self.block + t) * p + e % p
    }

    /// The element of a block's values that is element `e` of the value of token `t` and head `h`.
    pub fn v_index(&self, h: usize, t: usize, e: usize) -> usize {
        let p = self.pair();
        ((h * (self.block / p) + t / p) * self.v_dim + e) * p + t % p
    }

    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        if !self.block.is_power_of_two() || self.block < 2 {
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
        TILE * (shape.k_dim + shape.v_dim.next_multiple_of(LANES)) * shape.dtype.size() + 2 * 64
    }

    /// The keys and the values of this head in the block of a position.
    unsafe fn block(&self, position: usize) -> (*const u8, *const u8) {
        let s = &self.shape;
        let block = self.table[position / s.block] as usize;
        let head = s.block * s.dtype.size() * self.head;
        // SAFETY: the caller checked the table against the pool.
        unsafe {
            (
                self.k.add(block * s.k_block_bytes() + head * s.k_dim),
                self.v.add(block * s.v_block_bytes() + head * s.v_dim),
            )
        }
    }
}

impl Source for PagedSource<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, start: usize, len: usize, scratch: *mut u8) -> Tile {
        let s = &self.shape;
        let p = s.pair();
        let group = p * s.dtype.size();
        // SAFETY: the caller vouches for the positions, the table and the scratch.
        unsafe {
            if Self::direct(s) {
                let (k, v) = self.block(start);
                let t = start % s.block;
                let v_ld = s.v_dim * group;
                return Tile { k: k.add(t * group), k_ld: s.block * group, v: v.add(t / p * v_ld), v_ld };
            }
            let v_ld = s.v_dim.next_multiple_of(LANES) * group;
            let (to_k, to_v) = (scratch, scratch.add((TILE * s.k_dim * s.dtype.size()).next_multiple_of(64)));
            let run = s.block.min(TILE);
            let mut t = 0;
            while t < len {
                let (k, v) = self.block(start + t);
                let at = (start + t) % s.block;
                for g in 0..s.k_dim / p {
                    let from = k.add((g * s.block + at) * group);
                    std::ptr::copy_nonoverlapping(from, to_k.add((g * TILE + t) * group), run * group);
                }
                for j in 0..run / p {
                    let from = v.add((at / p + j) * s.v_dim * group);
                    std::ptr::copy_nonoverlapping(from, to_v.add((t / p + j) * v_ld), s.v_dim * group);
                }
                t += run;
            }
            Tile { k: to_k, k_ld: TILE * group, v: to_v, v_ld }
        }
    }
}
