//! Products of activations and matrices: which kernel, and on which grid.

use super::decide::Rung;
use super::linear::After;
use super::stored::{Kind, Stored};
use super::stream::Sides;
use super::{GpuBackend, Tensor};
use crate::kernels::*;
use crate::source::Entry;
use crate::{Gpu, Result, Slice};

/// Rows that kernels for few rows take at most; how many they are given is the device's [`Thresholds::few_rows`](crate::select::Thresholds).
pub(super) const FEW_ROWS: usize = 16;

impl GpuBackend {
    /// `x` `[batch, cols of the matrix]` times the matrix.
    pub(super) fn product(
        &self,
        w: &Stored,
        bias: Option<&Slice<f32>>,
        x: &Slice<f32>,
        batch: usize,
        rung: Rung,
    ) -> Result<Slice<f32>> {
        let few = batch <= self.thresholds().few_rows;
        if rung == Rung::Tensor && few {
            let sides = Sides { bias, ..Sides::default() };
            if let Some(y) = self.stream(w, sides, x, batch)? {
                return Ok(y);
            }
        }
        if rung == Rung::Tensor && !few && self.multiplies(&w.kind) {
            let y = self.multiply(w, None, x, batch)?;
            let Some(bias) = bias else { return Ok(y) };
            let (rows, features) = (batch, w.kind.rows());
            let after = After { scale: None, block: 1, features, width: features, bias: Some(bias.clone()) };
            return Ok(self.after(&after, &Tensor::of(rows, features, y))?.data);
        }
        let y = self.gpu.uninitialised(batch * w.kind.rows())?;
        let biases = bias.unwrap_or(&self.none);
        product_into(&self.gpu, &self.none, w, (bias.is_some(), biases), x, batch, (rung, few), &y)?;
        Ok(y)
    }
}

/// Rows of x that a kernel for few rows takes at a time.
pub(crate) fn rows_at_a_time(batch: usize) -> u32 {
    match batch {
        1 => 1,
        2 => 2,
        _ => 4,
    }
}

#[allow(clippy::too_many_arguments)]
fn product_into(
    gpu: &Gpu,
    none: &Slice<f32>,
    w: &Stored,
    (bias, biases): (bool, &Slice<f32>),
    x: &Slice<f32>,
    batch: usize,
    (rung, few): (Rung, bool),
    y: &Slice<f32>,
) -> Result<()> {
    let no_index = none.cast();
    let m = rows_at_a_time(batch);
    let tall = div(batch, m as usize);
    match w.kind {
        Kind::Rows { weight, args } => {
            let a = GemvArgs { w: args, batch: batch as u32, share: 1, stack_words: 0, stack_factors: 0 };
            let rows = args.rows as usize;
            if rung > Rung::Fast {
                let groups = [div(rows, 128), batch as u32, 1];
                return SimpleLinear { weight, bias }.launch(gpu, groups, &w.words, &w.factors, biases, x, y, &a);
            }
            if !few {
                let groups = [div(rows, 64), div(batch, 64), 1];
                return Gemm { weight, bias }.launch(gpu, groups, &w.words, &w.factors, biases, x, y, &a);
            }
            let kernel = gemv(weight, m, bias, false);
            let groups = [div(rows, (kernel.r * kernel.simds) as usize), tall, 1];
            kernel.launch(gpu, groups, &w.words, &w.factors, biases, x, &no_index, &no_index, y, &a)
        }
        Kind::Trellis { bits, book, rows, cols } => {
            let a = TrellisArgs { rows, cols, batch: batch as u32, share: 1, stack_words: 0 };
            if rung > Rung::Fast {
                let groups = [div(rows as usize, 128), batch as u32, 1];
                return SimpleTrellis { bits, book }.launch(gpu, groups, &w.words, x, y, &a);
            }
            if !few {
                let groups = [div(rows as usize, 64), div(batch, 64), 1];
                return TrellisGemm { bits, book }.launch(gpu, groups, &w.words, x, y, &a);
            }
            let kernel = trellis_gemv(bits, book, m, false);
            let groups = [div(rows as usize, 16 * kernel.tiles as usize), tall, 1];
            kernel.launch(gpu, groups, &w.words, x, &no_index, &no_index, y, &a)
        }
    }
}

/// The kernel for few rows of a weight.
pub(crate) fn gemv(weight: WeightType, m: u32, bias: bool, experts: bool) -> Gemv {
    Gemv { weight, m, r: if m == 1 { 4 } else { 2 }, simds: 4, bias, experts }
}

/// The kernel for few rows of a trellis.
pub(crate) fn trellis_gemv(bits: u32, book: Book, m: u32, experts: bool) -> TrellisGemv {
    TrellisGemv { bits, book, m, tiles: if m <= 2 { 2 } else { 1 }, simds: 8, experts }
}

/// Every kernel that a product with such a matrix may take, but the plain one.
pub(super) fn entries(kind: &Kind) -> Vec<Entry> {
    let few = [1, 2, 4];
    match *kind {
        Kind::Rows { weight, .. } => few
            .map(|m| gemv(weight, m, false, false).entry())
            .into_iter()
            .chain([Gemm { weight, bias: false }.entry()])
            .collect(),
        Kind::Trellis { bits, book, .. } => few
            .map(|m| trellis_gemv(bits, book, m, false).entry())
            .into_iter()
            .chain([TrellisGemm { bits, book }.entry()])
            .collect(),
    }
}

fn div(a: usize, b: usize) -> u32 {
    a.div_ceil(b) as u32
}
