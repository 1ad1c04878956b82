//! A weight as the products take it: a dense matrix, or tiles of grouped codes.

use crate::grouped::{self, Float, GroupedMat, Integer, ROWS, STARTS, Start};
use crate::mat::at_least;
use crate::{Cpu, DType, Mat, Mode, Result};

#[cfg(target_arch = "x86_64")]
use super::halves::Slice;
use super::{Acts, kernel};
#[cfg(target_arch = "x86_64")]
use crate::amx::{TileGemm, scratch_bytes};
#[cfg(target_arch = "x86_64")]
use crate::ops::convert::row_bytes;

/// Some whole tiles of a matrix of grouped codes.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    mat: &'a GroupedMat,
    first: usize,
    rows: usize,
}

impl<'a> Tiles<'a> {
    /// All rows of `mat`.
    pub fn all(mat: &'a GroupedMat) -> Tiles<'a> {
        Tiles { mat, first: 0, rows: mat.layout().rows() }
    }

    /// Rows `from..from + rows`, which begin with a pair of tiles and end with one or with the matrix.
    pub fn slice(&self, from: usize, rows: usize) -> Result<Tiles<'a>> {
        at_least("tiles", "rows", from.saturating_add(rows), self.rows)?;
        let pair = 2 * ROWS;
        let whole = from.is_multiple_of(pair) && (rows.is_multiple_of(pair) || from + rows == self.rows);
        at_least("tiles", "rows of a pair of tiles", if whole { 0 } else { pair }, 0)?;
        Ok(Tiles { mat: self.mat, first: self.first + from / ROWS, rows })
    }
}

/// A weight `[rows, cols]`.
#[derive(Clone, Copy)]
pub enum W<'a> {
    /// Floats as they lie on disk.
    Dense(Mat<'a>),
    /// Codes re-laid in tiles.
    Grouped(Tiles<'a>),
}

impl<'a> From<Mat<'a>> for W<'a> {
    fn from(mat: Mat<'a>) -> W<'a> {
        W::Dense(mat)
    }
}

impl<'a> From<Tiles<'a>> for W<'a> {
    fn from(tiles: Tiles<'a>) -> W<'a> {
        W::Grouped(tiles)
    }
}

/// The forms of activations that weights are multiplied with in the fast mode, besides f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Rounded to bf16.
    pub bf16: bool,
    /// Rounded to bytes, for weights with these starts.
    pub bytes: [Option<Start>; STARTS],
}

impl Needs {
    /// What either needs. (A start too many is left out; weights that miss theirs are multiplied in f32.)
    pub fn or(mut self, other: Needs) -> Needs {
        self.bf16 |= other.bf16;
        for start in other.bytes.into_iter().flatten() {
            if !self.bytes.contains(&Some(start))
                && let Some(free) = self.bytes.iter_mut().find(|kind| kind.is_none())
            {
                *free = Some(start);
            }
        }
        self
    }

    /// What they become when the weights are multiplied with so many rows each, at the fewest and at the most: matrix
    /// tiles take `bf16` in place of bytes.
    pub(super) fn for_rows(mut self, cpu: &Cpu, fewest: usize, most: usize) -> Needs {
        let grouped = self.bytes[0].is_some();
        self.bf16 |= grouped && cpu.tiled(most);
        if cpu.tiled(fewest) {
            self.bytes = Default::default();
        }
        self
    }
}

impl<'a> W<'a> {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            W::Dense(mat) => mat.rows(),
            W::Grouped(tiles) => tiles.rows,
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            W::Dense(mat) => mat.cols(),
            W::Grouped(tiles) => tiles.mat.layout().cols(),
        }
    }

    /// Rows `from..from + rows` as a weight.
    pub fn slice(&self, from: usize, rows: usize) -> Result<W<'a>> {
        Ok(match self {
            W::Dense(mat) => W::Dense(mat.slice(from, rows)?),
            W::Grouped(tiles) => W::Grouped(tiles.slice(from, rows)?),
        })
    }

    /// What it is multiplied with in the fast mode.
    pub fn needs(&self) -> Needs {
        match self {
            W::Dense(mat) => Needs { bf16: mat.dtype() == DType::Bf16, ..Needs::default() },
            W::Grouped(tiles) => {
                let mut needs = Needs::default();
                let layout = tiles.mat.layout();
                needs.bytes[0] = Some(layout.start()).filter(|_| layout.mapping().is_integer());
                needs
            }
        }
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> usize {
        match self {
            W::Dense(mat) => mat.stride(),
            W::Grouped(tiles) => tiles.mat.layout().bytes() / tiles.mat.layout().tiles() / ROWS,
        }
    }

    /// Rows and columns of the outputs that one task computes for these activations, if `wanted` tasks are wanted.
    pub(super) fn split(&self, cpu: &Cpu, x: &Acts<'_>, wanted: usize) -> (usize, usize) {
        const STEP: usize = 12;
        const FOUR: usize = 4 * ROWS;
        let (m, n, row) = (x.m, self.rows(), self.row_bytes().max(1));
        if m <= 8 {
            let least = (16 << 10) / row;
            // Four tiles are read at a time.
            let (wanted, step) = if matches!(self, W::Dense(_)) { (wanted, 6) } else { (wanted.div_ceil(2), FOUR) };
            return (m, n.div_ceil(wanted).max(least).next_multiple_of(step));
        }
        if matches!(self, W::Grouped(_)) || self.tiled(cpu, x) {
            let cols = n.div_ceil(wanted).next_multiple_of(FOUR).clamp(FOUR, 4 * FOUR);
            let pieces = wanted / n.div_ceil(cols).max(1);
            let rows = if pieces > 1 { m.div_ceil(pieces).next_multiple_of(96) } else { m };
            return (rows, cols);
        }
        let most = ((384 << 10) / row).clamp(STEP, 240) / STEP * STEP;
        let cols = n.div_ceil(wanted).next_multiple_of(STEP).clamp(2 * STEP, most.max(2 * STEP));
        let pieces = wanted / n.div_ceil(cols).max(1);
        let rows = if pieces > 1 { m.div_ceil(pieces).next_multiple_of(32).max(64) } else { m };
        (rows, cols)
    }

    /// Whether these activations are multiplied by matrix tiles.
    #[cfg(target_arch = "x86_64")]
    fn tiled(&self, cpu: &Cpu, x: &Acts<'_>) -> bool {
        let halves = match self {
            W::Dense(mat) => mat.dtype() == DType::Bf16,
            W::Grouped(tiles) => tiles.mat.layout().mapping().is_integer(),
        };
        // Rows are followed by others, or by room for a tile of them, only where none are left out between.
        halves && !x.x16.is_null() && x.x16_ld == row_bytes(x.k) && cpu.tiled(x.m)
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn tiled(&self, _: &Cpu, _: &Acts<'_>) -> bool {
        false
    }

    /// Scratch bytes that [`W::product`] needs for `m` rows of these activations and `n` outputs, a multiple of 64.
    pub(super) fn scratch(&self, cpu: &Cpu, x: &Acts<'_>, [m, n]: [usize; 2]) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.tiled(cpu, x) {
            return scratch_bytes(m, n);
        }
        let _ = (cpu, x, m, n);
        match self {
            W::Dense(mat) => kernel::scratch_bytes(mat.cols()).next_multiple_of(64),
            W::Grouped(_) => grouped::SCRATCH,
        }
    }

    /// `out[m, n] = x w^T` for rows `m0..m0 + m` of `x` and rows `n0..n0 + n` of the weight.
    ///
    /// # Safety
    /// The ranges are inside, `n0` begins a tile of a grouped weight, `out` has room, and `mem` is as large as
    /// [`W::scratch`] says.
    #[allow(clippy::too_many_arguments)]
    pub(super) unsafe fn product(
        &self,
        cpu: &Cpu,
        x: &Acts<'_>,
        [m0, m]: [usize; 2],
        [n0, n]: [usize; 2],
        out: *mut f32,
        ld: usize,
        mem: *mut u8,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if self.tiled(cpu, x) {
                let (k, x_ld) = (x.k, x.x16_ld);
                let x = x.x16.add(m0 * x_ld);
                match self {
                    W::Dense(w) => {
                        let w = &Slice { mat: *w, from: n0 };
                        TileGemm { x, x_ld, m, k, w, first: 0, outputs: n, out, ld, scratch: mem }.run();
                    }
                    W::Grouped(w) => {
                        let first = w.first + n0 / ROWS;
                        TileGemm { x, x_ld, m, k, w: w.mat, first, outputs: n, out, ld, scratch: mem }.run();
                    }
                }
                return;
            }
            match self {
                W::Dense(w) => {
                    let block = kernel::Block {
                        x: x.x.add(m0 * x.x_ld),
                        x_ld: x.x_ld,
                        x16: if x.x16.is_null() { x.x16 } else { x.x16.add(m0 * x.x16_ld) },
                        x16_ld: x.x16_ld,
                        w: w.data().as_ptr().add(n0 * w.stride()),
                        w_ld: w.stride(),
                        dtype: w.dtype(),
                        k: x.k,
                        m,
                        n,
                        gemv: cpu.thresholds.dense_gemv_rows,
                        widen: cpu.thresholds.dense_widen_rows,
                        out,
                        ld,
                        scratch: mem,
                    };
                    crate::simd::run(cpu.level, block);
                }
                W::Grouped(w) => {
                    let (mat, first, tiles) = (w.mat, w.first + n0 / ROWS, n.div_ceil(ROWS));
                    let bytes = x.bytes.filter(|_| mat.layout().mapping().is_integer()).map(|b| b.rows_from(m0, m));
                    match bytes.and_then(|x| Some((x, x.start(mat.layout().start())?))) {
                        Some((x, starts)) => {
                            Integer { w: mat, first, tiles, x, starts, out, ld, scratch: mem }.run(cpu.level);
                        }
                        None => {
                            let x_at = x.x.add(m0 * x.x_ld);
                            Float { w: mat, first, tiles, x: x_at, x_ld: x.x_ld, m, out, ld, scratch: mem }
                                .run(cpu.level);
                        }
                    }
                }
            }
        }
    }
}

/// Whether activations are rounded at all.
pub(super) fn rounds(mode: Mode) -> bool {
    mode == Mode::Fast
}
