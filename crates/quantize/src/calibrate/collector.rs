//! The observer that sums inputs up.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use marlin_backend::{Backend, LinearHandle, Observer};

use super::drift::{self, Recorded, Recorder};
use super::{ExpertInputs, LayerStats, Moments, Routed};
use crate::roles::{Input, depth};
use crate::{Compute, Matrix, Result};

/// Sums the inputs of a layer's linears up.
pub(super) struct Collector<'a> {
    compute: &'a dyn Compute,
    experts: ExpertInputs,
    /// The [`depth`] of the linears that are looked at; all if there is none.
    depth: Option<usize>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    stats: LayerStats,
    /// Squared weights of the rows that the current pass sends to each expert, in ascending order of rows.
    weights: BTreeMap<usize, Vec<f32>>,
    /// Those rows.
    tokens: BTreeMap<usize, Vec<usize>>,
    /// What the original sees of the current window.
    original: Option<Recorded>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(compute: &'a dyn Compute, experts: ExpertInputs) -> Self {
        Self { compute, experts, depth: None, seen: Mutex::default() }
    }

    /// Looks at linears of one depth only.
    pub(super) fn at(self, depth: usize) -> Self {
        Self { depth: Some(depth), ..self }
    }

    /// Compares the next window's inputs with those of the original.
    pub(super) fn compare(&self, original: &Recorder) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).original = Some(original.take());
    }

    /// Sums `rows` up under `key`, and their drift from the `original`'s if given.
    pub(super) fn add(&self, key: &str, size: usize, rows: &[f32], original: Option<Vec<f32>>) -> Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.stats.add(self.compute, key, size, rows, None)?;
        let Some(mut original) = original else { return Ok(()) };
        original.iter_mut().zip(rows).for_each(|(x, y)| *x -= y);
        let drift = seen.stats.drifts.entry(key.to_owned()).or_insert_with(|| Matrix::zeros(size, size));
        drift::accumulate(self.compute, drift, rows, original, None)
    }

    /// What was seen, of `tokens` tokens.
    pub(super) fn finish(self, tokens: u64) -> LayerStats {
        let mut stats = self.seen.into_inner().unwrap_or_else(PoisonError::into_inner).stats;
        stats.tokens = tokens;
        stats.pool();
        stats
    }
}

impl LayerStats {
    fn add(
        &mut self,
        compute: &dyn Compute,
        key: &str,
        size: usize,
        rows: &[f32],
        weights: Option<&[f32]>,
    ) -> Result<()> {
        let moments = self.moments.entry(key.to_owned()).or_insert_with(|| Moments::new(size));
        self.left_out += compute.accumulate(&mut moments.hessian, rows, weights)? as u64;
        moments.mass = match weights {
            None => moments.hessian.tokens(),
            Some(weights) => moments.mass + weights.iter().map(|w| f64::from(*w)).sum::<f64>(),
        };
        Ok(())
    }
}

impl<B: Backend> Observer<B> for Collector<'_> {
    fn linear(&self, b: &B, linear: &B::Linear, input: &B::Tensor, _: &B::Tensor) -> marlin_backend::Result<()> {
        let name = linear.name();
        let of = Input::of(name);
        let key = of.key();
        // The module that stands for all with the same input; the latent projection is never quantised.
        let alone = match &of {
            Input::Of(_) => key == name && !name.ends_with("kv_b_proj"),
            Input::Expert { part, .. } => key == name && (*part == "down_proj" || self.experts == ExpertInputs::Own),
        };
        if !alone || self.depth.is_some_and(|wanted| depth(name) != wanted) {
            return Ok(());
        }
        b.submit()?;
        let rows = b.read(input)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { stats, weights, tokens, original } = &mut *seen;
        let (weights, tokens) = match &of {
            Input::Expert { index, .. } => {
                (weights.get(index).map(Vec::as_slice), tokens.get(index).map(Vec::as_slice))
            }
            Input::Of(_) => (None, None),
        };
        let size = linear.cols();
        let mut added = stats.add(self.compute, &key, size, &rows, weights);
        let differences = original.as_ref().and_then(|o| o.differences(name, size, &rows, tokens));
        if let (Ok(()), Some(differences)) = (&added, differences) {
            let drift = stats.drifts.entry(key).or_insert_with(|| Matrix::zeros(size, size));
            added = drift::accumulate(self.compute, drift, &rows, differences, weights);
        }
        added.map_err(|e| marlin_backend::Error::Device(format!("{name}: {e}")))
    }

    fn routing(&self, _: &B, gate: &B::Linear, choices: &[Vec<(u32, f32)>]) -> marlin_backend::Result<()> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { stats, weights, tokens, .. } = &mut *seen;
        *tokens = drift::chosen(choices);
        weights.clear();
        let routed = stats
            .routed
            .entry(gate.name().to_owned())
            .or_insert_with(|| Routed { tokens: vec![0; gate.rows()], mass: vec![0.0; gate.rows()] });
        for (expert, weight) in choices.iter().flatten() {
            let (e, squared) = (*expert as usize, weight * weight);
            weights.entry(e).or_default().push(squared);
            if let (Some(tokens), Some(mass)) = (routed.tokens.get_mut(e), routed.mass.get_mut(e)) {
                *tokens += 1;
                *mass += f64::from(squared);
            }
        }
        Ok(())
    }
}
