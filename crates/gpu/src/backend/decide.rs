//! Which way of computing a product is trusted: every kernel is compared with the reference, on the weight itself, before its
//! first use.

use super::GpuBackend;
use super::product::{FEW_ROWS, entries};
use super::stored::Stored;
use crate::Result;
use marlin_backend::Error;
use marlin_backend::fallback::Reason;
use marlin_checkpoint::Linear;
use std::sync::PoisonError;

/// Which kernel computes a product: decided when the weight is loaded, by checking it against the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rung {
    /// The kernels made for speed.
    Fast,
    /// The plain kernel.
    Simple,
    /// The CPU.
    Host,
}

/// How a product is computed, and why so if not by the fastest kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub rung: Rung,
    pub reason: Option<Reason>,
}

impl Decision {
    pub const FAST: Decision = Decision { rung: Rung::Fast, reason: None };
}

/// Some rows of a weight as the reference decodes them: what the kernels are checked against.
pub(super) struct Samples {
    rows: Vec<usize>,
    values: Vec<Vec<f32>>,
}

/// Greatest difference from the reference that is taken for rounding, relative to the product's size. TF32 rounds
/// operands to one part in 2048; a wrong code, scale or place is off by far more.
const LIMIT: f64 = 2e-3;

impl GpuBackend {
    pub(super) fn samples(&self, linear: &Linear) -> marlin_backend::Result<Samples> {
        let [n, cols] = [linear.weight.rows(), linear.weight.cols()];
        // The first, the last, and some in between that fall on different lanes and tiles.
        let mut rows: Vec<usize> = [0, 1, 17, n / 3, n / 2 + 5, n.saturating_sub(2), n.saturating_sub(1)]
            .into_iter()
            .filter(|r| *r < n)
            .collect();
        rows.sort_unstable();
        rows.dedup();
        let mut values = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut out = vec![0.0; cols];
            linear.weight.dequantize_row(*row, &mut out)?;
            if let Some(k) = out.iter().position(|v| !v.is_finite()) {
                return Err(Error::NotFinite { name: linear.name.clone(), index: row * cols + k, value: out[k] });
            }
            values.push(out);
        }
        Ok(Samples { rows, values })
    }

    /// How to compute products with `w`: the fastest way that agrees with the reference, for one row, a few and many. What is
    /// known of one weight holds for all of its kind and size.
    pub(super) fn decide(&self, name: &str, w: &Stored, samples: &Samples) -> marlin_backend::Result<Decision> {
        let key = format!("{:?}", w.kind);
        let known = self.plan.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(decision) = known {
            return Ok(decision);
        }
        // All at once is faster than one by one; which of them does not compile is found out below.
        if let Err(error) = self.gpu.prepare(&entries(&w.kind))
            && !matches!(error, crate::Error::Compile { .. })
        {
            return Err(error.into());
        }
        let mut decision = Decision { rung: Rung::Host, reason: None };
        for rung in [Rung::Fast, Rung::Simple] {
            let (reason, what) = match self.agrees(w, samples, rung) {
                Ok(true) => {
                    decision.rung = rung;
                    break;
                }
                Ok(false) => (Reason::SelfCheckFailed, name.to_owned()),
                Err(crate::Error::Compile { kernel, .. }) => (Reason::KernelCompileFailed, kernel),
                Err(error @ crate::Error::Launch { .. }) => (Reason::SelfCheckFailed, format!("{name}: {error}")),
                Err(error) => return Err(error.into()),
            };
            self.count(reason, &what, 0, [0, 0]);
            // What kept it from the fastest way is the reason that counts.
            decision.reason.get_or_insert(reason);
        }
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).insert(key, decision);
        Ok(decision)
    }

    fn agrees(&self, w: &Stored, samples: &Samples, rung: Rung) -> Result<bool> {
        let (cols, n) = (w.kind.cols(), w.kind.rows());
        for batch in [1, 2, 3, FEW_ROWS + 1] {
            // Numbers of both signs and several sizes from a linear congruence.
            let mut state = 12345u32;
            let x: Vec<f32> = (0..batch * cols)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 23) as f32 - 1.0
                })
                .collect();
            let y = self.gpu.read(&self.product(w, None, &self.gpu.upload(&x)?, batch, rung)?)?;
            for (row, values) in samples.rows.iter().zip(&samples.values) {
                for (m, x) in x.chunks_exact(cols).enumerate() {
                    let products = || x.iter().zip(values).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (expected, size) = (products().sum::<f64>(), products().map(|p| p * p).sum::<f64>().sqrt());
                    let found = f64::from(y[m * n + row]);
                    let within = (found - expected).abs() <= LIMIT * size + 1e-30; // false for NaN
                    if !within {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}
