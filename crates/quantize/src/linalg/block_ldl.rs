//! `A = L D L^T` with a block-lower `L` whose diagonal blocks are identities.

use super::Square;
use crate::compute::for_rows;
use crate::{Compute, Matrix};

/// Replaces the lower Cholesky factor `C` `[n, n]` of a matrix by the `L` of its block LDL decomposition: for each block
/// column of `block` columns, `L_i = C_i C_ii^-1`. The diagonal blocks of `L` are identities; what stands above them is
/// zero.
pub fn block_ldl(compute: &dyn Compute, c: &mut Matrix, block: usize) {
    let n = c.rows();
    let inverses: Vec<Vec<f32>> = (0..n)
        .step_by(block)
        .map(|from| {
            let size = block.min(n - from);
            Square::lower(&c.data()[from * n..], n, from, size).inverse_of_lower().to_f32()
        })
        .collect();
    for_rows(compute, c.data_mut(), n, 16, &|r, row| {
        for (i, (part, inverse)) in row.chunks_mut(block).zip(&inverses).enumerate() {
            let size = part.len();
            if i > r / block {
                part.fill(0.0);
            } else if i == r / block {
                part.fill(0.0);
                part[r % block] = 1.0;
            } else {
                // Lower times lower: columns 0..=k of row k of the inverse.
                for j in 0..size {
                    part[j] = (j..size).map(|k| part[k] * inverse[k * size + j]).sum();
                }
            }
        }
    });
}
