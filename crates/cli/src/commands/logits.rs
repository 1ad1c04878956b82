//! `logits`: what the model makes of given tokens, as a NumPy file.

use crate::args::ContextArgs;
use crate::args::EngineArgs;
use crate::device::{Runs, on_device};
use crate::error::{Failure, Result};
use crate::model::{self, Prompt};
use crate::progress::Bar;
use crate::{ids, interrupt, npy, output};
use marlin_engine::{EngineOptions, Window};
use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

/// Write the logits of given tokens to a NumPy file
///
/// The file holds float32 [positions, vocab]: row p rates the token after position p.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: String,
    /// The tokens: 32-bit little-endian integers
    #[arg(long, value_name = "FILE")]
    ids: PathBuf,
    /// Only the last position's logits: [1, vocab]
    #[arg(long)]
    last: bool,
    /// The NumPy file
    #[arg(short, long, value_name = "OUT.npy")]
    output: PathBuf,
    #[command(flatten)]
    engine: EngineArgs,
}

pub fn run(args: &Args) -> Result<()> {
    on_device!(&args.engine, |backend| run_on(args, backend))
}

fn run_on<B: Runs>(args: &Args, backend: B) -> Result<()> {
    let tokens = ids::read(&args.ids)?;
    let context = ContextArgs { context: None, kv_tokens: Some(tokens.len()) };
    let options = EngineOptions { max_batch: 1, prefix_cache: false, ..EngineOptions::default() };
    let mut loaded = model::load(backend, &args.model, &args.engine, &context, options, Prompt::Ids)?;
    let watch = interrupt::watch();
    let from = if args.last { tokens.len() - 1 } else { 0 };
    let (rows, vocab) = (tokens.len() - from, loaded.engine.model().info().vocab);
    let failed = |e: std::io::Error| Failure::text(format!("{}: {e}", args.output.display()));
    let out = BufWriter::with_capacity(1 << 20, File::create(&args.output).map_err(failed)?);
    let mut file = npy::Writer::new(out, rows, vocab).map_err(failed)?;
    let mut bar = Bar::items("logits");
    let mut done = 0;
    let mut finite = true;
    let windows = [Window { tokens: &tokens, from }];
    let mut stopped = None;
    let outcome = loaded.engine.score(&windows, &mut |part| {
        let stop = |failure: Failure| marlin_engine::Error::Receiver(failure.to_string().into());
        if let Err(failure) = watch.check().and_then(|()| file.push(part.values).map_err(failed)) {
            let carried = stop(Failure::text("writing failed"));
            stopped = Some(failure);
            return Err(carried);
        }
        finite &= part.values.iter().all(|v| v.is_finite());
        done += part.rows().count();
        bar.set(done as u64, rows as u64);
        Ok(())
    });
    drop(bar);
    if let Some(failure) = stopped.or(outcome.err().map(Failure::from)) {
        // A part would look like the whole. The failure says why; that the part could not be removed adds nothing.
        let _ = std::fs::remove_file(&args.output);
        return Err(failure);
    }
    file.finish().map_err(failed)?;
    if !finite {
        return Err(Failure::text(format!(
            "{}: some logits are not finite; the checkpoint may be damaged",
            args.output.display()
        )));
    }
    output::note(&format!("{}: float32 [{rows}, {vocab}]", args.output.display()));
    Ok(())
}
