//! A whole checkpoint: its configuration, its tensors and its small files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::container::gguf::{GgufFile, is_gguf, models};
use crate::container::{INDEX_NAME, SINGLE_NAME};
use crate::folder::EmbeddedFiles;
use crate::modules::{Gguf, GgufFolder, HuggingFace, gguf_config};
use crate::{Bytes, Config, Error, Folder, GenerationConfig, Modules, Result, Store, TensorSource};

/// Everything a model is built from.
#[derive(Clone)]
pub struct Checkpoint {
    /// Short name for reports: the folder's, or the built-in model's.
    pub name: String,
    /// `config.json`.
    pub config: Config,
    /// Special tokens and sampling defaults.
    pub generation: GenerationConfig,
    /// The tensors.
    pub store: Arc<dyn TensorSource>,
    /// The small files: tokenizer, chat template, ...
    pub folder: Folder,
    /// The GGUF file that all of this was made from.
    gguf: Option<Arc<GgufFile>>,
}

impl Checkpoint {
    /// Opens the checkpoint in a folder, the one around a safetensors file or index, or a GGUF file (any part of a split
    /// one).
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // A link of the hub cache leads to a blob without name or neighbours, so links are not resolved.
        let meta = std::fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        if let Some(path) = gguf(path, meta.is_dir())? {
            return Self::from_gguf(name_of_file(&path), GgufFile::open(&path)?);
        }
        let folder = if meta.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let (config, generation, files) = Self::small(Folder::Disk(folder.to_owned()))?;
        let store = Store::open(path)?;
        Ok(Self { name: name_of(folder), config, generation, store: Arc::new(store), folder: files, gguf: None })
    }

    /// The checkpoint built into the program as `files`, one of which is `model.safetensors`.
    pub fn embedded(name: &'static str, files: EmbeddedFiles) -> Result<Self> {
        let folder = Folder::Embedded { name, files };
        let (config, generation, folder) = Self::small(folder)?;
        let tensors = folder.embedded(SINGLE_NAME).ok_or_else(|| {
            let has_index = folder.contains(INDEX_NAME);
            let why = if has_index { "a built-in model must be one file, not shards" } else { "the file is missing" };
            Error::invalid(folder.describe(SINGLE_NAME), why)
        })?;
        let store = Store::from_bytes(folder.describe(SINGLE_NAME), Bytes::from_static(tensors))?;
        Ok(Self { name: name.to_owned(), config, generation, store: Arc::new(store), folder, gguf: None })
    }

    /// The model in a GGUF file.
    pub fn from_gguf(name: impl Into<String>, file: GgufFile) -> Result<Self> {
        let config = gguf_config(&file)?;
        let (store, file) = (file.store.clone(), Arc::new(file));
        let folder = Folder::Made(Arc::new(GgufFolder::new(file.clone(), config.clone())));
        let generation = GenerationConfig::merged(None, &config)?;
        Ok(Self { name: name.into(), config, generation, store, folder, gguf: Some(file) })
    }

    /// A checkpoint whose tensors come from anywhere, such as a formula.
    pub fn from_parts(
        name: impl Into<String>,
        config: Config,
        store: Arc<dyn TensorSource>,
        folder: Folder,
    ) -> Result<Self> {
        let generation = GenerationConfig::load(&folder, &config)?;
        Ok(Self { name: name.into(), config, generation, store, folder, gguf: None })
    }

    /// The modules that the tensors make up.
    pub fn modules(&self) -> Result<Arc<dyn Modules>> {
        Ok(match &self.gguf {
            Some(file) => Arc::new(Gguf::new(file, &self.config)?),
            None => Arc::new(HuggingFace::new(self.store.clone(), self.settings()?)),
        })
    }

    /// The configuration, with the settings of the quantisation from a file of their own where older quantisers wrote them.
    fn settings(&self) -> Result<Config> {
        let config = self.config.clone();
        if config.get("quantization_config").is_some() || config.get("quantization").is_some() {
            return Ok(config);
        }
        for name in ["quantize_config.json", "quantization_config.json"] {
            if let Some(text) = self.folder.text(name)? {
                let settings = Config::object(self.folder.describe(name), &text)?;
                return Ok(config.with("quantization_config", Value::Object(settings.entries().clone())));
            }
        }
        Ok(config)
    }

    fn small(folder: Folder) -> Result<(Config, GenerationConfig, Folder)> {
        let config = Config::parse(folder.describe("config.json"), &folder.require_text("config.json")?)?;
        let generation = GenerationConfig::load(&folder, &config)?;
        Ok((config, generation, folder))
    }
}

/// The GGUF file that `path` means: itself, or the only model in a folder without safetensors files.
fn gguf(path: &Path, is_folder: bool) -> Result<Option<PathBuf>> {
    if !is_folder {
        return Ok(is_gguf(path).then(|| path.to_owned()));
    }
    let io = |source| Error::Io { path: path.to_owned(), source };
    for entry in std::fs::read_dir(path).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") {
            return Ok(None);
        }
    }
    let mut found = models(path)?;
    if found.len() > 1 {
        let names: Vec<_> = found.iter().filter_map(|path| path.file_name()).map(|n| n.to_string_lossy()).collect();
        let why = format!("several GGUF models; name the one to use: {}", names.join(", "));
        return Err(Error::invalid(path.display(), why));
    }
    Ok(found.pop())
}

/// A file's name without its end.
fn name_of_file(path: &Path) -> String {
    path.file_stem().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}

/// The folder's name; for a snapshot in the hub cache, `org/name`.
fn name_of(folder: &Path) -> String {
    let full = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let part = |p: Option<&Path>| p.and_then(|p| p.file_name()).map(|n| n.to_string_lossy().into_owned());
    let repository = full.parent().filter(|p| p.ends_with("snapshots")).and_then(|p| part(p.parent()));
    match repository.as_deref().and_then(|r| r.strip_prefix("models--")) {
        Some(id) => id.replace("--", "/"),
        None => part(Some(&full)).unwrap_or_else(|| full.display().to_string()),
    }
}
