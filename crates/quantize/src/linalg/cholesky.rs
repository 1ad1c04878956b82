//! `A = C C^T` with a lower triangle `C`.

use super::{BLOCK, Square};
use crate::compute::for_rows;
use crate::{Compute, Matrix, Result};
use marlin_cpu::linear::Rows;

/// A matrix that is not positive definite, or not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotPositive {
    /// The first row whose pivot is not a positive number.
    pub row: usize,
}

/// Replaces a symmetric matrix `[n, n]`, of which only the lower triangle is read, by its lower Cholesky factor with zeros
/// above. `Ok(Err(_))` is a matrix that has none, and then its contents are of no use.
pub fn cholesky(compute: &dyn Compute, a: &mut Matrix) -> Result<std::result::Result<(), NotPositive>> {
    let n = a.rows();
    for from in (0..n).step_by(BLOCK) {
        let (to, below) = ((from + BLOCK).min(n), n - from);
        let width = to - from;
        // The block column, less what the columns before it account for.
        let mut panel = vec![0.0; below * width];
        for (r, row) in panel.chunks_exact_mut(width).enumerate() {
            row.copy_from_slice(&a.row(from + r)[from..to]);
        }
        compute.add_products(-1.0, a.part(from..n, 0..from), a.part(from..to, 0..from), &mut panel, width)?;
        let mut diagonal = Square::lower(&panel, width, 0, width);
        if let Err(at) = diagonal.cholesky() {
            return Ok(Err(NotPositive { row: from + at }));
        }
        for r in 0..width {
            let row = a.row_mut(from + r);
            row[from..to].iter_mut().enumerate().for_each(|(c, v)| *v = diagonal.at(r, c) as f32);
            row[to..].fill(0.0);
        }
        // The rows below: x C^T = panel, with the block's inverse.
        let inverse = diagonal.inverse_of_lower().to_f32();
        let rest = below - width;
        let mut solved = vec![0.0; rest * width];
        let below = Rows { data: &panel[width * width..], rows: rest, cols: width, stride: width };
        let inverse = Rows { data: &inverse, rows: width, cols: width, stride: width };
        compute.add_products(1.0, below, inverse, &mut solved, width)?;
        for_rows(compute, &mut a.data_mut()[to * n..], n, BLOCK, &|r, row| {
            row[from..to].copy_from_slice(&solved[r * width..(r + 1) * width]);
        });
    }
    Ok(Ok(()))
}
