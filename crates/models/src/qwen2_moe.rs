//! Qwen1.5-MoE and Qwen2-MoE: attention with q/k/v biases, routed experts, and a shared expert behind a sigmoid gate.

use crate::architecture::{MOST_EXPERTS, bounded};
use crate::parts::{GroupedAttention, Mixture, Shared, declare_mlp, layer, load_mlp};
use crate::{Inventory, Layer, Loader, ModelInfo, Result};
use marlin_backend::Backend;
use marlin_backend::blocks::{RouterRule, Scoring};
use marlin_checkpoint::Config;

/// `model_type` "qwen2_moe".
#[derive(Clone, Debug)]
pub struct Qwen2Moe {
    pub(crate) info: ModelInfo,
    self_attn: GroupedAttention,
    sparsity: Sparsity,
    mixture: Mixture,
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
            sparsity: Sparsity::parse(config)?,
            mixture: Mixture { shared: Some(shared), ..Sparsity::mixture(config, 4)? },
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

/// Which layers of a Qwen mixture are sparse, and how wide the others are.
#[derive(Clone, Debug)]
pub(crate) struct Sparsity {
    step: usize,
    dense: Vec<usize>,
    pub(crate) intermediate_size: usize,
}

impl Sparsity {
    pub(crate) fn parse(config: &Config) -> Result<Self> {
        Ok(Self {
            step: config.usize_or("decoder_sparse_step", 1)?,
            dense: config.maybe_usizes("mlp_only_layers")?.unwrap_or_default(),
            intermediate_size: config.usize("intermediate_size")?,
        })
    }

    pub(crate) fn is_sparse(&self, layer: usize) -> bool {
        self.step > 0 && (layer + 1).is_multiple_of(self.step) && !self.dense.contains(&layer)
    }

    /// The routed experts of a Qwen mixture.
    pub(crate) fn mixture(config: &Config, default_top_k: usize) -> Result<Mixture> {
        let key = if config.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
        let experts = bounded(config, key, MOST_EXPERTS)?;
        let top_k = config.usize_or("num_experts_per_tok", default_top_k)?;
        if top_k == 0 || top_k > experts {
            return Err(config.wrong("num_experts_per_tok", format!("1 to {experts}, the number of experts")).into());
        }
        Ok(Mixture {
            hidden: config.usize("hidden_size")?,
            experts,
            intermediate: config.usize("moe_intermediate_size")?,
            rule: RouterRule {
                scoring: Scoring::Softmax,
                top_k,
                normalise: config.bool_or("norm_topk_prob", false)?,
                scale: 1.0,
                groups: 1,
                top_groups: 1,
            },
            correction: false,
            shared: None,
        })
    }
}
