//! Inverses from Cholesky factors.

use super::{BLOCK, Square};
use crate::compute::for_rows;
use crate::{Compute, Matrix, Result};

/// `C^-T` of a lower triangle `C` `[n, n]`: an upper triangle `U` with `U U^T = (C C^T)^-1`.
pub fn inverse_transposed(compute: &dyn Compute, c: &Matrix) -> Result<Matrix> {
    let n = c.rows();
    let mut out = Matrix::zeros(n, n);
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        let width = to - from;
        // Rows before the block's: U[j, block] = -sum_k U[j, k] C[block, k], then the block's own inverse.
        let mut sums = vec![0.0; from * width];
        for first in (0..from).step_by(4 * BLOCK) {
            // Rows from `first` on have nothing but zeros before it.
            let last = (first + 4 * BLOCK).min(from);
            let (u, c) = (out.part(first..last, first..from), c.part(from..to, first..from));
            compute.add_products(-1.0, u, c, &mut sums[first * width..last * width], width)?;
        }
        let inverse = Square::lower(&c.data()[from * n..], n, from, width).inverse_of_lower();
        let small = inverse.to_f32();
        for_rows(compute, &mut out.data_mut()[..from * n], n, 16, &|r, row| {
            let sums = &sums[r * width..(r + 1) * width];
            for (i, to) in row[from..to].iter_mut().enumerate() {
                *to = small[i * width..=i * width + i].iter().zip(sums).map(|(a, b)| a * b).sum();
            }
        });
        for r in 0..width {
            let row = &mut out.row_mut(from + r)[from..to];
            row.iter_mut().enumerate().for_each(|(i, v)| *v = inverse.at(i, r) as f32);
        }
    }
    Ok(out)
}

/// `A^-1` of `A = C C^T` `[n, n]`, whole and symmetric bit for bit.
pub fn inverse(compute: &dyn Compute, c: &Matrix) -> Result<Matrix> {
    let u = inverse_transposed(compute, c)?;
    let n = u.rows();
    let mut out = Matrix::zeros(n, n);
    for from in (0..n).step_by(BLOCK) {
        let to = (from + BLOCK).min(n);
        let cols = out.cols();
        // Row i of the upper triangle is zero before i, so that only what stands from the block on counts.
        compute.add_products(
            1.0,
            u.part(0..to, from..n),
            u.part(from..to, from..n),
            &mut out.data_mut()[from..],
            cols,
        )?;
    }
    for r in 0..n {
        for c in 0..r {
            let v = out.row(c)[r];
            out.row_mut(r)[c] = v;
        }
    }
    Ok(out)
}
