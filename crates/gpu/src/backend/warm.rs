//! Getting ready: everything that a model will want is compiled at once, and known to be right, before its first step.

use super::decide::Rung;
use super::{GpuBackend, check};
use crate::source::Entry;
use marlin_backend::fallback::Reason;
use marlin_backend::shapes::Shapes;
use marlin_backend::{Error, Result};
use serde::Serialize;
use std::sync::PoisonError;

/// How products with matrices of one kind and size are computed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Product {
    /// The first module that is such.
    pub module: String,
    /// `tensor cores`, `fast`, `simple` or `cpu`: the first of these that agreed with the reference.
    pub by: &'static str,
    /// Why not by the fastest kernels that there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// What there is to say about the kernels of a backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Warmth {
    /// Kernels compiled.
    pub compiled: u64,
    /// Kernels whose code was found on disk.
    pub found: u64,
    /// Seconds that somebody waited for kernels to be compiled, or read from disk.
    pub compile_seconds: f64,
    /// Seconds that they were compared with the reference.
    pub check_seconds: f64,
    /// Kernels that agreed with the reference.
    pub checked: usize,
    /// Kernels that a model wants and that were compared with nothing by themselves.
    pub unchecked: Vec<String>,
    /// Each kind and size of weight.
    pub products: Vec<Product>,
}

impl GpuBackend {
    /// Compares every primitive with the reference; all that takes is compiled at once.
    pub(super) fn check_primitives(&self) -> Result<()> {
        let (done, entries) = self.gpu.rehearse(|| check::all(self));
        done?;
        // What does not compile is an error of the primitive that wants it.
        _ = self.gpu.prepare(&entries);
        self.gpu.check(|| check::primitives(self).map(|()| true)).map(drop)
    }

    /// Compares what has no weights with the reference, at the sizes of a model.
    pub(super) fn check_model(&self, shapes: &Shapes) -> Result<()> {
        let (done, entries) = self.gpu.rehearse(|| check::model(self, shapes));
        done?;
        _ = self.gpu.prepare(&entries);
        self.gpu.check(|| check::model_primitives(self, shapes).map(|()| true)).map(drop)
    }

    /// Compiles what `work` launches.
    pub(super) fn warm<E: From<Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<(), E>,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> std::result::Result<(), E> {
        let (done, entries) = self.gpu.rehearse(work);
        done?;
        self.gpu.prepare_all(&entries, progress).map_err(Error::from)?;
        let names = entries.into_iter().map(|e: Entry| e.name);
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).extend(names);
        Ok(())
    }

    /// What has been compiled and compared so far, and how products are computed.
    pub fn warmth(&self) -> Warmth {
        let counts = self.gpu.counts();
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let product = |(module, decision): &(String, super::Decision)| {
            let by = match decision.rung {
                Rung::Tensor => "tensor cores",
                Rung::Fast => "fast",
                Rung::Simple => "simple",
                Rung::Host => "cpu",
            };
            Product { module: module.clone(), by, reason: decision.reason }
        };
        // Those of the checks themselves say nothing to anybody.
        let mut products: Vec<Product> = plan.values().filter(|(m, _)| m != check::NAME).map(product).collect();
        products.sort();
        Warmth {
            compiled: counts.compiled,
            found: counts.found,
            compile_seconds: counts.compiling as f64 * 1e-9,
            check_seconds: counts.checking as f64 * 1e-9,
            checked: self.gpu.checked(),
            unchecked: wanted.iter().filter(|name| !self.gpu.is_checked(name)).cloned().collect(),
            products,
        }
    }
}
