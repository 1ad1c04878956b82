//! `verify`: whether a quantised checkpoint is what it was when it was made.

use crate::error::{Failure, Result};
use crate::progress::Bar;
use crate::{interrupt, output};
use marlin_quantize::Fingerprint;
use std::path::PathBuf;

/// Check that a quantised checkpoint is what it was when it was made
///
/// Compares the folder's files with the lengths and SHA-256 in its fingerprint.json and, if they are right, the logits of a
/// short prompt, computed in f32, with those that are written there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder of the checkpoint
    model: PathBuf,
    /// Threads; 0 takes the physical cores
    #[arg(long, value_name = "N", env = "MARLIN_THREADS", default_value_t = 0, value_parser = crate::values::threads)]
    threads: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let fingerprint = Fingerprint::read(&args.model)?;
    let watch = interrupt::watch();
    let mut bar = Bar::bytes("reading");
    let verdict = fingerprint.verify(&args.model, args.threads, &mut |done, total| {
        bar.set(done, total);
        !watch.pressed()
    });
    drop(bar);
    let verdict = verdict?;
    if args.json {
        output::print_json(&verdict)?;
    }
    let Some(first) = verdict.wrong.first() else {
        if args.json {
            return Ok(());
        }
        return output::print(&format!(
            "{}: as it was made: {} files, {}; logits of the prompt off by {:.1e} at most\n",
            args.model.display(),
            verdict.files,
            output::bytes(verdict.bytes),
            verdict.difference.unwrap_or_default()
        ));
    };
    let more = match verdict.wrong.len() {
        1 => String::new(),
        n => format!("; and {} more", n - 1),
    };
    Err(Failure::text(format!("{}: not as it was made: {first}{more}", args.model.display())))
}
