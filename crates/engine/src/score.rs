//! Logits of given tokens: perplexity, comparisons, embeddings' neighbours.

use crate::{Engine, Error, Result};
use marlin_backend::{Backend, SequenceStep, Step, Token};

/// Tokens to be scored on their own.
#[derive(Clone, Copy, Debug)]
pub struct Window<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// First position whose logits are wanted; they rate the token after it.
    pub from: usize,
}

/// Logits of consecutive positions of one window.
#[derive(Clone, Copy, Debug)]
pub struct LogitRows<'a> {
    /// Index of the window.
    pub window: usize,
    /// Position of the first row.
    pub first: usize,
    /// Columns, padding of the vocabulary included.
    pub vocab: usize,
    /// Row-major logits.
    pub values: &'a [f32],
}

impl<'a> LogitRows<'a> {
    /// The positions with their logits.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &'a [f32])> + use<'a> {
        (self.first..).zip(self.values.chunks_exact(self.vocab.max(1)))
    }
}

/// Log-probability of `token` under `logits`, in f64.
pub fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    logits.get(token as usize).map_or(f64::NEG_INFINITY, |l| f64::from(l - max) - sum.ln())
}

/// A window under way.
struct Running<'a> {
    index: usize,
    window: Window<'a>,
    done: usize,
    blocks: Vec<u32>,
}

impl<B: Backend> Engine<B> {
    /// Runs independent windows through the model, several in a step where they are short, and hands their logits to
    /// `receive`, windows' positions in order, never more than `logits_memory` bytes at once. A step without wanted
    /// logits calls it with no rows, so that an error from it stops the work between any two steps. Running requests keep
    /// their blocks; the prefix cache gives way where needed.
    pub fn score(
        &mut self,
        windows: &[Window<'_>],
        receive: &mut dyn FnMut(LogitRows<'_>) -> Result<()>,
    ) -> Result<()> {
        for window in windows {
            self.check_window(window)?;
        }
        let mut next = 0;
        while next < windows.len() {
            let mut group = Vec::new();
            let mut tokens = 0;
            while let Some(window) = windows.get(next) {
                let pool = self.scheduler.pool_mut();
                let needed = window.tokens.len().div_ceil(pool.block_size());
                tokens += window.tokens.len();
                if !group.is_empty() && (tokens > self.chunk || needed > pool.available()) {
                    break;
                }
                let Some(blocks) = pool.allocate(needed) else {
                    let (block_size, available) = (pool.block_size(), pool.available());
                    return Err(Error::Busy { tokens: window.tokens.len(), needed, block_size, available });
                };
                group.push(Running { index: next, window: *window, done: 0, blocks });
                next += 1;
            }
            let result = self.score_group(&mut group, receive);
            for running in &group {
                self.scheduler.pool_mut().release(&running.blocks);
            }
            result?;
        }
        Ok(())
    }

    /// Logits `[positions, vocab]` of `tokens`, or only of the last.
    pub fn logits(&mut self, tokens: &[u32], last_only: bool) -> Result<Vec<f32>> {
        let from = if last_only { tokens.len().saturating_sub(1) } else { 0 };
        let mut all = Vec::new();
        self.score(&[Window { tokens, from }], &mut |rows| {
            all.extend_from_slice(rows.values);
            Ok(())
        })?;
        Ok(all)
    }

    /// Log-probability of every token after the first, given those before it.
    pub fn token_logprobs(&mut self, tokens: &[u32]) -> Result<Vec<f64>> {
        let mut all = Vec::with_capacity(tokens.len());
        self.score(&[Window { tokens, from: 0 }], &mut |rows| {
            for (position, logits) in rows.rows() {
                if let Some(next) = tokens.get(position + 1) {
                    all.push(log_probability(logits, *next));
                }
            }
            Ok(())
        })?;
        Ok(all)
    }

    fn check_window(&self, window: &Window<'_>) -> Result<()> {
        let prompt = window.tokens.len();
        if prompt == 0 {
            return Err(Error::EmptyPrompt);
        }
        self.check_tokens(window.tokens)?;
        let context = self.scheduler.limits().context;
        if prompt > context {
            return Err(Error::Context { prompt, generated: 0, context });
        }
        let pool = self.scheduler.pool();
        let (block_size, blocks) = (pool.block_size(), pool.total());
        if prompt.div_ceil(block_size) > blocks {
            return Err(Error::Pool { prompt, generated: 0, block_size, blocks });
        }
        Ok(())
    }

    fn score_group(
        &mut self,
        group: &mut [Running<'_>],
        receive: &mut dyn FnMut(LogitRows<'_>) -> Result<()>,
    ) -> Result<()> {
        let vocab = self.model.info().vocab;
        let most_rows = (self.options.logits_memory / (4 * vocab.max(1))).max(1);
        loop {
            let (step, parts) = next_step(group, self.chunk, most_rows);
            if step.tokens.is_empty() {
                return Ok(());
            }
            let b = self.backend.as_ref();
            let batch = b.begin(&step, &self.kv, None)?;
            let logits = self.model.forward(b, &batch, &self.kv, None)?;
            b.submit()?;
            if step.outputs.is_empty() {
                // Nothing to hand over, but the receiver may want to stop.
                if let Some(running) = group.first() {
                    receive(LogitRows { window: running.index, first: running.done, vocab, values: &[] })?;
                }
                continue;
            }
            let values = b.read(&logits)?;
            let expected = step.outputs.len() * vocab;
            if values.len() != expected {
                return Err(Error::Results { what: "logits", expected, found: values.len() });
            }
            let mut rest = values.as_slice();
            for (window, first, rows) in parts {
                let (values, after) = rest.split_at(rows * vocab);
                rest = after;
                receive(LogitRows { window, first, vocab, values })?;
            }
        }
    }
}

/// The next tokens of each window, at most `most_tokens` and with at most `most_rows` rows of logits, and whose the
/// rows are: window, first position, number.
fn next_step(group: &mut [Running<'_>], most_tokens: usize, most_rows: usize) -> (Step, Vec<(usize, usize, usize)>) {
    let (mut step, mut parts) = (Step::default(), Vec::new());
    let (mut tokens_left, mut rows_left) = (most_tokens, most_rows);
    for running in group {
        let Window { tokens, from } = running.window;
        let silent = from.saturating_sub(running.done);
        let len = (tokens.len() - running.done).min(tokens_left).min(silent + rows_left);
        if len == 0 {
            continue;
        }
        let end = running.done + len;
        let rows = len.saturating_sub(silent);
        let start = step.tokens.len();
        step.tokens.extend(tokens[running.done..end].iter().map(|t| Token::Id(*t)));
        step.outputs.extend((start + len - rows..start + len).map(|r| r as u32));
        step.sequences.push(SequenceStep { cached: running.done, len, blocks: running.blocks.clone() });
        if rows > 0 {
            parts.push((running.index, end - rows, rows));
        }
        running.done = end;
        tokens_left -= len;
        rows_left -= rows;
    }
    (step, parts)
}

#[cfg(test)]
#[path = "tests/score.rs"]
mod tests;
