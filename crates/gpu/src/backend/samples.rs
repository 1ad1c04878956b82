//! Tokens chosen from logits: on the device by temperature, top-k, top-p and min-p; on the CPU, and counted, where penalties or a bias
//! change the logits or log-probabilities of other tokens are asked for.

use super::{GpuBackend, Tensor};
use crate::kernels::{
    DRAWN, DrawChoose, DrawCount, DrawGather, GreedyArgs, GreedyJoin, GreedyPart, MOST_TOKENS, NUCLEUS, SELECTS,
};
use crate::{Fetch, Slice};
use marlin_backend::fallback::Reason;
use marlin_backend::{Backend, Result, Sample, SampleRow, sampling};
use std::sync::{Arc, OnceLock};

/// Chosen tokens, perhaps not yet known to the host.
#[derive(Clone)]
pub struct GpuSamples(Arc<Choice>);

enum Choice {
    /// Four words a row on the device: token, how much less than the best its logit is, the margin, the sum of exponentials relative to
    /// the best; and the same on their way to the host.
    Device { rows: usize, words: Slice<u32>, fetch: Fetch<u32>, chosen: OnceLock<Vec<Sample>> },
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
}

/// Threadgroups that look at one row.
const PARTS: u32 = 64;

/// Why these rows are not chosen from on the device, if they are not.
fn refusal(rows: &[SampleRow]) -> Option<&'static str> {
    let vocab = rows.first().map_or(0, |row| row.vocab);
    if vocab == 0 || vocab > MOST_TOKENS || rows.iter().any(|row| row.vocab != vocab) {
        return Some("vocabularies");
    }
    rows.iter().find_map(SampleRow::extra)
}

/// A row's settings as the kernels read them.
fn settings(row: &SampleRow, count: usize) -> [u32; 8] {
    if row.is_greedy() {
        return [0; 8];
    }
    // All tokens are no choice.
    let k = if row.top_k < count { row.top_k as u32 } else { 0 };
    let nucleus = row.top_p < 1.0;
    let flags = DRAWN | if k > 0 || nucleus { SELECTS } else { 0 } | if nucleus { NUCLEUS } else { 0 };
    // Exact but for the smallest, which the best token alone reaches.
    let share = (f64::from(row.top_p.max(0.0)) * (1u64 << 32) as f64) as u32;
    let least = if row.min_p > 0.0 { row.min_p.min(1.0).ln() } else { f32::NEG_INFINITY };
    let stream = sampling::stream(row.seed, row.draw);
    let [inverse, least, temperature] = [1.0 / row.temperature, least, row.temperature].map(f32::to_bits);
    [flags, inverse, k, share, least, stream as u32, (stream >> 32) as u32, temperature]
}

impl GpuBackend {
    /// Whether tokens chosen so stay on the device.
    pub(super) fn keeps_samples(&self, rows: &[SampleRow]) -> bool {
        rows.is_empty() || refusal(rows).is_none()
    }

    /// One token for each row of `logits`.
    pub(super) fn sampled(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<GpuSamples> {
        let logits = self.settled(logits)?;
        if logits.cols == 0 || refusal(rows).is_some() {
            return Ok(GpuSamples(Arc::new(Choice::Host { logits, rows: rows.to_vec(), chosen: OnceLock::new() })));
        }
        let all = rows[0].vocab.min(logits.cols);
        let count = all as u32;
        let parts = count.div_ceil(1024).clamp(1, PARTS);
        let args = GreedyArgs { cols: logits.cols as u32, count, each: count.div_ceil(parts), parts };
        let found = self.gpu.uninitialised(4 * rows.len() * parts as usize)?;
        let words = self.gpu.uninitialised(4 * rows.len())?;
        let (each, grid) = ([rows.len() as u32, 1, 1], [parts, rows.len() as u32, 1]);
        GreedyPart {}.launch(&self.gpu, grid, &logits.data, &found, &args)?;
        if rows.iter().all(SampleRow::is_greedy) {
            GreedyJoin {}.launch(&self.gpu, each, &found, &words, &args)?;
        } else {
            let settings: Vec<[u32; 8]> = rows.iter().map(|row| settings(row, all)).collect();
            let selects = settings.iter().any(|row| row[0] & SELECTS != 0);
            let settings = self.gpu.upload(settings.as_flattened())?;
            let wide = |each: usize| if selects { each * rows.len() } else { 1 };
            let levels = self.gpu.uninitialised(wide(32 * parts as usize))?;
            let (tokens, known) = (self.gpu.uninitialised(wide(all))?, self.gpu.uninitialised(wide(8))?);
            let drawn = self.gpu.uninitialised(4 * rows.len() * parts as usize)?;
            let (x, gpu) = (&logits.data, &self.gpu);
            if selects {
                DrawCount {}.launch(gpu, grid, x, &settings, &found, &levels, &args)?;
            }
            DrawGather {}.launch(gpu, grid, x, &settings, &found, &levels, &tokens, &drawn, &known, &args)?;
            // Where there are many tokens, there may be many candidates.
            let simds = if all > 1 << 13 { 32 } else { 8 };
            DrawChoose { simds }.launch(gpu, each, x, &settings, &found, &tokens, &drawn, &known, &words, &args)?;
        }
        let fetch = self.gpu.fetch(&words)?;
        Ok(GpuSamples(Arc::new(Choice::Device { rows: rows.len(), words, fetch, chosen: OnceLock::new() })))
    }

    /// The tokens chosen; waits for them the first time.
    pub(super) fn choose(&self, samples: &GpuSamples) -> Result<Vec<Sample>> {
        let (Choice::Device { chosen, .. } | Choice::Host { chosen, .. }) = &*samples.0;
        if let Some(chosen) = chosen.get() {
            return Ok(chosen.clone());
        }
        let found = match &*samples.0 {
            Choice::Device { fetch, .. } => {
                let sample = |[token, less, margin, sum]: &[u32; 4]| {
                    let [less, margin, sum] = [less, margin, sum].map(|bits| f32::from_bits(*bits));
                    // Relative to the best logit, the logarithm of the sum is what the best one lacks.
                    let logprob = (f64::from(less) - f64::from(sum).ln()) as f32;
                    Sample { token: *token, logprob, top: Vec::new(), margin }
                };
                self.gpu.fetched(fetch)?.as_chunks::<4>().0.iter().map(sample).collect()
            }
            Choice::Host { logits, rows, .. } => {
                let why = format!("sample ({})", refusal(rows).unwrap_or("no logits"));
                self.count(Reason::SampledOnCpu, &why, rows.len(), [0, 0]);
                let values = self.read(logits)?;
                let pick = |(values, row): (&[f32], &SampleRow)| sampling::choose(values, row);
                values.chunks_exact(logits.cols.max(1)).zip(rows).map(pick).collect()
            }
        };
        Ok(chosen.get_or_init(|| found).clone())
    }
}
