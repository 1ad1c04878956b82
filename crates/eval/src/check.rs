//! Whether a fast backend computes what the reference computes.

use crate::Result;
use marlin_backend::{Backend, Reference};
use marlin_checkpoint::Checkpoint;
use marlin_engine::{Engine, EngineOptions};
use marlin_models::{LoadOptions, Model};
use serde::Serialize;
use std::sync::Arc;

/// Relative error allowed with f32 arithmetic.
const EXACT: f64 = 1e-4;
/// Relative error allowed where inputs and KV are rounded to bf16 (each to 2^-9), through many layers; now and then a
/// token goes to another expert.
const FAST: f64 = 0.05;

/// How far a backend's logits are from the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Check {
    /// Logits compared.
    pub logits: usize,
    /// Root of the mean squared difference, through that of the reference's own values.
    pub relative_error: f64,
    /// The largest that passes.
    pub allowed: f64,
    /// Whether it passes; NaN does not.
    pub passed: bool,
}

impl Check {
    /// Of `found` against `expected`; `exact` says that arithmetic was f32.
    pub fn of(found: &[f32], expected: &[f32], exact: bool) -> Self {
        let allowed = if exact { EXACT } else { FAST };
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
        let size: f64 = expected.iter().map(|b| square(*b)).sum();
        let relative_error = if error == 0.0 { 0.0 } else { (error / size).sqrt() };
        let passed = found.len() == expected.len() && relative_error <= allowed;
        Self { logits: found.len(), relative_error, allowed, passed }
    }
}

/// Logits of `tokens` at every position.
pub fn logits<B: Backend>(backend: B, checkpoint: &Checkpoint, tokens: &[u32]) -> Result<Vec<f32>> {
    let backend = Arc::new(backend);
    let model = Model::load(backend.as_ref(), checkpoint, LoadOptions::default(), &mut |_| {});
    let options = EngineOptions { kv_tokens: Some(tokens.len()), ..EngineOptions::default() };
    let mut engine =
        Engine::new(backend, Arc::new(model.map_err(marlin_engine::Error::from)?), None, Vec::new(), options)?;
    Ok(engine.logits(tokens, false)?)
}

/// Logits of `tokens` by the plain reference: slow, and right.
pub fn reference_logits(checkpoint: &Checkpoint, tokens: &[u32]) -> Result<Vec<f32>> {
    logits(Reference, checkpoint, tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_numbers_do_not_pass() {
        assert!(Check::of(&[1.0, 2.0], &[1.0, 2.0001], true).passed);
        assert!(!Check::of(&[1.0, 2.0], &[1.0, 2.01], true).passed);
        assert!(Check::of(&[1.0, 2.0], &[1.0, 2.01], false).passed);
        assert!(!Check::of(&[1.0, f32::NAN], &[1.0, 2.0], false).passed);
        assert!(!Check::of(&[1.0], &[1.0, 2.0], false).passed);
    }
}
