//! The heavy inner loops, so that another device can take them over.

use crate::{Hessian, Result};
use marlin_checkpoint::weight::Codebook;
use marlin_cpu::encode;
use marlin_cpu::linear::{self, Rows};
use marlin_cpu::{Cpu, Mode};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What quantising costs time for.
pub trait Compute: Send + Sync {
    /// Runs `body` over the parts of `0..n`, none smaller than `grain` but the last, on all threads.
    fn ranges(&self, n: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync));

    /// Adds `rows` inputs `x` `[rows, size]` to the sums, each weighted by its `weights` (not negative) if given. Rows
    /// with a value that is not finite are left out; the number of those is returned. Too few weights are an error.
    fn accumulate(&self, hessian: &mut Hessian, x: &[f32], weights: Option<&[f32]>) -> Result<usize>;

    /// `out[i, j] += factor * sum_k a[i, k] * b[j, k]`: rows of `out` are `stride` values apart. Each sum has one order,
    /// whatever the number of threads. Shapes that do not fit are an error.
    fn add_products(&self, factor: f32, a: Rows<'_>, b: Rows<'_>, out: &mut [f32], stride: usize) -> Result<()>;

    /// Finds the words of a trellis of `bits` bits whose values are closest to `targets`: tiles of 256 weights in the order
    /// of the stream, each a closed walk through the 16-bit states.
    fn encode(&self, codebook: Codebook, bits: usize, targets: &[f32], words: &mut [u16]) -> Result<()>;
}

/// Runs `body` with the index of each row of `width` values and the row, to be changed, on all threads; `grain` rows
/// are worth a task.
pub(crate) fn for_rows<T: Send>(
    compute: &dyn Compute,
    data: &mut [T],
    width: usize,
    grain: usize,
    body: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    let grain = grain.max(1);
    // Each piece is locked once, by the thread that works on it.
    let pieces: Vec<_> = data.chunks_mut(grain * width.max(1)).map(Mutex::new).collect();
    compute.ranges(pieces.len(), 1, &|range| {
        for i in range {
            let mut piece = pieces[i].lock().unwrap_or_else(PoisonError::into_inner);
            for (j, row) in piece.chunks_mut(width.max(1)).enumerate() {
                body(i * grain + j, row);
            }
        }
    });
}

impl Compute for Cpu {
    fn ranges(&self, n: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        self.pool().ranges(n, grain, body);
    }

    fn accumulate(&self, hessian: &mut Hessian, x: &[f32], weights: Option<&[f32]>) -> Result<usize> {
        let size = hessian.size();
        let (sums, tokens) = hessian.parts_mut();
        let rows = x.len() / size.max(1);
        let left_out = marlin_cpu::ops::gram(self, x, size, weights, sums.data_mut())?;
        *tokens += (rows - left_out) as f64;
        Ok(left_out)
    }

    fn add_products(&self, factor: f32, a: Rows<'_>, b: Rows<'_>, out: &mut [f32], stride: usize) -> Result<()> {
        Ok(linear::add_products(self, factor, a, b, out, stride)?)
    }

    fn encode(&self, codebook: Codebook, bits: usize, targets: &[f32], words: &mut [u16]) -> Result<()> {
        Ok(encode::encode(self, Mode::Fast, codebook, bits, targets, words)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_weights_are_no_bad_rows() {
        let (cpu, mut hessian) = (Cpu::new(1), Hessian::new(2));
        let rows = [1.0, 2.0, f32::NAN, 0.0];
        assert!(matches!(cpu.accumulate(&mut hessian, &rows, Some(&[1.0])), Err(crate::Error::Kernel(_))));
        assert_eq!(hessian.tokens(), 0.0);
        assert_eq!(cpu.accumulate(&mut hessian, &rows, Some(&[1.0, 1.0])).unwrap(), 1);
        assert_eq!(hessian.tokens(), 1.0);
    }
}
