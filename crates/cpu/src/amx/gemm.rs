//! The product: panels of weights against blocks of rows.

use super::tiles::{Block, Tiles};

/// Columns of a panel.
pub(crate) const BLOCK: usize = 256;
/// Rows of a tile: inputs have room for as many beyond their last.
pub(crate) const TILE: usize = 16;
/// Outputs of a panel.
pub(crate) const OUTPUTS: usize = 32;
/// Bytes from step to step of a panel: two tiles.
pub(crate) const STEP: usize = 2048;
/// Bytes of a panel.
pub(crate) const PANEL: usize = BLOCK * OUTPUTS * 2;
/// Rows that share the decoding of a panel.
const ROWS: usize = 512;
/// Panels that the same columns of these rows pass over, out of the second cache.
const PANELS: usize = 8;

/// Weights that can be decoded to panels.
pub(crate) trait Panels {
    /// Fills a panel.
    ///
    /// # Safety
    /// The tiles and columns exist, `to` has room for a [`PANEL`], and the machine has [`Level::Amx`](crate::Level::Amx).
    unsafe fn fill(&self, part: Part, to: *mut u8, tiles: &Tiles);
}

/// What a panel holds: for each 32 columns, [`STEP`] bytes apart, one or two tiles of sixteen outputs, each
/// `[16 pairs of columns, 16 outputs, 2 columns]` `bf16`; anything finite beyond the last column up to a multiple of 32.
/// Outputs that do not exist are not used.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    /// The first tile of outputs.
    pub tile: usize,
    /// One or two.
    pub tiles: usize,
    /// The first column, a multiple of [`BLOCK`].
    pub from: usize,
    /// At most [`BLOCK`].
    pub columns: usize,
}

/// `out[m, n] = sum_k x[m, k] w[n, k]` for `outputs` outputs, the first of them the first of tile `first`.
pub(crate) struct TileGemm<'a, P> {
    /// `bf16` `[m, k]`, zeros beyond `k` up to a multiple of 32, and readable for a tile of rows beyond the last.
    pub x: *const u8,
    /// Bytes from row to row.
    pub x_ld: usize,
    pub m: usize,
    pub k: usize,
    pub w: &'a P,
    pub first: usize,
    pub outputs: usize,
    pub out: *mut f32,
    /// Values from row to row of `out`.
    pub ld: usize,
    /// Room for [`scratch_bytes`], aligned to 64.
    pub scratch: *mut u8,
}

/// Scratch of a product of so many rows and outputs: a panel, and sums.
pub(crate) fn scratch_bytes(m: usize, outputs: usize) -> usize {
    let sums = m.min(ROWS).next_multiple_of(2 * TILE) * outputs.next_multiple_of(OUTPUTS).min(PANELS * OUTPUTS);
    PANEL + sums * 4
}

impl<P: Panels> TileGemm<'_, P> {
    /// Computes the outputs.
    ///
    /// # Safety
    /// The fields' promises, and the machine has [`Level::Amx`](crate::Level::Amx).
    pub unsafe fn run(&self) {
        // SAFETY: the caller's promises; the thread has no other tiles.
        unsafe {
            let tiles = Tiles::shape();
            for m0 in (0..self.m).step_by(ROWS) {
                for n0 in (0..self.outputs).step_by(PANELS * OUTPUTS) {
                    let outputs = self.outputs - n0;
                    self.block(&tiles, m0, ROWS.min(self.m - m0), n0, outputs.min(PANELS * OUTPUTS));
                }
            }
        }
    }

    /// Rows `m0..m0 + rows` of outputs `n0..n0 + outputs`.
    unsafe fn block(&self, tiles: &Tiles, m0: usize, rows: usize, n0: usize, outputs: usize) {
        let all = rows.next_multiple_of(2 * TILE);
        // SAFETY: the caller's promises.
        unsafe {
            let (panel, sums) = (self.scratch, self.scratch.add(PANEL).cast::<f32>());
            let x = self.x.add(m0 * self.x_ld);
            for from in (0..self.k).step_by(BLOCK) {
                let columns = BLOCK.min(self.k - from);
                for n in (0..outputs).step_by(OUTPUTS) {
                    let count = (outputs - n).div_ceil(TILE).min(2);
                    let part = Part { tile: self.first + (n0 + n) / TILE, tiles: count, from, columns };
                    self.w.fill(part, panel, tiles);
                    for r in (0..rows).step_by(2 * TILE) {
                        let block = Block {
                            x: x.add(r * self.x_ld + 2 * from),
                            x_ld: self.x_ld,
                            panel,
                            steps: columns.div_ceil(32),
                            sums: sums.add(all * n + r * OUTPUTS),
                            sums_ld: OUTPUTS * 4,
                            more: from > 0,
                        };
                        if rows - r > TILE {
                            tiles.two(block);
                        } else {
                            tiles.one(block);
                        }
                    }
                }
            }
            for r in 0..rows {
                let out = self.out.add((m0 + r) * self.ld + n0);
                for n in (0..outputs).step_by(OUTPUTS) {
                    let from = sums.add(all * n + r * OUTPUTS);
                    out.add(n).copy_from_nonoverlapping(from, OUTPUTS.min(outputs - n));
                }
            }
        }
    }
}
