//! The `metal-marlin` command: it translates between people, scripts and the crates below it.

mod answer;
mod args;
mod builtin;
mod commands;
mod device;
mod error;
mod ids;
mod interrupt;
mod metrics;
mod model;
mod npy;
mod output;
mod progress;
mod sampling;
mod synthetic;
mod values;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    metrics::mark_start();
    interrupt::install();
    match commands::run(args::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}
