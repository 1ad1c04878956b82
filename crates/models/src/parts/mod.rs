//! What several architectures have in common.

mod attention;
mod mixture;
mod qwen_feed_forward;
mod rope;

pub(crate) use attention::GroupedAttention;
pub(crate) use mixture::{Mixture, Shared};
pub(crate) use qwen_feed_forward::QwenFeedForward;
pub(crate) use rope::inverse_frequencies;

use crate::{Inventory, Loader, Result};
use marlin_backend::Backend;
use marlin_backend::blocks::Mlp;

/// The prefix of layer `i`.
pub(crate) fn layer(i: usize) -> String {
    format!("model.layers.{i}")
}

/// Declares a dense SwiGLU layer and its norm.
pub(crate) fn declare_mlp(inventory: &mut Inventory, layer: &str, hidden: usize, intermediate: usize) {
    inventory.vector(&format!("{layer}.post_attention_layernorm.weight"), hidden);
    inventory.swiglu(&format!("{layer}.mlp"), hidden, intermediate);
}

/// Loads a dense SwiGLU layer and its norm.
pub(crate) fn load_mlp<B: Backend>(loader: &Loader<B>, layer: &str, eps: f32) -> Result<Mlp<B>> {
    Ok(Mlp {
        norm: loader.norm(&format!("{layer}.post_attention_layernorm"), eps)?,
        gate_proj: loader.linear(&format!("{layer}.mlp.gate_proj"), false)?,
        up_proj: loader.linear(&format!("{layer}.mlp.up_proj"), false)?,
        down_proj: loader.linear(&format!("{layer}.mlp.down_proj"), false)?,
    })
}
