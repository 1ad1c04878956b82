//! What bits do to each module, by trying them.
//!
//! The damage of a module at some bits is the error of its outputs on the calibration text, tr(E H E^T) / tr(W H W^T), E
//! being what quantising a sample of its rows really did. Outputs of routed and shared experts add up, so an expert's errors
//! count by its part of their sum: an expert that is chosen often, or with large weights, counts more.

use std::collections::BTreeMap;

use marlin_checkpoint::Checkpoint;
use marlin_models::Architecture;

use crate::apply::{Planned, energy, matrix};
use crate::calibrate::{LayerStats, Progress, Watch};
use crate::planner::{Choice, Module};
use crate::roles::Input;
use crate::{Compute, Error, Matrix, Recipe, Result, Role, Stats};

/// What is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Least bits.
    pub min_bits: u32,
    /// Most bits.
    pub max_bits: u32,
    /// Rows of each matrix that are quantised, evenly spread; all if 0.
    pub rows: usize,
}

/// Rows of a matrix, evenly spread.
fn sample(weight: &Matrix, rows: usize) -> Result<Matrix> {
    let all = weight.rows();
    if rows == 0 || rows >= all {
        return Ok(weight.clone());
    }
    let data = (0..rows).flat_map(|i| weight.row(i * all / rows)).copied().collect();
    Matrix::new(rows, weight.cols(), data)
}

/// The down projection whose outputs tell how much a module's MLP counts among those that are added up; `None` if there is
/// only one.
fn summed(module: &str) -> Option<String> {
    let (mlp, _) = module.rsplit_once('.')?;
    let name = mlp.rsplit('.').next()?;
    let one_of_many = matches!(Input::of(module), Input::Expert { .. }) || name.starts_with("shared_expert");
    one_of_many.then(|| format!("{mlp}.down_proj"))
}

/// The modules of `checkpoint` with what they take and the damage that is done at each of the bits that are tried. The
/// output projection, and every role that has bits of its own, has those that `recipe` gives it and no choice.
pub fn probe(
    checkpoint: &Checkpoint,
    stats: &Stats,
    recipe: &Recipe,
    probe: Probe,
    compute: &dyn Compute,
    watch: Watch<'_>,
) -> Result<Vec<Module>> {
    if probe.min_bits > probe.max_bits {
        return Err(Error::setting(
            "bits",
            "min-bits up to max-bits",
            format!("{} to {}", probe.min_bits, probe.max_bits),
        ));
    }
    stats.check(checkpoint)?;
    let inventory = Architecture::parse(&checkpoint.config)?.inventory();
    let modules = checkpoint.modules()?;
    // Of each module, the methods of its choices and their bits.
    let mut methods: BTreeMap<String, Vec<(u32, Planned)>> = BTreeMap::new();
    let range = probe.min_bits..=probe.max_bits;
    for &bits in recipe.target.widths().iter().filter(|bits| range.contains(bits)) {
        let fixed = |role: Role| role == Role::Head || recipe.bits.has_own(role);
        let of = |module: &str| Role::of(module).is_some_and(|role| !fixed(role)).then_some(f64::from(bits));
        let choice = recipe.choose(checkpoint, &of)?;
        let stored = choice.bits();
        for (name, planned) in choice.methods()? {
            let Some(own) = stored.get(name.as_str()).copied() else { continue };
            let known = methods.entry(name).or_default();
            if known.iter().all(|(bits, _)| *bits != own) {
                known.push((own, planned));
            }
        }
    }
    if methods.is_empty() {
        let expected = format!("some of {:?} ({})", recipe.target.widths(), recipe.target.name());
        return Err(Error::setting("bits", expected, format!("{} to {}", probe.min_bits, probe.max_bits)));
    }
    let mut by_layer: BTreeMap<Option<usize>, Vec<String>> = BTreeMap::new();
    for name in methods.keys() {
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        by_layer.entry(layer).or_default().push(name.clone());
    }
    let total = by_layer.values().map(|names| names.len() as u64).sum();
    let mut out: Vec<Module> = Vec::new();
    for (layer, names) in by_layer {
        let weights = |name: &str| inventory.features(name).map_or(0, |[rows, cols]| (rows * cols) as u64);
        let stored = |planned: &Planned, name: &str| (planned.bits * weights(name) as f64).round() as u64;
        let Some(layer) = layer else {
            for name in names {
                let tried = methods.get(&name).into_iter().flatten();
                let choices = tried
                    .map(|(bits, planned)| Choice { bits: *bits, stored: stored(planned, &name), damage: 0.0 })
                    .collect();
                out.push(Module { weights: weights(&name), name, choices });
            }
            continue;
        };
        let seen = stats.layer(layer)?;
        let hessian = |stats: &LayerStats, name: &str| {
            let why = "calibration has not seen its inputs; calibrate again with more text";
            stats.hessian(name)?.ok_or_else(|| Error::module(name, why))
        };
        let mut outputs: BTreeMap<String, f64> = BTreeMap::new();
        for name in names.iter().filter(|name| summed(name).as_ref() == Some(*name)) {
            let weight = matrix(modules.as_ref(), &inventory, name)?;
            outputs.insert(name.clone(), energy(compute, weight.data(), &hessian(&seen, name)?)?);
        }
        let sum: f64 = outputs.values().sum();
        for name in names {
            if !watch(&Progress { what: format!("trying {name}"), done: out.len() as u64, total }) {
                return Err(Error::Stopped);
            }
            let hessian = hessian(&seen, &name)?;
            let rows = sample(&matrix(modules.as_ref(), &inventory, &name)?, probe.rows)?;
            let size = energy(compute, rows.data(), &hessian)?;
            let part = summed(&name)
                .and_then(|down| outputs.get(&down))
                .map_or(1.0, |e| if sum > 0.0 { e / sum } else { 0.0 });
            let mut choices = Vec::new();
            for (bits, planned) in methods.get(&name).into_iter().flatten() {
                let decoded = planned.method.quantise(compute, &name, &rows, Some(&hessian))?.decoded;
                let error: Vec<f32> = rows.data().iter().zip(decoded.data()).map(|(w, d)| w - d).collect();
                let damage = if size > 0.0 { part * energy(compute, &error, &hessian)? / size } else { 0.0 };
                choices.push(Choice { bits: *bits, stored: stored(planned, &name), damage });
            }
            out.push(Module { weights: weights(&name), name, choices });
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_spread_evenly() {
        let weight = Matrix::new(6, 1, (0..6).map(|v| v as f32).collect()).unwrap();
        assert_eq!(sample(&weight, 3).unwrap().data(), [0.0, 2.0, 4.0]);
        assert_eq!(sample(&weight, 0).unwrap(), weight);
        assert_eq!(sample(&weight, 9).unwrap(), weight);
    }

    #[test]
    fn experts_count_by_their_outputs() {
        let of = |name: &str| summed(&format!("model.layers.1.mlp.{name}"));
        assert_eq!(of("experts.4.up_proj").as_deref(), Some("model.layers.1.mlp.experts.4.down_proj"));
        assert_eq!(of("shared_experts.down_proj").as_deref(), Some("model.layers.1.mlp.shared_experts.down_proj"));
        assert_eq!((of("gate_proj"), of("down_proj")), (None, None));
    }
}
