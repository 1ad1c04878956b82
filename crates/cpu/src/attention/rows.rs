//! Tiles from keys and values that lie row by row: latent caches and materialised keys and values.

#[cfg(target_arch = "x86_64")]
use super::core::RowTile;
use super::core::{Source, TILE, Tile};
use super::stored::{SCALE, Stored};
use crate::DType;
use crate::simd::{Elem, F16};
use crate::simd::{LANES, Simd, load_some};

/// Where the rows of a position are.
#[derive(Clone, Copy)]
pub(super) enum Rows<'a> {
    /// `base + position * ld` (elements).
    Strided { base: *const u8, ld: usize },
    /// Blocks of `block` positions, `[block][ld]`, at `table[position / block]`, each followed by its `[block][scales]`.
    Paged { base: *const u8, ld: usize, block: usize, scales: usize, table: &'a [u32] },
}

/// Rows of `width` elements, of which keys (or values) take part.
#[derive(Clone, Copy)]
pub(super) struct Column<'a> {
    pub rows: Rows<'a>,
    pub width: usize,
    pub stored: Stored,
    /// Elements at the front whose scales are for [`GROUP`] elements each; those behind them share the last scale.
    pub grouped: usize,
}

/// Elements of a latent that share a scale.
pub(super) const GROUP: usize = 128;

impl Column<'_> {
    /// The row of a position, and its scales where the type has any.
    unsafe fn at(&self, position: usize) -> (*const u8, *const u8) {
        let size = self.stored.size();
        // SAFETY: the caller vouches for the position.
        unsafe {
            match self.rows {
                Rows::Strided { base, ld } => (base.add(position * ld * size), std::ptr::null()),
                Rows::Paged { base, ld, block, scales, table } => {
                    let start = base.add(table[position / block] as usize * block * (ld * size + scales * SCALE));
                    let at = position % block;
                    (start.add(at * ld * size), start.add(block * ld * size + at * scales * SCALE))
                }
            }
        }
    }

    /// Copies the row of a position, widened to `f32` or rounded to `bf16`.
    #[inline(always)]
    pub(super) unsafe fn row<S: Simd>(&self, position: usize, pairs: bool, to: *mut u8) {
        // SAFETY: the caller vouches for the position and for whole vectors of room.
        unsafe {
            let (from, scales) = self.at(position);
            if !self.stored.scaled() {
                return put::<S>(from, self.stored, 1.0, self.width, pairs, to);
            }
            let (mut e, mut group) = (0, 0);
            while e < self.width {
                let end = if e < self.grouped { self.grouped.min(e + GROUP) } else { self.width };
                let scale = scales.add(group * SCALE).cast::<f32>().read_unaligned();
                let at = to.add(e * if pairs { 2 } else { 4 });
                put::<S>(from.add(e), self.stored, scale, end - e, pairs, at);
                (e, group) = (end, group + 1);
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

    /// The rows of keys of the tile at `start`, and the bytes from one to the next, if they can be used where they are.
    #[cfg(target_arch = "x86_64")]
    unsafe fn lying(&self, start: usize) -> Option<(*const u8, usize)> {
        let whole = self.k[1].width == 0 && self.k[0].stored == Stored::Float(DType::Bf16);
        match self.k[0].rows {
            // SAFETY: the caller vouches for the position.
            Rows::Paged { ld, block, .. } if whole && block.is_multiple_of(TILE) => unsafe {
                Some((self.k[0].at(start).0, ld * 2))
            },
            _ => None,
        }
    }

    /// Scratch that tiles need: rows of keys, rows of values, keys turned, values paired.
    pub(super) fn bytes(k_dim: usize, v_dim: usize) -> usize {
        2 * TILE * (padded(k_dim) + padded(v_dim)) * 4 + 4 * 64
    }
}

/// Copies elements of one scale, widened to `f32` or rounded to `bf16`. Room on the right is up to a whole vector.
#[inline(always)]
unsafe fn put<S: Simd>(from: *const u8, stored: Stored, scale: f32, n: usize, pairs: bool, to: *mut u8) {
    // SAFETY: the caller vouches for n elements in and whole vectors out.
    unsafe {
        if stored == Stored::Float(DType::Bf16) && pairs {
            std::ptr::copy_nonoverlapping(from, to, n * 2);
            return;
        }
        let mut i = 0;
        while i < n {
            let some = LANES.min(n - i);
            let mut buf = [0u8; LANES * 4];
            let mut p = from.add(i * stored.size());
            if some < LANES {
                std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), some * stored.size());
                p = buf.as_ptr();
            }
            let v = match stored {
                Stored::Float(DType::F32) => S::load(p.cast()),
                Stored::Float(DType::F16) => F16::load::<S>(p),
                Stored::Float(DType::Bf16) => S::load_bf16(p),
                Stored::Int8 => S::mul(S::load_i8(p), S::splat(scale)),
                Stored::Fp8 => S::mul(S::load_e4m3(p), S::splat(scale)),
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
    #[cfg(target_arch = "x86_64")]
    const ROWS: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self, start: usize, len: usize, scratch: *mut u8) -> RowTile {
        let (k_ld, v_ld) = (self.k_dim() * 2, self.v_dim * 2);
        // SAFETY: the caller vouches for the positions, and for scratch of whole rows.
        unsafe {
            let mut tile = match self.lying(start) {
                Some((k, ld)) => RowTile { k, k_ld: ld, v: k, v_ld: ld },
                None => {
                    for t in 0..len {
                        let mut at = scratch.add(t * k_ld);
                        for part in self.k.iter().filter(|p| p.width > 0) {
                            part.row::<S>(start + t, true, at);
                            at = at.add(part.width * 2);
                        }
                    }
                    RowTile { k: scratch, k_ld, v: scratch, v_ld: k_ld }
                }
            };
            if let Some(part) = &self.v {
                let to = scratch.add(TILE * k_ld);
                for t in 0..len {
                    part.row::<S>(start + t, true, to.add(t * v_ld));
                }
                (tile.v, tile.v_ld) = (to, v_ld);
            }
            tile
        }
    }

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
                    part.row::<S>(start + t, self.pairs, k.add(at * size));
                    at += part.width;
                }
                k.add(at * size).write_bytes(0, k_ld - at * size);
                if let Some(part) = &self.v {
                    part.row::<S>(start + t, self.pairs, v);
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
            let scales = [std::ptr::null(); 2];
            let (v, v_row) = if self.v.is_some() { (staged_v, v_ld) } else { (staged_k, k_ld) };
            if !self.pairs {
                return Tile { k: turned, k_ld: TILE * 4, v, v_ld: v_row, scales };
            }
            for j in 0..TILE / 2 {
                let (a, b) = (v.add(2 * j * v_row), v.add((2 * j + 1) * v_row));
                let mut d = 0;
                while d < self.v_dim {
                    S::zip(a.add(d * 2), b.add(d * 2), paired.add(j * v_ld * 2 + d * 4));
                    d += LANES;
                }
            }
            Tile { k: turned, k_ld: TILE * 4, v: paired, v_ld: v_ld * 2, scales }
        }
    }
}
