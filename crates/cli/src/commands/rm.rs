//! `rm`: out of the cache.

use crate::error::{Failure, Result};
use crate::output;
use marlin_checkpoint::hub::HubError;
use marlin_checkpoint::{Error, Hub};

/// Remove a model, all its revisions, from the cache
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: org/name
    #[arg(value_name = "ID")]
    id: String,
}

pub fn run(args: &Args) -> Result<()> {
    let freed = Hub::from_env()?.remove(&args.id).map_err(told)?;
    output::note(&format!("removed {}, {} freed", args.id, output::bytes(freed)));
    Ok(())
}

/// What is not there need not be fetched to be removed.
fn told(error: Error) -> Failure {
    match &error {
        Error::Hub(hub) => match hub.as_ref() {
            HubError::NotCached { id, cache } => {
                Failure::text(format!("{id} is not in the cache ({cache}); `metal-marlin list` shows what is"))
            }
            _ => error.into(),
        },
        _ => error.into(),
    }
}
