//! `list`: which models are there.

use crate::error::Result;
use crate::{builtin, output};
use marlin_checkpoint::Hub;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// List the models that are there: the built-in one and those in the cache
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    cache: PathBuf,
    built_in: Option<&'static str>,
    models: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    bytes: u64,
    /// Bytes of files whose download is not complete.
    incomplete_bytes: u64,
    /// Commit of each branch or tag.
    refs: BTreeMap<String, String>,
    /// Folder of each commit.
    snapshots: BTreeMap<String, PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let hub = Hub::from_env()?;
    let models = hub.list()?;
    let built_in = builtin::is_there().then_some(builtin::NAME);
    if args.json {
        let models = models
            .into_iter()
            .map(|m| Model {
                id: m.name,
                bytes: m.bytes,
                incomplete_bytes: m.incomplete,
                refs: m.refs,
                snapshots: m.snapshots,
            })
            .collect();
        return output::print_json(&Report { cache: hub.cache().to_owned(), built_in, models });
    }
    let mut out = String::new();
    if let Some(name) = built_in {
        out += &format!("{:>9}  {name} (built in)\n", output::bytes(builtin::bytes()));
    }
    for model in models {
        out += &format!("{:>9}  {}", output::bytes(model.bytes), model.name);
        let others: Vec<&str> = model.refs.keys().map(String::as_str).filter(|r| *r != "main").collect();
        if !others.is_empty() {
            out += &format!(" @ {}", others.join(", "));
        }
        if model.incomplete > 0 {
            out += &format!(" (not complete: metal-marlin pull {} goes on)", model.name);
        }
        out.push('\n');
    }
    output::print(&out)?;
    output::note(&format!("cache: {}", hub.cache().display()));
    Ok(())
}
