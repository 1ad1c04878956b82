//! Llama 2, 3, 3.1 and 3.2: grouped-query attention, SwiGLU, rotary positions with the scaling of Llama 3.1.

use crate::parts::{GroupedAttention, declare_mlp, layer, load_mlp};
use crate::{Inventory, Layer, Loader, ModelInfo, Result};
use marlin_backend::Backend;
use marlin_checkpoint::Config;

/// `model_type` "llama".
#[derive(Clone, Debug)]
pub struct Llama {
    pub(crate) info: ModelInfo,
    self_attn: GroupedAttention,
    intermediate_size: usize,
}

impl Llama {
    pub(crate) fn parse(config: &Config) -> Result<Self> {
        if config.bool_or("mlp_bias", false)? {
            return Err(config.wrong("mlp_bias", "false").into());
        }
        let bias = config.bool_or("attention_bias", false)?;
        let self_attn = GroupedAttention::parse(config, 1e4)?.with_biases(bias, bias);
        Ok(Self {
            info: ModelInfo::parse(config, "llama", 1e-6, self_attn.kv())?,
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
