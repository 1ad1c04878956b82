//! The model inside the binary: `models/fable`, which this program made from `models/fable-glm4-moe-lite` (see
//! `models/README.md`).

use crate::error::{Failure, Result};
use marlin_checkpoint::Checkpoint;

/// Its name on the command line.
pub const NAME: &str = "fable";

#[cfg(feature = "builtin-model")]
mod files {
    use marlin_checkpoint::EmbeddedFiles;

    macro_rules! file {
        ($name:literal) => {
            ($name, include_bytes!(concat!("../../../models/fable/", $name)))
        };
    }

    pub const FILES: Option<EmbeddedFiles> = Some(&[
        file!("config.json"),
        file!("generation_config.json"),
        file!("tokenizer.json"),
        file!("tokenizer_config.json"),
        file!("chat_template.jinja"),
        file!("model.safetensors"),
    ]);
}

#[cfg(not(feature = "builtin-model"))]
mod files {
    pub const FILES: Option<marlin_checkpoint::EmbeddedFiles> = None;
}

/// Opens it.
pub fn open() -> Result<Checkpoint> {
    let files = files::FILES.ok_or_else(|| {
        Failure::text(format!(
            "this build has no built-in model {NAME:?} (it was made without the feature builtin-model); name a folder, a file or a model of the hub"
        ))
    })?;
    Ok(Checkpoint::embedded(NAME, files)?)
}

/// Whether there is one.
pub fn is_there() -> bool {
    files::FILES.is_some()
}

/// Bytes of its files.
pub fn bytes() -> u64 {
    files::FILES.into_iter().flatten().map(|(_, contents)| contents.len() as u64).sum()
}
