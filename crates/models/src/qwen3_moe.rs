//! Qwen3-MoE: Qwen3's attention, and in most layers routed experts without a shared one.

use crate::parts::{GroupedAttention, Mixture, declare_mlp, layer, load_mlp};
use crate::qwen2_moe::Sparsity;
use crate::{Inventory, Layer, Loader, ModelInfo, Result};
use marlin_backend::Backend;
use marlin_checkpoint::Config;

/// `model_type` "qwen3_moe".
#[derive(Clone, Debug)]
pub struct Qwen3Moe {
    pub(crate) info: ModelInfo,
    self_attn: GroupedAttention,
    sparsity: Sparsity,
    mixture: Mixture,
}

impl Qwen3Moe {
    pub(crate) fn parse(config: &Config) -> Result<Self> {
        let bias = config.bool_or("attention_bias", false)?;
        let self_attn = GroupedAttention::parse(config, 1e4)?.with_biases(bias, bias).with_head_norms();
        Ok(Self {
            info: ModelInfo::parse(config, "qwen3_moe", 1e-6, self_attn.kv())?,
            sparsity: Sparsity::parse(config)?,
            mixture: Sparsity::mixture(config, 8)?,
            self_attn,
        })
    }

    pub(crate) fn declare(&self, inventory: &mut Inventory, i: usize) {
        self.self_attn.declare(inventory, &layer(i));
        if self.sparsity.is_sparse(i) {
            self.mixture.declare(inventory, &layer(i));
        } else {
            declare_mlp(inventory, &layer(i), self.info.hidden, self.sparsity.intermediate_size);
        }
    }

    pub(crate) fn layer<B: Backend>(&self, loader: &Loader<B>, i: usize) -> Result<Layer<B>> {
        Ok(Layer {
            self_attn: self.self_attn.load(loader, &layer(i), self.info.eps)?.into(),
            mlp: if self.sparsity.is_sparse(i) {
                self.mixture.load(loader, &layer(i), self.info.eps)?.into()
            } else {
                load_mlp(loader, &layer(i), self.info.eps)?.into()
            },
        })
    }
}
