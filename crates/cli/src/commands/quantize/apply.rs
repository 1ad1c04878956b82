//! Making the checkpoint.

use super::plan;
use super::{Once, OrderName, RecipeArgs, RoundingName, Work};
use crate::error::{Failure, Result};
use crate::progress::Bar;
use crate::{device, interrupt, model, output};
use marlin_checkpoint::Checkpoint;
use marlin_quantize::grouped::{Order, Rounder};
use marlin_quantize::{Apply, Calibration, Choice, Progress, Recipe, Report, Samples, Stats, Target, check_output};
use serde_json::{Value, json};

/// Modules that are listed when work is done.
const WORST: usize = 5;

impl RecipeArgs {
    /// What the options say.
    pub fn recipe(&self, inputs: &Inputs) -> Result<Recipe> {
        let calibrated = inputs.calibrated();
        let bits = self.bits.clone().unwrap_or_default();
        let order = match self.order {
            OrderName::Natural => Order::Natural,
            OrderName::Static => Order::Activation,
            OrderName::Dynamic => Order::ActivationGroups,
        };
        let rounder = match (self.rounding, calibrated) {
            (Some(RoundingName::Gptq), false) => {
                return Err(Failure::text(
                    "--rounding gptq needs a text to calibrate with (--text) or statistics (--stats)",
                ));
            }
            (Some(RoundingName::Gptq), _) | (None, true) => Rounder::Gptq { damping: self.damping, order },
            (Some(RoundingName::Nearest), _) | (None, false) => Rounder::Nearest,
        };
        let usual = self.group.unwrap_or(128);
        let rotation = match self.rotate {
            Some(0) => None,
            Some(block) => Some(block),
            None => Some(usual).filter(|_| calibrated && usual.is_power_of_two()),
        };
        Ok(Recipe {
            target: self.format,
            bits: bits.with_head(self.head_bits.map(f64::from)),
            group: self.group,
            asymmetric: self.asymmetric,
            rotation: rotation.filter(|_| self.format == Target::Fp4),
            rounder,
            windows: inputs.windows(),
        })
    }
}

/// One command from a model to its quantised checkpoint.
pub fn once(args: &Once) -> Result<()> {
    let checkpoint = model::open(&args.model)?;
    check_output(&args.work.output, args.work.resume)?;
    let inputs = Inputs::read(&args.work, &checkpoint)?;
    if !inputs.calibrated() && args.recipe.format == Target::Exl3 && !args.work.no_calibration {
        return Err(Failure::text(
            "exl3 is much better when calibrated: give a text (--text) or statistics (--stats), or say --no-calibration",
        ));
    }
    let recipe = args.recipe.recipe(&inputs)?;
    if recipe.bits.all().is_some_and(|bits| bits.fract() != 0.0) {
        return plan::mixed(&checkpoint, &args.recipe, inputs, &args.work);
    }
    let choice = recipe.choose(&checkpoint, &|_| None)?;
    let how =
        json!({ "format": recipe.target.name(), "bits": recipe.bits.to_string(), "exact": args.work.engine.exact });
    make(&checkpoint, &choice, &inputs, &args.work, how)
}

/// Where Hessians come from.
pub enum Inputs {
    None,
    Stats(Stats),
    Text(Samples),
}

impl Inputs {
    pub fn read(work: &Work, checkpoint: &Checkpoint) -> Result<Self> {
        Ok(match (&work.stats, work.text.is_empty()) {
            (Some(folder), _) => Self::Stats(Stats::open(folder)?),
            (None, false) => Self::Text(work.windows.read(checkpoint, &work.text)?),
            (None, true) => Self::None,
        })
    }

    pub fn calibrated(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Windows, and tokens of each.
    fn windows(&self) -> [usize; 2] {
        match self {
            Self::None => [0, 0],
            Self::Stats(stats) => [stats.about.windows, stats.about.length],
            Self::Text(samples) => [samples.windows.len(), samples.windows.first().map_or(0, Vec::len)],
        }
    }
}

/// Makes the checkpoint of a choice of methods.
pub fn make(checkpoint: &Checkpoint, choice: &Choice, inputs: &Inputs, work: &Work, how: Value) -> Result<()> {
    let backend = device::cpu(&work.engine)?;
    let watch = interrupt::watch();
    let calibration = match inputs {
        Inputs::None => Calibration::None,
        Inputs::Stats(stats) => Calibration::Stats(stats),
        Inputs::Text(samples) => {
            Calibration::Text { samples, experts: work.windows.experts(), sequential: work.sequential }
        }
    };
    let methods = choice.methods()?;
    let apply = Apply {
        checkpoint,
        methods: &methods,
        stacked: choice.stacks(),
        calibration,
        output: &work.output,
        shard_bytes: work.shard_size * 1_000_000,
        resume: work.resume,
        describe: &|entries| choice.additions(entries),
        how,
        threads: work.engine.threads,
    };
    let mut bar = Bar::items("quantising");
    let outcome = apply.run(&backend, backend.cpu(), &mut |step: &Progress| {
        bar.say(&step.what);
        bar.set(step.done, step.total);
        !watch.pressed()
    });
    drop(bar);
    let report = match outcome {
        Ok(outcome) => outcome.report,
        Err(marlin_quantize::Error::Stopped) => {
            output::note("stopped; --resume continues");
            return Err(Failure::Interrupted);
        }
        Err(other) => return Err(other.into()),
    };
    if work.json {
        return output::print_json(&report);
    }
    output::print(&text(&report, work))
}

fn text(report: &Report, work: &Work) -> String {
    let modules = &report.modules;
    let mut out = format!(
        "{}: {}, {:.3} bits for each of {} quantised weights in {} modules\n",
        work.output.display(),
        output::bytes(report.bytes),
        report.bits,
        output::count(report.weights),
        modules.len()
    );
    let mut worst: Vec<_> = modules.iter().collect();
    let error = |m: &marlin_quantize::ModuleReport| m.proxy.unwrap_or(m.nmse);
    worst.sort_by(|a, b| error(b).total_cmp(&error(a)));
    out.push_str("largest errors, of outputs on the calibration text (or else of weights):\n");
    for m in worst.iter().take(WORST) {
        out.push_str(&format!("  {:.3e}  weights {:.3e}  {:.2} bits  {}\n", error(m), m.nmse, m.bits, m.module));
    }
    out
}
