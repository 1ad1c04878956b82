//! GLM-4.7-Flash: multi-head latent attention, routed experts chosen by corrected sigmoid scores, a shared expert.

use crate::architecture::{MOST_EXPERTS, bounded};
use crate::parts::{Mixture, Shared, declare_mlp, inverse_frequencies, layer, load_mlp};
use crate::{Inventory, Layer, Loader, ModelInfo, Result};
use marlin_backend::blocks::{LatentAttention, RouterRule, Scoring};
use marlin_backend::{Backend, KvLayout, RopeTable};
use marlin_checkpoint::{Config, LatentSizes, RopeConfig, RopeScaling};
use std::sync::Arc;

/// transformers builds the two norms inside the attention with its default, whatever `rms_norm_eps` says.
const LATENT_NORM_EPS: f32 = 1e-6;

/// More multi-token-prediction layers than any model has.
const MOST_MTP: usize = 16;

/// `model_type` "glm4_moe_lite".
#[derive(Clone, Debug)]
pub struct Glm4MoeLite {
    pub(crate) info: ModelInfo,
    num_attention_heads: usize,
    q_lora_rank: usize,
    kv_lora_rank: usize,
    qk_nope_head_dim: usize,
    qk_rope_head_dim: usize,
    v_head_dim: usize,
    rope: RopeConfig,
    rope_interleave: bool,
    sparse: Vec<bool>,
    intermediate_size: usize,
    mixture: Mixture,
    num_nextn_predict_layers: usize,
}

impl Glm4MoeLite {
    pub(crate) fn parse(config: &Config) -> Result<Self> {
        if config.bool_or("attention_bias", false)? {
            return Err(config.wrong("attention_bias", "false").into());
        }
        match config.string_or("scoring_func", "sigmoid")? {
            "sigmoid" => {}
            _ => return Err(config.wrong("scoring_func", "sigmoid").into()),
        }
        let rope = config.rope(1e6)?;
        if rope.scaling != RopeScaling::None || rope.partial_rotary_factor != 1.0 {
            return Err(config.wrong("rope_scaling", "null for this architecture").into());
        }
        let (kv_lora_rank, qk_rope_head_dim) = (config.usize("kv_lora_rank")?, config.usize("qk_rope_head_dim")?);
        let info = ModelInfo::parse(
            config,
            "glm4_moe_lite",
            1e-5,
            KvLayout::Latent { rank: kv_lora_rank, rope: qk_rope_head_dim },
        )?;
        let experts = bounded(config, "n_routed_experts", MOST_EXPERTS)?;
        let top_k = config.usize("num_experts_per_tok")?;
        let (groups, top_groups) = (config.usize_or("n_group", 1)?, config.usize_or("topk_group", 1)?);
        if groups == 0 || !experts.is_multiple_of(groups) || top_groups == 0 || top_groups > groups {
            return Err(config
                .wrong("n_group", format!("a divisor of n_routed_experts = {experts}, at least topk_group"))
                .into());
        }
        if top_k == 0 || top_k > experts / groups * top_groups {
            return Err(config
                .wrong("num_experts_per_tok", "at least 1, at most the experts in topk_group groups")
                .into());
        }
        let num_nextn_predict_layers = config.usize_or("num_nextn_predict_layers", 0)?;
        if num_nextn_predict_layers > MOST_MTP {
            return Err(config.wrong("num_nextn_predict_layers", format!("a number up to {MOST_MTP}")).into());
        }
        let intermediate = config.usize("moe_intermediate_size")?;
        let shared = config.usize_or("n_shared_experts", 1)?;
        let mixture = Mixture {
            hidden: info.hidden,
            experts,
            intermediate,
            rule: RouterRule {
                scoring: Scoring::Sigmoid,
                top_k,
                normalise: config.bool_or("norm_topk_prob", true)?,
                scale: config.f32_or("routed_scaling_factor", 1.8)?,
                groups,
                top_groups,
            },
            correction: true,
            shared: (shared > 0).then_some(Shared {
                name: "shared_experts",
                intermediate: intermediate * shared,
                gate: None,
            }),
        };
        let sparse = match config.maybe_strings("mlp_layer_types")? {
            Some(types) if types.iter().all(|kind| matches!(*kind, "dense" | "sparse")) => {
                types.into_iter().map(|kind| kind == "sparse").collect()
            }
            Some(_) => return Err(config.wrong("mlp_layer_types", "\"dense\" or \"sparse\" for each layer").into()),
            None => {
                let first = config.usize_or("first_k_dense_replace", 1)?;
                (0..info.layers).map(|i| i >= first).collect::<Vec<_>>()
            }
        };
        if sparse.len() < info.layers {
            return Err(config
                .wrong("mlp_layer_types", format!("one entry for each of {} layers", info.layers))
                .into());
        }
        Ok(Self {
            num_attention_heads: config.usize("num_attention_heads")?,
            q_lora_rank: config.usize("q_lora_rank")?,
            kv_lora_rank,
            qk_nope_head_dim: config.usize("qk_nope_head_dim")?,
            qk_rope_head_dim,
            v_head_dim: config.usize("v_head_dim")?,
            rope,
            rope_interleave: config.bool_or("rope_interleave", true)?,
            sparse,
            intermediate_size: config.usize("intermediate_size")?,
            mixture,
            num_nextn_predict_layers,
            info,
        })
    }

    fn declare_attention(&self, inventory: &mut Inventory, layer: &str) {
        let (hidden, heads) = (self.info.hidden, self.num_attention_heads);
        let module = |name: &str| format!("{layer}.self_attn.{name}");
        inventory.vector(&format!("{layer}.input_layernorm.weight"), hidden);
        inventory.matrix(&module("q_a_proj"), self.q_lora_rank, hidden);
        inventory.vector(&module("q_a_layernorm.weight"), self.q_lora_rank);
        inventory.matrix(
            &module("q_b_proj"),
            heads * (self.qk_nope_head_dim + self.qk_rope_head_dim),
            self.q_lora_rank,
        );
        inventory.matrix(&module("kv_a_proj_with_mqa"), self.kv_lora_rank + self.qk_rope_head_dim, hidden);
        inventory.vector(&module("kv_a_layernorm.weight"), self.kv_lora_rank);
        let sizes = LatentSizes { heads, nope: self.qk_nope_head_dim, value: self.v_head_dim, rank: self.kv_lora_rank };
        inventory.latent(&module("kv_b_proj"), sizes);
        inventory.matrix(&module("o_proj"), hidden, heads * self.v_head_dim);
    }

    pub(crate) fn declare(&self, inventory: &mut Inventory, i: usize) {
        self.declare_attention(inventory, &layer(i));
        if self.sparse[i] {
            self.mixture.declare(inventory, &layer(i));
        } else {
            declare_mlp(inventory, &layer(i), self.info.hidden, self.intermediate_size);
        }
    }

    /// The multi-token-prediction layers behind the last one (arXiv 2412.19437, section 2.2).
    pub(crate) fn declare_mtp(&self, inventory: &mut Inventory) {
        let hidden = self.info.hidden;
        inventory.mtp(|inventory| {
            for layer in (self.info.layers..self.info.layers + self.num_nextn_predict_layers).map(layer) {
                self.declare_attention(inventory, &layer);
                self.mixture.declare(inventory, &layer);
                inventory.vector(&format!("{layer}.enorm.weight"), hidden);
                inventory.vector(&format!("{layer}.hnorm.weight"), hidden);
                inventory.matrix(&format!("{layer}.eh_proj"), hidden, 2 * hidden);
                inventory.matrix(&format!("{layer}.embed_tokens"), self.info.vocab, hidden);
                inventory.vector(&format!("{layer}.shared_head.norm.weight"), hidden);
                inventory.matrix(&format!("{layer}.shared_head.head"), self.info.vocab, hidden);
            }
        });
    }

    pub(crate) fn layer<B: Backend>(&self, loader: &Loader<B>, i: usize) -> Result<Layer<B>> {
        let layer = layer(i);
        let module = |name: &str| format!("{layer}.self_attn.{name}");
        let linear = |name: &str| loader.linear(&module(name), false);
        let table = RopeTable {
            inv_freq: inverse_frequencies(&self.rope, self.qk_rope_head_dim),
            interleaved: self.rope_interleave,
        };
        let self_attn = LatentAttention {
            norm: loader.norm(&format!("{layer}.input_layernorm"), self.info.eps)?,
            q_a_proj: linear("q_a_proj")?,
            q_a_layernorm: loader.norm(&module("q_a_layernorm"), LATENT_NORM_EPS)?,
            q_b_proj: linear("q_b_proj")?,
            kv_a_proj_with_mqa: linear("kv_a_proj_with_mqa")?,
            kv_a_layernorm: loader.norm(&module("kv_a_layernorm"), LATENT_NORM_EPS)?,
            kv_b_proj: loader.latent(&module("kv_b_proj"))?,
            o_proj: linear("o_proj")?,
            rope: Arc::new(loader.backend.rope_table(table)?),
            heads: self.num_attention_heads,
            nope: self.qk_nope_head_dim,
            rope_dim: self.qk_rope_head_dim,
            rank: self.kv_lora_rank,
            scale: ((self.qk_nope_head_dim + self.qk_rope_head_dim) as f32).powf(-0.5),
        };
        Ok(Layer {
            self_attn: self_attn.into(),
            mlp: if self.sparse[i] {
                self.mixture.load(loader, &layer, self.info.eps)?.into()
            } else {
                load_mlp(loader, &layer, self.info.eps)?.into()
            },
        })
    }
}
