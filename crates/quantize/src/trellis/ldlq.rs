//! Coding sixteen inputs after the other, with the errors of those that are coded fed back into the rest.

use super::pack::{pack, places};
use super::space::Space;
use super::{AREA, BLOCK, Exl3, TILE};
use crate::compute::for_rows;
use crate::linalg::{block_ldl, cholesky};
use crate::{Compute, Error, Hessian, Matrix, Result};
use marlin_checkpoint::weight::hadamard;

/// Added to the diagonal of a Hessian, as a part of the diagonal's mean; twice as much more each time it has no factor.
pub const DAMPING: f32 = 0.025;
/// How often more is added.
const RETRIES: usize = 10;
/// A mean of the diagonal below which nothing has been seen.
const NOTHING: f64 = 1e-20;

/// What the errors of later inputs ask of earlier ones: `L^T` `[in, in]` of the block LDL decomposition of the Hessian in
/// the space of the coded weights. `None` where the Hessian has seen nothing.
pub fn feedback(compute: &dyn Compute, module: &str, space: &Space, hessian: &Hessian) -> Result<Option<Matrix>> {
    let (size, padded) = (hessian.size(), space.inputs.len());
    let mean = (0..size).map(|i| f64::from(hessian.sums().row(i)[i])).sum::<f64>() / size as f64;
    if hessian.tokens() <= 0.0 || mean / hessian.tokens() < NOTHING {
        return Ok(None);
    }
    // The mean of the diagonal becomes one, so that sums over many tokens are in reach of f32.
    let norm = (1.0 / mean) as f32;
    let mut h = Matrix::zeros(padded, padded);
    for_rows(compute, h.data_mut(), padded, 16, &|i, row| {
        if i < size {
            row.iter_mut().zip(hessian.sums().row(i)).for_each(|(h, sum)| *h = sum * norm);
        }
        row[i] += DAMPING;
    });
    // R diag(su) H diag(su) R, with su over its mean square for the same reason.
    let square = space.inputs.iter().map(|s| f64::from(*s) * f64::from(*s)).sum::<f64>() / padded as f64;
    let su: Vec<f32> = space.inputs.iter().map(|s| (f64::from(*s) / square.sqrt()) as f32).collect();
    for _ in 0..2 {
        for_rows(compute, h.data_mut(), padded, 16, &|_, row| {
            row.iter_mut().zip(&su).for_each(|(h, s)| *h *= s);
            hadamard(row, BLOCK);
        });
        h = h.transposed();
    }
    let mean = (0..padded).map(|i| f64::from(h.row(i)[i])).sum::<f64>() / padded as f64;
    let mut factor = h.clone();
    let mut tries = 0;
    while let Err(at) = cholesky(compute, &mut factor)? {
        tries += 1;
        if tries > RETRIES {
            let why = format!(
                "the Hessian has no Cholesky factor (row {} of the rotated one), with {:.3} of its mean diagonal added; calibrate with more text",
                at.row,
                DAMPING * (2 * RETRIES + 1) as f32
            );
            return Err(Error::Module { module: module.into(), why });
        }
        (0..padded).for_each(|i| h.row_mut(i)[i] += 2.0 * DAMPING * mean as f32);
        factor = h.clone();
    }
    drop(h);
    block_ldl(compute, &mut factor, TILE);
    Ok(Some(factor.transposed()))
}

/// Codes `weights` `[out, in]`: the stored words `[in / 16, out / 16, 16 x bits]`, and the weights that they stand for.
pub fn encode(
    compute: &dyn Compute,
    method: &Exl3,
    mut weights: Matrix,
    feedback: Option<&Matrix>,
) -> Result<(Vec<u16>, Matrix)> {
    let [rows, cols] = [weights.rows(), weights.cols()];
    let [down, across] = [cols / TILE, rows / TILE];
    let stored = TILE * method.bits;
    let places = places();
    let mut trellis = vec![0; down * across * stored];
    let mut coded = Matrix::zeros(rows, cols);
    let mut targets = vec![0.0; across * AREA];
    let mut words = vec![0; across * AREA];
    // From here on `weights` holds, of inputs that are coded, their errors.
    for first in (0..cols).step_by(BLOCK).rev() {
        let last = first + BLOCK;
        let mut block = Matrix::zeros(rows, BLOCK);
        for_rows(compute, block.data_mut(), BLOCK, 64, &|r, row| row.copy_from_slice(&weights.row(r)[first..last]));
        if let Some(feedback) = feedback {
            let (errors, l) = (weights.part(0..rows, last..cols), feedback.part(first..last, last..cols));
            compute.add_products(1.0, errors, l, block.data_mut(), BLOCK)?;
        }
        for at in (0..BLOCK).step_by(TILE).rev() {
            let (from, next) = (first + at, first + at + TILE);
            if let Some(feedback) = feedback {
                let (errors, l) = (weights.part(0..rows, next..last), feedback.part(from..next, next..last));
                compute.add_products(1.0, errors, l, &mut block.data_mut()[at..], BLOCK)?;
            }
            for_rows(compute, &mut targets, AREA, 8, &|tile, targets| {
                for (target, (output, input)) in targets.iter_mut().zip(&places) {
                    *target = block.row(tile * TILE + output)[at + input];
                }
            });
            compute.encode(method.codebook, method.bits, &targets, &mut words)?;
            for_rows(compute, coded.data_mut(), TILE * cols, 8, &|tile, rows| {
                for (word, (output, input)) in words[tile * AREA..].iter().zip(&places) {
                    rows[output * cols + from + input] = method.values[usize::from(*word)];
                }
            });
            for_rows(compute, weights.data_mut(), cols, 128, &|r, row| {
                for (w, c) in row[from..next].iter_mut().zip(&coded.row(r)[from..next]) {
                    *w -= c;
                }
            });
            let to = &mut trellis[from / TILE * across * stored..][..across * stored];
            for_rows(compute, to, stored, 8, &|tile, to| {
                pack(&words[tile * AREA..(tile + 1) * AREA], method.bits, to);
            });
        }
    }
    Ok((trellis, coded))
}
