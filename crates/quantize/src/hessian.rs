//! What calibration knows of a linear's inputs.

use crate::{Error, Matrix, Result};

/// The second moments of a linear's inputs: `sum_t g_t x_t^T x_t` over the tokens seen, and how many there were.
///
/// The error that a weight's change `E` `[out, in]` makes in the outputs, summed over the tokens, is `tr(E H E^T)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    sums: Matrix,
    tokens: f64,
}

impl Hessian {
    /// Nothing seen yet, of inputs of `size` values.
    pub fn new(size: usize) -> Self {
        Self { sums: Matrix::zeros(size, size), tokens: 0.0 }
    }

    /// From sums `[in, in]`, symmetric, over `tokens` tokens.
    pub fn from_sums(sums: Matrix, tokens: f64) -> Result<Self> {
        if sums.rows() != sums.cols() {
            return Err(Error::setting("Hessian", "a square matrix", format!("{} x {}", sums.rows(), sums.cols())));
        }
        Ok(Self { sums, tokens })
    }

    /// Values of an input.
    pub fn size(&self) -> usize {
        self.sums.rows()
    }

    /// Tokens seen, those that were weighted counted by 1.
    pub fn tokens(&self) -> f64 {
        self.tokens
    }

    /// The sums, `[in, in]`, symmetric.
    pub fn sums(&self) -> &Matrix {
        &self.sums
    }

    /// The sums and the count, to be added to.
    pub fn parts_mut(&mut self) -> (&mut Matrix, &mut f64) {
        (&mut self.sums, &mut self.tokens)
    }
}
