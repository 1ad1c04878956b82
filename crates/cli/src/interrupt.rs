//! Ctrl-C: the first stops what is being done, the second ends the program.

use crate::error::{Failure, INTERRUPTED, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether somebody looks at [`PRESSED`]; otherwise Ctrl-C ends the program at once.
static WATCHED: AtomicBool = AtomicBool::new(false);
static PRESSED: AtomicBool = AtomicBool::new(false);

/// Takes over Ctrl-C for the whole program.
pub fn install() {
    let handler = || {
        if !WATCHED.load(Ordering::SeqCst) || PRESSED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    };
    // Without a handler Ctrl-C still ends the program, only less politely.
    let _ = ctrlc::set_handler(handler);
}

/// While it lives, the first Ctrl-C is only noted.
pub struct Watch(());

/// Begins to watch for Ctrl-C.
pub fn watch() -> Watch {
    PRESSED.store(false, Ordering::SeqCst);
    WATCHED.store(true, Ordering::SeqCst);
    Watch(())
}

impl Watch {
    /// Whether Ctrl-C was pressed.
    pub fn pressed(&self) -> bool {
        PRESSED.load(Ordering::SeqCst)
    }

    /// The end of the command, if Ctrl-C was pressed.
    pub fn check(&self) -> Result<()> {
        if self.pressed() { Err(Failure::Interrupted) } else { Ok(()) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHED.store(false, Ordering::SeqCst);
        PRESSED.store(false, Ordering::SeqCst);
    }
}
