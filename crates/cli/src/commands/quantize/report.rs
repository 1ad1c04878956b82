//! A page that compares checkpoints with their original.

use super::ReportArgs;
use crate::commands::kld::{Measured, Reference};
use crate::error::{Failure, Result};
use crate::{model, output};
use marlin_quantize::report::{Artifact, Page};
use std::path::{Path, PathBuf};

pub fn run(args: &ReportArgs) -> Result<()> {
    // Better now than after all the work.
    let folder = args.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() || args.output.is_dir() {
        return Err(Failure::text(format!("{}: no file can be written there", args.output.display())));
    }
    let opened = args.quantised.iter().map(|name| model::open(name)).collect::<Result<Vec<_>>>()?;
    let described = opened.iter().map(Artifact::of).collect::<marlin_quantize::Result<Vec<_>>>()?;
    let original = Artifact::of(&model::open(&args.reference)?)?;
    let measured = if args.results.is_empty() {
        let reference = Reference::load(&args.reference, &args.input, &args.engine)?;
        args.quantised.iter().map(|name| reference.compare(name)).collect::<Result<Vec<_>>>()?
    } else {
        let found = read(&args.results)?;
        described.iter().map(|artifact| matching(&found, &original.name, &artifact.name)).collect::<Result<Vec<_>>>()?
    };
    let dataset = measured.first().map(|m| m.dataset.clone()).unwrap_or_default();
    if let Some(other) = measured.iter().find(|m| m.dataset != dataset) {
        return Err(Failure::text(format!(
            "results of different texts cannot be compared: {dataset}, {}",
            other.dataset
        )));
    }
    let artifacts = described.into_iter().zip(measured).map(|(artifact, m)| (artifact, m.result)).collect();
    // Where it lay is nobody's business.
    let dataset = Path::new(&dataset).file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or(dataset);
    let page = Page::new(original, artifacts, dataset)?.html();
    std::fs::write(&args.output, page).map_err(|e| Failure::text(format!("{}: {e}", args.output.display())))?;
    output::print(&format!("{}\n", args.output.display()))
}

/// What `eval kld --json` has written: a result a file, or several one after the other.
fn read(files: &[PathBuf]) -> Result<Vec<Measured>> {
    let mut found = Vec::new();
    for path in files {
        let wrong = |e: &dyn std::fmt::Display| Failure::text(format!("{}: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| wrong(&e))?;
        for result in serde_json::Deserializer::from_str(&text).into_iter() {
            found.push(result.map_err(|e| wrong(&format!("expected what eval kld --json writes: {e}")))?);
        }
    }
    Ok(found)
}

/// The one result of a checkpoint.
fn matching(found: &[Measured], reference: &str, quantised: &str) -> Result<Measured> {
    let mut of = found.iter().filter(|m| m.reference == reference && m.quantised == quantised);
    match (of.next(), of.next()) {
        (Some(one), None) => Ok(one.clone()),
        (None, _) => Err(Failure::text(format!("--results: there is none of {quantised} from {reference}"))),
        _ => Err(Failure::text(format!("--results: there are several of {quantised} from {reference}"))),
    }
}
