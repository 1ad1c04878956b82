//! What can go wrong on a device.

/// Why a device could not do what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no such device, or what it needs is not installed.
    #[error("{0}")]
    Absent(String),
    /// A kernel did not compile.
    #[error("kernel {kernel}: {log}")]
    Compile {
        /// The first kernel of the module.
        kernel: String,
        /// What the compiler said.
        log: String,
    },
    /// A module was compiled and does not have a kernel that it should have.
    #[error("kernel {kernel}: is not in what was compiled")]
    NotFound {
        /// The kernel.
        kernel: String,
    },
    /// A launch does not fit the kernel's declaration.
    #[error("kernel {kernel}: {why}")]
    Launch {
        /// The kernel.
        kernel: String,
        /// What does not fit.
        why: String,
    },
    /// The device has too little memory.
    #[error("out of memory: {bytes} bytes asked for, {active} in use, {cap} allowed")]
    OutOfMemory {
        /// Asked for.
        bytes: usize,
        /// In use.
        active: usize,
        /// What may be in use at most.
        cap: usize,
    },
    /// Anything else that the device reports.
    #[error("{0}")]
    Device(String),
}

/// Result of something that a device does.
pub type Result<T> = std::result::Result<T, Error>;

impl From<Error> for marlin_backend::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::OutOfMemory { bytes, .. } => {
                Self::OutOfMemory { what: "the GPU (--device cpu computes without one)".into(), bytes }
            }
            other => Self::Device(other.to_string()),
        }
    }
}
