//! One file for each command.

pub mod bench;
pub mod calibrate;
pub mod chat;
pub mod compare;
pub mod completions;
pub mod dequantise;
pub mod doctor;
pub mod eval;
pub mod inspect;
pub mod kernels;
pub mod kld;
pub mod list;
pub mod logits;
pub mod pull;
pub mod quantize;
pub mod rm;
pub mod run;
pub mod synthesise;
pub mod verify;
pub mod warm_cache;

use crate::args::{Cli, Command};
use crate::error::Result;

/// Carries out the command that was given.
pub fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Dequantise(args) => dequantise::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::WarmCache(args) => warm_cache::run(&args),
        Command::Pull(args) => pull::run(&args),
        Command::List(args) => list::run(&args),
        Command::Rm(args) => rm::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Synthesise(args) => synthesise::run(&args),
        Command::Completions(args) => completions::run(&args),
    }
}
