//! The walk over the layers: Hessians, quantising, writing.

use std::collections::BTreeMap;
use std::path::Path;

use marlin_backend::Backend;
use marlin_checkpoint::{Error as Bad, TensorInfo};

use super::item::{Item, Items};
use super::overlay::Overlay;
use super::shards::Shards;
use super::{Apply, Calibration, ModuleReport};
use crate::calibrate::{LayerStats, Progress, Runner, States, Watch, drift_key, shifted};
use crate::files::release_layer;
use crate::grouped::stack;
use crate::roles::depth;
use crate::{Compute, Error, Hessian, Matrix, Quantised, Result, Written};

/// Writes all items that are not written yet.
pub(super) fn write<B: Backend>(
    apply: &Apply<'_>,
    items: &Items<'_>,
    backend: &B,
    compute: &dyn Compute,
    folder: &Path,
    shards: &mut Shards,
    watch: Watch<'_>,
) -> Result<()> {
    let mut walk = Walk { apply, items, compute, shards, done: 0, total: 0 };
    walk.total = items.parts.iter().map(|part| part.len() as u64).sum();
    match apply.calibration {
        Calibration::None => walk.plain(&mut |_| Ok(None), watch),
        Calibration::Stats(stats) => {
            let layers = items.parts.len() - 2;
            walk.plain(
                &mut |part| match part {
                    0 => Ok(None),
                    part if part <= layers => stats.layer(part - 1).map(Some),
                    _ => stats.head().map(Some),
                },
                watch,
            )
        }
        Calibration::Text { samples, experts, sequential } => {
            let runner = Runner::new(backend, compute, apply.checkpoint, &samples.windows, experts)?;
            walk.calibrated(&runner, sequential, folder, watch)
        }
    }
}

/// The folder of the original's states, beside those of what is quantised.
const ORIGINAL: &str = "original";

/// The states before a layer.
struct Before {
    states: States,
    /// Those of the original, where the others are of what is quantised.
    original: Option<States>,
}

impl Before {
    /// The newest in `folder` before `layer` or one before it, or those before the first; with the number of the layer.
    fn newest<B: Backend>(
        runner: &Runner<'_, B>,
        folder: &Path,
        layer: usize,
        sequential: bool,
    ) -> Result<(usize, Self)> {
        let beside = folder.join(ORIGINAL);
        for layer in (0..=layer).rev() {
            let original = if sequential { runner.found(&beside, layer)? } else { None };
            if let Some(states) = runner.found(folder, layer)?.filter(|_| sequential == original.is_some()) {
                return Ok((layer, Self { states, original }));
            }
        }
        let original = match sequential {
            true => {
                std::fs::create_dir_all(&beside).map_err(|e| Bad::io(&beside, e))?;
                Some(runner.embed(&beside)?)
            }
            false => None,
        };
        Ok((0, Self { states: runner.embed(folder)?, original }))
    }

    fn remove(self) {
        self.states.remove();
        self.original.into_iter().for_each(States::remove);
    }
}

struct Walk<'a> {
    apply: &'a Apply<'a>,
    items: &'a Items<'a>,
    compute: &'a dyn Compute,
    shards: &'a mut Shards,
    /// Items written, and all.
    done: u64,
    total: u64,
}

impl<'a> Walk<'a> {
    /// Whether a module of part `part` is still to be quantised.
    fn pending(&self, part: usize) -> bool {
        self.items.parts[part]
            .iter()
            .any(|item| matches!(item, Item::Quantise(_) | Item::Stack { .. }) && !self.shards.has(item.name()))
    }

    /// With statistics that are there, or none.
    fn plain(&mut self, stats: &mut dyn FnMut(usize) -> Result<Option<LayerStats>>, watch: Watch<'_>) -> Result<()> {
        for part in 0..self.items.parts.len() {
            let stats = if self.pending(part) { stats(part)? } else { None };
            self.part(part, stats.as_ref(), watch)?;
        }
        Ok(())
    }

    /// With statistics that are collected on the way.
    fn calibrated<B: Backend>(
        &mut self,
        runner: &Runner<'_, B>,
        sequential: bool,
        folder: &Path,
        watch: Watch<'_>,
    ) -> Result<()> {
        let (layers, last) = (runner.layers(), self.items.parts.len() - 1);
        // The first layer (or the head) whose modules are not all written, and the newest states before it.
        let first = (0..=layers).find(|i| self.pending(i + 1));
        let (at, mut before) = match first {
            Some(first) => Before::newest(runner, folder, first, sequential).map(|(at, before)| (at, Some(before)))?,
            None => (0, None),
        };
        self.part(0, None, watch)?;
        for layer in 0..layers {
            let (pending, more) = (self.pending(layer + 1), (layer + 1..=layers).any(|i| self.pending(i + 1)));
            let Some(mut now) = before.take_if(|_| layer >= at && (pending || more)) else {
                self.part(layer + 1, None, watch)?;
                continue;
            };
            let kept = more.then_some(folder);
            before = match &mut now.original {
                Some(original) => {
                    let overlay = self.sequential(runner, layer, [&mut now.states, original], watch)?;
                    match kept {
                        None => None,
                        Some(folder) => {
                            let (beside, hear) = (folder.join(ORIGINAL), &mut self.outer(watch));
                            let original = runner.layer(layer, None, original, false, Some(&beside), hear)?.1;
                            let next = runner.layer(layer, Some(&overlay), &mut now.states, false, kept, hear)?.1;
                            next.map(|states| Before { states, original })
                        }
                    }
                }
                None => {
                    let (stats, next) =
                        runner.layer(layer, None, &mut now.states, pending, kept, &mut self.outer(watch))?;
                    self.part(layer + 1, stats.as_ref(), watch)?;
                    next.map(|states| Before { states, original: None })
                }
            };
            now.remove();
        }
        let head = match (self.pending(last), &mut before) {
            (true, Some(now)) => Some(runner.head(&mut now.states, now.original.as_mut())?),
            _ => None,
        };
        self.part(last, head.as_ref(), watch)
    }

    /// Quantises a layer step by step, each with what the quantised linears before it give, and how that differs from what the
    /// original ones give. The states before the layer are those of the quantised and of the original model.
    fn sequential<B: Backend>(
        &mut self,
        runner: &Runner<'_, B>,
        layer: usize,
        [states, original]: [&mut States; 2],
        watch: Watch<'_>,
    ) -> Result<Overlay> {
        let mut overlay = Overlay::new(self.apply.checkpoint.modules()?);
        for (depth, items) in self.stages(layer + 1) {
            let both = [&mut *states, &mut *original];
            let stats = runner.compared((layer, depth), &overlay, both, &mut self.outer(watch))?;
            self.items(&items, Some(&stats), Some(&mut overlay), watch)?;
        }
        self.release(layer + 1)?;
        Ok(overlay)
    }

    /// Progress of a layer's windows, as that of the whole.
    fn outer<'w>(&self, watch: &'w mut dyn FnMut(&Progress) -> bool) -> impl FnMut(&Progress) -> bool + use<'w> {
        let (done, total) = (self.done, self.total);
        move |step| watch(&Progress { what: format!("calibrating {}", step.what), done, total })
    }

    /// Writes the items of a part.
    fn part(&mut self, part: usize, stats: Option<&LayerStats>, watch: Watch<'_>) -> Result<()> {
        let items: Vec<&Item> = self.items.parts[part].iter().collect();
        self.items(&items, stats, None, watch)?;
        self.release(part)
    }

    /// Gives back the pages of a part's weights.
    fn release(&self, part: usize) -> Result<()> {
        match part.checked_sub(1) {
            Some(layer) => release_layer(self.apply.checkpoint.store.as_ref(), layer),
            None => Ok(()),
        }
    }

    /// The items of a part by the [`depth`] of what they quantise.
    fn stages(&self, part: usize) -> BTreeMap<usize, Vec<&'a Item>> {
        let mut stages: BTreeMap<usize, Vec<&'a Item>> = BTreeMap::new();
        for item in &self.items.parts[part] {
            let module = item.modules().first();
            stages.entry(module.map_or(0, |module| depth(module))).or_default().push(item);
        }
        stages
    }

    /// Writes items of a part. Quantised weights, those written before included, are put into `overlay`.
    fn items(
        &mut self,
        list: &[&Item],
        stats: Option<&LayerStats>,
        mut overlay: Option<&mut Overlay>,
        watch: Watch<'_>,
    ) -> Result<()> {
        let items = self.items;
        let mut seen = Seen::of(stats);
        for &item in list {
            let (name, new) = (item.name(), !self.shards.has(item.name()));
            let quantised = item.modules();
            self.hear(quantised.first().map_or(name, String::as_str), watch)?;
            match item {
                Item::Quantise(_) | Item::Stack { .. } if new || overlay.is_some() => {
                    let (mut stored, mut reports) = (Vec::new(), Vec::new());
                    for (i, module) in quantised.iter().enumerate() {
                        if i > 0 {
                            self.hear(module, watch)?;
                        }
                        let (made, report) = self.quantise(module, &mut seen)?;
                        if let Some(overlay) = &mut overlay {
                            overlay.replace(module, &made.decoded);
                        }
                        stored.push(made.tensors);
                        reports.push(report);
                    }
                    if new {
                        let tensors = match item {
                            Item::Stack { .. } => stack(&stored)?,
                            _ => stored.pop().unwrap_or_default(),
                        };
                        self.write(name, &tensors, reports)?;
                    }
                }
                Item::Copy(_) if new => {
                    let (info, data) = items.copied(name)?;
                    self.shards.push(name, &[(info, &data)], Vec::new())?;
                    data.release();
                }
                Item::Decode(_) if new => {
                    let (info, data) = items.decoded(name)?;
                    self.shards.push(name, &[(info, &data)], Vec::new())?;
                }
                _ => {}
            }
            self.done += 1;
        }
        Ok(())
    }

    /// Tells of the item under way.
    fn hear(&self, what: &str, watch: Watch<'_>) -> Result<()> {
        match watch(&Progress { what: what.to_owned(), done: self.done, total: self.total }) {
            true => Ok(()),
            false => Err(Error::Stopped),
        }
    }

    fn write(&mut self, name: &str, tensors: &[Written], reports: Vec<ModuleReport>) -> Result<()> {
        let info =
            |t: &Written| TensorInfo { name: format!("{name}.{}", t.suffix), dtype: t.dtype, shape: t.shape.clone() };
        let tensors: Vec<(TensorInfo, &[u8])> = tensors.iter().map(|t| (info(t), t.data.as_slice())).collect();
        self.shards.push(name, &tensors, reports)
    }

    /// Quantises a module.
    fn quantise(&self, module: &str, seen: &mut Seen<'_>) -> Result<(Quantised, ModuleReport)> {
        let weight = self.items.matrix(module)?;
        let target =
            seen.shift(self.compute, module)?.map(|shift| shifted(self.compute, &weight, shift)).transpose()?;
        let hessian = seen.hessian(module)?;
        if let Some(found) = hessian.map(|h| h.size()).filter(|size| *size != weight.cols()) {
            let why = format!("has {} inputs, but its statistics {found}: they are of another model", weight.cols());
            return Err(Error::module(module, why));
        }
        let method = self.apply.methods.get(module).map(|planned| planned.method.as_ref());
        let method = method.ok_or_else(|| Error::module(module, "has no method"))?;
        let made = method.quantise(self.compute, module, target.as_ref().unwrap_or(&weight), hessian)?;
        let (decoded, bits) = (&made.decoded, made.bits());
        let report = ModuleReport::of(self.compute, module, method.name(), &weight, decoded, bits, hessian)?;
        Ok((made, report))
    }
}

/// The Hessians of a layer. The newest is kept: linears with the same inputs follow one another.
struct Seen<'a> {
    stats: Option<&'a LayerStats>,
    last: Option<(String, Hessian)>,
    /// Shifts, but for those of single experts.
    shifts: BTreeMap<String, Option<Matrix>>,
}

impl<'a> Seen<'a> {
    fn of(stats: Option<&'a LayerStats>) -> Self {
        Self { stats, last: None, shifts: BTreeMap::new() }
    }

    /// That of a module's inputs; `None` without statistics.
    fn hessian(&mut self, module: &str) -> Result<Option<&Hessian>> {
        let Some(stats) = self.stats else { return Ok(None) };
        let key = LayerStats::key(module);
        if self.last.as_ref().is_none_or(|(last, _)| *last != key) {
            // That of other inputs goes first.
            self.last = None;
            let unseen = || {
                let why = "calibration has not seen its inputs; calibrate again with more text, or leave it as it is";
                Error::module(module, why)
            };
            self.last = Some((key, stats.hessian(module)?.ok_or_else(unseen)?));
        }
        Ok(self.last.as_ref().map(|(_, hessian)| hessian))
    }

    /// What gives a module's weight its target, where inputs have drifted.
    fn shift(&mut self, compute: &dyn Compute, module: &str) -> Result<Option<&Matrix>> {
        let Some(stats) = self.stats else { return Ok(None) };
        let key = drift_key(module);
        if !self.shifts.contains_key(&key) {
            // An expert's is wanted once.
            self.shifts.retain(|key, _| !key.contains(".experts."));
            self.shifts.insert(key.clone(), stats.shift(compute, &key)?);
        }
        Ok(self.shifts.get(&key).and_then(Option::as_ref))
    }
}
