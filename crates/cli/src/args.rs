//! The command line: one declaration gives parsing, help and completions. Every option can also be set by an
//! environment variable `MARLIN_*` where its help says so.

use crate::commands::{
    bench, calibrate, chat, compare, completions, dequantise, doctor, eval, inspect, kernels, list, logits, pull,
    quantize, rm, run, synthesise, verify, warm_cache,
};
use crate::values::{self, Device, KvType};
use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};

/// Runs language models fast on the machine in front of you.
///
/// MODEL is `fable` (a small storyteller inside this program), a folder with a checkpoint, a .safetensors file in one,
/// or a model of the Hugging Face hub such as Qwen/Qwen3-0.6B that `pull` has fetched (with @REVISION if wanted).
#[derive(Debug, Parser)]
#[command(name = "metal-marlin", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    Run(Box<run::Args>),
    Chat(Box<chat::Args>),
    Inspect(inspect::Args),
    Dequantise(dequantise::Args),
    Compare(compare::Args),
    Eval(eval::Args),
    Calibrate(calibrate::Args),
    Quantize(Box<quantize::Args>),
    Verify(verify::Args),
    Logits(logits::Args),
    Bench(bench::Args),
    Kernels(kernels::Args),
    WarmCache(warm_cache::Args),
    Pull(pull::Args),
    List(list::Args),
    Rm(rm::Args),
    Doctor(doctor::Args),
    Synthesise(synthesise::Args),
    Completions(completions::Args),
}

/// How a model is run.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Where to compute: auto, cpu, cuda or metal; auto takes a GPU that can be used, else the CPU
    #[arg(long, env = "MARLIN_DEVICE", default_value = "auto", value_parser = values::device)]
    pub device: Device,
    /// Threads; 0 takes the physical cores
    #[arg(long, value_name = "N", env = "MARLIN_THREADS", default_value_t = 0, value_parser = values::threads)]
    pub threads: usize,
    /// Compute in f32 throughout, so that an answer does not depend on what runs beside it (on a GPU: but for the order of sums)
    #[arg(long, env = "MARLIN_EXACT", value_parser = FalseyValueParser::new())]
    pub exact: bool,
    /// Element type of the KV memory; auto is bf16, or f32 with --exact
    #[arg(long, value_name = "TYPE", env = "MARLIN_KV_TYPE", default_value = "auto", value_parser = values::kv_type())]
    pub kv_type: KvType,
    /// On a GPU, read each step's tokens before the next step is enqueued (slower; texts are the same)
    #[arg(long, env = "MARLIN_NO_PIPELINE", value_parser = FalseyValueParser::new())]
    pub no_pipeline: bool,
    /// Look at what every layer computes, and name the first that computes something that is not a number (slow)
    #[arg(long)]
    pub guard: bool,
    /// Say what was loaded and which settings are used
    #[arg(short, long)]
    pub verbose: bool,
}

/// How long texts may get.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Engine")]
pub struct ContextArgs {
    /// Longest text in tokens, such as 4096 or 32K; by default what the model knows and memory allows
    #[arg(long, value_name = "N", env = "MARLIN_CONTEXT", value_parser = values::some_tokens)]
    pub context: Option<usize>,
    /// Tokens that the KV memory holds, such as 32K
    #[arg(long, value_name = "N", env = "MARLIN_KV_TOKENS", value_parser = values::some_tokens)]
    pub kv_tokens: Option<usize>,
}
