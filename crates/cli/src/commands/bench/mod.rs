//! `bench`: how fast things are here.

mod kernels;
mod kernels_gpu;
mod latency;

use crate::error::Result;
use clap::Subcommand;

/// Measure how fast a model, or a kernel, runs
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Latency(latency::Args),
    Kernels(kernels::Args),
}

pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Latency(args) => latency::run(args),
        What::Kernels(args) => kernels::run(args),
    }
}
