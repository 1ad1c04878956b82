//! From kernels' texts to functions of the device.

use super::{Gpu, lock};
use crate::device::{Compiled, Function};
use crate::source::{self, Entry};
use crate::{Error, Result};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

impl Gpu {
    /// Compiles those of `entries` that are not yet; the first of them that does not compile is the error.
    pub fn prepare(&self, entries: &[Entry]) -> Result<()> {
        self.prepare_all(entries, &|_, _| {})
    }

    /// The same; `progress` is told how many of how many are done, from several threads.
    pub fn prepare_all(&self, entries: &[Entry], progress: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
        let mut missing: Vec<&Entry> = Vec::new();
        {
            let functions = lock(&self.functions);
            for e in entries {
                if !functions.contains_key(&e.name) && !missing.iter().any(|m| m.name == e.name) {
                    missing.push(e);
                }
            }
        }
        if !missing.is_empty() {
            let _turn = self.not_recorded("compiling")?;
            // A module for each, so that code on disk serves every model that wants the same kernel.
            let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let failed = Mutex::new(None);
            let work = || {
                while let Some(e) = missing.get(next.fetch_add(1, Relaxed)) {
                    if let Err(error) = self.compile(e)
                        && !matches!(error, Error::Compile { .. } | Error::NotFound { .. })
                    {
                        lock(&failed).get_or_insert(error);
                    }
                    progress(done.fetch_add(1, Relaxed) + 1, missing.len());
                }
            };
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(missing.len());
            let began = Instant::now();
            std::thread::scope(|scope| {
                (1..threads).for_each(|_| _ = scope.spawn(work));
                work();
            });
            self.compiling.fetch_add(began.elapsed().as_nanos() as u64, Relaxed);
            if let Some(error) = lock(&failed).take() {
                return Err(error);
            }
        }
        let functions = lock(&self.functions);
        match entries.iter().find_map(|e| functions.get(&e.name)?.as_ref().err()) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Compiles a kernel, and remembers it if it does not compile.
    pub(super) fn compile(&self, e: &Entry) -> Result<Function> {
        let one = std::slice::from_ref(e);
        let made = self.device.compile(&source::module(self.device.target(), one), one).and_then(|c| {
            let Compiled { functions, cached } = c;
            if cached { &self.found } else { &self.compiled }.fetch_add(1, Relaxed);
            functions.first().copied().ok_or_else(|| Error::NotFound { kernel: e.name.clone() })
        });
        if matches!(made, Ok(_) | Err(Error::Compile { .. } | Error::NotFound { .. })) {
            lock(&self.functions).insert(e.name.clone(), made.clone());
        }
        made
    }

    /// Whether a kernel is ready to be launched.
    pub fn is_compiled(&self, name: &str) -> bool {
        lock(&self.functions).get(name).is_some_and(Result::is_ok)
    }
}
