//! `pull`: from the hub into the cache.

use crate::error::Result;
use crate::output;
use crate::progress::Files;
use marlin_checkpoint::Hub;

/// Download a model from the Hugging Face hub
///
/// It goes to the standard cache, shared with other tools ($HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub).
/// What is there already is not fetched again; after a break the download goes on where it stopped. HF_TOKEN opens
/// gated models; HF_ENDPOINT names another hub.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model: org/name, perhaps with @REVISION
    #[arg(value_name = "ID[@REVISION]")]
    id: String,
    /// Print one JSON object: the snapshot's folder
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let hub = Hub::from_env()?;
    // Unwatched, Ctrl-C ends the program at once, even while a server is silent; what has come is resumed next time.
    let folder = hub.pull(&args.id, &Files::new(None))?;
    if args.json {
        return output::print_json(&serde_json::json!({ "id": args.id, "path": folder }));
    }
    output::print(&format!("{}\n", folder.display()))
}
