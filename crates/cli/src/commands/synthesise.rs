//! `synthesise`: checkpoints of published sizes whose weights nobody has to download.

use crate::error::{Failure, Result};
use crate::progress::Files;
use crate::{interrupt, output, synthetic};
use marlin_checkpoint::{Synthetic, TensorSource, write_sharded};
use std::path::PathBuf;
use std::sync::Arc;

/// Write a checkpoint of a published size with made-up weights
///
/// Without --random the weights follow a formula that other programs can compute too, and there are two layers: such
/// checkpoints test an engine at real sizes. With --random they are pseudo-random and all layers are there, to try out
/// a model's speed and memory. NAME@SCHEME stores the weights in a quantisation scheme, with random codes and all layers:
/// qwen3-8b@exl3-3, glm-4.7-flash@fp4:layers=6. Nothing is overwritten.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model whose sizes to take, such as qwen3-8b; NAME@SCHEME stores it in a scheme, NAME:layers=N takes the first N
    /// layers
    #[arg(value_name = "NAME[@SCHEME][:layers=N]")]
    name: String,
    /// The folder to write
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    /// Pseudo-random weights by this seed instead of the formula
    #[arg(long, value_name = "SEED")]
    random: Option<u64>,
    /// Layers to write [2; all with --random or a scheme]
    #[arg(long, value_name = "N", value_parser = crate::values::some_tokens)]
    layers: Option<usize>,
}

/// Largest file of tensors.
const SHARD: u64 = 5_000_000_000;

pub fn run(args: &Args) -> Result<()> {
    let mut model = synthetic::Model::parse("NAME", &args.name)?;
    if model.layers.is_some() && args.layers.is_some() {
        return Err(Failure::text(format!("{:?} says how many layers already; leave --layers out", args.name)));
    }
    let all = args.random.is_some() || model.scheme.is_some();
    model.layers = model.layers.or(args.layers).or(if all { None } else { Some(2) });
    let (config, source): (_, Arc<dyn TensorSource>) = if all {
        model.random(args.random.unwrap_or(0))?
    } else {
        let (config, tensors) = model.plain()?;
        (config, Arc::new(Synthetic::formula(tensors)))
    };
    let path = args.output.join("config.json");
    if path.exists() {
        return Err(Failure::text(format!(
            "{}: is there already and will not be overwritten; name another folder",
            path.display()
        )));
    }
    let watch = interrupt::watch();
    write_sharded(source.as_ref(), &args.output, SHARD, &Files::new(Some(&watch)))?;
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
