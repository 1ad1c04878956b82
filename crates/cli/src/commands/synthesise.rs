//! `synthesise`: checkpoints of published sizes whose weights nobody has to download.

use crate::error::{Failure, Result};
use crate::progress::Files;
use crate::{interrupt, output};
use marlin_checkpoint::{Synthetic, TensorSource, write_sharded};
use marlin_models::{Architecture, published};
use std::path::PathBuf;

/// Write a checkpoint of a published size with made-up weights
///
/// Without --random the weights follow a formula that other programs can compute too, and there are two layers: such
/// checkpoints test an engine at real sizes. With --random they are pseudo-random and all layers are there, to try out
/// a model's speed and memory. Nothing is overwritten.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model whose sizes to take, such as qwen3-8b
    name: String,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Pseudo-random weights by this seed instead of the formula
    #[arg(long, value_name = "SEED")]
    random: Option<u64>,
    /// Layers to write [2; all with --random]
    #[arg(long, value_name = "N", value_parser = crate::values::some_tokens)]
    layers: Option<usize>,
}

/// Largest file of tensors.
const SHARD: u64 = 5_000_000_000;

pub fn run(args: &Args) -> Result<()> {
    let layers = args.layers.or(if args.random.is_some() { None } else { Some(2) });
    let config = published(&args.name, layers)?;
    let tensors = Architecture::parse(&config)?.inventory().required().to_vec();
    let source = match args.random {
        Some(seed) => Synthetic::random(tensors, seed),
        None => Synthetic::formula(tensors),
    };
    let path = args.output.join("config.json");
    if path.exists() {
        return Err(Failure::text(format!(
            "{}: is there already and will not be overwritten; name another folder",
            path.display()
        )));
    }
    let watch = interrupt::watch();
    write_sharded(&source, &args.output, SHARD, &Files::new(Some(&watch)))?;
    let text = serde_json::to_string_pretty(config.entries())? + "\n";
    std::fs::write(&path, text).map_err(|e| Failure::text(format!("{}: {e}", path.display())))?;
    let bytes: u64 = source.tensors().iter().map(|t| t.bytes() as u64).sum();
    output::note(&format!(
        "{}: {} tensors, {}, {}",
        args.output.display(),
        source.tensors().len(),
        output::bytes(bytes),
        source.describe()
    ));
    Ok(())
}
