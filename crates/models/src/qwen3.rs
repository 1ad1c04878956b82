//! Qwen3, dense: Llama's layers with a norm on every query and key head before rotation.

use crate::parts::{GroupedAttention, declare_mlp, layer, load_mlp};
use crate::{Inventory, Layer, Loader, ModelInfo, Result};
use marlin_backend::Backend;
use marlin_checkpoint::Config;

/// `model_type` "qwen3".
#[derive(Clone, Debug)]
pub struct Qwen3 {
    pub(crate) info: ModelInfo,
    self_attn: GroupedAttention,
    intermediate_size: usize,
}

impl Qwen3 {
    pub(crate) fn parse(config: &Config) -> Result<Self> {
        let bias = config.bool_or("attention_bias", false)?;
        let self_attn = GroupedAttention::parse(config, 1e4)?.with_biases(bias, bias).with_head_norms();
        Ok(Self {
            info: ModelInfo::parse(config, "qwen3", 1e-6, self_attn.kv())?,
            intermediate_size: config.usize("intermediate_size")?,
            self_attn,
        })
    }

    pub(crate) fn declare(&self, inventory: &mut Inventory, i: usize) {
        self.self_attn.declare(inventory, &layer(i));
        declare_mlp(inventory, &layer(i), self.info.hidden, self.intermediate_size);
    }

    pub(crate) fn layer<B: Backend>(&self, loader: &Loader<B>, i: usize) -> Result<Layer<B>> {
        Ok(Layer {
            self_attn: self.self_attn.load(loader, &layer(i), self.info.eps)?.into(),
            mlp: load_mlp(loader, &layer(i), self.info.eps)?.into(),
        })
    }
}
