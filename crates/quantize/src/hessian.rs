//! What calibration knows of a linear's inputs.

use std::sync::{Arc, Mutex, PoisonError};

use crate::grouped::{Preparation, Prepared};
use crate::{Error, Matrix, Result};

/// The second moments of a linear's inputs: `sum_t g_t x_t^T x_t` over the tokens seen, and how many there were.
///
/// The error that a weight's change `E` `[out, in]` makes in the outputs, summed over the tokens, is `tr(E H E^T)`.
///
/// What a quantiser has made of it is kept beside it, so that linears with the same inputs share the work.
#[derive(Debug)]
pub struct Hessian {
    sums: Matrix,
    tokens: f64,
    prepared: Mutex<Option<(Preparation, Arc<Prepared>)>>,
}

impl Clone for Hessian {
    fn clone(&self) -> Self {
        Self { sums: self.sums.clone(), tokens: self.tokens, prepared: Mutex::default() }
    }
}

impl PartialEq for Hessian {
    fn eq(&self, other: &Self) -> bool {
        self.sums == other.sums && self.tokens == other.tokens
    }
}

impl Hessian {
    /// Nothing seen yet, of inputs of `size` values.
    pub fn new(size: usize) -> Self {
        Self { sums: Matrix::zeros(size, size), tokens: 0.0, prepared: Mutex::default() }
    }

    /// From sums `[in, in]`, symmetric, over `tokens` tokens.
    pub fn from_sums(sums: Matrix, tokens: f64) -> Result<Self> {
        if sums.rows() != sums.cols() {
            return Err(Error::setting("Hessian", "a square matrix", format!("{} x {}", sums.rows(), sums.cols())));
        }
        Ok(Self { sums, tokens, prepared: Mutex::default() })
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
        self.prepared = Mutex::default();
        (&mut self.sums, &mut self.tokens)
    }

    /// What `make` makes of it with these settings: the same as the last time, if the settings are.
    pub(crate) fn prepared(
        &self,
        settings: Preparation,
        make: impl FnOnce() -> Result<Prepared>,
    ) -> Result<Arc<Prepared>> {
        let mut last = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((of, prepared)) if *of == settings => Ok(prepared.clone()),
            _ => {
                let prepared = Arc::new(make()?);
                *last = Some((settings, prepared.clone()));
                Ok(prepared)
            }
        }
    }
}
