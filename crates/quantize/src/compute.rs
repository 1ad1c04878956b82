//! The heavy inner loops, so that another device can take them over.

use crate::Hessian;
use marlin_cpu::Cpu;
use std::ops::Range;

/// What quantising costs time for.
pub trait Compute: Send + Sync {
    /// Runs `body` over the parts of `0..n`, none smaller than `grain` but the last, on all threads.
    fn ranges(&self, n: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync));

    /// Adds `rows` inputs `x` `[rows, size]` to the sums, each weighted by its `weights` if given. Rows with a value that
    /// is not finite are left out; the number of those is returned.
    fn accumulate(&self, hessian: &mut Hessian, x: &[f32], weights: Option<&[f32]>) -> usize;
}

impl Compute for Cpu {
    fn ranges(&self, n: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        self.pool().ranges(n, grain, body);
    }

    fn accumulate(&self, hessian: &mut Hessian, x: &[f32], weights: Option<&[f32]>) -> usize {
        let size = hessian.size();
        let (sums, tokens) = hessian.parts_mut();
        let mut left_out = 0;
        for (t, x) in x.chunks_exact(size).enumerate() {
            if x.iter().any(|v| !v.is_finite()) {
                left_out += 1;
                continue;
            }
            let weight = weights.map_or(1.0, |w| w[t]);
            *tokens += 1.0;
            for i in 0..size {
                let scaled = weight * x[i];
                sums.row_mut(i).iter_mut().zip(x).for_each(|(sum, v)| *sum += scaled * v);
            }
        }
        left_out
    }
}
