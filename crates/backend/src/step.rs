//! The step: one call to a model.

use crate::{Error, KvSpec, Result};

/// A token to be embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A known id.
    Id(u32),
    /// Row `r` of the previous step's samples, which may still be on the device.
    Sampled(u32),
}

/// The part of a step that belongs to one sequence: `len` tokens at positions `cached..cached + len`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceStep {
    /// Tokens of the sequence already in the KV memory; also the position of its first token in this step.
    pub cached: usize,
    /// Tokens of the sequence in this step, at least 1.
    pub len: usize,
    /// The sequence's KV blocks in order; block `b` holds positions `b * block_size ..`. Covers `cached + len`.
    pub blocks: Vec<u32>,
}

/// A ragged batch. Prefill, chunked prefill, decode, continuous batching, speculative verification and perplexity
/// differ only in what they put here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// All tokens, sequence after sequence.
    pub tokens: Vec<Token>,
    /// Whose tokens they are; lengths sum to `tokens.len()`.
    pub sequences: Vec<SequenceStep>,
    /// Rows (indices into `tokens`) whose logits are wanted, ascending.
    pub outputs: Vec<u32>,
}

/// Where one row of a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Index into [`Step::sequences`].
    pub sequence: usize,
    /// Position in the sequence, from 0.
    pub position: usize,
}

impl Step {
    /// The row table: sequence and position of every token.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.sequences
            .iter()
            .enumerate()
            .flat_map(|(sequence, s)| (s.cached..s.cached + s.len).map(move |position| Row { sequence, position }))
    }

    /// Refuses a step that a backend could not carry out: lengths that do not add up, a block table that is too short
    /// or names a block outside the pool, an output row that does not exist, a sample row that was not sampled.
    pub fn check(&self, kv: &KvSpec, previous_samples: usize) -> Result<()> {
        let total: usize = self.sequences.iter().map(|s| s.len).sum();
        if total != self.tokens.len() {
            return Err(Error::Step(format!("{} tokens, but the sequences have {total}", self.tokens.len())));
        }
        for (i, s) in self.sequences.iter().enumerate() {
            let needed = (s.cached + s.len).div_ceil(kv.block_size);
            if s.len == 0 || s.blocks.len() < needed {
                return Err(Error::Step(format!(
                    "sequence {i}: {} + {} tokens need {needed} blocks of {}, found {}",
                    s.cached,
                    s.len,
                    kv.block_size,
                    s.blocks.len()
                )));
            }
            if let Some(block) = s.blocks.iter().find(|b| **b as usize >= kv.blocks) {
                return Err(Error::Step(format!("sequence {i}: block {block} of a pool of {}", kv.blocks)));
            }
        }
        if !self.outputs.is_sorted_by(|a, b| a < b) || self.outputs.last().is_some_and(|r| *r as usize >= total) {
            return Err(Error::Step(format!("output rows {:?} of {total}", self.outputs)));
        }
        for token in &self.tokens {
            if let Token::Sampled(r) = token
                && *r as usize >= previous_samples
            {
                return Err(Error::Step(format!("token is sample {r} of {previous_samples}")));
            }
        }
        Ok(())
    }
}
