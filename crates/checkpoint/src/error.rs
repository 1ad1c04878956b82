//! Why a checkpoint could not be read.

use std::path::PathBuf;

/// Everything that can be wrong with a checkpoint. Each message names the file or tensor, what was expected and what
/// was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tensor that the architecture needs is not in the checkpoint.
    #[error("tensor {name:?} is not in {within}; the checkpoint is incomplete or of another architecture")]
    MissingTensor {
        /// The tensor.
        name: String,
        /// Where it was looked for.
        within: String,
    },
    /// A safetensors file is malformed.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: Box<crate::Malformed>,
    },
    /// A GGUF file is malformed.
    #[error("{file}: {reason}")]
    Gguf {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: Box<crate::container::gguf::Malformed>,
    },
    /// A key of a configuration is absent or of the wrong type.
    #[error("{file}: key {key:?}: expected {expected}, found {found}")]
    Config {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What would have been accepted.
        expected: String,
        /// Value in the file.
        found: String,
    },
    /// A tensor's shape is not what the configuration says.
    #[error("tensor {name:?}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Shape the configuration asks for.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor's element type cannot be used where it stands.
    #[error("tensor {name:?}: expected {expected}, found {found}")]
    DType {
        /// The tensor.
        name: String,
        /// What would have been accepted.
        expected: &'static str,
        /// Type in the file.
        found: crate::DType,
    },
    /// There is no room for a file.
    #[error("{}: the disk is full: {needed} bytes are needed, {available} are free; free some space and try again", path.display())]
    DiskFull {
        /// Where the file should have gone.
        path: PathBuf,
        /// Bytes that are still to be written.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// The hub, or its cache, has no such model or does not give it.
    #[error(transparent)]
    Hub(#[from] Box<crate::hub::HubError>),
    /// The user stopped the work.
    #[error("stopped")]
    Cancelled,
    /// Anything else that is wrong with a file, in words.
    #[error("{what}: {why}")]
    Invalid {
        /// The file or tensor.
        what: String,
        /// What is wrong, and what to do if that is known.
        why: String,
    },
}

impl Error {
    /// What the system said of `path`.
    pub fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Invalid`] from anything printable.
    pub fn invalid(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Self {
        Self::Invalid { what: what.to_string(), why: why.to_string() }
    }
}

/// Result of reading a checkpoint.
pub type Result<T> = std::result::Result<T, Error>;
