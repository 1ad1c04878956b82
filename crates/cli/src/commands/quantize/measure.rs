//! Damages of a plan, measured.

use crate::args::EngineArgs;
use crate::commands::calibrate::Windows;
use crate::device;
use crate::error::Result;
use crate::interrupt::{self, Watch};
use crate::output;
use crate::progress::Bar;
use marlin_checkpoint::Checkpoint;
use marlin_cpu::CpuBackend;
use marlin_quantize::planner::{Limits, Module, Planned, margins, plan};
use marlin_quantize::{Bench, Progress, Recipe, Samples, Stats, Watch as Hear, spearman};
use std::path::{Path, PathBuf};

/// What is measured for a plan.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Measuring")]
pub struct MeasureArgs {
    /// Measure on this text what errors of each module do to predictions, and plan by that: best a text like that of the
    /// calibration; may be repeated
    #[arg(long, value_name = "FILE", num_args = 1..)]
    measure: Vec<PathBuf>,
    /// Windows of text to measure on
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = crate::values::some_tokens)]
    measure_samples: usize,
    /// Tokens of a window to measure on
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = crate::values::some_tokens)]
    measure_length: usize,
    /// With --measure, also quantise the N modules whose bits are chosen most narrowly, each alone, and choose again by what
    /// that does
    #[arg(long, value_name = "N", default_value_t = 0, requires = "measure")]
    refine: usize,
    /// Quantise every module alone at the bits that --bits rounds down to, measure what that does on this text, and say how
    /// well the predicted damages order it
    #[arg(long, value_name = "FILE")]
    check_order: Option<PathBuf>,
}

impl MeasureArgs {
    /// Windows of texts to measure on.
    fn read(&self, checkpoint: &Checkpoint, files: &[PathBuf]) -> Result<Samples> {
        Windows::of(self.measure_samples, self.measure_length).read(checkpoint, files)
    }

    /// Windows of the text that is to be measured on, if one is.
    pub fn samples(&self, checkpoint: &Checkpoint) -> Result<Option<Samples>> {
        if self.measure.is_empty() { Ok(None) } else { self.read(checkpoint, &self.measure).map(Some) }
    }

    /// The best plan of `modules`, chosen again if some are to be measured alone, and the modules with what was found. `bench`
    /// has the text that is measured on.
    pub fn plan(
        &self,
        bench: Option<&Measuring<'_>>,
        recipe: &Recipe,
        modules: Vec<Module>,
        limits: &Limits,
    ) -> Result<(Vec<Module>, Planned)> {
        let planned = plan(&modules, limits)?;
        let Some(bench) = bench.filter(|_| self.refine > 0) else { return Ok((modules, planned)) };
        let mut narrow: Vec<(f64, usize)> = margins(&modules, limits, &planned.bits)?.into_iter().zip(0..).collect();
        narrow.retain(|(margin, _)| margin.is_finite());
        narrow.sort_by(|a, b| a.0.total_cmp(&b.0));
        let which: Vec<(usize, u32)> = narrow.iter().take(self.refine).map(|(_, i)| (*i, planned.bits[*i])).collect();
        let refined = bench.run(|bench, hear| bench.refined(recipe, &modules, &which, hear))?;
        let again = plan(&refined, limits)?;
        output::note(&changes(&modules, &refined, &which, &planned.bits, &again.bits));
        Ok((refined, again))
    }

    /// Says how predicted damages order measured ones, every module alone at `bits`: those of the plan (`modules`), and those
    /// before anything was measured (`plain`).
    pub fn check(&self, of: Subject<'_>, recipe: &Recipe, bits: u32, [modules, plain]: [&[Module]; 2]) -> Result<()> {
        let Some(text) = &self.check_order else { return Ok(()) };
        let samples = self.read(of.checkpoint, std::slice::from_ref(text))?;
        let bench = Measuring::new(of, &samples)?;
        let at = |modules: &[Module], i: usize| modules[i].choices.iter().find(|c| c.bits == bits).map(|c| c.damage);
        let free = (0..modules.len()).filter(|i| !modules[*i].is_protected() && at(modules, *i).is_some());
        let which: Vec<(usize, u32)> = free.map(|i| (i, bits)).collect();
        let effects = bench.run(|bench, hear| bench.alone(recipe, modules, &which, hear))?;
        let found: Vec<f64> = effects.iter().map(|e| e.kl).collect();
        let rho = |of: &[Module]| {
            let predicted: Vec<f64> = which.iter().map(|(i, _)| at(of, *i).unwrap_or_default()).collect();
            spearman(&predicted, &found).map_or("none".to_owned(), |rho| format!("{rho:.3}"))
        };
        let count = which.len();
        let mut said = format!("{count} modules, each alone at {bits} bits, on {}:\n", text.display());
        said.push_str(&format!("rank correlation of predicted damage and measured divergence: {}", rho(modules)));
        if !self.measure.is_empty() {
            said.push_str(&format!(" (of errors of outputs alone, without --measure: {})", rho(plain)));
        }
        output::print(&format!("{said}\n"))
    }
}

/// What a second choice changed.
fn changes(before: &[Module], after: &[Module], which: &[(usize, u32)], old: &[u32], new: &[u32]) -> String {
    let mut said = format!("measured alone: {} modules\n", which.len());
    for (i, bits) in which {
        let damage = |of: &[Module]| of[*i].choices.iter().find(|c| c.bits == *bits).map_or(0.0, |c| c.damage);
        let (from, to) = (damage(before), damage(after));
        let name = &before[*i].name;
        said.push_str(&format!("  {name} at {bits} bits: {to:.3e}, predicted {from:.3e}\n"));
    }
    let changed: Vec<usize> = (0..old.len()).filter(|i| old[*i] != new[*i]).collect();
    said.push_str(&format!("{} modules have other bits than before", changed.len()));
    for i in changed {
        said.push_str(&format!("\n  {} {}, was {}", before[i].name, new[i], old[i]));
    }
    said
}

/// What is planned, and where.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub checkpoint: &'a Checkpoint,
    pub stats: &'a Stats,
    pub engine: &'a EngineArgs,
    /// The file or folder beside which hidden states wait in a folder of their own.
    pub beside: &'a Path,
}

/// A bench with a backend of its own, in f32: what single modules do is less than what bf16 rounds away.
pub struct Measuring<'a> {
    subject: Subject<'a>,
    samples: &'a Samples,
    backend: CpuBackend,
    folder: PathBuf,
    watch: Watch,
}

impl<'a> Measuring<'a> {
    /// Measures on `samples`.
    pub fn new(subject: Subject<'a>, samples: &'a Samples) -> Result<Self> {
        let backend = device::cpu(&EngineArgs { exact: true, ..subject.engine.clone() })?;
        let name = subject.beside.file_name().unwrap_or_default().to_string_lossy();
        let folder = subject.beside.with_file_name(format!("{name}.measuring"));
        Ok(Self { subject, samples, backend, folder, watch: interrupt::watch() })
    }

    /// `modules` with damages in nats a token.
    pub fn sensitivities(&self, modules: &[Module]) -> Result<Vec<Module>> {
        self.run(|bench, hear| bench.sensitivities(modules, hear))
    }

    fn run<T>(&self, work: impl FnOnce(&Bench<'_, CpuBackend>, Hear<'_>) -> marlin_quantize::Result<T>) -> Result<T> {
        let bench = Bench {
            backend: &self.backend,
            compute: self.backend.cpu(),
            checkpoint: self.subject.checkpoint,
            stats: self.subject.stats,
            windows: &self.samples.windows,
            folder: self.folder.clone(),
        };
        let mut bar = Bar::items("measuring");
        Ok(work(&bench, &mut |step: &Progress| {
            bar.say(&step.what);
            bar.set(step.done, step.total);
            !self.watch.pressed()
        })?)
    }
}
