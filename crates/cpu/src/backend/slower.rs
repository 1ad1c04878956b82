//! Where the backend takes a slower path in fast mode, and counts it.

use super::{CpuBackend, CpuExperts, CpuLinear, CpuRouting};
use crate::Mode;
use crate::linear::W;
use marlin_backend::LinearHandle;
use marlin_backend::fallback::{Fallback, Fallbacks, Reason};

impl CpuBackend {
    /// Counts of products that took a slower path.
    pub fn fallbacks(&self) -> &Fallbacks {
        &self.fallbacks
    }

    fn count(&self, reason: Reason, w: &CpuLinear, batch: usize, [top_k, experts]: [usize; 2]) {
        self.fallbacks.note(Fallback { reason, module: w.name().to_owned(), batch, top_k, experts });
    }

    /// Counts a weight without a kernel.
    pub(super) fn note_decoded(&self, w: &CpuLinear, batch: usize, reason: Reason) {
        if self.mode == Mode::Fast {
            self.count(reason, w, batch, [0, 0]);
        }
    }

    /// Counts those of the layers whose codes are multiplied in f32.
    pub(super) fn note_floats(&self, linears: &[&CpuLinear], batch: usize) {
        for w in linears.iter().filter(|w| self.mode == Mode::Fast && w.has_float_codes()) {
            self.count(Reason::FloatCodes, w, batch, [0, 0]);
        }
    }

    /// Counts experts whose codes are multiplied in f32, once for all that the rows go to.
    pub(super) fn note_float_experts(&self, experts: &CpuExperts, routing: &CpuRouting, batch: usize) {
        let float = |w: &&CpuLinear| self.mode == Mode::Fast && w.has_float_codes();
        if let Some(w) = chosen(experts, routing).flatten().find(float) {
            self.count(Reason::FloatCodes, w, batch, [routing.slots, experts.0.len()]);
        }
    }

    /// Counts experts that the rows go to, where those are neither all trellises nor of the same sizes and with kernels.
    pub(super) fn note_apart(&self, experts: &CpuExperts, routing: &CpuRouting, batch: usize) {
        let Some(first) = chosen(experts, routing).next().filter(|_| self.mode == Mode::Fast) else { return };
        let sizes = |w: &CpuLinear| [w.padded_cols(), w.padded_rows()];
        let apart = (0..first.len()).any(|part| {
            let all = || chosen(experts, routing).map(|e| &e[part]);
            let alike = all().all(|w| sizes(w) == sizes(&first[part]) && matches!(w.weight(), Ok(Some(_))));
            !alike && !all().all(|w| w.trellis().is_some())
        });
        if apart {
            self.count(Reason::MixedExperts, &first[0], batch, [routing.slots, experts.0.len()]);
        }
    }

    /// Counts a latent projection, or the part of one, that is used in f32 though it is quantised.
    pub(super) fn note_latent(&self, w: &CpuLinear, batch: usize) {
        if self.mode == Mode::Fast && !matches!(w.plain(), Ok(Some(W::Dense(_)))) {
            self.count(Reason::LatentNotSplit, w, batch, [0, 0]);
        }
    }
}

/// The experts that rows go to, as often as they do.
fn chosen<'a>(experts: &'a CpuExperts, routing: &'a CpuRouting) -> impl Iterator<Item = &'a [CpuLinear; 3]> {
    routing.experts.iter().filter_map(|e| experts.0.get(*e as usize))
}
