//! Counts of what took a slower path than the kernel made for it.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a slower path was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The kernel does not compile on this device.
    KernelCompileFailed,
    /// The kernel computes something else on this device than its reference.
    SelfCheckFailed,
    /// No kernel serves groups of the weight's size.
    UnsupportedGroup,
    /// No kernel serves what stands around the weight.
    UnsupportedTransform,
    /// No kernel serves these sizes.
    UnsupportedShape,
    /// Experts of a layer that differ in what stands around them: one after another.
    MixedExperts,
    /// Tokens chosen on the CPU, for which the device had to be waited for.
    SampledOnCpu,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 7] = [
        Reason::KernelCompileFailed,
        Reason::SelfCheckFailed,
        Reason::UnsupportedGroup,
        Reason::UnsupportedTransform,
        Reason::UnsupportedShape,
        Reason::MixedExperts,
        Reason::SampledOnCpu,
    ];

    /// Its code in reports.
    pub fn code(self) -> &'static str {
        match self {
            Reason::KernelCompileFailed => "kernel_compile_failed",
            Reason::SelfCheckFailed => "self_check_failed",
            Reason::UnsupportedGroup => "unsupported_group",
            Reason::UnsupportedTransform => "unsupported_transform",
            Reason::UnsupportedShape => "unsupported_shape",
            Reason::MixedExperts => "mixed_experts",
            Reason::SampledOnCpu => "sampled_on_cpu",
        }
    }
}

/// Something that took a slower path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// Why.
    pub reason: Reason,
    /// The layer or the kernel.
    pub module: String,
    /// Rows of activations.
    pub batch: usize,
    /// Experts chosen for each row; 0 outside mixtures.
    pub top_k: usize,
    /// Experts of the layer; 0 outside mixtures.
    pub experts: usize,
}

/// What has been counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// All of them.
    pub total: u64,
    /// The same by the code of the reason, without those that never occurred.
    pub by_reason: BTreeMap<&'static str, u64>,
    /// The last one.
    pub last: Option<Fallback>,
}

/// The counters.
#[derive(Debug, Default)]
pub struct Fallbacks(Mutex<Snapshot>);

impl Fallbacks {
    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, reason: Reason, module: &str, batch: usize, [top_k, experts]: [usize; 2]) {
        let mut found = self.lock();
        found.total += 1;
        *found.by_reason.entry(reason.code()).or_default() += 1;
        found.last = Some(Fallback { reason, module: module.to_owned(), batch, top_k, experts });
    }

    /// What has been counted since the start or the last [`Fallbacks::reset`].
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Begins to count anew.
    pub fn reset(&self) {
        *self.lock() = Snapshot::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_counted_until_it_is_reset() {
        let counters = Fallbacks::default();
        counters.note(Reason::SelfCheckFailed, "a", 1, [0, 0]);
        counters.note(Reason::MixedExperts, "b", 3, [4, 64]);
        counters.note(Reason::MixedExperts, "b", 2, [4, 64]);
        let found = counters.snapshot();
        assert_eq!((found.total, found.by_reason["mixed_experts"], found.by_reason.len()), (3, 2, 2));
        assert_eq!(found.last.map(|l| (l.batch, l.top_k, l.experts)), Some((2, 4, 64)));
        counters.reset();
        assert_eq!(counters.snapshot(), Snapshot::default());
    }

    #[test]
    fn codes_are_those_of_the_serialised_form() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.code());
        }
    }
}
