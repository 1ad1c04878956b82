//! `calibrate`: what a model's linears see on a text.

use crate::args::EngineArgs;
use crate::error::{Failure, Result};
use crate::progress::Bar;
use crate::{device, interrupt, model, output};
use clap::ValueEnum;
use marlin_checkpoint::Checkpoint;
use marlin_quantize::{ExpertInputs, Progress, Samples, Sampling, calibrate};
use std::path::PathBuf;

/// Collect what a model's linears see on a text, for quantising
///
/// Writes a folder of statistics: the second moments (Hessians) of every linear's inputs, one file a layer, and how often
/// each expert was chosen. The text passes one layer after another, so one layer's weights are in memory at a time; hidden
/// states wait in a file. `quantize --text` does the same without a folder in between.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: String,
    /// Text to calibrate with: .txt, or .jsonl with {"text": ...} or {"messages": [...]} a line; may be repeated
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    #[command(flatten)]
    windows: Windows,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Continue an interrupted run
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// How a calibration text is used.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Calibration")]
pub struct Windows {
    /// Windows of text, spread evenly over it; fewer if there is less
    #[arg(long, value_name = "N", default_value_t = Sampling::default().windows, value_parser = crate::values::some_tokens)]
    samples: usize,
    /// Tokens of a window
    #[arg(long, value_name = "N", default_value_t = Sampling::default().length, value_parser = crate::values::some_tokens)]
    length: usize,
    /// What gate and up projections of routed experts are calibrated with
    #[arg(long, value_enum, default_value_t = Inputs::Own)]
    expert_inputs: Inputs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Inputs {
    /// The tokens that go to the expert
    Own,
    /// All tokens of the layer: less memory
    Shared,
}

impl Windows {
    /// So many of so many tokens.
    pub fn of(samples: usize, length: usize) -> Self {
        Self { samples, length, expert_inputs: Inputs::Own }
    }

    /// What experts' inputs are.
    pub fn experts(&self) -> ExpertInputs {
        match self.expert_inputs {
            Inputs::Own => ExpertInputs::Own,
            Inputs::Shared => ExpertInputs::Shared,
        }
    }

    /// The windows of the texts in `files`.
    pub fn read(&self, checkpoint: &Checkpoint, files: &[PathBuf]) -> Result<Samples> {
        let tokenizer = model::tokenizer(&checkpoint.folder)?.ok_or_else(|| {
            Failure::text(format!(
                "{}: there is no tokenizer.json beside the weights, so text cannot be read",
                checkpoint.name
            ))
        })?;
        let template = model::template(&checkpoint.folder)?;
        let sampling = Sampling { windows: self.samples, length: self.length };
        let samples = Samples::read(files, &tokenizer, template.as_ref(), sampling)?;
        if samples.windows.len() < self.samples {
            output::note(&format!(
                "note: the text has {} tokens, so there are {} windows of {}, not {}",
                output::grouped(samples.available as u64),
                samples.windows.len(),
                self.length,
                self.samples
            ));
        }
        Ok(samples)
    }
}

pub fn run(args: &Args) -> Result<()> {
    let checkpoint = model::open(&args.model)?;
    let samples = args.windows.read(&checkpoint, &args.text)?;
    let backend = device::cpu(&args.engine)?;
    let watch = interrupt::watch();
    let mut bar = Bar::items("calibrating");
    let mut hear = |step: &Progress| {
        bar.say(&step.what);
        bar.set(step.done, step.total);
        !watch.pressed()
    };
    let experts = args.windows.experts();
    let stats =
        calibrate(&backend, backend.cpu(), &checkpoint, &samples, experts, &args.output, args.resume, &mut hear)?;
    drop(bar);
    let about = &stats.about;
    output::note(&format!(
        "{}: {} layers, {} windows of {} tokens",
        args.output.display(),
        about.layers,
        about.windows,
        about.length
    ));
    Ok(())
}
