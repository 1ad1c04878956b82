//! Grouped-query attention as Llama and Qwen have it.

use super::inverse_frequencies;
use crate::{Inventory, Loader, Result};
use marlin_backend::blocks::Attention;
use marlin_backend::{Backend, KvLayout, RopeTable};
use marlin_checkpoint::{Config, RopeConfig, RopeScaling};
use std::sync::Arc;

/// Sizes and switches of an attention layer.
#[derive(Clone, Debug)]
pub struct GroupedAttention {
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    qkv_bias: bool,
    o_bias: bool,
    head_norms: bool,
    rope: RopeConfig,
}

impl GroupedAttention {
    /// From the keys all share; biases and head norms are off.
    pub fn parse(config: &Config, default_theta: f64) -> Result<Self> {
        let (hidden, heads) = (config.usize("hidden_size")?, config.usize("num_attention_heads")?);
        let kv_heads = config.usize_or("num_key_value_heads", heads)?;
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(config
                .wrong("num_key_value_heads", format!("a divisor of num_attention_heads = {heads}"))
                .into());
        }
        let head_dim = config.usize_or("head_dim", hidden / heads)?;
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(config.wrong("head_dim", format!("an even number (it is {head_dim})")).into());
        }
        if config.bool_or("use_sliding_window", false)? {
            return Err(config.wrong("use_sliding_window", "false (sliding windows are not supported)").into());
        }
        let rope = config.rope(default_theta)?;
        if rope.partial_rotary_factor != 1.0 {
            return Err(config.wrong("partial_rotary_factor", "1 for this architecture").into());
        }
        if let RopeScaling::Divisors(divisors) = &rope.scaling
            && divisors.len() != head_dim / 2
        {
            let expected =
                format!("{} divisors, one for each rotated pair (there are {})", head_dim / 2, divisors.len());
            return Err(config.wrong("rope_parameters", expected).into());
        }
        Ok(Self { hidden, heads, kv_heads, head_dim, qkv_bias: false, o_bias: false, head_norms: false, rope })
    }

    /// With biases on q, k and v, and on the output projection.
    pub fn with_biases(self, qkv_bias: bool, o_bias: bool) -> Self {
        Self { qkv_bias, o_bias, ..self }
    }

    /// With a norm of each query and key head before it is rotated.
    pub fn with_head_norms(self) -> Self {
        Self { head_norms: true, ..self }
    }

    /// What a token stores.
    pub fn kv(&self) -> KvLayout {
        KvLayout::Heads { heads: self.kv_heads, key: self.head_dim, value: self.head_dim }
    }

    /// Declares `{layer}.input_layernorm` and `{layer}.self_attn.*`.
    pub fn declare(&self, inventory: &mut Inventory, layer: &str) {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        inventory.vector(&format!("{layer}.input_layernorm.weight"), self.hidden);
        for (name, rows, cols, bias) in [
            ("q_proj", q, self.hidden, self.qkv_bias),
            ("k_proj", kv, self.hidden, self.qkv_bias),
            ("v_proj", kv, self.hidden, self.qkv_bias),
            ("o_proj", self.hidden, q, self.o_bias),
        ] {
            let module = format!("{layer}.self_attn.{name}");
            inventory.matrix(&module, rows, cols);
            if bias {
                inventory.vector(&format!("{module}.bias"), rows);
            }
        }
        if self.head_norms {
            inventory.vector(&format!("{layer}.self_attn.q_norm.weight"), self.head_dim);
            inventory.vector(&format!("{layer}.self_attn.k_norm.weight"), self.head_dim);
        }
    }

    /// Loads what `declare` declares.
    pub fn load<B: Backend>(&self, loader: &Loader<B>, layer: &str, eps: f32) -> Result<Attention<B>> {
        let module = |name: &str| format!("{layer}.self_attn.{name}");
        let head_norm = |name: &str| self.head_norms.then(|| loader.norm(&module(name), eps)).transpose();
        let table = RopeTable { inv_freq: inverse_frequencies(&self.rope, self.head_dim), interleaved: false };
        Ok(Attention {
            norm: loader.norm(&format!("{layer}.input_layernorm"), eps)?,
            q_proj: loader.linear(&module("q_proj"), self.qkv_bias)?,
            k_proj: loader.linear(&module("k_proj"), self.qkv_bias)?,
            v_proj: loader.linear(&module("v_proj"), self.qkv_bias)?,
            o_proj: loader.linear(&module("o_proj"), self.o_bias)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
            rope: Arc::new(loader.backend.rope_table(table)?),
            heads: self.heads,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).powf(-0.5),
        })
    }
}
