//! Counts of what took a slower path than the kernels made for speed.

use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Why a slower path was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// No kernel serves groups of the weight's size: rows are decoded and multiplied in f32.
    UnsupportedGroup,
    /// No kernel serves what stands around the weight: the same.
    UnsupportedTransform,
    /// No kernel serves these sizes.
    UnsupportedShape,
    /// Codes that are no small integers (8-bit floats, tables of fractions): multiplied in f32, not in bytes.
    FloatCodes,
    /// Experts of a layer differ so that they cannot share a launch or a parallel region: one after another.
    MixedExperts,
    /// A latent projection whose heads are not whole tiles of codes: decoded once, then used in f32.
    LatentNotSplit,
    /// The kernel does not compile on this device.
    KernelCompileFailed,
    /// The kernel computes something else on this device than its reference.
    SelfCheckFailed,
    /// Tokens chosen on the CPU, for which the device had to be waited for.
    SampledOnCpu,
    /// What was compiled does not have the kernel.
    KernelNotFound,
    /// The device has no memory for what the faster path works in.
    OutOfMemory,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 11] = [
        Reason::UnsupportedGroup,
        Reason::UnsupportedTransform,
        Reason::UnsupportedShape,
        Reason::FloatCodes,
        Reason::MixedExperts,
        Reason::LatentNotSplit,
        Reason::KernelCompileFailed,
        Reason::SelfCheckFailed,
        Reason::SampledOnCpu,
        Reason::KernelNotFound,
        Reason::OutOfMemory,
    ];

    /// Its code in reports.
    pub fn code(self) -> &'static str {
        match self {
            Reason::UnsupportedGroup => "unsupported_group",
            Reason::UnsupportedTransform => "unsupported_transform",
            Reason::UnsupportedShape => "unsupported_shape",
            Reason::FloatCodes => "float_codes",
            Reason::MixedExperts => "mixed_experts",
            Reason::LatentNotSplit => "latent_not_split",
            Reason::KernelCompileFailed => "kernel_compile_failed",
            Reason::SelfCheckFailed => "self_check_failed",
            Reason::SampledOnCpu => "sampled_on_cpu",
            Reason::KernelNotFound => "kernel_not_found",
            Reason::OutOfMemory => "out_of_memory",
        }
    }
}

/// Something that took a slower path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fallback {
    /// Why.
    pub reason: Reason,
    /// The layer (of experts, the first one's) or the kernel.
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
pub struct Fallbacks {
    counts: [AtomicU64; Reason::ALL.len()],
    last: Mutex<Option<Fallback>>,
}

impl Fallbacks {
    /// Counts one.
    pub fn note(&self, fallback: Fallback) {
        self.counts[fallback.reason as usize].fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(fallback);
    }

    /// What has been counted since the start or the last [`Fallbacks::reset`].
    pub fn snapshot(&self) -> Snapshot {
        let counts = Reason::ALL.map(|r| (r.code(), self.counts[r as usize].load(Ordering::Relaxed)));
        Snapshot {
            total: counts.iter().map(|(_, n)| n).sum(),
            by_reason: counts.into_iter().filter(|(_, n)| *n > 0).collect(),
            last: self.last.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Begins to count anew.
    pub fn reset(&self) {
        self.counts.iter().for_each(|n| n.store(0, Ordering::Relaxed));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_counted_until_it_is_reset() {
        let counters = Fallbacks::default();
        assert_eq!(counters.snapshot(), Snapshot::default());
        let of = |reason, batch| Fallback { reason, module: "m".into(), batch, top_k: 4, experts: 64 };
        counters.note(of(Reason::LatentNotSplit, 1));
        counters.note(of(Reason::FloatCodes, 2));
        counters.note(of(Reason::FloatCodes, 3));
        let found = counters.snapshot();
        assert_eq!((found.total, found.by_reason["float_codes"], found.by_reason.len()), (3, 2, 2));
        assert_eq!(found.last, Some(of(Reason::FloatCodes, 3)));
        counters.reset();
        assert_eq!(counters.snapshot(), Snapshot::default());
    }

    #[test]
    fn codes_are_those_of_the_serialised_form() {
        for (i, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.code());
        }
    }
}
