//! Why something could not be measured.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] marlin_engine::Error),
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
    /// There are too few tokens to score any.
    #[error("the text has {found} tokens; {protocol} needs at least {needed}")]
    TooShort {
        /// The protocol.
        protocol: String,
        /// Tokens it needs.
        needed: usize,
        /// Tokens there are.
        found: usize,
    },
    /// A probability that is not a number.
    #[error(
        "the log-probability of token {position} is {value}; the checkpoint may be damaged, or a kernel wrong (metal-marlin doctor)"
    )]
    NotFinite {
        /// Position in the text.
        position: usize,
        /// What was computed.
        value: f64,
    },
    /// The user stopped the work.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn setting(name: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Setting { name, expected: expected.to_string(), found: found.to_string() }
    }

    /// Brings this error through the engine's scoring.
    pub(crate) fn carried(self) -> marlin_engine::Error {
        marlin_engine::Error::Receiver(Box::new(self))
    }

    /// The error that [`Error::carried`] sent through.
    pub(crate) fn uncarried(error: marlin_engine::Error) -> Self {
        match error {
            marlin_engine::Error::Receiver(inner) => match inner.downcast::<Self>() {
                Ok(own) => *own,
                Err(other) => Self::Engine(marlin_engine::Error::Receiver(other)),
            },
            other => Self::Engine(other),
        }
    }
}

/// Result of a measurement.
pub type Result<T> = std::result::Result<T, Error>;
