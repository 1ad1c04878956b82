//! Which experts tokens are sent to.

use crate::Result;
use marlin_backend::{Backend, Observer, SequenceStep, Step, Token};
use marlin_models::Model;
use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// Tokens of a block of KV memory.
pub(crate) const BLOCK: usize = 32;
/// Most tokens of a step without logits.
pub(crate) const STEP: usize = 512;

/// Experts of each row of a step, ascending, layer after layer.
pub(crate) type Sets = Vec<Vec<Vec<u32>>>;

/// Remembers which experts each row of a step was sent to.
#[derive(Default)]
struct Choices(Mutex<Sets>);

impl<B: Backend> Observer<B> for Choices {
    fn linear(&self, _: &B, _: &B::Linear, _: &B::Tensor, _: &B::Tensor) -> marlin_backend::Result<()> {
        Ok(())
    }

    fn routing(&self, _: &B, _: &B::Linear, choices: &[Vec<(u32, f32)>]) -> marlin_backend::Result<()> {
        let set = |row: &Vec<(u32, f32)>| {
            let mut experts: Vec<u32> = row.iter().map(|c| c.0).collect();
            experts.sort_unstable();
            experts
        };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(choices.iter().map(set).collect());
        Ok(())
    }
}

/// Whether a model has experts.
pub(crate) fn sparse<B: Backend>(model: &Model<B>) -> bool {
    model.report().modules.iter().any(|(name, _)| name.contains(".experts."))
}

/// Logits of the step's outputs, and each layer's sets of experts for all rows if `watched`.
pub(crate) fn forward<B: Backend>(
    b: &B,
    model: &Model<B>,
    step: &Step,
    kv: &B::Kv,
    watched: bool,
) -> marlin_engine::Result<(Vec<f32>, Sets)> {
    let choices = Choices::default();
    let batch = b.begin(step, kv, None)?;
    let observer: Option<&dyn Observer<B>> = if watched { Some(&choices) } else { None };
    let logits = model.forward(b, &batch, kv, observer)?;
    b.submit()?;
    Ok((b.read(&logits)?, choices.0.into_inner().unwrap_or_else(PoisonError::into_inner)))
}

/// How many different experts of each layer of a mixture the tokens from `from` on are sent to.
pub(crate) fn distinct<B: Backend>(b: &B, model: &Model<B>, tokens: &[u32], from: usize) -> Result<Vec<usize>> {
    let blocks = tokens.len().div_ceil(BLOCK);
    let kv = b.kv(model.kv_spec(BLOCK, blocks)).map_err(marlin_engine::Error::from)?;
    let mut layers: Vec<HashSet<u32>> = Vec::new();
    for (i, some) in tokens.chunks(STEP).enumerate() {
        let cached = i * STEP;
        let step = Step {
            tokens: some.iter().map(|id| Token::Id(*id)).collect(),
            sequences: vec![SequenceStep { cached, len: some.len(), blocks: (0..blocks as u32).collect() }],
            outputs: Vec::new(),
        };
        let (_, sets) = forward(b, model, &step, &kv, true)?;
        layers.resize_with(sets.len().max(layers.len()), HashSet::new);
        for (layer, rows) in layers.iter_mut().zip(&sets) {
            layer.extend(rows.iter().skip(from.saturating_sub(cached)).flatten());
        }
    }
    Ok(layers.iter().map(HashSet::len).collect())
}
