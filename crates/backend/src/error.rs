//! Why an operation could not be carried out.

/// An operation that failed: its name, and expected against found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Operands do not fit together.
    #[error("{op}: expected {expected}, found {found}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What the operation needs.
        expected: String,
        /// What it was given.
        found: String,
    },
    /// A step is inconsistent, such as one whose block table is too short for its positions.
    #[error("step: {0}")]
    Step(String),
    /// A result was read before the work that makes it was submitted.
    #[error("{0}: read before submit")]
    EarlyRead(&'static str),
    /// The device has too little memory.
    #[error("out of memory: {what} needs {bytes} bytes")]
    OutOfMemory {
        /// What was to be allocated.
        what: String,
        /// Its size.
        bytes: usize,
    },
    /// A weight holds a value that is not a number or infinite.
    #[error(
        "{name}: element {index} of the weight is {value}; the checkpoint is damaged or was saved after training diverged"
    )]
    NotFinite {
        /// The linear.
        name: String,
        /// Row-major index.
        index: usize,
        /// What is there.
        value: f32,
    },
    /// The operation is not offered for these operands.
    #[error("{op}: {why}")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// What is not offered.
        why: String,
    },
    /// A weight's bytes could not be read.
    #[error(transparent)]
    Checkpoint(#[from] marlin_checkpoint::Error),
    /// An earlier operation failed on the device.
    #[error("device: {0}")]
    Device(String),
}

impl Error {
    /// [`Error::Shape`] from anything printable.
    pub fn shape(op: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Shape { op, expected: expected.to_string(), found: found.to_string() }
    }
}

/// Result of an operation.
pub type Result<T> = std::result::Result<T, Error>;
