//! `bench kernels` on a GPU: where one kernel should take over from another there.

use crate::error::{Failure, Result};
use crate::values::Device;
use crate::{device, interrupt, output, synthetic};
use marlin_backend::{Backend, SequenceStep, Step, Token};
use marlin_gpu::kernels::Element;
use marlin_gpu::select::{self, Thresholds};
use marlin_gpu::{GpuBackend, GpuOptions};
use marlin_models::{LoadOptions, Model};
use serde::Serialize;
use std::time::Instant;

#[derive(Serialize)]
struct Report {
    device: String,
    measured: Vec<Measured>,
    /// What was in use before.
    before: Thresholds,
    /// What is fastest here.
    thresholds: Thresholds,
    #[serde(skip_serializing_if = "Option::is_none")]
    saved: Option<String>,
}

/// A step with one value of a threshold.
#[derive(Serialize)]
struct Measured {
    threshold: &'static str,
    value: usize,
    /// Rows of the step.
    rows: usize,
    /// Tokens behind it.
    context: usize,
    seconds: f64,
}

/// Tokens of the deep context.
const DEEP: usize = 8192;
/// Tokens of a KV block.
const BLOCK: usize = 32;

/// Some layers with random weights.
struct Layers<'a> {
    b: &'a GpuBackend,
    model: Model<GpuBackend>,
    kv: <GpuBackend as Backend>::Kv,
    repeats: u32,
}

impl<'a> Layers<'a> {
    fn load(b: &'a GpuBackend, name: &str, repeats: u32) -> Result<Self> {
        let made = synthetic::Model::parse("bench kernels", name)?.checkpoint()?;
        let model = Model::load(b, &made, LoadOptions::default(), &mut |_| {})?;
        let kv = b.kv(model.kv_spec(BLOCK, DEEP / BLOCK + 1))?;
        Ok(Self { b, model, kv, repeats })
    }

    /// The best time of a step of `rows` tokens behind `context` others, in seconds, after one that does not count.
    fn time(&self, t: Thresholds, rows: usize, context: usize) -> Result<f64> {
        self.b.set_thresholds(t);
        let blocks = (0..(context + rows).div_ceil(BLOCK) as u32).collect();
        let step = Step {
            tokens: (0..rows as u32).map(|i| Token::Id(i * 37)).collect(),
            sequences: vec![SequenceStep { cached: context, len: rows, blocks }],
            outputs: vec![rows as u32 - 1],
        };
        let mut best = f64::INFINITY;
        for round in 0..=self.repeats {
            let start = Instant::now();
            let batch = self.b.begin(&step, &self.kv, None)?;
            let logits = self.model.forward(self.b, &batch, &self.kv, None)?;
            self.b.read(&logits)?;
            if round > 0 {
                best = best.min(start.elapsed().as_secs_f64());
            }
        }
        Ok(best)
    }
}

/// What was measured, and the thresholds that came of it.
struct Tuning<'a> {
    measured: Vec<Measured>,
    best: Thresholds,
    go_on: &'a dyn Fn() -> Result<()>,
}

impl Tuning<'_> {
    fn time(
        &mut self,
        layers: &Layers,
        t: Thresholds,
        (threshold, value): (&'static str, usize),
        rows: usize,
        context: usize,
    ) -> Result<f64> {
        (self.go_on)()?;
        let seconds = layers.time(t, rows, context)?;
        self.measured.push(Measured { threshold, value, rows, context, seconds });
        Ok(seconds)
    }

    /// The first of `values` that is fastest, by more than what measuring differs.
    fn fastest(
        &mut self,
        layers: &Layers,
        threshold: &'static str,
        values: &[usize],
        (rows, context): (usize, usize),
        set: impl Fn(&mut Thresholds, usize),
    ) -> Result<()> {
        let mut best: Option<(f64, Thresholds)> = None;
        for &value in values {
            let mut t = self.best;
            set(&mut t, value);
            let seconds = self.time(layers, t, (threshold, value), rows, context)?;
            if best.is_none_or(|(least, _)| seconds < 0.98 * least) {
                best = Some((seconds, t));
            }
        }
        self.best = best.map_or(self.best, |(_, t)| t);
        Ok(())
    }
}

/// Experts in each layer of the mixture that is measured, and how many of them a token has.
const EXPERTS: usize = 64;
const CHOSEN: usize = 4;

pub fn run(device: Device, repeats: u32, save: bool, json: bool) -> Result<()> {
    let wanted = Some(device).filter(|d| *d != Device::Auto);
    let found = device::find(wanted).map_err(|e| Failure::text(format!("the GPU cannot be used: {}", e.why)))?;
    let info = found.info().clone();
    let memory = info.memory / 16 * 15;
    let options = GpuOptions { kv: Element::Bf16, memory, threads: 0, record: false, exact: false };
    let b = GpuBackend::open(found, options)?;
    let watch = interrupt::watch();
    let before = b.thresholds();
    let mut tuning = Tuning { measured: Vec::new(), best: before, go_on: &|| watch.check() };
    let dense = Layers::load(&b, "qwen3-8b@exl3-3:layers=2", repeats)?;
    let mut few = 1;
    for rows in 2..=16 {
        let read = Thresholds { few_rows: 16, ..before };
        let tiles = Thresholds { few_rows: 1, ..before };
        let read = tuning.time(&dense, read, ("few_rows", 16), rows, 0)?;
        let tiles = tuning.time(&dense, tiles, ("few_rows", 1), rows, 0)?;
        if read > tiles {
            break;
        }
        few = rows;
    }
    tuning.best.few_rows = few;
    tuning.fastest(&dense, "attention_groups", &[4, 2, 8, 16], (1, DEEP - 1), |t, n| t.attention_groups = n)?;
    drop(dense);
    let mixture = Layers::load(&b, "glm-4.7-flash@exl3-3:layers=2", repeats)?;
    let mut pairs = 1 << 20;
    for each in [16, 8, 4, 2, 1] {
        let rows = each * EXPERTS / CHOSEN;
        let sorted = Thresholds { sort_pairs: 1, ..tuning.best };
        let single = Thresholds { sort_pairs: 1 << 20, ..tuning.best };
        let sorted = tuning.time(&mixture, sorted, ("sort_pairs", 1), rows, 0)?;
        let single = tuning.time(&mixture, single, ("sort_pairs", 1 << 20), rows, 0)?;
        if sorted > single {
            break;
        }
        pairs = each;
    }
    tuning.best.sort_pairs = pairs;
    let thresholds = tuning.best.within_limits();
    let failed = |e: std::io::Error| Failure::text(format!("the thresholds cannot be saved: {e}"));
    let saved = if save { Some(select::save(&info, &thresholds).map_err(failed)?.display().to_string()) } else { None };
    let device = format!("{} ({}, driver {})", info.name, info.architecture, info.driver);
    let report = Report { device, measured: tuning.measured, before, thresholds, saved };
    if json { output::print_json(&report) } else { output::print(&report.text()) }
}

impl Report {
    fn text(&self) -> String {
        let mut out = format!(
            "{}\n{:<18}{:>9}{:>6}{:>9}{:>12}\n",
            self.device, "threshold", "value", "rows", "context", "us a step"
        );
        for m in &self.measured {
            let Measured { threshold, value, rows, context, seconds } = m;
            out += &format!("{threshold:<18}{value:>9}{rows:>6}{context:>9}{:>12.1}\n", 1e6 * seconds);
        }
        let line = |t: &Thresholds| {
            let Thresholds { few_rows, sort_pairs, attention_groups } = t;
            format!("few_rows {few_rows}, sort_pairs {sort_pairs}, attention_groups {attention_groups}")
        };
        out += &format!("in use: {}\nfastest: {}\n", line(&self.before), line(&self.thresholds));
        if let Some(file) = &self.saved {
            out += &format!("saved to {file}\n");
        }
        out
    }
}
