//! GGUF files, versions 2 and 3: metadata, then tensors at aligned places
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! Nothing in a file is believed before it is checked: counts and lengths are compared with the bytes that are left before
//! anything is made of them, products are checked for overflow, and no two tensors may share a byte.

mod cursor;
mod header;
mod malformed;
mod metadata;
mod split;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use header::Header;
pub use malformed::Malformed;
pub use metadata::{Array, Kind, Metadata, Value};

use super::{Contents, Store};
use crate::{Bytes, Error, Result, TensorSource};
use split::PartName;

/// A GGUF file, or the parts of a split one.
#[derive(Clone)]
pub struct GgufFile {
    /// Keys and values: of the first part.
    pub metadata: Metadata,
    /// The tensors of all parts, by their own names.
    pub store: Arc<Store>,
}

impl GgufFile {
    /// Opens a file. Of a split one any part may be given; all must be there.
    pub fn open(path: &Path) -> Result<Self> {
        let given = Part::open(path)?;
        let count = given.count()?;
        if count == 1 {
            return Self::join(path.display().to_string(), vec![given]);
        }
        let wrong = |why: String| Err(Error::invalid(path.display(), why));
        let Some(name) = PartName::of(path) else {
            return wrong(format!(
                "this is one of {count} parts, which must be called name-00001-of-{count:05}.gguf and so on; give it its name back"
            ));
        };
        if name.count != count || !(1..=count).contains(&name.number) {
            return wrong(format!(
                "key \"split.count\" says {count} parts, the name {} of {}; give the parts their names back",
                name.number, name.count
            ));
        }
        let paths: Vec<PathBuf> = (1..=count).map(|number| name.sibling(path, number)).collect();
        if let Some(missing) = paths.iter().find(|path| !path.is_file()) {
            let why = format!("part {:?} is not there; download it too", missing.file_name().unwrap_or_default());
            return wrong(why);
        }
        let mut given = Some(given);
        let mut parts = Vec::with_capacity(count);
        for (i, path) in paths.iter().enumerate() {
            let part = if i + 1 == name.number { given.take() } else { None };
            parts.push(part.map_or_else(|| Part::open(path), Ok)?);
        }
        Self::join(paths[0].display().to_string(), parts)
    }

    /// One file that is in memory already; `name` stands for it in messages.
    pub fn from_bytes(name: impl Into<String>, bytes: Bytes) -> Result<Self> {
        let part = Part::new(name.into(), bytes)?;
        match part.count()? {
            1 => Self::join(part.name.clone(), vec![part]),
            count => Err(Error::invalid(&part.name, format!("this is one of {count} parts; expected a whole file"))),
        }
    }

    fn join(origin: String, parts: Vec<Part>) -> Result<Self> {
        let count = parts.len();
        for (i, part) in parts.iter().enumerate() {
            let number = part.header.metadata.usize("split.no")?.unwrap_or(0);
            if part.count()? != count || number != i {
                let why = format!(
                    "expected part {i} (from 0) of {count}, found part {number} of {}; the parts belong to different models: download them again",
                    part.count()?
                );
                return Err(Error::invalid(&part.name, why));
            }
        }
        let Some(metadata) = parts.first().map(|part| part.header.metadata.clone()) else {
            return Err(Error::invalid(origin, "no parts"));
        };
        let expected = if count > 1 { metadata.usize("split.tensors.count")? } else { None };
        let contents = |part: Part| Contents {
            name: part.name,
            bytes: part.bytes,
            metadata: Default::default(),
            tensors: part.header.tensors,
        };
        let store = Store::build(origin.clone(), parts.into_iter().map(contents))?;
        match expected {
            Some(expected) if expected != store.tensors().len() => {
                let found = store.tensors().len();
                let why = format!(
                    "key \"split.tensors.count\": expected {expected} tensors in {count} parts, found {found}; download the parts again"
                );
                Err(Error::invalid(origin, why))
            }
            _ => Ok(Self { metadata, store: Arc::new(store) }),
        }
    }
}

/// One file and what its header says.
struct Part {
    name: String,
    bytes: Bytes,
    header: Header,
}

impl Part {
    fn open(path: &Path) -> Result<Self> {
        Self::new(path.display().to_string(), super::map(path)?)
    }

    fn new(name: String, bytes: Bytes) -> Result<Self> {
        let mut header =
            Header::parse(&bytes).map_err(|reason| Error::Gguf { file: name.clone(), reason: Box::new(reason) })?;
        header.metadata = header.metadata.of_file(&name);
        Ok(Self { name, bytes, header })
    }

    /// How many parts there are: 1 for a whole file.
    fn count(&self) -> Result<usize> {
        const KEY: &str = "split.count";
        match self.header.metadata.usize(KEY)? {
            None | Some(0) => Ok(1),
            Some(count) if count <= 99_999 => Ok(count),
            Some(_) => Err(self.header.metadata.wrong(KEY, "at most 99999")),
        }
    }
}

/// The GGUF models in `folder`: for each its file, or its first part. Files that hold no language model (`mmproj`, the
/// image part of multimodal models) are passed over.
pub(crate) fn models(folder: &Path) -> Result<Vec<PathBuf>> {
    let io = |source| Error::Io { path: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let gguf = is_gguf(&path) && path.is_file();
        let image = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("mmproj"));
        if gguf && !image {
            found.push(path);
        }
    }
    found.sort();
    // Of the parts of one model the first that is there stands for all.
    let mut seen = std::collections::HashSet::new();
    found.retain(|path| PartName::of(path).is_none_or(|name| seen.insert((name.prefix, name.count))));
    Ok(found)
}

/// Whether a file is called GGUF.
pub(crate) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
}
