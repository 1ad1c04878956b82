//! What GPTQ makes of a Hessian: an order of the inputs, and the triangle that carries errors.

use marlin_checkpoint::weight::hadamard;

use super::gptq::{Inputs, Order};
use crate::compute::for_rows;
use crate::linalg::{cholesky, inverse_transposed};
use crate::{Compute, Error, Hessian, Matrix, Result};

/// What GPTQ's part of a Hessian depends on besides the Hessian.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Preparation {
    /// Inputs that are rotated together, if they are.
    pub rotation: Option<usize>,
    /// Part of the mean diagonal that is added to the diagonal.
    pub damping: f32,
    /// The order of the inputs.
    pub order: Order,
}

/// What GPTQ makes of a Hessian: the same for all weights with these inputs.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Inputs that were never anything but zero.
    pub dead: Vec<bool>,
    /// The order of the others, and the triangle.
    pub inputs: Inputs,
}

/// Times that damping is doubled before a Hessian is given up.
const TRIES: usize = 10;

/// The Hessian divided by its mean diagonal, and which inputs were never anything but zero.
pub(super) fn normalised(module: &str, hessian: &Hessian) -> Result<(Matrix, Vec<bool>)> {
    let refuse = |why: String| Err(Error::Module { module: module.to_owned(), why });
    let cols = hessian.size();
    let mut h = hessian.sums().clone();
    if h.data().iter().any(|v| !v.is_finite()) {
        return refuse("its Hessian has values that are not finite; calibrate again".to_owned());
    }
    let mean = (0..cols).map(|i| f64::from(h.row(i)[i])).sum::<f64>() / cols as f64;
    if mean.is_nan() || mean <= 0.0 {
        return refuse("its Hessian has seen no inputs; calibrate with more text".to_owned());
    }
    let factor = (1.0 / mean) as f32;
    h.data_mut().iter_mut().for_each(|v| *v *= factor);
    let dead = (0..cols).map(|i| h.row(i)[i] <= 0.0).collect();
    Ok((h, dead))
}

/// `R^T H R` for the rotation of `block` consecutive inputs.
pub(super) fn rotated(compute: &dyn Compute, h: Matrix, block: usize) -> Matrix {
    let rotate = |mut h: Matrix| {
        let n = h.cols();
        for_rows(compute, h.data_mut(), n, 16, &|_, row| hadamard(row, block));
        h.transposed()
    };
    rotate(rotate(h))
}

/// The order of the inputs and the triangle: with `H = R R^T`, `R` upper triangular, `U = R^-1`. Both triangles come from
/// a lower factor of the Hessian with its rows and columns reversed.
pub(super) fn inputs(compute: &dyn Compute, module: &str, mut h: Matrix, damping: f32, order: Order) -> Result<Inputs> {
    let n = h.rows();
    for i in 0..n {
        if h.row(i)[i] <= 0.0 {
            h.row_mut(i).fill(0.0);
            (0..n).for_each(|j| h.row_mut(j)[i] = 0.0);
            h.row_mut(i)[i] = 1.0;
        }
    }
    let diagonal: Vec<f32> = (0..n).map(|i| h.row(i)[i]).collect();
    let places: Vec<u32> = {
        let mut places: Vec<u32> = (0..n as u32).collect();
        if order != Order::Natural {
            places.sort_by(|a, b| diagonal[*b as usize].total_cmp(&diagonal[*a as usize]));
        }
        places
    };
    let mean = diagonal.iter().map(|v| f64::from(*v)).sum::<f64>() / n as f64;
    let mut damp = f64::from(damping) * mean;
    for _ in 0..TRIES {
        let mut reversed = Matrix::zeros(n, n);
        for_rows(compute, reversed.data_mut(), n, 16, &|r, row| {
            let from = h.row(places[n - 1 - r] as usize);
            row.iter_mut().zip(places.iter().rev()).for_each(|(to, place)| *to = from[*place as usize]);
            row[r] += damp as f32;
        });
        if cholesky(compute, &mut reversed)?.is_ok() {
            let upper = inverse_transposed(compute, &reversed)?;
            let mut lower = Matrix::zeros(n, n);
            for_rows(compute, lower.data_mut(), n, 16, &|r, row| {
                row.iter_mut().zip(upper.row(n - 1 - r).iter().rev()).for_each(|(to, from)| *to = *from);
            });
            // What remains of an input's error once the inputs to come have made up for what they can.
            let importance = (0..n).map(|i| lower.row(i)[i].powi(-2)).collect();
            let (order, static_groups) = match order {
                Order::Natural => (None, false),
                Order::Activation => (Some(places), true),
                Order::ActivationGroups => (Some(places), false),
            };
            return Ok(Inputs { lower, importance, order, static_groups });
        }
        damp = if damp > 0.0 { 2.0 * damp } else { 1e-4 * mean };
    }
    let why = format!(
        "its Hessian is not positive definite, even with {:.3} of its mean diagonal added; calibrate again",
        damp / mean
    );
    Err(Error::Module { module: module.to_owned(), why })
}
