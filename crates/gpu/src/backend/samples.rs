//! Tokens chosen from logits: on the device where the most probable one is wanted and nothing else, on the CPU otherwise.

use super::{GpuBackend, Tensor};
use crate::Slice;
use crate::kernels::{GreedyArgs, GreedyJoin, GreedyPart};
use marlin_backend::{Backend, Result, Sample, SampleRow, sampling};
use std::sync::{Arc, OnceLock};

/// Chosen tokens, perhaps not yet known to the host.
#[derive(Clone)]
pub struct GpuSamples(Arc<Choice>);

enum Choice {
    /// Four words a row on the device: token, its logit, the second logit, the sum of exponentials relative to the best.
    Device { rows: usize, words: Slice<u32>, chosen: OnceLock<Vec<Sample>> },
    /// Logits, from which the CPU chooses when somebody first wants to know.
    Host { logits: Tensor, rows: Vec<SampleRow>, chosen: OnceLock<Vec<Sample>> },
}

impl GpuSamples {
    /// Rows.
    pub(super) fn len(&self) -> usize {
        match &*self.0 {
            Choice::Device { rows, .. } => *rows,
            Choice::Host { rows, .. } => rows.len(),
        }
    }

    /// The words of the samples, if they are on the device.
    pub(super) fn on_device(&self) -> Option<&Slice<u32>> {
        match &*self.0 {
            Choice::Device { words, .. } => Some(words),
            Choice::Host { .. } => None,
        }
    }

    /// Whether the host has them.
    pub(super) fn is_known(&self) -> bool {
        let (Choice::Device { chosen, .. } | Choice::Host { chosen, .. }) = &*self.0;
        chosen.get().is_some()
    }
}

/// Threadgroups that look at one row.
const PARTS: u32 = 64;

impl GpuBackend {
    /// One token for each row of `logits`.
    pub(super) fn sampled(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<GpuSamples> {
        let vocab = rows.first().map_or(0, |row| row.vocab);
        let greedy = |row: &SampleRow| row.is_plainly_greedy() && row.vocab == vocab;
        if vocab == 0 || logits.cols == 0 || !rows.iter().all(greedy) {
            let logits = self.settled(logits)?;
            return Ok(GpuSamples(Arc::new(Choice::Host { logits, rows: rows.to_vec(), chosen: OnceLock::new() })));
        }
        let count = vocab.min(logits.cols) as u32;
        let parts = count.div_ceil(1024).clamp(1, PARTS);
        let args = GreedyArgs { cols: logits.cols as u32, count, each: count.div_ceil(parts), parts };
        let found = self.gpu.uninitialised(4 * rows.len() * parts as usize)?;
        let words = self.gpu.uninitialised(4 * rows.len())?;
        let logits = self.settled(logits)?;
        GreedyPart {}.launch(&self.gpu, [parts, rows.len() as u32, 1], &logits.data, &found, &args)?;
        GreedyJoin {}.launch(&self.gpu, [rows.len() as u32, 1, 1], &found, &words, &args)?;
        Ok(GpuSamples(Arc::new(Choice::Device { rows: rows.len(), words, chosen: OnceLock::new() })))
    }

    /// The tokens chosen; waits for them the first time.
    pub(super) fn choose(&self, samples: &GpuSamples) -> Result<Vec<Sample>> {
        let (Choice::Device { chosen, .. } | Choice::Host { chosen, .. }) = &*samples.0;
        if let Some(chosen) = chosen.get() {
            return Ok(chosen.clone());
        }
        let found = match &*samples.0 {
            Choice::Device { words, .. } => {
                let sample = |[token, best, second, sum]: &[u32; 4]| {
                    let [best, second, sum] = [best, second, sum].map(|bits| f32::from_bits(*bits));
                    // Relative to the best logit, the logarithm of the sum is what the best one lacks.
                    let logprob = if best.is_finite() { -f64::from(sum).ln() as f32 } else { f32::NAN };
                    Sample { token: *token, logprob, top: Vec::new(), margin: best - second }
                };
                self.gpu.read(words)?.as_chunks::<4>().0.iter().map(sample).collect()
            }
            Choice::Host { logits, rows, .. } => {
                let values = self.read(logits)?;
                let pick = |(values, row): (&[f32], &SampleRow)| sampling::choose(values, row);
                values.chunks_exact(logits.cols.max(1)).zip(rows).map(pick).collect()
            }
        };
        Ok(chosen.get_or_init(|| found).clone())
    }
}
