//! Why something could not be quantised.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or tensor of a checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] marlin_checkpoint::Error),
    /// The model could not be built or run.
    #[error(transparent)]
    Model(#[from] marlin_models::Error),
    /// The backend refused an operation.
    #[error(transparent)]
    Backend(#[from] marlin_backend::Error),
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
    /// A line of a plan that cannot be followed.
    #[error("{file}:{line}: {why}")]
    Plan {
        /// The plan's file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, and what was expected.
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
    /// There is too little text to calibrate with.
    #[error(
        "the calibration text has {found} tokens, and a window {length}; give more text, or shorter windows (--length)"
    )]
    ShortText {
        /// Tokens there are.
        found: usize,
        /// Tokens of a window.
        length: usize,
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
