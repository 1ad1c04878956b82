//! Calibration: what every linear's inputs look like on a text, layer by layer in bounded memory.
//!
//! All windows of the text pass one layer before the next is read. Hidden states wait in a file in between, so memory
//! holds one layer's weights and moments and one window's activations.

mod collector;
mod drift;
mod moments;
mod samples;
mod states;
mod stats;

pub(crate) use drift::{drift_key, shifted};
pub use moments::{LayerStats, Moments, Routed};
pub use samples::{Samples, Sampling};
pub(crate) use states::States;
pub use stats::{About, Stats, calibrate};

use marlin_backend::{Backend, KvSpec, LatentForm, Observer, Pass, SequenceStep, Step, Token};
use marlin_checkpoint::{Checkpoint, Modules};
use marlin_models::{Layer, LoadOptions, Model, ModelInfo, Residency};
use std::path::Path;
use std::sync::Arc;

use crate::files::release_layer;
use crate::{Compute, Error, Result};
use collector::Collector;
use drift::Recorder;

/// Which moments gate and up projections of routed experts get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExpertInputs {
    /// Those of the tokens that go to the expert: better, and inputs squared floats for each expert.
    #[default]
    Own,
    /// Those of all tokens of the layer, as EXL3's own converter has it.
    Shared,
}

/// How far a long work has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub what: String,
    /// Units done.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// Hears of progress, and may stop the work by answering false.
pub type Watch<'a> = &'a mut dyn FnMut(&Progress) -> bool;

/// Tokens of a block of KV memory.
const BLOCK: usize = 32;

/// Takes the windows of a text through a model, one layer after another.
pub(crate) struct Runner<'a, B: Backend> {
    backend: &'a B,
    compute: &'a dyn Compute,
    model: Model<B>,
    checkpoint: &'a Checkpoint,
    modules: Arc<dyn Modules>,
    windows: &'a [Vec<u32>],
    kv: B::Kv,
    experts: ExpertInputs,
}

impl<'a, B: Backend> Runner<'a, B> {
    /// All windows are of the same length.
    pub(crate) fn new(
        backend: &'a B,
        compute: &'a dyn Compute,
        checkpoint: &'a Checkpoint,
        windows: &'a [Vec<u32>],
        experts: ExpertInputs,
    ) -> Result<Self> {
        let options = LoadOptions { residency: Residency::Streamed, ..LoadOptions::default() };
        let model = Model::load(backend, checkpoint, options, &mut |_| {})?;
        let vocab = model.info().vocab;
        if let Some(token) = windows.iter().flatten().find(|t| **t as usize >= vocab) {
            return Err(Error::setting("calibration token", format!("0 to {}", vocab - 1), token));
        }
        let length = windows.first().map_or(0, Vec::len);
        if length > model.info().max_positions {
            return Err(Error::setting("length", format!("at most {}", model.info().max_positions), length));
        }
        // Layers take turns, so one layer's memory does for all.
        let spec = KvSpec { layers: 1, ..model.kv_spec(BLOCK, length.div_ceil(BLOCK)) };
        let kv = backend.kv(spec)?;
        Ok(Self { backend, compute, model, checkpoint, modules: checkpoint.modules()?, windows, kv, experts })
    }

    /// Decoder layers.
    pub(crate) fn layers(&self) -> usize {
        self.model.info().layers
    }

    /// Tokens of all windows.
    pub(crate) fn tokens(&self) -> u64 {
        self.windows.iter().map(|w| w.len() as u64).sum()
    }

    /// Values of one window's hidden states.
    pub(crate) fn values(&self) -> usize {
        self.windows.first().map_or(0, Vec::len) * self.model.info().hidden
    }

    /// The states before `layer` that an earlier run has left in `folder`.
    pub(crate) fn found(&self, folder: &Path, layer: usize) -> Result<Option<States>> {
        States::find(folder, layer, self.windows.len(), self.values())
    }

    /// The model.
    pub(crate) fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    /// A step of one text.
    fn batch(&self, tokens: &[u32]) -> Result<B::Batch> {
        let step = Step {
            tokens: tokens.iter().map(|id| Token::Id(*id)).collect(),
            sequences: vec![SequenceStep {
                cached: 0,
                len: tokens.len(),
                blocks: (0..tokens.len().div_ceil(BLOCK) as u32).collect(),
            }],
            outputs: (0..tokens.len() as u32).collect(),
        };
        Ok(self.backend.begin(&step, &self.kv, None)?)
    }

    /// The states before the first layer.
    pub(crate) fn embed(&self, folder: &Path) -> Result<States> {
        let mut out = states::Writer::create(folder, 0, self.windows.len(), self.values())?;
        for window in self.windows {
            let h = self.model.embed(self.backend, &self.batch(window)?)?;
            self.backend.submit()?;
            out.push(&self.backend.read(&h)?)?;
        }
        out.finish()
    }

    /// Layer `layer` with weights from `weights`, or the model's own.
    pub(crate) fn read(&self, layer: usize, weights: Option<&dyn Modules>) -> Result<Layer<B>> {
        Ok(self.model.read_layer(self.backend, weights.unwrap_or(self.modules.as_ref()), layer)?)
    }

    /// Runs all windows through layer `layer` with weights from `weights` (the model's own if `None`). Gives what its
    /// linears saw if `observed`, and the states after it if they are to be `kept` in a folder.
    pub(crate) fn layer(
        &self,
        layer: usize,
        weights: Option<&dyn Modules>,
        input: &mut States,
        observed: bool,
        kept: Option<&Path>,
        watch: Watch<'_>,
    ) -> Result<(Option<LayerStats>, Option<States>)> {
        let count = self.windows.len();
        let part = self.read(layer, weights)?;
        let collector = Collector::new(self.compute, self.experts);
        let observer: Option<&dyn Observer<B>> = if observed { Some(&collector) } else { None };
        let next = self.pass(&part, layer, input, observer, kept, &mut |window| {
            watch(&Progress {
                what: format!("layer {layer} of {}", self.layers()),
                done: (layer * count + window) as u64,
                total: (self.layers() * count) as u64,
            })
        })?;
        drop(part);
        self.release(layer)?;
        Ok((observed.then(|| collector.finish(self.tokens())), next))
    }

    /// Gives back the memory of a layer's pages, when nothing that was read of them is left.
    pub(crate) fn release(&self, layer: usize) -> Result<()> {
        release_layer(self.checkpoint.store.as_ref(), layer)
    }

    /// Runs all windows through a layer that was read, the one with number `layer`. Gives the states after it if they are
    /// to be `kept` in a folder. `watch` hears of each window and may stop the work by answering false.
    pub(crate) fn pass(
        &self,
        part: &Layer<B>,
        layer: usize,
        input: &mut States,
        observer: Option<&dyn Observer<B>>,
        kept: Option<&Path>,
        watch: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Option<States>> {
        let (b, count) = (self.backend, self.windows.len());
        let mut out = kept.map(|folder| states::Writer::create(folder, layer + 1, count, self.values())).transpose()?;
        for window in 0..count {
            if !watch(window) {
                return Err(Error::Stopped);
            }
            let h = self.through(part, window, input, observer)?;
            if let Some(out) = &mut out {
                let values = b.read(&h)?;
                if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                    let why = format!(
                        "its output for token {} of window {window} is not finite; the checkpoint is damaged, or overflows",
                        at / self.model.info().hidden
                    );
                    return Err(Error::Module { module: format!("model.layers.{layer}"), why });
                }
                out.push(&values)?;
            }
        }
        out.map(states::Writer::finish).transpose()
    }

    /// Runs a window through a layer that was read.
    fn through(
        &self,
        part: &Layer<B>,
        window: usize,
        input: &mut States,
        observer: Option<&dyn Observer<B>>,
    ) -> Result<B::Tensor> {
        let (b, tokens) = (self.backend, &self.windows[window]);
        let batch = self.batch(tokens)?;
        let h = b.write(tokens.len(), self.model.info().hidden, input.window(window)?)?;
        let h = part.forward(b, h, &self.now(&batch, observer))?;
        b.submit()?;
        Ok(h)
    }

    /// What the linears of `depth` of layer `layer` with weights from `weights` see of `input`, compared with what the model's
    /// own see of `original`.
    pub(crate) fn compared(
        &self,
        (layer, depth): (usize, usize),
        weights: &dyn Modules,
        [input, original]: [&mut States; 2],
        watch: Watch<'_>,
    ) -> Result<LayerStats> {
        let (own, new) = (self.read(layer, None)?, self.read(layer, Some(weights))?);
        let (collector, recorder) = (Collector::new(self.compute, self.experts).at(depth), Recorder::at(depth));
        let count = self.windows.len();
        for window in 0..count {
            let progress = Progress {
                what: format!("layer {layer} of {}", self.layers()),
                done: (layer * count + window) as u64,
                total: (self.layers() * count) as u64,
            };
            if !watch(&progress) {
                return Err(Error::Stopped);
            }
            self.through(&own, window, original, Some(&recorder))?;
            collector.compare(&recorder);
            self.through(&new, window, input, Some(&collector))?;
        }
        drop((own, new));
        self.release(layer)?;
        Ok(collector.finish(self.tokens()))
    }

    fn now<'p>(&'p self, batch: &'p B::Batch, observer: Option<&'p dyn Observer<B>>) -> Pass<'p, B> {
        Pass { batch, kv: &self.kv, layer: 0, latent_form: LatentForm::Auto, observer }
    }

    /// Logits `[rows, vocab]` of some rows of hidden states after the last layer.
    pub(crate) fn logits(&self, states: &[f32]) -> Result<Vec<f32>> {
        let (b, hidden) = (self.backend, self.model.info().hidden);
        let rows = states.len() / hidden;
        // The head looks at no token and no neighbour.
        let batch = self.batch(&self.windows[0][..rows])?;
        let h = b.write(rows, hidden, states.to_vec())?;
        let logits = self.model.head(b, &h, &self.now(&batch, None))?;
        b.submit()?;
        Ok(b.read(&logits)?)
    }

    /// What the output projection sees of the states after the last layer, compared with the original's if given.
    pub(crate) fn head(&self, input: &mut States, mut original: Option<&mut States>) -> Result<LayerStats> {
        let collector = Collector::new(self.compute, self.experts);
        for window in 0..self.windows.len() {
            let rows = self.head_rows(window, input)?;
            let original = original.as_mut().map(|states| self.head_rows(window, states)).transpose()?;
            collector.add("lm_head", self.model.info().hidden, &rows, original)?;
        }
        Ok(collector.finish(self.tokens()))
    }

    /// What the output projection sees of a window.
    fn head_rows(&self, window: usize, input: &mut States) -> Result<Vec<f32>> {
        let (b, tokens) = (self.backend, &self.windows[window]);
        let batch = self.batch(tokens)?;
        let h = b.write(tokens.len(), self.model.info().hidden, input.window(window)?)?;
        let x = self.model.head_input(b, &h, &self.now(&batch, None))?;
        b.submit()?;
        Ok(b.read(&x)?)
    }
}
