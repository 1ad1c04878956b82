//! Which way of computing a product is trusted: every kernel is compared with the reference, on the weight itself, before its
//! first use.

use super::GpuBackend;
use super::halves;
use super::linear::{After, Before};
use super::product::{FEW_ROWS, entries};
use super::stored::Stored;
use super::stream::{self, Sides};
use crate::Result;
use marlin_backend::Error;
use marlin_backend::fallback::Reason;
use marlin_checkpoint::Linear;
use std::sync::PoisonError;

/// Which kernel computes a product: decided when the weight is loaded, by checking it against the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rung {
    /// The kernels that need tensor cores.
    Tensor,
    /// The kernels made for speed that every GPU can run.
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

    /// How to compute products with `w`, with these rotations of its inputs and outputs: the fastest way that agrees with the reference, for
    /// one row, a few and many, from `highest` down. What is known of one weight holds for all of its kind and size.
    pub(super) fn decide(
        &self,
        name: &str,
        w: &Stored,
        samples: &Samples,
        highest: Rung,
        rotations: [u32; 2],
    ) -> marlin_backend::Result<Decision> {
        let tensor = highest == Rung::Tensor && (self.streams(&w.kind) || self.multiplies(&w.kind));
        let highest = if tensor { Rung::Tensor } else { highest.max(Rung::Fast) };
        let key = match highest {
            Rung::Tensor => format!("{:?} {rotations:?}", w.kind),
            _ => format!("{:?}", w.kind),
        };
        let known = self.plan.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map(|(_, decision)| *decision);
        if let Some(decision) = known {
            return Ok(decision);
        }
        // All at once is faster than one by one; which of them does not compile is found out below.
        let mut all = Vec::new();
        let mut decision = Decision { rung: Rung::Host, reason: None };
        let mut highest = highest;
        if highest == Rung::Tensor
            && let Err(error) = self.reserve(&w.kind)
        {
            let crate::Error::OutOfMemory { .. } = error else { return Err(error.into()) };
            self.count(Reason::OutOfMemory, name, 0, [0, 0]);
            (decision.reason, highest) = (Some(Reason::OutOfMemory), Rung::Fast);
        }
        if highest == Rung::Tensor {
            all.extend(stream::entries(&w.kind, rotations));
            if self.multiplies(&w.kind) {
                all.extend(halves::entries(&w.kind, rotations[0]));
            }
        }
        if highest > Rung::Tensor || !self.streams(&w.kind) || !self.multiplies(&w.kind) {
            all.extend(entries(&w.kind));
        }
        if let Err(error) = self.gpu.prepare(&all)
            && !matches!(error, crate::Error::Compile { .. } | crate::Error::NotFound { .. })
        {
            return Err(error.into());
        }
        for rung in [Rung::Tensor, Rung::Fast, Rung::Simple].into_iter().filter(|r| *r >= highest) {
            let look = || {
                let good = self.agrees(w, samples, rung)?;
                Ok(good && (rung != Rung::Tensor || self.agrees_rotated(w, samples, rotations)?))
            };
            let agrees = self.gpu.in_earnest(|| self.gpu.check(look));
            // Below the plainest way nothing needs less memory to work in.
            if let (Rung::Simple, Err(crate::Error::OutOfMemory { .. })) = (rung, &agrees) {
                return agrees.map(|_| decision).map_err(Into::into);
            }
            let Some((reason, what)) = failing(name, agrees)? else {
                decision.rung = rung;
                break;
            };
            self.count(reason, &what, 0, [0, 0]);
            // What kept it from the fastest way is the reason that counts.
            decision.reason.get_or_insert(reason);
        }
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (name.to_owned(), decision));
        Ok(decision)
    }

    fn agrees(&self, w: &Stored, samples: &Samples, rung: Rung) -> Result<bool> {
        let (cols, n) = (w.kind.cols(), w.kind.rows());
        let batches: &[usize] = match rung {
            // Few rows are looked at with their rotations.
            Rung::Tensor if self.streams(&w.kind) => &[FEW_ROWS + 1],
            _ => &[1, 2, 3, FEW_ROWS + 1],
        };
        for &batch in batches {
            let x = numbers(batch * cols);
            let y = self.gpu.read(&self.product(w, None, &self.gpu.upload(&x)?, batch, rung)?)?;
            if !samples.agree(&x, &y, n) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the kernels for tensor cores agree for few rows, and the library for many, with the rotations that stand around the matrix.
    /// These are undone on the host.
    fn agrees_rotated(&self, w: &Stored, samples: &Samples, rotations: [u32; 2]) -> Result<bool> {
        if !self.streams(&w.kind) {
            return Ok(true);
        }
        let (cols, n) = (w.kind.cols(), w.kind.rows());
        let [block_in, block_out] = rotations;
        let before = Before { order: None, scale: None, block: block_in, features: cols, width: cols };
        let after = After { scale: None, block: block_out, features: n, width: n, bias: None };
        for batch in [1, 3, 7, FEW_ROWS] {
            let mut x = numbers(batch * cols);
            let sides = Sides { before: Some(&before), after: Some(&after), bias: None };
            let Some(y) = self.stream(w, sides, &self.gpu.upload(&x)?, batch)? else { return Ok(false) };
            let mut y = self.gpu.read(&y)?;
            rotate(&mut x, block_in as usize);
            rotate(&mut y, block_out as usize);
            if !samples.agree(&x, &y, n) {
                return Ok(false);
            }
        }
        if !self.multiplies(&w.kind) {
            return Ok(true);
        }
        let mut x = numbers((FEW_ROWS + 1) * cols);
        let y = self.gpu.read(&self.multiply(w, Some(&before), &self.gpu.upload(&x)?, FEW_ROWS + 1)?)?;
        rotate(&mut x, block_in as usize);
        Ok(samples.agree(&x, &y, n))
    }
}

/// Why kernels are not to be trusted after a comparison, and who is to blame; `None` if they are. What is no fault of theirs is an error.
pub(super) fn failing(name: &str, agrees: Result<bool>) -> Result<Option<(Reason, String)>> {
    Ok(Some(match agrees {
        Ok(true) => return Ok(None),
        Ok(false) => (Reason::SelfCheckFailed, name.to_owned()),
        Err(crate::Error::Compile { kernel, .. }) => (Reason::KernelCompileFailed, kernel),
        Err(crate::Error::NotFound { kernel }) => (Reason::KernelNotFound, kernel),
        Err(crate::Error::OutOfMemory { .. }) => (Reason::OutOfMemory, name.to_owned()),
        Err(error @ crate::Error::Launch { .. }) => (Reason::SelfCheckFailed, format!("{name}: {error}")),
        Err(error) => return Err(error),
    }))
}

impl Samples {
    /// Whether `y`, rows of `n` outputs, are the products with rows of `x`.
    pub(super) fn agree(&self, x: &[f32], y: &[f32], n: usize) -> bool {
        self.rows.iter().zip(&self.values).all(|(row, values)| {
            x.chunks_exact(values.len()).enumerate().all(|(m, x)| {
                let products = || x.iter().zip(values).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (expected, size) = (products().sum::<f64>(), products().map(|p| p * p).sum::<f64>().sqrt());
                let found = f64::from(y[m * n + row]);
                (found - expected).abs() <= LIMIT * size + 1e-30 // false for NaN
            })
        })
    }
}

/// Numbers of both signs and several sizes from a linear congruence.
pub(super) fn numbers(n: usize) -> Vec<f32> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The natural-order Hadamard matrix of `block` over its square root, on every `block` values.
pub(super) fn rotate(v: &mut [f32], block: usize) {
    for v in v.chunks_exact_mut(block) {
        let mut stride = 1;
        while stride < block {
            for i in (0..block).filter(|i| i & stride == 0) {
                (v[i], v[i + stride]) = (v[i] + v[i + stride], v[i] - v[i + stride]);
            }
            stride *= 2;
        }
        let norm = super::linear::norm(block as u32);
        v.iter_mut().for_each(|v| *v *= norm);
    }
}
