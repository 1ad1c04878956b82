//! A decoder-only language model.

use crate::Result;
use marlin_backend::blocks::Head;
use marlin_backend::{Backend, KvLayout, KvSpec, LatentForm, Observer, Pass};
use std::sync::Arc;

/// What a model is, apart from its weights.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// `model_type` of the configuration.
    pub architecture: &'static str,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Rows of the output projection, padding included.
    pub vocab: usize,
    /// `max_position_embeddings`: the longest context.
    pub max_positions: usize,
    /// What a token stores in each layer.
    pub kv: KvLayout,
}

/// A loaded model.
pub struct Model<B: Backend> {
    info: ModelInfo,
    embed_tokens: Arc<B::Linear>,
    head: Head<B>,
}

impl<B: Backend> Model<B> {
    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// A pool of `blocks` blocks of `block_size` tokens for this model.
    pub fn kv_spec(&self, block_size: usize, blocks: usize) -> KvSpec {
        KvSpec { layers: self.info.layers, layout: self.info.kv, block_size, blocks }
    }

    /// Hidden states `[tokens, hidden]` before the first layer.
    pub fn embed(&self, b: &B, batch: &B::Batch) -> Result<B::Tensor> {
        Ok(b.embed(&self.embed_tokens, batch)?)
    }

    /// Logits `[outputs, vocab]` of a step.
    pub fn forward(&self, b: &B, batch: &B::Batch, kv: &B::Kv, observer: Option<&dyn Observer<B>>) -> Result<B::Tensor> {
        let pass = Pass { batch, kv, layer: self.info.layers, latent_form: LatentForm::Auto, observer };
        let h = self.embed(b, batch)?;
        Ok(b.head(&self.head, &h, &pass)?)
    }
}
