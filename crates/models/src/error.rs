//! Why a model could not be built or run.

/// What went wrong, and where.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The checkpoint is not what it says it is.
    #[error(transparent)]
    Checkpoint(#[from] marlin_checkpoint::Error),
    /// The backend refused an operation.
    #[error(transparent)]
    Backend(#[from] marlin_backend::Error),
    /// `config.json` names an architecture that is not known.
    #[error("architecture {found:?} is not supported; supported: {supported}")]
    Architecture {
        /// `model_type` of the configuration.
        found: String,
        /// What could have stood there.
        supported: String,
    },
    /// No published model has this name.
    #[error("no published sizes are known for {found:?}; known: {known}")]
    Published {
        /// What was asked for.
        found: String,
        /// What could have been.
        known: String,
    },
    /// Tensors and configuration do not belong together.
    #[error("{checkpoint}: {why}")]
    Tensors {
        /// The checkpoint.
        checkpoint: String,
        /// What is missing, left over or of another shape.
        why: String,
    },
}

/// Result of building or running a model.
pub type Result<T> = std::result::Result<T, Error>;
