//! The heavy inner loops, so that another device can take them over.

use crate::Hessian;
use marlin_cpu::Cpu;
use std::ops::Range;

/// What quantising costs time for.
pub trait Compute: Send + Sync {
    /// Runs `body` over the parts of `0..n`, none smaller than `grain` but the last, on all threads.
    fn ranges(&self, n: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync));

    /// Adds `rows` inputs `x` `[rows, size]` to the sums, each weighted by its `weights` (not negative) if given. Rows
    /// with a value that is not finite are left out; the number of those is returned.
    fn accumulate(&self, hessian: &mut Hessian, x: &[f32], weights: Option<&[f32]>) -> usize;
}

impl Compute for Cpu {
    fn ranges(&self, n: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        self.pool().ranges(n, grain, body);
    }

    fn accumulate(&self, hessian: &mut Hessian, x: &[f32], weights: Option<&[f32]>) -> usize {
        let size = hessian.size();
        let (sums, tokens) = hessian.parts_mut();
        let rows = x.len() / size.max(1);
        // The sums are square and as wide as the rows; weights come one for each row.
        let left_out = marlin_cpu::ops::gram(self, x, size, weights, sums.data_mut()).unwrap_or(rows);
        *tokens += (rows - left_out) as f64;
        left_out
    }
}
