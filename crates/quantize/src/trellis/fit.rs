//! Scales once more, when codes are chosen: those with which the coded weights come closest to what they stand for, as the
//! Hessian measures it. Scales are stored anyway, so it costs nothing but the time.

use super::Space;
use super::ldlq::DAMPING;
use crate::compute::for_rows;
use crate::linalg::cholesky;
use crate::{Compute, Hessian, Matrix, Result};

/// How much the scales' own least squares are damped: as a part of the mean diagonal of their matrix.
const RIDGE: f32 = 1e-3;

/// Moves the scales of inputs, then those of outputs, to where `tr(E H E^T)` of the errors of `weight` `[out, in]` is least.
/// `coded` `[out, in]` (both padded) are the codes' values with rotations undone, `diag(outputs) coded diag(inputs)` what is
/// read.
pub fn fit(compute: &dyn Compute, space: &mut Space, weight: &Matrix, coded: &Matrix, hessian: &Hessian) -> Result<()> {
    let [out, size] = [weight.rows(), weight.cols()];
    let sums = hessian.sums();
    let mean = (0..size).map(|i| f64::from(sums.row(i)[i])).sum::<f64>() / size as f64;
    let (norm, damping) = ((1.0 / mean) as f32, DAMPING);
    // Rows times the Hessian, of which the mean diagonal is one, damped.
    let through = |rows: &Matrix| -> Result<Matrix> {
        let mut to = rows.clone();
        to.data_mut().iter_mut().for_each(|v| *v *= damping);
        compute.add_products(norm, rows.part(0..out, 0..size), sums.part(0..size, 0..size), to.data_mut(), size)?;
        Ok(to)
    };
    let wanted = through(weight)?;

    // Of inputs: (A^T A * H) s = diag(A^T W H), element by element.
    let mut a = Matrix::zeros(out, size);
    for_rows(compute, a.data_mut(), size, 16, &|r, row| {
        row.iter_mut().zip(coded.row(r)).for_each(|(a, c)| *a = c * space.outputs[r]);
    });
    let mut gram = Hessian::new(size);
    compute.accumulate(&mut gram, a.data(), None)?;
    let mut m = gram.sums().clone();
    drop(gram);
    for_rows(compute, m.data_mut(), size, 16, &|r, row| {
        let own = damping * row[r];
        row.iter_mut().zip(sums.row(r)).for_each(|(m, h)| *m *= norm * h);
        row[r] += own;
    });
    let mut right = vec![0.0f64; size];
    for r in 0..out {
        let each = a.row(r).iter().zip(wanted.row(r));
        right.iter_mut().zip(each).for_each(|(sum, (a, w))| *sum += f64::from(*a) * f64::from(*w));
    }
    right.iter_mut().zip(0..).for_each(|(b, i)| *b -= dot(m.row(i), &space.inputs));
    let diagonal = (0..size).map(|i| f64::from(m.row(i)[i])).sum::<f64>() / size as f64;
    (0..size).for_each(|i| m.row_mut(i)[i] += RIDGE * diagonal as f32);
    if diagonal > 0.0 && cholesky(compute, &mut m)?.is_ok() {
        solve(&m, &mut right);
        space.inputs.iter_mut().zip(right).for_each(|(s, step)| *s += step as f32);
    }
    drop(m);

    // Of outputs, each on its own.
    for_rows(compute, a.data_mut(), size, 16, &|_, row| row.iter_mut().zip(&space.inputs).for_each(|(a, s)| *a *= s));
    let found = through(&a)?;
    for r in 0..out {
        let (part, whole) = (dot(a.row(r), wanted.row(r)), dot(a.row(r), found.row(r)));
        if whole > 0.0 {
            space.outputs[r] *= (part / whole) as f32;
        }
    }
    Ok(())
}

/// The sum of the products of as many values as the shorter has.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Replaces `b` by the solution `x` of `C C^T x = b`, with a lower triangle `C`.
fn solve(c: &Matrix, b: &mut [f64]) {
    for i in 0..b.len() {
        let row = c.row(i);
        let sum: f64 = row[..i].iter().zip(&*b).map(|(c, b)| f64::from(*c) * b).sum();
        b[i] = (b[i] - sum) / f64::from(row[i]);
    }
    for i in (0..b.len()).rev() {
        let row = c.row(i);
        let x = b[i] / f64::from(row[i]);
        b[i] = x;
        b[..i].iter_mut().zip(row).for_each(|(b, c)| *b -= f64::from(*c) * x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marlin_cpu::Cpu;

    /// `[4, 2, 0; 2, 5, 2; 0, 2, 5]` is `C C^T`; it takes `[1, -2, 3]` to `[0, -2, 11]`.
    #[test]
    fn a_triangle_is_solved_twice() {
        let c = Matrix::new(3, 3, vec![2.0, 0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 2.0]).unwrap();
        let mut b = [0.0, -2.0, 11.0];
        solve(&c, &mut b);
        for (found, want) in b.iter().zip([1.0, -2.0, 3.0]) {
            assert!((found - want).abs() < 1e-12, "{b:?}");
        }
    }

    /// Values that are right but for wrong scales of inputs and outputs: the scales come back, but for a factor that both
    /// sides may share.
    #[test]
    fn wrong_scales_are_put_right() {
        let [out, size] = [128, 128];
        let mut seed = 1u32;
        let mut number = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let mut fill =
            |rows: usize, cols: usize| Matrix::new(rows, cols, (0..rows * cols).map(|_| number()).collect()).unwrap();
        let (coded, inputs) = (fill(out, size), fill(600, size));
        let cpu = Cpu::new(2);
        let mut hessian = Hessian::new(size);
        cpu.accumulate(&mut hessian, inputs.data(), None).unwrap();
        let mut weight = coded.clone();
        for r in 0..out {
            let row = weight.row_mut(r).iter_mut().enumerate();
            row.for_each(|(k, w)| *w *= 1.0 + 0.3 * (k as f32 / 20.0).sin());
        }
        let (mut space, _) = Space::of(&cpu, "m", &weight);
        space.inputs.fill(1.0);
        space.outputs.fill(1.25);
        fit(&cpu, &mut space, &weight, &coded, &hessian).unwrap();
        for (k, s) in space.inputs.iter().enumerate() {
            let want = 1.0 + 0.3 * (k as f32 / 20.0).sin();
            let found = s * space.outputs[k];
            assert!((found - want).abs() < 0.01 * want, "{k}: {found} {want}");
        }
    }
}
