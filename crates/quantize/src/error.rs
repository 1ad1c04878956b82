//! Why something could not be quantised.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or tensor of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] marlin_checkpoint::Error),
    /// A kernel was given matrices that do not fit together.
    #[error(transparent)]
    Kernel(#[from] marlin_cpu::Error),
    /// A module that cannot be quantised as asked.
    #[error("{module}: {why}")]
    Module {
        /// The module.
        module: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A setting that makes no sense.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What it was.
        found: String,
    },
    /// The user stopped the work.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn setting(name: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Setting { name, expected: expected.to_string(), found: found.to_string() }
    }
}

/// Result of quantising.
pub type Result<T> = std::result::Result<T, Error>;
