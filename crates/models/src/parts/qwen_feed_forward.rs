//! The feed-forward layers of Qwen's mixtures: experts in most layers, a dense layer in the others.

use super::{Mixture, Shared, declare_mlp, layer, load_mlp};
use crate::architecture::{MOST_EXPERTS, bounded};
use crate::model::FeedForward;
use crate::{Inventory, Loader, Result};
use marlin_backend::Backend;
use marlin_backend::blocks::{RouterRule, Scoring};
use marlin_checkpoint::Config;

/// Which layers are sparse, and what either kind is.
#[derive(Clone, Debug)]
pub struct QwenFeedForward {
    step: usize,
    dense: Vec<usize>,
    intermediate_size: usize,
    mixture: Mixture,
}

impl QwenFeedForward {
    /// From the keys all share; `default_top_k` stands for an absent `num_experts_per_tok`.
    pub fn parse(config: &Config, default_top_k: usize, shared: Option<Shared>) -> Result<Self> {
        let key = if config.get("num_experts").is_some() { "num_experts" } else { "num_local_experts" };
        let experts = bounded(config, key, MOST_EXPERTS)?;
        let top_k = config.usize_or("num_experts_per_tok", default_top_k)?;
        if top_k == 0 || top_k > experts {
            return Err(config.wrong("num_experts_per_tok", format!("1 to {experts}, the number of experts")).into());
        }
        let rule = RouterRule {
            scoring: Scoring::Softmax,
            top_k,
            normalise: config.bool_or("norm_topk_prob", false)?,
            scale: 1.0,
            groups: 1,
            top_groups: 1,
        };
        Ok(Self {
            step: config.usize_or("decoder_sparse_step", 1)?,
            dense: config.maybe_usizes("mlp_only_layers")?.unwrap_or_default(),
            intermediate_size: config.usize("intermediate_size")?,
            mixture: Mixture {
                hidden: config.usize("hidden_size")?,
                experts,
                intermediate: config.usize("moe_intermediate_size")?,
                rule,
                correction: false,
                shared,
            },
        })
    }

    fn is_sparse(&self, i: usize) -> bool {
        self.step > 0 && (i + 1).is_multiple_of(self.step) && !self.dense.contains(&i)
    }

    /// Declares layer `i`'s norm and `mlp`.
    pub fn declare(&self, inventory: &mut Inventory, i: usize) {
        if self.is_sparse(i) {
            self.mixture.declare(inventory, &layer(i));
        } else {
            declare_mlp(inventory, &layer(i), self.mixture.hidden, self.intermediate_size);
        }
    }

    /// Loads what `declare` declares.
    pub fn load<B: Backend>(&self, loader: &Loader<B>, i: usize, eps: f32) -> Result<FeedForward<B>> {
        Ok(if self.is_sparse(i) {
            self.mixture.load(loader, &layer(i), eps)?.into()
        } else {
            load_mlp(loader, &layer(i), eps)?.into()
        })
    }
}
