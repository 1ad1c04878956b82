//! How far a half quantised model's inputs have drifted from the original's, and what a weight should be to give the
//! original's outputs all the same.
//!
//! Where the original has inputs `X` `[tokens, in]` and the model with what is quantised so far has `Y`, the weight whose
//! outputs come closest to those of `W` `[out, in]` is `argmin |Y V^T - X W^T|^2 = W + W D^T H^-1`, with `D = Y^T (X - Y)`
//! and `H = Y^T Y`. GPTAQ (Li et al., 2025) and Qronos (Zhang et al., 2025) have such targets inside of GPTQ; here they are
//! what any method quantises.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use marlin_backend::{Backend, LinearHandle, Observer};

use super::LayerStats;
use crate::linalg::{cholesky, inverse};
use crate::roles::{Input, depth};
use crate::{Compute, Matrix, Result};

/// Added to the diagonal of a Hessian, as a part of the diagonal's mean: what is seldom seen is left as it is.
const DAMPING: f32 = 0.025;
/// The part of the way that is gone. Least squares makes outputs smaller the less certain inputs are, and predictions
/// flatter, so that half the way and all of it diverge about equally from the original's, three quarters a little less.
const PART: f64 = 0.75;

/// What the original's linears of one [`depth`] see of one window.
pub(super) struct Recorder {
    depth: usize,
    recorded: Mutex<Recorded>,
}

/// Inputs and choices of a window.
#[derive(Default)]
pub(super) struct Recorded {
    /// Inputs `[rows, in]` by module.
    rows: BTreeMap<String, Vec<f32>>,
    /// Tokens that go to each expert, ascending.
    tokens: BTreeMap<usize, Vec<usize>>,
}

impl Recorder {
    pub(super) fn at(depth: usize) -> Self {
        Self { depth, recorded: Mutex::default() }
    }

    /// What was recorded since the last time.
    pub(super) fn take(&self) -> Recorded {
        std::mem::take(&mut *self.recorded.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<B: Backend> Observer<B> for Recorder {
    fn linear(&self, b: &B, linear: &B::Linear, input: &B::Tensor, _: &B::Tensor) -> marlin_backend::Result<()> {
        let name = linear.name();
        if has_drift(name) && depth(name) == self.depth {
            b.submit()?;
            let rows = b.read(input)?;
            self.recorded.lock().unwrap_or_else(PoisonError::into_inner).rows.insert(name.to_owned(), rows);
        }
        Ok(())
    }

    fn routing(&self, _: &B, _: &B::Linear, choices: &[Vec<(u32, f32)>]) -> marlin_backend::Result<()> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner).tokens = chosen(choices);
        Ok(())
    }
}

/// Tokens that go to each expert, ascending.
pub(super) fn chosen(choices: &[Vec<(u32, f32)>]) -> BTreeMap<usize, Vec<usize>> {
    let mut tokens: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (token, experts) in choices.iter().enumerate() {
        experts.iter().for_each(|(expert, _)| tokens.entry(*expert as usize).or_default().push(token));
    }
    tokens
}

/// Whether the drift of a module's inputs is collected under its own name. Gate and up projections of experts have that of
/// the router.
fn has_drift(module: &str) -> bool {
    let input = Input::of(module);
    match &input {
        Input::Of(key) => key == module && !module.ends_with("kv_b_proj"),
        Input::Expert { part, .. } => *part == "down_proj",
    }
}

impl Recorded {
    /// What is to be added to the inputs `rows` `[n, size]` of `module` to have the original's, of which an expert has
    /// those tokens that go to it in both: `tokens` go to it now.
    pub(super) fn differences(
        &self,
        module: &str,
        size: usize,
        rows: &[f32],
        tokens: Option<&[usize]>,
    ) -> Option<Vec<f32>> {
        if !has_drift(module) {
            return None;
        }
        let original = self.rows.get(module).map_or(&[][..], Vec::as_slice);
        let Input::Expert { index, .. } = Input::of(module) else {
            return (original.len() == rows.len()).then(|| original.iter().zip(rows).map(|(x, y)| x - y).collect());
        };
        let before = self.tokens.get(&index).map_or(&[][..], Vec::as_slice);
        let mut differences = vec![0.0; rows.len()];
        for (i, token) in tokens?.iter().enumerate() {
            let Ok(at) = before.binary_search(token) else { continue };
            let (x, y) = (original.get(at * size..(at + 1) * size)?, &rows[i * size..(i + 1) * size]);
            let differences = differences.get_mut(i * size..(i + 1) * size)?;
            differences.iter_mut().zip(x.iter().zip(y)).for_each(|(d, (x, y))| *d = x - y);
        }
        Some(differences)
    }
}

/// Adds `Y^T diag(weights) (X - Y)` to `drift` `[in, in]`, of inputs `Y` `[n, in]` and their differences. Rows with a value
/// that is not finite are left out.
pub(super) fn accumulate(
    compute: &dyn Compute,
    drift: &mut Matrix,
    rows: &[f32],
    mut differences: Vec<f32>,
    weights: Option<&[f32]>,
) -> Result<()> {
    let size = drift.rows();
    let n = rows.len() / size.max(1);
    let mut rows = rows.to_vec();
    for (i, (y, d)) in rows.chunks_mut(size).zip(differences.chunks_mut(size)).enumerate() {
        if y.iter().chain(&*d).all(|v| v.is_finite()) {
            let weight = weights.map_or(1.0, |w| w[i]);
            d.iter_mut().for_each(|d| *d *= weight);
        } else {
            y.fill(0.0);
            d.fill(0.0);
        }
    }
    let [y, d] = [rows, differences].map(|values| Matrix::new(n, size, values).map(|m| m.transposed()));
    let (y, d) = (y?, d?);
    compute.add_products(1.0, y.part(0..size, 0..n), d.part(0..size, 0..n), drift.data_mut(), size)
}

/// The module that the drift of `module`'s inputs is kept under: its own input's, or for gate and up projections of experts
/// the router's, of which there is one for all.
pub(crate) fn drift_key(module: &str) -> String {
    match Input::of(module) {
        Input::Expert { experts, part: "gate_proj", .. } => {
            format!("{}gate", experts.strip_suffix("experts").unwrap_or(&experts))
        }
        input => input.key(),
    }
}

impl LayerStats {
    /// The shift `[in, in]` that gives the weights of modules with the inputs `key` (of [`drift_key`]) their targets; `None`
    /// if nothing is known of a drift.
    pub(crate) fn shift(&self, compute: &dyn Compute, key: &str) -> Result<Option<Matrix>> {
        let (Some(drift), Some(hessian)) = (self.drifts.get(key), self.hessian(key)?) else { return Ok(None) };
        let size = hessian.size();
        let mut h = hessian.sums().clone();
        let mean = (0..size).map(|i| f64::from(h.row(i)[i])).sum::<f64>() / size as f64;
        if mean <= 0.0 {
            return Ok(None);
        }
        h.data_mut().iter_mut().for_each(|v| *v *= (1.0 / mean) as f32);
        (0..size).for_each(|i| h.row_mut(i)[i] += DAMPING);
        if cholesky(compute, &mut h)?.is_err() {
            return Ok(None);
        }
        let (h, d) = (inverse(compute, &h)?, drift.transposed());
        let mut shift = Matrix::zeros(size, size);
        let (h, d, factor) = (h.part(0..size, 0..size), d.part(0..size, 0..size), (PART / mean) as f32);
        compute.add_products(factor, h, d, shift.data_mut(), size)?;
        Ok(Some(shift))
    }
}

/// The target of a weight `W` `[out, in]`, `W + W M^T` with a shift `M` `[in, in]`.
pub(crate) fn shifted(compute: &dyn Compute, weight: &Matrix, shift: &Matrix) -> Result<Matrix> {
    let [out, size] = [weight.rows(), weight.cols()];
    let mut target = weight.clone();
    compute.add_products(1.0, weight.part(0..out, 0..size), shift.part(0..size, 0..size), target.data_mut(), size)?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::Moments;
    use marlin_cpu::Cpu;

    /// All inputs have become twice as large: least squares halves the weight, damping 1/40 and three quarters of the way
    /// leave 1 - 0.75 x 0.5 / 1.025 of it.
    #[test]
    fn weights_make_up_for_larger_inputs() {
        let (cpu, mut stats) = (Cpu::new(1), LayerStats::default());
        let original = [1.0f32, 0.0, 0.0, 2.0, -1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0];
        let rows = original.map(|x| 2.0 * x);
        // Squares of the new inputs: 12 and 24, on average 18.
        let module = "model.layers.2.mlp.down_proj";
        let mut moments = Moments::new(2);
        cpu.accumulate(&mut moments.hessian, &rows, None).unwrap();
        stats.moments.insert(module.to_owned(), moments);
        let differences: Vec<f32> = original.iter().zip(rows).map(|(x, y)| x - y).collect();
        let mut drift = Matrix::zeros(2, 2);
        accumulate(&cpu, &mut drift, &rows, differences, None).unwrap();
        assert_eq!(drift.data(), [-6.0, 0.0, 0.0, -12.0]);
        assert!(stats.shift(&cpu, module).unwrap().is_none());
        stats.drifts.insert(module.to_owned(), drift);
        let shift = stats.shift(&cpu, module).unwrap().unwrap();
        let target = shifted(&cpu, &Matrix::new(1, 2, vec![1.0, -3.0]).unwrap(), &shift).unwrap();
        let left = |square: f64| 1.0 - 0.75 * 0.5 * square / (square + 0.025 * 18.0);
        for (found, want) in target.data().iter().zip([left(12.0), -3.0 * left(24.0)]) {
            assert!((f64::from(*found) - want).abs() < 1e-5, "{found} {want}");
        }
    }

    #[test]
    fn weighted_rows_drift_less_and_broken_ones_not() {
        let (cpu, mut drift) = (Cpu::new(1), Matrix::zeros(2, 2));
        let (rows, differences) = ([1.0, 2.0, 7.0, 7.0, 3.0, 4.0], vec![0.5, 0.25, f32::NAN, 1.0, -1.0, 0.0]);
        accumulate(&cpu, &mut drift, &rows, differences, Some(&[1.0, 1.0, 0.25])).unwrap();
        // [1, 2]^T [.5, .25] + [3, 4]^T [-1, 0] / 4
        assert_eq!(drift.data(), [-0.25, 0.25, 0.0, 0.5]);
    }

    /// Tokens 1, 4 and 6 go to expert 2 now, in the original 0, 4 and 6.
    #[test]
    fn experts_compare_tokens_that_both_have() {
        let module = "model.layers.1.mlp.experts.2.down_proj";
        let mut original = Recorded::default();
        original.rows.insert(module.to_owned(), vec![9.0, 9.0, 1.0, 2.0, 3.0, 4.0]);
        original.tokens.insert(2, vec![0, 4, 6]);
        let rows = [5.0, 5.0, 0.5, 1.0, 4.0, 4.0];
        let found = original.differences(module, 2, &rows, Some(&[1, 4, 6]));
        assert_eq!(found, Some(vec![0.0, 0.0, 0.5, 1.0, -1.0, 0.0]));
        // An expert that no token went to in the original has no drift.
        original.tokens.clear();
        original.rows.clear();
        assert_eq!(original.differences(module, 2, &rows, Some(&[1, 4, 6])), Some(vec![0.0; 6]));
        // Gate and up have that of the router.
        assert_eq!(original.differences("model.layers.1.mlp.experts.2.gate_proj", 2, &rows, Some(&[1])), None);
        assert_eq!(drift_key("model.layers.1.mlp.experts.2.up_proj"), "model.layers.1.mlp.gate");
        assert_eq!(drift_key(module), module);
        assert_eq!(drift_key("model.layers.1.self_attn.v_proj"), "model.layers.1.self_attn.q_proj");
    }
}
