//! Times of launches, kernel by kernel.

use super::{Gpu, lock};
use crate::Result;
use crate::device::Binding;
use std::collections::BTreeMap;

/// What launches of one kernel took while times were kept.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct KernelTime {
    /// The entry point's name.
    pub kernel: String,
    /// Launches.
    pub launches: usize,
    /// Seconds, all launches together.
    pub seconds: f64,
    /// Bytes of the memory that they were bound to, all launches together.
    pub bytes: u64,
}

/// One launch and the marks before and after it.
pub(super) struct Timed {
    kernel: String,
    marks: [u64; 2],
    bytes: u64,
}

impl Gpu {
    /// Begins to keep the times of launches. They take longer meanwhile, and nothing is recorded.
    pub fn start_timing(&self) {
        *lock(&self.timed) = Some(Vec::new());
    }

    /// Whether times are kept.
    pub fn is_timing(&self) -> bool {
        lock(&self.timed).is_some()
    }

    /// The times of all kernels since timing began, which it ends; the longest first.
    pub fn stop_timing(&self) -> Result<Vec<KernelTime>> {
        let timed = lock(&self.timed).take().unwrap_or_default();
        self.device.wait()?;
        let mut kernels: BTreeMap<String, KernelTime> = BTreeMap::new();
        for Timed { kernel, marks: [before, after], bytes } in timed {
            let seconds = self.device.seconds_between(before, after)?;
            let of =
                kernels.entry(kernel.clone()).or_insert(KernelTime { kernel, launches: 0, seconds: 0.0, bytes: 0 });
            of.launches += 1;
            of.seconds += seconds;
            of.bytes += bytes;
        }
        let mut all: Vec<KernelTime> = kernels.into_values().collect();
        all.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        Ok(all)
    }

    /// Asks for something, and keeps its time if times are kept.
    pub(super) fn timed(&self, name: &str, bindings: &[Binding], work: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut timed = lock(&self.timed);
        let Some(timed) = timed.as_mut() else { return work() };
        let before = self.device.mark()?;
        work()?;
        let marks = [before, self.device.mark()?];
        let bytes = bindings.iter().map(|b| b.bytes as u64).sum();
        timed.push(Timed { kernel: name.to_owned(), marks, bytes });
        Ok(())
    }
}
