//! Where a checkpoint's small files come from: a directory, the program itself, or what another file says.

use std::fmt::Debug;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Error, Result};

/// Files built into the program: names and contents.
pub type EmbeddedFiles = &'static [(&'static str, &'static [u8])];

/// Longest small file (configuration, tokenizer, template, index) that is read.
const LIMIT: u64 = 512 << 20;

/// A checkpoint's folder.
#[derive(Clone, Debug)]
pub enum Folder {
    /// A directory on disk.
    Disk(PathBuf),
    /// Files built into the program.
    Embedded {
        /// Name of the built-in model.
        name: &'static str,
        /// Its files.
        files: EmbeddedFiles,
    },
    /// Files made when they are asked for.
    Made(Arc<dyn MadeFiles>),
}

/// Small files that are made from something else, such as a GGUF file's metadata.
pub trait MadeFiles: Debug + Send + Sync {
    /// What they are made from, for messages.
    fn origin(&self) -> &str;

    /// Whether there is a file `name`.
    fn contains(&self, name: &str) -> bool;

    /// The text of the file `name`, or `None` if there is no such file.
    fn text(&self, name: &str) -> Result<Option<String>>;
}

impl Folder {
    /// Contents of the text file `name`, or `None` if there is no such file.
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        match self {
            Self::Disk(folder) => match read_text(&folder.join(name)) {
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
                other => other.map(Some),
            },
            Self::Embedded { .. } => self.embedded(name).map(|b| utf8(&self.describe(name), b.to_vec())).transpose(),
            Self::Made(files) => files.text(name),
        }
    }

    /// Contents of the text file `name`, which must be there.
    pub fn require_text(&self, name: &str) -> Result<String> {
        self.text(name)?.ok_or_else(|| {
            Error::invalid(
                self.describe(name),
                "the file is missing; is this a checkpoint's folder? (metal-marlin pull downloads one)",
            )
        })
    }

    /// Whether there is a file `name`.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Self::Disk(folder) => folder.join(name).is_file(),
            Self::Embedded { .. } => self.embedded(name).is_some(),
            Self::Made(files) => files.contains(name),
        }
    }

    /// What to call the file `name` in a message.
    pub fn describe(&self, name: &str) -> String {
        match self {
            Self::Disk(folder) => folder.join(name).display().to_string(),
            Self::Embedded { name: model, .. } => format!("built-in {model}/{name}"),
            Self::Made(files) => format!("{} ({name})", files.origin()),
        }
    }

    /// The built-in file `name`.
    pub fn embedded(&self, name: &str) -> Option<&'static [u8]> {
        match self {
            Self::Disk(_) | Self::Made(_) => None,
            Self::Embedded { files, .. } => files.iter().find(|f| f.0 == name).map(|f| f.1),
        }
    }
}

/// The text of a file of reasonable size.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(LIMIT + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > LIMIT {
        return Err(Error::invalid(path.display(), format!("larger than {} MB; this is not such a file", LIMIT >> 20)));
    }
    utf8(&path.display().to_string(), bytes)
}

fn utf8(file: &str, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::invalid(file, format!("not UTF-8 text (byte {at} is wrong); the file is damaged: download it again"))
    })
}
