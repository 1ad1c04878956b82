//! Progress bars on standard error, for people only: where it is no terminal, nothing is drawn.

use crate::interrupt::Watch;
use crate::output;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_millis(300);

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

/// One bar that appears once the work has taken a while.
pub struct Bar {
    template: &'static str,
    message: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Bar {
    /// Counts bytes.
    pub fn bytes(message: impl Into<String>) -> Self {
        Self::new(message, "{msg} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}")
    }

    /// Counts anything else.
    pub fn items(message: impl Into<String>) -> Self {
        Self::new(message, "{msg} [{bar:30}] {human_pos}/{human_len} {eta}")
    }

    fn new(message: impl Into<String>, template: &'static str) -> Self {
        Self { template, message: message.into(), started: Instant::now(), bar: None }
    }

    /// The same, now with other words before it.
    pub fn say(&mut self, message: &str) {
        if self.message != message {
            message.clone_into(&mut self.message);
            if let Some(bar) = &self.bar {
                bar.set_message(self.message.clone());
            }
        }
    }

    /// `done` of `total` are done.
    pub fn set(&mut self, done: u64, total: u64) {
        if self.bar.is_none() && self.started.elapsed() >= PATIENCE && done < total {
            let bar = ProgressBar::new(total).with_style(style(self.template)).with_message(self.message.clone());
            self.bar = Some(bar.with_elapsed(self.started.elapsed()));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A bar for each file that is downloaded or written; Ctrl-C stops the work.
pub struct Files<'a> {
    watch: Option<&'a Watch>,
    bars: MultiProgress,
    by_item: Mutex<HashMap<String, ProgressBar>>,
}

impl<'a> Files<'a> {
    /// No files yet.
    pub fn new(watch: Option<&'a Watch>) -> Self {
        Self { watch, bars: MultiProgress::new(), by_item: Mutex::default() }
    }

    fn with(&self, item: &str, f: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self.by_item.lock().unwrap_or_else(PoisonError::into_inner).get(item) {
            f(bar);
        }
    }
}

impl marlin_checkpoint::Progress for Files<'_> {
    fn start(&self, item: &str, done: u64, total: u64) {
        let template =
            "{msg:40!} [{bar:25}] {decimal_bytes:>9}/{decimal_total_bytes:9} {decimal_bytes_per_sec:>11} {eta:>4}";
        let bar = self.bars.add(ProgressBar::new(total).with_style(style(template)).with_message(item.to_owned()));
        bar.set_position(done);
        bar.reset_eta();
        self.by_item.lock().unwrap_or_else(PoisonError::into_inner).insert(item.to_owned(), bar);
    }

    fn advance(&self, item: &str, bytes: u64) {
        self.with(item, |bar| bar.inc(bytes));
    }

    fn finish(&self, item: &str) {
        self.with(item, |bar| bar.finish());
    }

    fn note(&self, text: &str) {
        self.bars.suspend(|| output::note(text));
    }

    fn cancelled(&self) -> bool {
        self.watch.is_some_and(Watch::pressed)
    }
}
