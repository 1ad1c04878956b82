//! How long work tells of itself; the command line draws the bars.

/// Receives the progress of a download or of writing a checkpoint. Every method may be called from any thread.
pub trait Progress: Send + Sync {
    /// Work on `item` (a file) begins; `done` of `total` bytes are there already.
    fn start(&self, item: &str, done: u64, total: u64) {
        let _ = (item, done, total);
    }

    /// `bytes` more of `item` are done.
    fn advance(&self, item: &str, bytes: u64) {
        let _ = (item, bytes);
    }

    /// `item` is complete.
    fn finish(&self, item: &str) {
        let _ = item;
    }

    /// Something to tell the user, such as a retry.
    fn note(&self, text: &str) {
        let _ = text;
    }

    /// Whether to stop: the work then ends with [`Error::Cancelled`](crate::Error::Cancelled), leaving what can be resumed.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Tells nobody.
impl Progress for () {}
