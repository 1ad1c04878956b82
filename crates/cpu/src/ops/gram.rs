//! Second moments of rows: `sums += sum_t w_t x_t^T x_t`.

use crate::buffer::{Buffer, Shared};
use crate::mat::at_least;
use crate::simd::{self, Kernel, LANES, Level, Simd, load_some};
use crate::{Cpu, Result};

/// Rows that are added in registers before the sums in memory are touched: panels of so many stay in the first cache.
const ROWS: usize = 256;
/// Columns of a block of sums, in panels of [`LANES`].
const BLOCK: usize = 8;

/// Copies sixteen columns of `rows` rows side by side, each row times its factor; rows whose factor is zero become zeros.
struct Pack {
    x: *const f32,
    ld: usize,
    cols: usize,
    factors: *const f32,
    rows: usize,
    out: *mut f32,
}

impl Kernel for Pack {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for t in 0..self.rows {
            // SAFETY: the caller vouches for `cols` values of each row and room for sixteen.
            unsafe {
                let (row, factor) = (self.x.add(t * self.ld), *self.factors.add(t));
                let v = match (factor == 0.0, self.cols == LANES) {
                    (true, _) => S::zero(),
                    (false, true) => S::load(row),
                    (false, false) => load_some::<S>(row, self.cols),
                };
                S::store(self.out.add(t * LANES), S::mul(v, S::splat(factor)));
            }
        }
    }
}

/// Adds the products of one panel with `panels` others to `LANES` rows of sums.
struct Products {
    left: *const f32,
    right: *const f32,
    rows: usize,
    panels: usize,
    sums: *mut f32,
    ld: usize,
}

/// `M` columns of the left panel times `N` panels.
///
/// # Safety
/// The features of `S` must be enabled; pointers as [`Products`] has them.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const N: usize>(p: &Products, first: usize, panel: usize) {
    // SAFETY: panels hold `rows` times sixteen values, the sums sixteen rows of `panels` times sixteen.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        let (left, right) = (p.left.add(first), p.right.add(panel * ROWS * LANES));
        for t in 0..p.rows {
            let mut b = [S::zero(); N];
            for n in 0..N {
                b[n] = S::load(right.add((n * ROWS + t) * LANES));
            }
            for m in 0..M {
                let a = S::splat(*left.add(t * LANES + m));
                for n in 0..N {
                    acc[m][n] = S::fma(a, b[n], acc[m][n]);
                }
            }
        }
        for m in 0..M {
            for n in 0..N {
                let at = p.sums.add((first + m) * p.ld + (panel + n) * LANES);
                S::store(at, S::add(S::load(at), acc[m][n]));
            }
        }
    }
}

impl Kernel for Products {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let wide = matches!(S::LEVEL, Level::Avx512 | Level::Avx512Bf16);
        let mut panel = 0;
        while panel < self.panels {
            let left = self.panels - panel;
            // SAFETY: the same promises; the panels of a tile are there.
            panel += unsafe {
                match (wide, left) {
                    (true, 3..) => {
                        (0..LANES).step_by(8).for_each(|m| tile::<S, 8, 3>(&self, m, panel));
                        3
                    }
                    (true, _) => {
                        (0..LANES).step_by(8).for_each(|m| tile::<S, 8, 1>(&self, m, panel));
                        1
                    }
                    (false, _) => {
                        (0..LANES).step_by(4).for_each(|m| tile::<S, 4, 1>(&self, m, panel));
                        1
                    }
                }
            };
        }
    }
}

/// Adds `sum_t weights[t] x[t]^T x[t]` over the rows `x` `[rows, size]` to the symmetric `sums` `[size, size]`. Rows with
/// a value that is not finite are left out, and their number is returned. Weights are not negative; without them all rows
/// count 1. Products of 256 rows are added in f32 before they go to the sums; only rows and columns decide the order.
pub fn gram(cpu: &Cpu, x: &[f32], size: usize, weights: Option<&[f32]>, sums: &mut [f32]) -> Result<usize> {
    const OP: &str = "gram";
    let rows = x.len().checked_div(size).unwrap_or(0);
    at_least(OP, "sums", size * size, sums.len())?;
    at_least(OP, "weights", rows, weights.map_or(rows, <[f32]>::len))?;
    let panels = size.div_ceil(LANES);
    let mut packed = Buffer::new();
    let packed = Shared(packed.reserve(panels * ROWS * LANES * 4).cast::<f32>());
    // Blocks on and above the diagonal.
    let blocks: Vec<(usize, usize)> = {
        let n = panels.div_ceil(BLOCK);
        (0..n).flat_map(|i| (i..n).map(move |j| (i, j))).collect()
    };
    let out = Shared::of(sums);
    let mut left_out = 0;
    for (c, chunk) in x[..rows * size].chunks(ROWS * size.max(1)).enumerate() {
        let count = chunk.len() / size;
        let factors: Vec<f32> = chunk
            .chunks_exact(size)
            .enumerate()
            .map(|(t, row)| match row.iter().all(|v| v.is_finite()) {
                true => weights.map_or(1.0, |w| w[c * ROWS + t].max(0.0).sqrt()),
                false => {
                    left_out += 1;
                    0.0
                }
            })
            .collect();
        cpu.pool().ranges(panels, 4, &|range| {
            for p in range {
                let cols = LANES.min(size - p * LANES);
                // SAFETY: `cols` values of each row from column 16 p on are within the chunk; the panel has room.
                unsafe {
                    let pack = Pack {
                        x: chunk.as_ptr().add(p * LANES),
                        ld: size,
                        cols,
                        factors: factors.as_ptr(),
                        rows: count,
                        out: { packed }.0.add(p * ROWS * LANES),
                    };
                    simd::run(cpu.level(), pack);
                }
            }
        });
        cpu.pool().run(blocks.len(), &|b| {
            let (i, j) = blocks[b];
            let (first, last) = (j * BLOCK, ((j + 1) * BLOCK).min(panels));
            let width = (last - first) * LANES;
            let cols = width.min(size - first * LANES);
            // Sums are worked on aside, so that the last panel may be padded.
            let mut block = [0.0f32; LANES * BLOCK * LANES];
            for p in i * BLOCK..((i + 1) * BLOCK).min(panels) {
                let some = LANES.min(size - p * LANES);
                // SAFETY: each block of sums belongs to one task, and all are inside `sums`; the panels were filled above.
                unsafe {
                    for r in 0..some {
                        let row = out.part((p * LANES + r) * size + first * LANES, cols);
                        block[r * width..][..cols].copy_from_slice(row);
                    }
                    let products = Products {
                        left: { packed }.0.add(p * ROWS * LANES),
                        right: { packed }.0.add(first * ROWS * LANES),
                        rows: count,
                        panels: last - first,
                        sums: block.as_mut_ptr(),
                        ld: width,
                    };
                    simd::run(cpu.level(), products);
                    for r in 0..some {
                        let row = out.part((p * LANES + r) * size + first * LANES, cols);
                        row.copy_from_slice(&block[r * width..][..cols]);
                    }
                }
            }
        });
    }
    // What is above the diagonal is what is below it.
    let below = Shared::of(sums);
    cpu.pool().ranges(panels, 8, &|range| {
        for i in range.start * LANES..(range.end * LANES).min(size) {
            for j in 0..i {
                // SAFETY: (i, j) below the diagonal is written by the task of row i alone; nobody writes (j, i).
                unsafe { *{ below }.0.add(i * size + j) = *{ below }.0.add(j * size + i) }
            }
        }
    });
    Ok(left_out)
}
