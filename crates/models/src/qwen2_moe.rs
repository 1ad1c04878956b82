//! Qwen1.5-MoE and Qwen2-MoE: attention with q/k/v biases, routed experts, and a shared expert behind a sigmoid gate.

use crate::parts::{GroupedAttention, QwenFeedForward, Shared, layer};
use crate::{Inventory, Layer, Loader, ModelInfo, Result};
use marlin_backend::Backend;
use marlin_checkpoint::Config;

/// `model_type` "qwen2_moe".
#[derive(Clone, Debug)]
pub struct Qwen2Moe {
    pub(crate) info: ModelInfo,
    self_attn: GroupedAttention,
    mlp: QwenFeedForward,
}

impl Qwen2Moe {
    pub(crate) fn parse(config: &Config) -> Result<Self> {
        let qkv_bias = config.bool_or("qkv_bias", true)?;
        let self_attn = GroupedAttention::parse(config, 1e4)?.with_biases(qkv_bias, false);
        let shared = Shared {
            name: "shared_expert",
            intermediate: config.usize("shared_expert_intermediate_size")?,
            gate: Some("shared_expert_gate"),
        };
        Ok(Self {
            info: ModelInfo::parse(config, "qwen2_moe", 1e-6, self_attn.kv())?,
            mlp: QwenFeedForward::parse(config, 4, Some(shared))?,
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
