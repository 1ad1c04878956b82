//! How far a quantised model's predictions are from the original's.

use crate::routing::{self, BLOCK, STEP, Sets};
use crate::stats::quantile;
use crate::{Error, Protocol, Result};
use marlin_backend::{Backend, SequenceStep, Step, Token};
use marlin_cpu::Pool;
use marlin_models::Model;
use serde::{Deserialize, Serialize};
use std::sync::OnceLock;

/// Bytes of logits of both models together that are held at once.
const LOGITS: usize = 256 << 20;

/// One position's two predictions compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// KL(reference || quantised) in nats.
    pub kl: f64,
    /// Whether both find the same token likeliest.
    pub same_top: bool,
    /// Log-probabilities of the right token, by reference and quantised.
    pub log_p: [f64; 2],
}

/// log sum exp of logits, and the index of the largest.
fn normaliser(logits: &[f32]) -> (f64, usize) {
    let mut top = 0;
    for (i, l) in logits.iter().enumerate() {
        if *l > logits[top] {
            top = i;
        }
    }
    let max = logits.get(top).map_or(0.0, |l| f64::from(*l));
    (max + logits.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln(), top)
}

impl Divergence {
    /// Of two rows of logits over the same vocabulary; `right` is the token that follows.
    pub fn of(reference: &[f32], quantised: &[f32], right: u32) -> Self {
        let ((p_sum, p_top), (q_sum, q_top)) = (normaliser(reference), normaliser(quantised));
        let kl = reference.iter().zip(quantised).map(|(p, q)| {
            let (p, q) = (f64::from(*p) - p_sum, f64::from(*q) - q_sum);
            // A token that is impossible adds nothing.
            if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
        });
        let at =
            |logits: &[f32], sum: f64| logits.get(right as usize).map_or(f64::NEG_INFINITY, |l| f64::from(*l) - sum);
        // Rounding may leave a little less than nothing.
        Self { kl: clamp(kl.sum()), same_top: p_top == q_top, log_p: [at(reference, p_sum), at(quantised, q_sum)] }
    }
}

/// At least zero; not a number stays so.
fn clamp(kl: f64) -> f64 {
    if kl < 0.0 { 0.0 } else { kl }
}

/// KL divergences in order of size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // percentiles by their numbers
pub struct Percentiles {
    pub p1: f64,
    pub p5: f64,
    pub p10: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// How often routers choose other experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flips {
    /// Part of the tokens whose set of experts differs, for each layer that has a router, in order.
    pub layers: Vec<f64>,
    /// The mean over layers.
    pub mean: f64,
    /// Part of the tokens with another set in some layer.
    pub tokens: f64,
}

/// The result, with everything it depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kld {
    /// Mean KL(reference || quantised) of a position, in nats.
    pub mean: f64,
    /// Its standard error.
    pub stderr: f64,
    /// How the positions are spread.
    pub percentiles: Percentiles,
    /// Part of the positions where both find the same token likeliest.
    pub top1_agreement: f64,
    /// Root of the mean squared difference of the right token's probability.
    pub rms_delta_p: f64,
    /// Mean difference of the right token's probability, quantised less reference.
    pub mean_delta_p: f64,
    /// ln(quantised perplexity / reference perplexity).
    pub ln_ppl_ratio: f64,
    /// Its standard error, of the differences token by token.
    pub ln_ppl_ratio_stderr: f64,
    /// Perplexity of the reference.
    pub ppl_reference: f64,
    /// Its standard error.
    pub ppl_reference_stderr: f64,
    /// Perplexity of the quantised model.
    pub ppl_quantised: f64,
    /// Its standard error.
    pub ppl_quantised_stderr: f64,
    /// Experts, where both models have routers.
    pub flips: Option<Flips>,
    /// Positions compared.
    pub tokens_scored: usize,
    /// Tokens of the text.
    pub tokens: usize,
    /// Windows.
    pub windows: usize,
    /// `sliding`, `llama.cpp` or `exl3`.
    pub protocol: String,
    /// Tokens of a window.
    pub context: usize,
    /// Tokens between the starts of windows.
    pub stride: usize,
}

/// Mean, and the standard error of it.
fn mean(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let squares = values.map(|v| (v - mean) * (v - mean)).sum::<f64>();
    (mean, (squares / (count - 1.0).max(1.0) / count).sqrt())
}

impl Kld {
    /// Of the positions that were compared; what depends on the text is left for the caller.
    fn of(found: &[Divergence]) -> Self {
        let mut sorted: Vec<f64> = found.iter().map(|d| d.kl).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |q| quantile(&sorted, q);
        let count = found.len().max(1) as f64;
        let delta = |d: &Divergence| d.log_p[1].exp() - d.log_p[0].exp();
        let (kl, stderr) = mean(found.iter().map(|d| d.kl));
        let (ratio, ratio_stderr) = mean(found.iter().map(|d| d.log_p[0] - d.log_p[1]));
        // The error of the mean logarithm, carried through exp.
        let perplexity = |i: usize| {
            let (log_p, stderr) = mean(found.iter().map(|d| d.log_p[i]));
            ((-log_p).exp(), (-log_p).exp() * stderr)
        };
        let (ppl, quantised) = (perplexity(0), perplexity(1));
        Self {
            mean: kl,
            stderr,
            percentiles: Percentiles {
                p1: at(0.01),
                p5: at(0.05),
                p10: at(0.1),
                p50: at(0.5),
                p90: at(0.9),
                p95: at(0.95),
                p99: at(0.99),
                p999: at(0.999),
                max: at(1.0),
            },
            top1_agreement: found.iter().filter(|d| d.same_top).count() as f64 / count,
            rms_delta_p: (found.iter().map(|d| delta(d).powi(2)).sum::<f64>() / count).sqrt(),
            mean_delta_p: found.iter().map(delta).sum::<f64>() / count,
            ln_ppl_ratio: ratio,
            ln_ppl_ratio_stderr: ratio_stderr,
            ppl_reference: ppl.0,
            ppl_reference_stderr: ppl.1,
            ppl_quantised: quantised.0,
            ppl_quantised_stderr: quantised.1,
            flips: None,
            tokens_scored: found.len(),
            tokens: 0,
            windows: 0,
            protocol: String::new(),
            context: 0,
            stride: 0,
        }
    }
}

/// A model and where it computes.
pub struct Side<'a, B: Backend> {
    /// Where.
    pub backend: &'a B,
    /// What.
    pub model: &'a Model<B>,
}

/// Counts of changed sets of experts.
#[derive(Default)]
struct Flipped {
    layers: Vec<usize>,
    tokens: usize,
    rows: usize,
}

impl Flipped {
    fn add(&mut self, sides: &[Sets; 2], rows: &[u32]) {
        self.layers.resize(sides[0].len().max(self.layers.len()), 0);
        for row in rows {
            let mut any = false;
            for (layer, (a, b)) in sides[0].iter().zip(&sides[1]).enumerate() {
                let differs = a.get(*row as usize) != b.get(*row as usize);
                self.layers[layer] += usize::from(differs);
                any |= differs;
            }
            self.tokens += usize::from(any);
            self.rows += 1;
        }
    }

    fn finish(self) -> Option<Flips> {
        let part = |n: usize| n as f64 / self.rows.max(1) as f64;
        let layers: Vec<f64> = self.layers.iter().map(|n| part(*n)).collect();
        let mean = layers.iter().sum::<f64>() / layers.len().max(1) as f64;
        (!layers.is_empty()).then_some(Flips { mean, tokens: part(self.tokens), layers })
    }
}

/// Divergence of `quantised` from `reference` on `tokens`, both given the same tokens, some at a time: logits of at most
/// 256 MB exist at once. `bos` is used by [`Protocol::LlamaCpp`] only. Logits are compared over the vocabulary that both
/// have, or its first `vocab` tokens where the rest is padding. `progress` hears how many of how many tokens have been compared and may stop the work by answering false.
#[allow(clippy::too_many_arguments)] // one call of one command
pub fn kld<B: Backend>(
    reference: &Side<'_, B>,
    quantised: &Side<'_, B>,
    pool: &Pool,
    tokens: &[u32],
    protocol: Protocol,
    bos: Option<u32>,
    vocab: Option<usize>,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Kld> {
    let spans = protocol.windows(tokens.len())?;
    let bos = bos.filter(|_| matches!(protocol, Protocol::LlamaCpp { .. }));
    let sides = [reference, quantised];
    let widths = sides.map(|side| side.model.info().vocab);
    let vocab = widths[0].min(widths[1]).min(vocab.unwrap_or(usize::MAX));
    if let Some(index) = tokens.iter().position(|t| *t as usize >= vocab) {
        return Err(marlin_engine::Error::UnknownToken { index, token: tokens[index], vocab }.into());
    }
    let context = protocol.context();
    let most = sides.iter().map(|side| side.model.info().max_positions).min().unwrap_or(context);
    if context > most {
        return Err(Error::setting("context", format!("at most {most} tokens, which the models know"), context));
    }
    let blocks = context.div_ceil(BLOCK);
    let engine = marlin_engine::Error::from;
    let kv = |side: &Side<'_, B>| side.backend.kv(side.model.kv_spec(BLOCK, blocks)).map_err(engine);
    let kvs = [kv(reference)?, kv(quantised)?];
    let watched = routing::sparse(reference.model) && routing::sparse(quantised.model);
    let rows_at_once = (LOGITS / (4 * (widths[0] + widths[1])).max(1)).clamp(1, STEP);
    let total: usize = spans.iter().map(|s| s.end - s.scored).sum();
    let mut found: Vec<Divergence> = Vec::with_capacity(total);
    let mut flipped = Flipped::default();
    for span in &spans {
        // The last token of a window is only predicted, never an input.
        let mut text = tokens[span.start..span.end - 1].to_vec();
        if let (Some(bos), Some(first)) = (bos, text.first_mut()) {
            *first = bos;
        }
        let from = span.scored - 1 - span.start;
        let mut done = 0;
        while done < text.len() {
            if !progress(found.len(), total) {
                return Err(Error::Stopped);
            }
            let len = if done < from { (from - done).min(STEP) } else { (text.len() - done).min(rows_at_once) };
            let outputs: Vec<u32> = if done < from { Vec::new() } else { (0..len as u32).collect() };
            let step = Step {
                tokens: text[done..done + len].iter().map(|id| Token::Id(*id)).collect(),
                sequences: vec![SequenceStep { cached: done, len, blocks: (0..blocks as u32).collect() }],
                outputs: outputs.clone(),
            };
            let forward =
                |side: &Side<'_, B>, kv: &B::Kv| routing::forward(side.backend, side.model, &step, kv, watched);
            let (p, sets_p) = forward(reference, &kvs[0])?;
            let (q, sets_q) = forward(quantised, &kvs[1])?;
            flipped.add(&[sets_p, sets_q], &outputs);
            let slots: Vec<OnceLock<Divergence>> = outputs.iter().map(|_| OnceLock::new()).collect();
            let right = &tokens[span.start + done + 1..];
            pool.run(slots.len(), &|i| {
                let row = |logits: &[f32], width: usize| i * width..(i * width + vocab).min(logits.len());
                let divergence = Divergence::of(&p[row(&p, widths[0])], &q[row(&q, widths[1])], right[i]);
                slots[i].get_or_init(|| divergence);
            });
            for (i, slot) in slots.into_iter().enumerate() {
                let divergence = slot.into_inner().unwrap_or_default();
                let position = span.start + done + i + 1;
                let bad = [divergence.kl, divergence.log_p[0], divergence.log_p[1]];
                if let Some(value) = bad.into_iter().find(|v| !v.is_finite()) {
                    return Err(Error::NotFinite { position, value });
                }
                found.push(divergence);
            }
            done += len;
        }
    }
    Ok(Kld {
        flips: flipped.finish().filter(|_| watched),
        tokens: tokens.len(),
        windows: spans.len(),
        protocol: protocol.to_string(),
        context: protocol.context(),
        stride: protocol.stride(),
        ..Kld::of(&found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(p: [f32; 3], shift: f32) -> [f32; 3] {
        p.map(|p| p.ln() + shift)
    }

    /// p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2 ln 2 - 1/4 ln 2; adding a constant to logits changes nothing.
    #[test]
    fn divergence_by_hand() {
        let d = Divergence::of(&logs([0.5, 0.25, 0.25], 3.0), &logs([0.25, 0.5, 0.25], -7.0), 1);
        assert!((d.kl - 0.25 * 2f64.ln()).abs() < 1e-6 && !d.same_top, "{d:?}");
        assert!((d.log_p[0] - 0.25f64.ln()).abs() < 1e-6 && (d.log_p[1] - 0.5f64.ln()).abs() < 1e-6);
        let same = Divergence::of(&logs([0.5, 0.25, 0.25], 0.0), &logs([0.5, 0.25, 0.25], 1.0), 0);
        assert!(same.kl < 1e-7 && same.same_top);
        // What the reference rules out adds nothing; what only the quantised model rules out adds without bound.
        let out = f32::NEG_INFINITY;
        assert!((Divergence::of(&[0.0, out, 0.0], &[0.0, 0.0, 0.0], 0).kl - 1.5f64.ln()).abs() < 1e-6);
        assert_eq!(Divergence::of(&[0.0, 0.0, 0.0], &[0.0, out, 0.0], 0).kl, f64::INFINITY);
        assert!(Divergence::of(&[f32::NAN, 0.0], &[0.0, 0.0], 0).kl.is_nan());
    }

    /// KL 0 to 3; right token: p = .5 .5 .25 .25, q = .25 .5 .5 .25.
    #[test]
    fn summary_by_hand() {
        let row = |kl: f64, same_top, p: f64, q: f64| Divergence { kl, same_top, log_p: [p.ln(), q.ln()] };
        let found = [
            row(3.0, true, 0.5, 0.25),
            row(0.0, true, 0.5, 0.5),
            row(1.0, false, 0.25, 0.5),
            row(2.0, true, 0.25, 0.25),
        ];
        let kld = Kld::of(&found);
        assert_eq!((kld.mean, kld.top1_agreement, kld.tokens_scored), (1.5, 0.75, 4));
        // Deviation of 0, 1, 2, 3 is sqrt(5/3); its mean's half of that.
        assert!((kld.stderr - (5.0f64 / 3.0).sqrt() / 2.0).abs() < 1e-12);
        let p = kld.percentiles;
        assert!((p.p50 - 1.5).abs() < 1e-12 && (p.p90 - 2.7).abs() < 1e-12 && (p.p1 - 0.03).abs() < 1e-12);
        assert!((p.p999 - 2.997).abs() < 1e-12 && p.max == 3.0);
        // Differences -1/4, 0, 1/4, 0.
        assert!((kld.rms_delta_p - 0.03125f64.sqrt()).abs() < 1e-12 && kld.mean_delta_p.abs() < 1e-12);
        assert!(kld.ln_ppl_ratio.abs() < 1e-12 && (kld.ppl_reference - kld.ppl_quantised).abs() < 1e-12);
        // exp of the mean of ln 2, ln 2, ln 4, ln 4.
        assert!((kld.ppl_reference - 8f64.sqrt()).abs() < 1e-12);
        // Those deviate by ln 2 / sqrt 3; their mean by half of that.
        assert!((kld.ppl_reference_stderr - 8f64.sqrt() * 2f64.ln() / 12f64.sqrt()).abs() < 1e-12);
        assert!((kld.ppl_quantised_stderr - kld.ppl_reference_stderr).abs() < 1e-12);
    }

    #[test]
    fn flipped_sets_are_counted() {
        let mut flipped = Flipped::default();
        let a = vec![vec![vec![1, 2], vec![3, 4], vec![0, 1]], vec![vec![5, 6], vec![5, 6], vec![5, 6]]];
        let b = vec![vec![vec![1, 2], vec![3, 5], vec![0, 1]], vec![vec![5, 6], vec![5, 7], vec![0, 6]]];
        flipped.add(&[a.clone(), b], &[1, 2]);
        flipped.add(&[a.clone(), a], &[0, 1]);
        let flips = flipped.finish().unwrap();
        assert_eq!((flips.layers, flips.mean, flips.tokens), (vec![0.25, 0.5], 0.375, 0.5));
        assert_eq!(Flipped::default().finish(), None);
    }
}
