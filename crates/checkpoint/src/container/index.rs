//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{SINGLE_NAME, Store};
use crate::{Error, Result, TensorSource};

/// Name of a sharded checkpoint's index.
pub const INDEX_NAME: &str = "model.safetensors.index.json";

/// A read index.
pub(super) struct Index {
    /// Shard of each tensor.
    pub weight_map: BTreeMap<String, String>,
    /// The shards in the order of their names.
    pub shards: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Raw {
    weight_map: BTreeMap<String, String>,
}

impl Index {
    pub fn read(path: &Path) -> Result<Self> {
        let text = crate::folder::read_text(path)?;
        let raw: Raw = serde_json::from_str(&text)
            .map_err(|e| Error::invalid(path.display(), format!("not an index of shards: {e}")))?;
        let shards: BTreeSet<String> = raw.weight_map.values().cloned().collect();
        if shards.is_empty() {
            return Err(Error::invalid(path.display(), "the index lists no tensors"));
        }
        for shard in &shards {
            let plain = Path::new(shard).components().all(|part| matches!(part, Component::Normal(_)));
            if !plain || shard.is_empty() {
                let why = format!("shard {shard:?} lies outside the checkpoint's folder");
                return Err(Error::invalid(path.display(), why));
            }
        }
        Ok(Self { weight_map: raw.weight_map, shards })
    }

    /// Every tensor the index names is in the shard it names. Tensors it does not name are accepted, as transformers does.
    pub fn check(&self, path: &Path, store: &Store) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        for (name, shard) in &self.weight_map {
            let expected = folder.join(shard).display().to_string();
            let why = match store.file_of(name) {
                Some(file) if file.name == expected => continue,
                Some(file) => format!("tensor {name:?} should be in shard {shard:?}, but is in {}", file.name),
                None => format!("tensor {name:?} should be in shard {shard:?}, but is not there"),
            };
            return Err(Error::invalid(
                path.display(),
                format!("{why}; index and shards belong to different versions: download the checkpoint again"),
            ));
        }
        debug_assert!(store.tensors().len() >= self.weight_map.len());
        Ok(())
    }
}

/// How a folder's tensors are stored.
pub(super) enum Found {
    Single(PathBuf),
    Index(PathBuf),
}

/// The tensor files of the checkpoint in `folder`.
pub(super) fn find(folder: &Path) -> Result<Found> {
    let single = folder.join(SINGLE_NAME);
    if single.is_file() {
        return Ok(Found::Single(single));
    }
    let index = folder.join(INDEX_NAME);
    if index.is_file() {
        return Ok(Found::Index(index));
    }
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let mut names: Vec<String> =
        std::fs::read_dir(folder).map_err(io)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let with = |end: &str| names.iter().filter(|n| n.ends_with(end)).collect::<Vec<_>>();
    match (with(".safetensors.index.json").as_slice(), with(".safetensors").as_slice()) {
        ([index], _) => return Ok(Found::Index(folder.join(index))),
        ([], [file]) => return Ok(Found::Single(folder.join(file))),
        ([], []) => {}
        ([], files) => {
            let why =
                format!("{} safetensors files but no {INDEX_NAME}; download it too, or name one file", files.len());
            return Err(Error::invalid(folder.display(), why));
        }
        _ => return Err(Error::invalid(folder.display(), "several *.safetensors.index.json; name the one to use")),
    }
    let other = names.iter().find(|n| [".bin", ".pth", ".pt", ".gguf", ".onnx", ".npz"].iter().any(|e| n.ends_with(e)));
    let why = match other {
        Some(file) => {
            format!("no safetensors files (only {file:?} and the like); use a safetensors version of the model")
        }
        None => format!("no {SINGLE_NAME} and no {INDEX_NAME}; is this a checkpoint's folder?"),
    };
    Err(Error::invalid(folder.display(), why))
}
