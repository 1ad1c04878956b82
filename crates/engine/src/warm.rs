//! Getting ready: the backend hears what steps there will be, so that the first request waits for nothing to be compiled.

use crate::{Engine, Result};
use marlin_backend::{Backend, Observer, SampleRow, SequenceStep, Step, Token};
use marlin_models::NanGuard;

/// 1, 2, 3, 4, 5 and so on: the powers of two up to `most`, what follows each, and `most`.
fn sizes(most: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(1usize), |n| n.checked_mul(2)).take_while(|n| *n <= most);
    let mut all: Vec<usize> = powers.flat_map(|n| [n, n + 1]).filter(|n| *n <= most).chain([most]).collect();
    all.sort_unstable();
    all.dedup();
    all
}

impl<B: Backend> Engine<B> {
    /// Lets the backend get ready for, and make sure of, every kind of step that this engine builds: prompts of all lengths, alone and behind others' tokens,
    /// short and deep contexts, all batches. `progress` is told how many of how many kernels are compiled.
    pub fn warm(&self, progress: &(dyn Fn(usize, usize) + Sync)) -> Result<()> {
        self.backend.rehearse(|| self.every_step(), progress)?;
        Ok(self.backend.trust(&self.model.shapes())?)
    }

    fn every_step(&self) -> Result<()> {
        let context = self.sizing().context.max(1);
        let (chunk, batch) = (self.scheduler.limits().chunk.min(context), self.options.max_batch);
        for len in sizes(chunk) {
            for cached in [0, context - len] {
                self.one_step(&[(cached, len)], cached == 0)?;
            }
        }
        let depths = std::iter::successors(Some(256usize), |n| n.checked_mul(2)).take_while(|n| *n < context);
        let depths: Vec<usize> = depths.chain([context]).collect();
        for rows in sizes(batch) {
            for depth in &depths {
                self.one_step(&vec![(depth - 1, 1); rows], true)?;
            }
        }
        // A prompt beside others' answers.
        for rows in sizes(batch.saturating_sub(1)) {
            let others = chunk.saturating_sub(rows);
            if others > 0 {
                let mut parts = vec![(context - 1, 1); rows];
                parts.push((0, others));
                self.one_step(&parts, true)?;
            }
        }
        Ok(())
    }

    /// A step of sequences with so many tokens behind them, and so many in it; the last of each is wanted.
    fn one_step(&self, parts: &[(usize, usize)], wanted: bool) -> Result<()> {
        let mut step = Step::default();
        for &(cached, len) in parts {
            step.tokens.resize(step.tokens.len() + len, Token::Id(0));
            // Nothing is written: any block will do.
            let blocks = vec![0; (cached + len).div_ceil(self.sizing().block_size)];
            step.sequences.push(SequenceStep { cached, len, blocks });
            if wanted {
                step.outputs.push(step.tokens.len() as u32 - 1);
            }
        }
        let b = self.backend.as_ref();
        let guard: Option<&dyn Observer<B>> = if self.options.guard { Some(&NanGuard) } else { None };
        let batch = b.begin(&step, &self.kv, None)?;
        let logits = self.model.forward(b, &batch, &self.kv, guard)?;
        if wanted {
            let greedy = SampleRow::greedy(self.vocab());
            let drawn = SampleRow { temperature: 1.0, top_k: 40, top_p: 0.9, ..greedy.clone() };
            b.sample(&logits, &vec![drawn; parts.len()])?;
            let samples = b.sample(&logits, &vec![greedy; parts.len()])?;
            if parts.iter().all(|(_, len)| *len == 1) {
                let tokens = (0..parts.len() as u32).map(Token::Sampled).collect();
                b.begin(&Step { tokens, ..step }, &self.kv, Some(&samples))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::sizes;

    #[test]
    fn sizes_lie_on_both_sides_of_every_power_of_two() {
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(20), [1, 2, 3, 4, 5, 8, 9, 16, 17, 20]);
    }
}
