//! How a command ends when it does not succeed.

use std::fmt;
use std::process::ExitCode;

/// Why a command ended early.
#[derive(Debug)]
pub enum Failure {
    /// Something to tell the user.
    Error(Box<dyn std::error::Error + Send + Sync>),
    /// Nobody reads our output any more: no reason to complain.
    BrokenPipe,
    /// Ctrl-C; what there was to say has been said.
    Interrupted,
}

/// Result of a command or a part of it.
pub type Result<T> = std::result::Result<T, Failure>;

/// Exit status after Ctrl-C, as shells have it: 128 + SIGINT.
pub const INTERRUPTED: u8 = 130;

impl Failure {
    /// An error in words.
    pub fn text(message: impl Into<String>) -> Self {
        Self::Error(message.into().into())
    }

    /// Prints one line if there is something to say, and gives the exit status.
    pub fn report(&self) -> ExitCode {
        match self {
            Self::BrokenPipe => ExitCode::SUCCESS,
            Self::Interrupted => ExitCode::from(INTERRUPTED),
            Self::Error(_) => {
                // Nothing can be done about a standard error that is closed.
                let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("error: {self}\n"));
                ExitCode::FAILURE
            }
        }
    }
}

impl fmt::Display for Failure {
    /// The message, and those of its causes that it does not repeat itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match self {
            Self::Error(error) => error,
            Self::BrokenPipe => return f.write_str("nobody reads the output"),
            Self::Interrupted => return f.write_str("stopped"),
        };
        let mut said = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !said.contains(&text) {
                said.push_str(": ");
                said.push_str(&text);
            }
            cause = inner.source();
        }
        f.write_str(&said)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::BrokenPipe,
            _ => Self::Error(Box::new(error)),
        }
    }
}

impl From<marlin_checkpoint::Error> for Failure {
    fn from(error: marlin_checkpoint::Error) -> Self {
        match error {
            marlin_checkpoint::Error::Cancelled => Self::Interrupted,
            other => Self::Error(Box::new(other)),
        }
    }
}

impl From<marlin_eval::Error> for Failure {
    fn from(error: marlin_eval::Error) -> Self {
        match error {
            marlin_eval::Error::Stopped => Self::Interrupted,
            other => Self::Error(Box::new(other)),
        }
    }
}

impl From<marlin_quantize::Error> for Failure {
    fn from(error: marlin_quantize::Error) -> Self {
        match error {
            marlin_quantize::Error::Stopped => Self::Interrupted,
            marlin_quantize::Error::Checkpoint(error) => error.into(),
            other => Self::Error(Box::new(other)),
        }
    }
}

macro_rules! plain {
    ($($error:ty),*) => { $(impl From<$error> for Failure {
        fn from(error: $error) -> Self {
            Self::Error(Box::new(error))
        }
    })* };
}
plain!(marlin_backend::Error, marlin_engine::Error, marlin_models::Error, serde_json::Error);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let io = std::io::Error::other("the cable is cut");
        let error = Failure::from(marlin_checkpoint::Error::Io { path: "a/b".into(), source: io });
        assert_eq!(error.to_string(), "a/b: the cable is cut");
        assert!(matches!(Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe)), Failure::BrokenPipe));
    }
}
