//! `rm`: out of the cache.

use crate::error::Result;
use crate::output;
use marlin_checkpoint::Hub;

/// Remove a model, all its revisions, from the cache
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: org/name
    #[arg(value_name = "ID")]
    id: String,
}

pub fn run(args: &Args) -> Result<()> {
    let freed = Hub::from_env()?.remove(&args.id)?;
    output::note(&format!("removed {}, {} freed", args.id, output::bytes(freed)));
    Ok(())
}
