//! What bits do to each module, by trying them.
//!
//! The damage of a module at some bits is the error of its outputs on the calibration text, tr(E H E^T) / tr(W H W^T), E
//! being what quantising a sample of its rows really did (for a trellis, at the least and the most bits only: its error
//! falls by nearly the same factor with each bit, and coding takes long). Outputs of routed and shared experts add up, so
//! an expert's errors count by its part of their sum: an expert that is chosen often, or with large weights, counts more.
//! What an error of the outputs does to predictions differs from module to module; [`Bench`](crate::Bench) measures it.

use std::collections::BTreeMap;

use marlin_checkpoint::{Checkpoint, Modules};
use marlin_models::{Architecture, Inventory};

use crate::apply::{Planned, energy, matrix};
use crate::calibrate::{LayerStats, Progress, Watch};
use crate::files::release_layer;
use crate::planner::{Choice, Module};
use crate::roles::{Input, layer_of};
use crate::{Compute, Error, Hessian, Matrix, Recipe, Result, Role, Stats};

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

/// So many rows of codes of any bits are whole words, as some formats need.
const WHOLE: usize = 32;

/// Rows of a matrix, evenly spread; a few more than asked for if they are no multiple of [`WHOLE`].
fn sample(weight: &Matrix, rows: usize) -> Result<Matrix> {
    let (all, rows) = (weight.rows(), rows.next_multiple_of(WHOLE));
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

/// What calibration knows of the inputs of a module that is to be quantised.
pub(crate) fn seen(stats: &LayerStats, module: &str) -> Result<Hessian> {
    let why = "calibration has not seen its inputs; calibrate again with more text";
    stats.hessian(module)?.ok_or_else(|| Error::module(module, why))
}

/// How much each module of a layer counts for the layer's output among those whose outputs are added up.
pub(crate) struct Parts(BTreeMap<String, f64>);

impl Parts {
    /// Of the modules called `names`, all of one layer.
    pub(crate) fn of<'a>(
        names: impl Iterator<Item = &'a str>,
        modules: &dyn Modules,
        inventory: &Inventory,
        stats: &LayerStats,
        compute: &dyn Compute,
    ) -> Result<Self> {
        let mut outputs: BTreeMap<String, f64> = BTreeMap::new();
        for name in names.filter(|name| summed(name).as_deref() == Some(*name)) {
            let weight = matrix(modules, inventory, name)?;
            outputs.insert(name.to_owned(), energy(compute, weight.data(), &seen(stats, name)?)?);
        }
        let sum: f64 = outputs.values().sum();
        outputs.values_mut().for_each(|e| *e = if sum > 0.0 { *e / sum } else { 0.0 });
        Ok(Self(outputs))
    }

    /// That of a module.
    fn get(&self, module: &str) -> f64 {
        summed(module).and_then(|down| self.0.get(&down).copied()).unwrap_or(1.0)
    }

    /// The damage that is done to a module with the weights (or some rows) `weight` when they become `decoded`.
    pub(crate) fn damage(
        &self,
        compute: &dyn Compute,
        module: &str,
        weight: &Matrix,
        decoded: &Matrix,
        hessian: &Hessian,
    ) -> Result<f64> {
        let size = energy(compute, weight.data(), hessian)?;
        let error: Vec<f32> = weight.data().iter().zip(decoded.data()).map(|(w, d)| w - d).collect();
        Ok(if size > 0.0 { self.get(module) * energy(compute, &error, hessian)? / size } else { 0.0 })
    }
}

/// The damage at `bits` of what falls by the same factor with each bit between two ends.
fn between([(low, at_low), (high, at_high)]: [(u32, f64); 2], bits: u32) -> f64 {
    let part = f64::from(bits - low) / f64::from((high - low).max(1));
    if bits == high { at_high } else { at_low.powf(1.0 - part) * at_high.powf(part) }
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
        by_layer.entry(layer_of(name)).or_default().push(name.clone());
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
        let known = stats.layer(layer)?;
        let parts = Parts::of(names.iter().map(String::as_str), modules.as_ref(), &inventory, &known, compute)?;
        for name in names {
            if !watch(&Progress { what: format!("trying {name}"), done: out.len() as u64, total }) {
                return Err(Error::Stopped);
            }
            let hessian = seen(&known, &name)?;
            let rows = sample(&matrix(modules.as_ref(), &inventory, &name)?, probe.rows)?;
            let ways = methods.get(&name).map_or(&[][..], Vec::as_slice);
            let damage = |(_, planned): &(u32, Planned)| {
                let decoded = planned.method.quantise(compute, &name, &rows, Some(&hessian))?.decoded;
                parts.damage(compute, &name, &rows, &decoded, &hessian)
            };
            let damages: Vec<f64> = match ways {
                [first, .., last] if recipe.target.is_even() => {
                    let ends = [(first.0, damage(first)?), (last.0, damage(last)?)];
                    ways.iter().map(|(bits, _)| between(ends, *bits)).collect()
                }
                _ => ways.iter().map(damage).collect::<Result<_>>()?,
            };
            let choices = ways.iter().zip(damages).map(|((bits, planned), damage)| Choice {
                bits: *bits,
                stored: stored(planned, &name),
                damage,
            });
            let choices = choices.collect();
            out.push(Module { weights: weights(&name), name, choices });
        }
        release_layer(checkpoint.store.as_ref(), layer)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_spread_evenly() {
        let weight = Matrix::new(192, 1, (0..192).map(|v| v as f32).collect()).unwrap();
        let every = |n: usize| (0..192).step_by(n).map(|v| v as f32).collect::<Vec<_>>();
        assert_eq!(sample(&weight, 64).unwrap().data(), every(3));
        assert_eq!(sample(&weight, 1).unwrap().data(), every(6));
        assert_eq!(sample(&weight, 65).unwrap().data(), every(2));
        assert_eq!(sample(&weight, 0).unwrap(), weight);
        assert_eq!(sample(&weight, 161).unwrap(), weight);
    }

    /// Errors of the trellis coder for Gaussian weights at 2 to 6 bits (the ends are .068 and .0003).
    #[test]
    fn a_trellis_between_its_ends() {
        for (bits, error) in [(2, 0.068), (3, 0.0174), (4, 0.0045), (5, 0.00115), (6, 0.0003)] {
            let found = between([(2, 0.068), (6, 0.0003)], bits);
            assert!((found / error - 1.0).abs() < 0.02, "{bits}: {found}");
        }
        assert_eq!(between([(3, 0.5), (3, 0.5)], 3), 0.5);
        assert_eq!(between([(3, 0.5), (5, 0.0)], 4), 0.0);
    }

    #[test]
    fn experts_count_by_their_outputs() {
        let of = |name: &str| summed(&format!("model.layers.1.mlp.{name}"));
        assert_eq!(of("experts.4.up_proj").as_deref(), Some("model.layers.1.mlp.experts.4.down_proj"));
        assert_eq!(of("shared_experts.down_proj").as_deref(), Some("model.layers.1.mlp.shared_experts.down_proj"));
        assert_eq!((of("gate_proj"), of("down_proj")), (None, None));
    }
}
