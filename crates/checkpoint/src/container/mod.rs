//! Files of tensors, used from the mapping: one safetensors file, or the shards that an index lists; or GGUF files.

pub mod gguf;
mod index;
mod malformed;
mod safetensors;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub use self::safetensors::{HEADER_LIMIT, Header};
pub use malformed::Malformed;

pub use index::INDEX_NAME;

use crate::bytes::Mapping;
use crate::{Bytes, Error, Result, Tensor, TensorInfo, TensorSource};

/// Name of a checkpoint's only file of tensors.
pub const SINGLE_NAME: &str = "model.safetensors";

/// The tensors of one or more files.
pub struct Store {
    origin: String,
    files: Vec<StoreFile>,
    tensors: Vec<TensorInfo>,
    /// File and bytes of each of `tensors`.
    places: Vec<(usize, Range<usize>)>,
    by_name: HashMap<String, usize>,
}

/// One file of a [`Store`].
#[derive(Clone, Debug)]
pub struct StoreFile {
    /// Path, or the name of an embedded file.
    pub name: String,
    /// All its bytes.
    pub bytes: Bytes,
    /// Free text in its header.
    pub metadata: BTreeMap<String, String>,
}

/// A file and what its header says.
struct Contents {
    name: String,
    bytes: Bytes,
    metadata: BTreeMap<String, String>,
    /// Tensors, and the bytes of the file each takes.
    tensors: Vec<(TensorInfo, Range<usize>)>,
}

impl Contents {
    fn safetensors(name: String, bytes: Bytes) -> Result<Self> {
        match Header::parse(&bytes) {
            Ok(Header { metadata, tensors }) => Ok(Self { name, bytes, metadata, tensors }),
            Err(reason) => Err(Error::Malformed { file: name, reason: Box::new(reason) }),
        }
    }
}

impl Store {
    /// Opens a safetensors file, an index (`*.index.json`) or the safetensors checkpoint in a folder. GGUF files are
    /// opened by [`gguf::GgufFile`].
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return match index::find(path)? {
                index::Found::Single(file) => Self::open(&file),
                index::Found::Index(file) => Self::sharded(&file),
            };
        }
        if path.to_string_lossy().ends_with(".index.json") {
            return Self::sharded(path);
        }
        let name = path.display().to_string();
        Self::build(name.clone(), [Contents::safetensors(name, map(path)?)?])
    }

    /// The tensors of one safetensors file that is in memory already; `name` stands for it in messages.
    pub fn from_bytes(name: impl Into<String>, bytes: Bytes) -> Result<Self> {
        let name = name.into();
        Self::build(name.clone(), [Contents::safetensors(name, bytes)?])
    }

    fn sharded(path: &Path) -> Result<Self> {
        let index = index::Index::read(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut files = Vec::with_capacity(index.shards.len());
        for shard in &index.shards {
            let file = folder.join(shard);
            if !file.is_file() {
                let missing = index.shards.iter().filter(|s| !folder.join(s).is_file()).count();
                let total = index.shards.len();
                let why = format!(
                    "shard {shard:?} is not there ({missing} of {total} shards are missing); download the checkpoint again (metal-marlin pull)"
                );
                return Err(Error::invalid(path.display(), why));
            }
            files.push(Contents::safetensors(file.display().to_string(), map(&file)?)?);
        }
        let store = Self::build(path.display().to_string(), files)?;
        index.check(path, &store)?;
        Ok(store)
    }

    fn build(origin: String, files: impl IntoIterator<Item = Contents>) -> Result<Self> {
        let mut store =
            Self { origin, files: Vec::new(), tensors: Vec::new(), places: Vec::new(), by_name: HashMap::new() };
        for (number, contents) in files.into_iter().enumerate() {
            let Contents { name, bytes, metadata, tensors } = contents;
            store.files.push(StoreFile { name, bytes, metadata });
            for (info, range) in tensors {
                if let Some(earlier) = store.by_name.insert(info.name.clone(), store.tensors.len()) {
                    let first = &store.files[store.places[earlier].0].name;
                    let why =
                        format!("tensor {:?} is also in {first}; each tensor must be in one shard only", info.name);
                    return Err(Error::invalid(&store.files[number].name, why));
                }
                store.tensors.push(info);
                store.places.push((number, range));
            }
        }
        Ok(store)
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> &[StoreFile] {
        &self.files
    }

    /// The file that holds the tensor called `name`.
    pub fn file_of(&self, name: &str) -> Option<&StoreFile> {
        self.by_name.get(name).map(|&i| &self.files[self.places[i].0])
    }
}

impl TensorSource for Store {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let missing = || Error::MissingTensor { name: name.to_owned(), within: self.describe() };
        let &i = self.by_name.get(name).ok_or_else(missing)?;
        let (file, range) = &self.places[i];
        // The range was checked against the file when the header was read.
        let data = self.files[*file].bytes.slice(range.clone()).ok_or_else(missing)?;
        Ok(Tensor { info: self.tensors[i].clone(), data })
    }

    fn info(&self, name: &str) -> Result<TensorInfo> {
        let missing = || Error::MissingTensor { name: name.to_owned(), within: self.describe() };
        self.by_name.get(name).map(|&i| self.tensors[i].clone()).ok_or_else(missing)
    }

    fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    fn describe(&self) -> String {
        self.origin.clone()
    }
}

/// Maps a file for reading.
#[allow(unsafe_code)]
fn map(path: &Path) -> Result<Bytes> {
    let io = |source| Error::Io { path: PathBuf::from(path), source };
    let file = File::open(path).map_err(io)?;
    if file.metadata().map_err(io)?.len() == 0 {
        return Ok(Bytes::from_static(&[]));
    }
    // SAFETY: the mapping is private and read-only. Like every engine that maps its weights we rely on nobody truncating
    // or rewriting the file while it is open; our own writers never do: they write aside and rename.
    let map = unsafe { Mmap::map(&file) }.map_err(io)?;
    Ok(Bytes::mapped(Arc::new(Mapping { file, map })))
}
