//! Tiles from keys and values that lie row by row: latent caches and materialised keys and values.

use super::core::{Source, TILE, Tile};
use crate::DType;
use crate::linear::{Elem, F16};
use crate::simd::{LANES, Simd, load_some};

/// Where the rows of a position are.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// `base + position * ld` (elements).
    Strided { base: *const u8, ld: usize },
    /// Blocks of `block` positions, `[block][ld]`, at `table[position / block]`.
    Paged { base: *const u8, ld: usize, block: usize, table: &'a [u32] },
}

/// Rows of `width` elements, of which keys (or values) take part.
#[derive(Clone, Copy)]
pub(super) struct Column<'a> {
    pub rows: Rows<'a>,
    pub width: usize,
    pub dtype: DType,
}

impl Column<'_> {
    /// The row of a position.
    unsafe fn at(&self, position: usize) -> *const u8 {
        let size = self.dtype.size();
        // SAFETY: the caller vouches for the position.
        unsafe {
            match self.rows {
                Rows::Strided { base, ld } => base.add(position * ld * size),
                Rows::Paged { base, ld, block, table } => {
                    let row = table[position / block] as usize * block + position % block;
                    base.add(row * ld * size)
                }
            }
        }
    }
}

/// Keys in two parts laid side by side, and values of their own, or the first `v_dim` elements of the key.
#[derive(Clone, Copy)]
pub(super) struct RowSource<'a> {
    pub k: [Column<'a>; 2],
    pub v: Option<Column<'a>>,
    pub v_dim: usize,
    /// Whether tiles are pairs of `bf16`, or `f32`.
    pub pairs: bool,
}

fn padded(n: usize) -> usize {
    n.next_multiple_of(LANES * 2)
}

impl RowSource<'_> {
    fn k_dim(&self) -> usize {
        self.k[0].width + self.k[1].width
    }

    /// Scratch that tiles need: rows of keys, rows of values, keys turned, values paired.
    pub(super) fn bytes(k_dim: usize, v_dim: usize) -> usize {
        2 * TILE * (padded(k_dim) + padded(v_dim)) * 4 + 4 * 64
    }
}

/// Copies a row, widened to `f32` or rounded to `bf16`. Room on the right is up to a whole vector.
#[inline(always)]
unsafe fn put<S: Simd>(from: *const u8, dtype: DType, n: usize, pairs: bool, to: *mut u8) {
    // SAFETY: the caller vouches for n elements in and whole vectors out.
    unsafe {
        if dtype == DType::Bf16 && pairs {
            std::ptr::copy_nonoverlapping(from, to, n * 2);
            return;
        }
        let mut i = 0;
        while i < n {
            let some = LANES.min(n - i);
            let mut buf = [0u8; LANES * 4];
            let mut p = from.add(i * dtype.size());
            if some < LANES {
                std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), some * dtype.size());
                p = buf.as_ptr();
            }
            let v = match dtype {
                DType::F32 => S::load(p.cast()),
                DType::F16 => F16::load::<S>(p),
                DType::Bf16 => S::load_bf16(p),
            };
            let v = if some < LANES {
                S::store(buf.as_mut_ptr().cast(), v);
                load_some::<S>(buf.as_ptr().cast(), some)
            } else {
                v
            };
            let size = if pairs { 2 } else { 4 };
            if some < LANES {
                let mut last = [0u8; LANES * 4];
                if pairs {
                    S::store_bf16(last.as_mut_ptr(), v)
                } else {
                    S::store(last.as_mut_ptr().cast(), v)
                }
                std::ptr::copy_nonoverlapping(last.as_ptr(), to.add(i * size), some * size);
            } else if pairs {
                S::store_bf16(to.add(i * 2), v);
            } else {
                S::store(to.add(i * 4).cast(), v);
            }
            i += some;
        }
    }
}

impl Source for RowSource<'_> {
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, start: usize, len: usize, scratch: *mut u8) -> Tile {
        let size = if self.pairs { 2 } else { 4 };
        let (k_ld, v_ld) = (padded(self.k_dim()) * size, padded(self.v_dim) * size);
        // SAFETY: the caller vouches for the positions and the scratch, which `bytes` laid out in this order.
        unsafe {
            let staged_k = scratch;
            let staged_v = staged_k.add(TILE * k_ld);
            let turned = staged_v.add(TILE * v_ld);
            let paired = turned.add(TILE * k_ld);
            for t in 0..TILE {
                let (k, v) = (staged_k.add(t * k_ld), staged_v.add(t * v_ld));
                if t >= len {
                    k.write_bytes(0, k_ld);
                    if self.v.is_some() {
                        v.write_bytes(0, v_ld);
                    }
                    continue;
                }
                let mut at = 0;
                for part in self.k.iter().filter(|p| p.width > 0) {
                    put::<S>(part.at(start + t), part.dtype, part.width, self.pairs, k.add(at * size));
                    at += part.width;
                }
                k.add(at * size).write_bytes(0, k_ld - at * size);
                if let Some(part) = &self.v {
                    put::<S>(part.at(start + t), part.dtype, self.v_dim, self.pairs, v);
                    v.add(self.v_dim * size).write_bytes(0, v_ld - self.v_dim * size);
                }
            }
            // Words along the rows become rows of words: [words][TILE].
            let words = k_ld / 4;
            let mut w = 0;
            while w < words {
                for half in 0..TILE / 16 {
                    let from = staged_k.add(half * 16 * k_ld + w * 4);
                    S::transpose(from, k_ld / 4, turned.add((w * TILE + half * 16) * 4), TILE);
                }
                w += 16;
            }
            let (v, v_row) = if self.v.is_some() { (staged_v, v_ld) } else { (staged_k, k_ld) };
            if !self.pairs {
                return Tile { k: turned, k_ld: TILE * 4, v, v_ld: v_row };
            }
            for j in 0..TILE / 2 {
                let (a, b) = (v.add(2 * j * v_row), v.add((2 * j + 1) * v_row));
                let mut d = 0;
                while d < self.v_dim {
                    S::zip(a.add(d * 2), b.add(d * 2), paired.add(j * v_ld * 2 + d * 4));
                    d += LANES;
                }
            }
            Tile { k: turned, k_ld: TILE * 4, v: paired, v_ld: v_ld * 2 }
        }
    }
}
