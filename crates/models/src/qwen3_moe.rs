//! Qwen3-MoE: Qwen3's attention, and in most layers routed experts without a shared one.

use crate::parts::{GroupedAttention, QwenFeedForward, layer};
use crate::{Inventory, Layer, Loader, ModelInfo, Result};
use marlin_backend::Backend;
use marlin_checkpoint::Config;

/// `model_type` "qwen3_moe".
#[derive(Clone, Debug)]
pub struct Qwen3Moe {
    pub(crate) info: ModelInfo,
    self_attn: GroupedAttention,
    mlp: QwenFeedForward,
}

impl Qwen3Moe {
    pub(crate) fn parse(config: &Config) -> Result<Self> {
        let bias = config.bool_or("attention_bias", false)?;
        let self_attn = GroupedAttention::parse(config, 1e4)?.with_biases(bias, bias).with_head_norms();
        Ok(Self {
            info: ModelInfo::parse(config, "qwen3_moe", 1e-6, self_attn.kv())?,
            mlp: QwenFeedForward::parse(config, 8, None)?,
            self_attn,
        })
    }

    pub(crate) fn declare(&self, inventory: &mut Inventory, i: usize) {
        self.self_attn.declare(inventory, &layer(i));
        self.mlp.declare(inventory, i);
    }

    pub(crate) fn layer<B: Backend>(&self, loader: &Loader<B>, i: usize) -> Result<Layer<B>> {
        Ok(Layer {
            self_attn: self.self_attn.load(loader, &layer(i), self.info.eps)?.into(),
            mlp: self.mlp.load(loader, i, self.info.eps)?,
        })
    }
}
