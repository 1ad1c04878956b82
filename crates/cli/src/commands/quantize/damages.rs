//! Damages that were found, kept for plans of other sizes.

use crate::error::{Failure, Result};
use marlin_quantize::planner::Module;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// What bits do to each module.
#[derive(Debug, Serialize, Deserialize)]
pub struct Damages {
    /// By errors of outputs alone.
    pub plain: Vec<Module>,
    /// As measured, or the same.
    pub modules: Vec<Module>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    /// What they were found with.
    of: Value,
    damages: Damages,
}

impl Damages {
    /// Those in the file `path`, found with `of` exactly; or else those that `find` finds, written to it.
    pub fn kept(path: Option<&Path>, of: Value, find: impl FnOnce() -> Result<Self>) -> Result<Self> {
        let Some(path) = path else { return find() };
        let wrong = |why: String| Failure::text(format!("{}: {why}", path.display()));
        if !path.exists() {
            let damages = find()?;
            let kept = Kept { of, damages };
            let text = serde_json::to_string(&kept).map_err(|e| wrong(e.to_string()))?;
            std::fs::write(path, text).map_err(|e| wrong(e.to_string()))?;
            return Ok(kept.damages);
        }
        let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let kept: Kept = serde_json::from_str(&text).map_err(|e| wrong(format!("no file of damages: {e}")))?;
        let differs = |key: &&String| kept.of.get(key.as_str()) != of.get(key.as_str());
        let names: Vec<&String> = of.as_object().into_iter().flat_map(|map| map.keys()).filter(differs).collect();
        if names.is_empty() {
            return Ok(kept.damages);
        }
        let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
        Err(wrong(format!(
            "these damages were found otherwise ({}); name another file (bits are tried from --min-bits to --max-bits)",
            names.join(", ")
        )))
    }
}
