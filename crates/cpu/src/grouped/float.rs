//! Products in f32 of decoded values.

use super::layout::Mapping;
use super::relay::GroupedMat;
use super::scales::{Decode, Decoded};
use super::unpack::{codes, step_bytes};
use super::{ROWS, SPAN, STEP};
use crate::simd::{self, Kernel, LANES, Level, Simd};

/// Rows of activations that pass over a tile's record before the next is decoded.
const ROW_BLOCK: usize = 128;

/// Scratch that [`Float`] needs: a record's values and sums.
pub(crate) const SCRATCH: usize = SPAN * LANES * 4 + ROW_BLOCK * LANES * 4;

/// `out[m, n] = sum_k x[m, k] * w[n, k]` in f32 for `m` rows and `tiles` tiles from `first` on.
pub(crate) struct Float<'a> {
    pub w: &'a GroupedMat,
    pub first: usize,
    pub tiles: usize,
    pub x: *const f32,
    /// Values from row to row of `x`.
    pub x_ld: usize,
    pub m: usize,
    pub out: *mut f32,
    pub ld: usize,
    /// Room for [`SCRATCH`], aligned to 64.
    pub scratch: *mut u8,
}

/// Decodes a record of a tile into `[columns, LANES]` values.
pub(crate) struct Values<'a> {
    pub w: &'a GroupedMat,
    pub tile: usize,
    pub record: usize,
    pub out: *mut f32,
}

impl Kernel for Values<'_> {
    type Out = ();

    // Plain loops over arrays: the compiler vectorises them with the level's features.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let layout = self.w.layout();
        let mut numbers = Decoded::new();
        // SAFETY: the fields' promises.
        unsafe {
            let (head, record) = (self.w.head(self.tile), self.w.record(self.tile, self.record));
            Decode { layout, head, record, folded: false, out: &mut numbers }.run::<S>();
            let zero = f32::from(layout.mapping.zero());
            for step in 0..layout.steps(self.record) {
                let at = record.add(layout.numbers + step * step_bytes(layout.bits));
                let vectors = codes::<S>(layout.bits, at);
                for (q, v) in vectors.into_iter().enumerate() {
                    let mut words = [0u32; LANES];
                    S::store_bytes(words.as_mut_ptr().cast(), v);
                    let column = step * STEP + 4 * q;
                    let g = column / layout.group;
                    let (scale, zeros) = (&numbers.scale[g], &numbers.zero[g]);
                    for i in 0..4 {
                        let code: [u32; LANES] = std::array::from_fn(|r| words[r] >> (8 * i) & 0xff);
                        let mut value = [0.0f32; LANES];
                        match &layout.mapping {
                            Mapping::Integer { .. } => {
                                for r in 0..LANES {
                                    value[r] = code[r] as i32 as f32 - zero - zeros[r];
                                }
                            }
                            Mapping::Table { table, factor, .. } => {
                                for r in 0..LANES {
                                    value[r] = (f32::from(table[(code[r] & 15) as usize]) - zero) * factor;
                                }
                            }
                            Mapping::Floats(table) => {
                                for r in 0..LANES {
                                    value[r] = table[(code[r] & 15) as usize];
                                }
                            }
                            Mapping::E4M3 => {
                                for r in 0..LANES {
                                    let bits = (code[r] & 0x7f) << 20 | (code[r] & 0x80) << 24;
                                    value[r] = f32::from_bits(bits) * f32::from_bits((127 + 120) << 23);
                                }
                            }
                            Mapping::E5M2 => {
                                for r in 0..LANES {
                                    let bits = (code[r] & 0x7f) << 21 | (code[r] & 0x80) << 24;
                                    value[r] = f32::from_bits(bits) * f32::from_bits((127 + 112) << 23);
                                }
                            }
                        }
                        let out = self.out.add((column + i) * LANES);
                        for r in 0..LANES {
                            // Products first, rounded, then the minimum: the order of the reference.
                            let mut v = scale[r] * value[r];
                            if layout.minimum.is_some() {
                                v += numbers.minimum[g][r];
                            }
                            *out.add(r) = v;
                        }
                    }
                }
            }
        }
    }
}

/// `M` rows of activations against `columns` decoded columns of a tile.
#[inline(always)]
unsafe fn rows<S: Simd, const M: usize>(x: *const f32, x_ld: usize, values: *const f32, columns: usize, y: *mut f32) {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let mut acc = [S::zero(); M];
        for m in 0..M {
            acc[m] = S::load(y.add(m * LANES));
        }
        for k in 0..columns {
            let w = S::load(values.add(k * LANES));
            for m in 0..M {
                acc[m] = S::fma(S::splat(*x.add(m * x_ld + k)), w, acc[m]);
            }
        }
        for m in 0..M {
            S::store(y.add(m * LANES), acc[m]);
        }
    }
}

struct Multiply {
    x: *const f32,
    x_ld: usize,
    m: usize,
    values: *const f32,
    columns: usize,
    y: *mut f32,
}

impl Kernel for Multiply {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields' promises.
        unsafe {
            let mut m = 0;
            while m < self.m {
                let (x, y) = (self.x.add(m * self.x_ld), self.y.add(m * LANES));
                if self.m - m >= 4 {
                    rows::<S, 4>(x, self.x_ld, self.values, self.columns, y);
                    m += 4;
                } else {
                    rows::<S, 1>(x, self.x_ld, self.values, self.columns, y);
                    m += 1;
                }
            }
        }
    }
}

impl Float<'_> {
    /// Computes the outputs.
    ///
    /// # Safety
    /// The tiles lie within the matrix, rows of `x` hold its columns, `out` has room, and the level is available.
    pub unsafe fn run(&self, level: Level) {
        let layout = self.w.layout();
        // SAFETY: this function's contract; the scratch holds values and sums.
        unsafe {
            let values = self.scratch.cast::<f32>();
            let y = values.add(SPAN * LANES);
            for m0 in (0..self.m).step_by(ROW_BLOCK) {
                let rows = ROW_BLOCK.min(self.m - m0);
                for tile in self.first..self.first + self.tiles {
                    y.write_bytes(0, rows * LANES);
                    for record in 0..layout.records() {
                        simd::run(level, Values { w: self.w, tile, record, out: values });
                        let columns = (layout.cols - record * SPAN).min(SPAN);
                        let x = self.x.add(m0 * self.x_ld + record * SPAN);
                        simd::run(level, Multiply { x, x_ld: self.x_ld, m: rows, values, columns, y });
                    }
                    let n = (layout.rows - tile * ROWS).min(ROWS);
                    for m in 0..rows {
                        let out = self.out.add((m0 + m) * self.ld + (tile - self.first) * ROWS);
                        out.copy_from_nonoverlapping(y.add(m * LANES), n);
                    }
                }
            }
        }
    }
}

impl GroupedMat {
    /// Values of row `row` into `out`, one for each column.
    pub fn row(&self, level: Level, row: usize, out: &mut [f32]) {
        let layout = self.layout();
        assert!(row < layout.rows && out.len() == layout.cols, "row {row} of {layout:?}");
        crate::buffer::scratch(SPAN * LANES * 4, |mem| {
            for (record, out) in out.chunks_mut(SPAN).enumerate() {
                let values = mem.cast::<f32>();
                // SAFETY: the row's tile is inside the matrix and the scratch holds a record's values.
                unsafe {
                    simd::run(level, Values { w: self, tile: row / ROWS, record, out: values });
                    out.iter_mut().enumerate().for_each(|(k, v)| *v = *values.add(k * LANES + row % ROWS));
                }
            }
        });
    }
}
