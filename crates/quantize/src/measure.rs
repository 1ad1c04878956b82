//! What changes of single modules do to predictions, measured.
//!
//! All changes pass the layers together: a layer's own weights are read once for all, a change begins at its layer, and its
//! hidden states wait in files of its own. So memory holds one layer's weights and one window's activations, and a change
//! costs the time of the layers behind it.

use std::path::PathBuf;
use std::sync::Arc;

use marlin_backend::Backend;
use marlin_checkpoint::{Checkpoint, Error as Bad};
use marlin_eval::kld::Divergence;
use marlin_models::Architecture;

use crate::apply::{Overlay, matrix};
use crate::calibrate::{ExpertInputs, LayerStats, Progress, Runner, States, Watch};
use crate::damage::{Parts, seen};
use crate::roles::layer_of;
use crate::{Compute, Error, Method, Result, Stats};

/// Bytes of logits that are held at once, of the original and of a change each.
const LOGITS: usize = 64 << 20;

/// Modules of one layer that are quantised while all others stay as they are.
#[derive(Clone)]
pub struct Trial {
    /// The modules, and how.
    pub modules: Vec<(String, Arc<dyn Method>)>,
}

/// What a trial does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Effect {
    /// Mean KL(original || changed) of a token, in nats.
    pub kl: f64,
    /// What [`probe`](crate::probe) would have predicted: errors of the modules' outputs by their parts.
    pub damage: f64,
}

/// Where and on what trials are measured.
pub struct Bench<'a, B: Backend> {
    /// Where; exact results are needed to see small changes.
    pub backend: &'a B,
    /// Quantising.
    pub compute: &'a dyn Compute,
    /// The original.
    pub checkpoint: &'a Checkpoint,
    /// Its statistics.
    pub stats: &'a Stats,
    /// Texts of the same length.
    pub windows: &'a [Vec<u32>],
    /// A folder for hidden states; made, and removed with all that is in it.
    pub folder: PathBuf,
}

/// A change on its way through the layers.
struct Under {
    layer: usize,
    folder: PathBuf,
    states: Option<States>,
    effect: Effect,
}

impl<B: Backend> Bench<'_, B> {
    /// What each of `trials` does.
    pub fn measure(&self, trials: &[Trial], watch: Watch<'_>) -> Result<Vec<Effect>> {
        std::fs::create_dir(&self.folder).map_err(|e| Bad::io(&self.folder, e))?;
        let found = self.run(trials, watch);
        let removed = std::fs::remove_dir_all(&self.folder).map_err(|e| Bad::io(&self.folder, e));
        let found = found?;
        removed?;
        Ok(found)
    }

    fn run(&self, trials: &[Trial], watch: Watch<'_>) -> Result<Vec<Effect>> {
        self.stats.check(self.checkpoint)?;
        let runner = Runner::new(self.backend, self.compute, self.checkpoint, self.windows, ExpertInputs::Own)?;
        let layers = runner.layers();
        let mut under = Vec::with_capacity(trials.len());
        for (i, trial) in trials.iter().enumerate() {
            let layer = trial.layer()?;
            let folder = self.folder.join(format!("trial-{i:05}"));
            std::fs::create_dir(&folder).map_err(|e| Bad::io(&folder, e))?;
            under.push(Under { layer, folder, states: None, effect: Effect::default() });
        }
        // Windows that pass a layer or the head.
        let total = self.windows.len() * (layers + 1 + under.iter().map(|u| layers - u.layer + 1).sum::<usize>());
        let mut done = 0;
        let mut step = |what: String| {
            done += 1;
            watch(&Progress { what, done: done as u64, total: total as u64 })
        };
        let mut original = runner.embed(&self.folder)?;
        for layer in 0..layers {
            let own = runner.read(layer, None)?;
            let mut tick = |_| step(format!("measuring behind layer {layer}"));
            for u in under.iter_mut().filter(|u| u.layer < layer) {
                if let Some(mut before) = u.states.take() {
                    u.states = runner.pass(&own, layer, &mut before, None, Some(&u.folder), &mut tick)?;
                    before.remove();
                }
            }
            let born = || trials.iter().zip(0..).filter(|(t, _)| t.layer().is_ok_and(|l| l == layer));
            if born().next().is_some() {
                let change = Change::at(self, layer)?;
                for (trial, i) in born() {
                    let (overlay, damage) = change.make(trial)?;
                    let changed = runner.read(layer, Some(&overlay))?;
                    let u: &mut Under = &mut under[i];
                    u.effect.damage = damage;
                    u.states = runner.pass(&changed, layer, &mut original, None, Some(&u.folder), &mut tick)?;
                }
            }
            let next = runner.pass(&own, layer, &mut original, None, Some(&self.folder), &mut tick)?;
            if let Some(next) = next {
                std::mem::replace(&mut original, next).remove();
            }
            drop(own);
            runner.release(layer)?;
        }
        let vocab = runner.info().vocab.max(1);
        let rows = (LOGITS / (4 * vocab)).max(1);
        let values = rows * runner.info().hidden;
        for window in 0..self.windows.len() {
            let states = original.window(window)?;
            let reference: Vec<Vec<f32>> =
                states.chunks(values).map(|rows| runner.logits(rows)).collect::<Result<_>>()?;
            for u in &mut under {
                if !step("measuring predictions".to_owned()) {
                    return Err(Error::Stopped);
                }
                let Some(states) = u.states.as_mut().map(|s| s.window(window)).transpose()? else { continue };
                for (rows, p) in states.chunks(values).zip(&reference) {
                    let q = runner.logits(rows)?;
                    // The token that follows does not matter to the divergence.
                    let each = p.chunks_exact(vocab).zip(q.chunks_exact(vocab));
                    u.effect.kl += each.map(|(p, q)| Divergence::of(p, q, 0).kl).sum::<f64>();
                }
            }
        }
        let tokens = runner.tokens().max(1) as f64;
        Ok(under.into_iter().map(|u| Effect { kl: u.effect.kl / tokens, ..u.effect }).collect())
    }
}

impl Trial {
    /// The layer that all its modules are of.
    fn layer(&self) -> Result<usize> {
        let mut layers = self.modules.iter().map(|(name, _)| (name, layer_of(name)));
        let first = layers.next().and_then(|(_, layer)| layer);
        let first = first.ok_or_else(|| Error::setting("trial", "a module of a layer", "none"))?;
        match layers.find(|(_, layer)| *layer != Some(first)) {
            None => Ok(first),
            Some((name, _)) => Err(Error::module(name, format!("is measured with modules of layer {first}"))),
        }
    }
}

/// What is needed to change a layer.
struct Change<'a, B: Backend> {
    bench: &'a Bench<'a, B>,
    inventory: marlin_models::Inventory,
    modules: Arc<dyn marlin_checkpoint::Modules>,
    stats: LayerStats,
    parts: Parts,
}

impl<'a, B: Backend> Change<'a, B> {
    fn at(bench: &'a Bench<'a, B>, layer: usize) -> Result<Self> {
        let inventory = Architecture::parse(&bench.checkpoint.config)?.inventory();
        let modules = bench.checkpoint.modules()?;
        let stats = bench.stats.layer(layer)?;
        let all = inventory.required().iter().filter_map(|t| t.name.strip_suffix(".weight"));
        let names: Vec<&str> = all.filter(|name| layer_of(name) == Some(layer)).collect();
        let parts = Parts::of(names.into_iter(), modules.as_ref(), &inventory, &stats, bench.compute)?;
        Ok(Self { bench, inventory, modules, stats, parts })
    }

    /// The layer's modules with those of the trial changed, and the damage that is predicted.
    fn make(&self, trial: &Trial) -> Result<(Overlay, f64)> {
        let (compute, mut damage) = (self.bench.compute, 0.0);
        let mut overlay = Overlay::new(self.modules.clone());
        for (name, method) in &trial.modules {
            let weight = matrix(self.modules.as_ref(), &self.inventory, name)?;
            let hessian = seen(&self.stats, name)?;
            let decoded = method.quantise(compute, name, &weight, Some(&hessian))?.decoded;
            damage += self.parts.damage(compute, name, &weight, &decoded, &hessian)?;
            overlay.replace(name, &decoded);
        }
        Ok((overlay, damage))
    }
}
