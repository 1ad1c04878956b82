//! What work would launch, found out without launching it; and which kernels have been compared with the reference.

use super::{Gpu, lock};
use crate::source::Entry;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::ThreadId;
use std::time::Instant;

/// What a rehearsal has noted so far, and in which thread.
pub(super) struct Rehearsal {
    thread: ThreadId,
    pub(super) entries: BTreeMap<String, Entry>,
    /// Something in it is done all the same.
    suspended: bool,
}

impl Gpu {
    /// `work` without its launches, products and waits: what it reads is 0. Gives the kernels that it wanted, by name. Memory is
    /// allocated and filled as always. Rehearsals of other threads are waited for by none: there may be one at a time.
    pub fn rehearse<T>(&self, work: impl FnOnce() -> T) -> (T, Vec<Entry>) {
        let thread = std::thread::current().id();
        *lock(&self.rehearsal) = Some(Rehearsal { thread, entries: BTreeMap::new(), suspended: false });
        self.rehearses.store(true, Relaxed);
        let done = work();
        self.rehearses.store(false, Relaxed);
        let noted = lock(&self.rehearsal).take().map(|r| r.entries.into_values().collect());
        (done, noted.unwrap_or_default())
    }

    /// Whether this thread rehearses.
    pub fn is_rehearsing(&self) -> bool {
        let here = || std::thread::current().id();
        self.rehearses.load(Relaxed)
            && lock(&self.rehearsal).as_ref().is_some_and(|r| r.thread == here() && !r.suspended)
    }

    /// Does `work` even if this thread rehearses: its results are kept.
    pub fn in_earnest<T>(&self, work: impl FnOnce() -> T) -> T {
        if !self.is_rehearsing() {
            return work();
        }
        let suspend = |suspended| {
            if let Some(r) = lock(&self.rehearsal).as_mut() {
                r.suspended = suspended;
            }
        };
        suspend(true);
        let done = work();
        suspend(false);
        done
    }

    /// Notes, while it lasts, which kernels run: if `work` says that all went well, they are known to be right.
    pub(crate) fn check<E>(&self, work: impl FnOnce() -> std::result::Result<bool, E>) -> std::result::Result<bool, E> {
        let before = lock(&self.checked).clone();
        let began = Instant::now();
        self.checks.fetch_add(1, Relaxed);
        let good = work();
        if self.checks.fetch_sub(1, Relaxed) == 1 {
            self.checking.fetch_add(began.elapsed().as_nanos() as u64, Relaxed);
        }
        if !matches!(good, Ok(true)) {
            *lock(&self.checked) = before;
        }
        good
    }

    /// Kernels that have been compared with the reference, and agreed.
    pub fn checked(&self) -> usize {
        lock(&self.checked).len()
    }

    /// Whether a kernel has.
    pub fn is_checked(&self, name: &str) -> bool {
        lock(&self.checked).contains(name)
    }
}
