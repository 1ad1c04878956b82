//! `quantize`: a smaller checkpoint of a model.

mod apply;
mod damages;
mod measure;
mod plan;
mod report;

use super::calibrate::Windows;
use super::kld::InputArgs;
use crate::args::EngineArgs;
use crate::error::{Failure, Result};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgGroup, Subcommand, ValueEnum};
use marlin_quantize::{Bits, Target};
use std::path::PathBuf;

/// Make a smaller checkpoint of a model
///
/// Embeddings, norms, routers and kv_b_proj stay as they are; all other linears are quantised, a layer in memory at a time.
/// The folder is made beside its place and appears there when it is complete; a run that was killed continues with
/// --resume. With it come report.json (each module's errors) and fingerprint.json (see `verify`).
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    step: Option<Step>,
    #[command(flatten)]
    once: Option<Once>,
}

#[derive(Debug, Subcommand)]
enum Step {
    Plan(Box<PlanArgs>),
    Apply(Box<ApplyArgs>),
    Report(Box<ReportArgs>),
}

/// Choose bits for each module: the least damage at a size
///
/// Tries bits on some rows of every module, and finds the bits that do the least damage within the size that the same
/// number of bits for all would take. Damage is the relative error of outputs or, with --measure, what it does to predictions. The plan is a text file, to be read, compared, edited and applied.
#[derive(Debug, clap::Args)]
pub struct PlanArgs {
    /// The model
    model: String,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Statistics that `calibrate` has collected
    #[arg(long, value_name = "DIR")]
    stats: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "PLAN")]
    output: PathBuf,
    /// Least bits of a module [one less than --bits]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(1..=8))]
    min_bits: Option<u32>,
    /// Most bits of a module [two more than --bits]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(1..=8))]
    max_bits: Option<u32>,
    /// Different tuples of bits (gate, up, down) that experts may have
    #[arg(long, value_name = "N", value_parser = crate::values::some_tokens)]
    max_tuples: Option<usize>,
    /// Give gate and up projections of an MLP the same bits
    #[arg(long)]
    equal_gate_up: bool,
    /// Rows of each module that are tried; 0 for all
    #[arg(long, value_name = "N", default_value_t = 128)]
    probe_rows: usize,
    /// Give all modules the same bits, or (between whole bits) spread one more evenly over them: the same size to compare with
    #[arg(long, conflicts_with_all = ["max_tuples", "equal_gate_up", "refine"])]
    uniform: bool,
    /// Write the damages that were found to this file or, if it is there, take them from it: for other sizes of the same
    #[arg(long, value_name = "FILE.json")]
    damages: Option<PathBuf>,
    /// Also draw damage against size, for many sizes
    #[arg(long, value_name = "FILE.svg")]
    pareto: Option<PathBuf>,
    #[command(flatten)]
    measuring: measure::MeasureArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Quantise as a plan says
#[derive(Debug, clap::Args)]
pub struct ApplyArgs {
    /// The plan
    plan: PathBuf,
    /// The model
    model: String,
    #[command(flatten)]
    work: Work,
}

/// Compare checkpoints with their original on a page
///
/// Measures each as `eval kld` does, or takes what that has measured (--results), and writes one HTML file that needs
/// nothing else: sizes, bits, perplexity, divergence, the error of each layer, and charts of them.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("measured").required(true).args(["text", "ids", "results"])))]
pub struct ReportArgs {
    /// The original
    reference: String,
    /// What was made of it
    #[arg(required = true)]
    quantised: Vec<String>,
    #[command(flatten)]
    input: InputArgs,
    /// What `eval kld --json` printed, instead of measuring; may be repeated
    #[arg(long, value_name = "FILE.json")]
    results: Vec<PathBuf>,
    /// The file to write
    #[arg(short, long, value_name = "FILE.html", default_value = "report.html")]
    output: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
}

/// The whole way in one command.
#[derive(Debug, clap::Args)]
#[group(args = ["model"])]
pub struct Once {
    /// The model
    model: String,
    #[command(flatten)]
    recipe: RecipeArgs,
    #[command(flatten)]
    work: Work,
}

/// What modules become.
#[derive(Clone, Debug, clap::Args)]
pub struct RecipeArgs {
    /// The format
    #[arg(long, value_parser = target())]
    format: Target,
    /// Bits of a weight: a number, or numbers by role such as attn=8,ffn_gate=4,ffn_down=6 (the rest stays as it is) or
    /// 4,attn=8
    #[arg(long, value_name = "BITS")]
    bits: Option<Bits>,
    /// Bits of the output projection; 16 keeps it as it is
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(1..=16))]
    head_bits: Option<u32>,
    /// Weights along a row that share a factor, where the format leaves a choice [128; mlx: 64]
    #[arg(long, value_name = "N", value_parser = crate::values::some_tokens)]
    group: Option<usize>,
    /// Give integers zero points (int4, int8, gptq)
    #[arg(long)]
    asymmetric: bool,
    /// fp4: rotate so many inputs together by a Hadamard matrix (MR-GPTQ); 0 for none [the group, if calibrated]
    #[arg(long, value_name = "N")]
    rotate: Option<usize>,
    /// How codes are chosen [gptq if calibrated]
    #[arg(long, value_enum)]
    rounding: Option<RoundingName>,
    /// GPTQ: quantise inputs in the order of their activity, groups as they lie (static) or made in that order (dynamic)
    #[arg(long, value_enum, default_value_t = OrderName::Natural)]
    order: OrderName,
    /// GPTQ: part of the Hessian's mean diagonal that is added to its diagonal
    #[arg(long, value_name = "PART", default_value_t = 0.01)]
    damping: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RoundingName {
    /// Each weight to the nearest value
    Nearest,
    /// Errors are made up for by the weights that follow, as the Hessian says
    Gptq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OrderName {
    /// As they are
    Natural,
    /// Most active first, factors of the groups as they lie
    Static,
    /// Most active first, groups in that order (gptq)
    Dynamic,
}

impl RecipeArgs {
    /// What is meant where nothing else is said.
    fn usual(format: Target, bits: Option<Bits>) -> Self {
        Self {
            format,
            bits,
            head_bits: None,
            group: None,
            asymmetric: false,
            rotate: None,
            rounding: None,
            order: OrderName::Natural,
            damping: 0.01,
        }
    }
}

fn target() -> impl TypedValueParser<Value = Target> {
    let named = |name: String| Target::ALL.into_iter().find(|t| t.name() == name).unwrap_or(Target::Bf16);
    PossibleValuesParser::new(Target::ALL.map(Target::name)).map(named)
}

/// How the work is done, and where it goes.
#[derive(Clone, Debug, clap::Args)]
pub struct Work {
    /// The folder to make
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Statistics that `calibrate` has collected
    #[arg(long, value_name = "DIR", conflicts_with = "text")]
    stats: Option<PathBuf>,
    /// Text to calibrate with on the way: .txt, or .jsonl with {"text": ...} or {"messages": [...]} a line; may be repeated
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,
    /// With --text, calibrate on what the quantised linears before each give, and let it make up for how that differs from
    /// what the original ones gave: less divergence (a sixth, at 3 bits), for some ten passes of the text instead of one
    #[arg(long, requires = "text")]
    sequential: bool,
    /// Quantise without looking at any text, by a method that can
    #[arg(long, conflicts_with_all = ["text", "stats"])]
    no_calibration: bool,
    #[command(flatten)]
    windows: Windows,
    /// Largest file, in MB
    #[arg(long, value_name = "MB", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..))]
    shard_size: u64,
    /// Continue an interrupted run
    #[arg(long)]
    resume: bool,
    /// Print the report as one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

pub fn run(args: &Args) -> Result<()> {
    match (&args.step, &args.once) {
        (Some(Step::Plan(args)), _) => plan::run(args),
        (Some(Step::Apply(args)), _) => plan::apply(args),
        (Some(Step::Report(args)), _) => report::run(args),
        (None, Some(once)) => apply::once(once),
        (None, None) => Err(Failure::text("name a model")),
    }
}
