//! `warm-cache`: everything compiled that a model needs, before anybody waits for it.

use crate::args::{ContextArgs, EngineArgs};
use crate::device::{Runs, on_device};
use crate::error::Result;
use crate::model::{self, Loaded, Prompt};
use crate::{builtin, output, synthetic};
use marlin_backend::fallback::Snapshot;
use marlin_engine::EngineOptions;
use marlin_gpu::Warmth;
use serde::Serialize;
use std::time::Instant;

/// Compile and check the GPU kernels that a model needs
///
/// Loads the model, compiles in parallel exactly the kernels that prompts and answers of every length will want, compares them with
/// the reference, and keeps the code on disk, so that the next command that uses the model on this GPU compiles nothing. The first
/// use does the same. On the CPU there is nothing to do.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    #[arg(default_value = builtin::NAME, conflicts_with = "synthetic")]
    model: String,
    /// A published model's sizes with random weights, as for `bench latency`
    #[arg(long, value_name = "NAME[@SCHEME][:layers=N]")]
    synthetic: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Serialize)]
struct Report {
    model: String,
    backend: String,
    /// Nothing on the CPU.
    kernels: Option<Warmth>,
    /// Until the model was ready, weights and all.
    load_seconds: f64,
    /// From the program's start, opening and checking the device included.
    total_seconds: f64,
    fallbacks: Snapshot,
}

pub fn run(args: &Args) -> Result<()> {
    on_device!(&args.engine, |backend| run_on(args, backend))
}

fn run_on<B: Runs>(args: &Args, backend: B) -> Result<()> {
    let started = Instant::now();
    let checkpoint = match &args.synthetic {
        Some(name) => synthetic::Model::parse("--synthetic", name)?.checkpoint()?,
        None => model::open(&args.model)?,
    };
    let options = EngineOptions::default();
    let loaded =
        model::load_checkpoint(backend, checkpoint, &args.engine, &args.context, options, Prompt::Ids, started)?;
    let Loaded { engine, checkpoint, load, .. } = &loaded;
    let report = Report {
        model: checkpoint.name.clone(),
        backend: engine.backend().name(),
        kernels: engine.backend().warmth(),
        load_seconds: load.as_secs_f64(),
        total_seconds: crate::metrics::since_start().as_secs_f64(),
        fallbacks: engine.backend().slower(),
    };
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

impl Report {
    fn text(&self) -> String {
        let Some(w) = &self.kernels else {
            return format!("{} on {}: kernels are a part of this program\n", self.model, self.backend);
        };
        let mut out = format!("{} on {}\n{}\n", self.model, self.backend, output::kernels(w));
        for by in ["tensor cores", "fast", "simple", "cpu"] {
            let all: Vec<_> = w.products.iter().filter(|p| p.by == by).collect();
            if !all.is_empty() {
                let sizes = if all.len() == 1 { "kind or size" } else { "kinds or sizes" };
                out += &format!("{} {sizes} of weights by {by}\n", all.len());
            }
            for p in all {
                if let Some(reason) = p.reason {
                    out += &format!("  stepped down: {} and all like it ({})\n", p.module, reason.code());
                }
            }
        }
        out += &output::fallbacks(&self.fallbacks).map_or_else(String::new, |text| text + "\n");
        out += &format!(
            "ready in {}, {} of it for kernels\n",
            output::seconds(self.total_seconds),
            output::seconds(w.compile_seconds + w.check_seconds)
        );
        out
    }
}
