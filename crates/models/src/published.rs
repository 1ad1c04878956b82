//! Configurations of published models, so that their speed and their numerics can be known without a download.

use crate::{Architecture, Error, Result};
use marlin_checkpoint::{Checkpoint, Config, Folder, Synthetic};
use serde_json::{Value, json};
use std::sync::Arc;

/// A published model.
pub struct Published {
    /// Name on the command line.
    pub name: &'static str,
    make: fn() -> Value,
}

/// Every model that `--synthetic` knows.
pub const PUBLISHED: [Published; 12] = [
    Published { name: "llama-3.2-1b", make: || llama([2048, 8192, 16, 32, 8, 64], 32.0, true) },
    Published { name: "llama-3.1-8b", make: || llama([4096, 14336, 32, 32, 8, 128], 8.0, false) },
    Published { name: "qwen3-0.6b", make: || qwen3([1024, 3072, 28, 16, 8], true) },
    Published { name: "qwen3-1.7b", make: || qwen3([2048, 6144, 28, 16, 8], true) },
    Published { name: "qwen3-4b", make: || qwen3([2560, 9728, 36, 32, 8], true) },
    Published { name: "qwen3-8b", make: || qwen3([4096, 12288, 36, 32, 8], false) },
    Published { name: "qwen3-14b", make: || qwen3([5120, 17408, 40, 40, 8], false) },
    Published { name: "qwen3-32b", make: || qwen3([5120, 25600, 64, 64, 8], false) },
    Published { name: "qwen2-moe-a2.7b", make: qwen2_moe },
    Published { name: "qwen3-30b-a3b", make: || qwen3_moe([2048, 768, 48, 32, 128]) },
    Published { name: "qwen3-235b-a22b", make: || qwen3_moe([4096, 1536, 94, 64, 128]) },
    Published { name: "glm-4.7-flash", make: glm },
];

fn llama([hidden, intermediate, layers, heads, kv_heads, head_dim]: [usize; 6], factor: f64, tied: bool) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": 128_256,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 131_072, "tie_word_embeddings": tied, "hidden_act": "silu",
        "attention_bias": false, "mlp_bias": false, "bos_token_id": 128_000, "eos_token_id": [128_001, 128_008, 128_009],
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500_000.0, "factor": factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192
        }
    })
}

fn qwen3([hidden, intermediate, layers, heads, kv_heads]: [usize; 5], tied: bool) -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 128, "vocab_size": 151_936,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 40_960, "tie_word_embeddings": tied, "hidden_act": "silu",
        "attention_bias": false, "use_sliding_window": false, "eos_token_id": [151_645, 151_643],
        "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 }
    })
}

fn qwen2_moe() -> Value {
    json!({
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "dtype": "bfloat16",
        "hidden_size": 2048, "intermediate_size": 5632, "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "num_experts": 60, "num_experts_per_tok": 4, "norm_topk_prob": false,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "qkv_bias": true, "vocab_size": 151_936,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "tie_word_embeddings": false, "hidden_act": "silu",
        "use_sliding_window": false, "eos_token_id": 151_643,
        "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 }
    })
}

fn qwen3_moe([hidden, intermediate, layers, heads, experts]: [usize; 5]) -> Value {
    json!({
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "dtype": "bfloat16",
        "hidden_size": hidden, "intermediate_size": 3 * hidden, "moe_intermediate_size": intermediate,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": experts, "num_experts_per_tok": 8, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "attention_bias": false, "vocab_size": 151_936, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40_960, "tie_word_embeddings": false, "hidden_act": "silu",
        "use_sliding_window": false, "eos_token_id": [151_645, 151_643],
        "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 }
    })
}

fn glm() -> Value {
    json!({
        "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "dtype": "bfloat16",
        "hidden_size": 2048, "intermediate_size": 10240, "moe_intermediate_size": 1536, "num_hidden_layers": 47,
        "num_attention_heads": 20, "num_key_value_heads": 20, "q_lora_rank": 768, "kv_lora_rank": 512,
        "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256, "n_routed_experts": 64,
        "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "norm_topk_prob": true,
        "topk_method": "noaux_tc", "routed_scaling_factor": 1.8, "first_k_dense_replace": 1, "vocab_size": 154_880,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 202_752, "tie_word_embeddings": false, "hidden_act": "silu",
        "attention_bias": false, "eos_token_id": [154_820, 154_827, 154_829], "pad_token_id": 154_820,
        "rope_parameters": { "rope_type": "default", "rope_theta": 1e6 }
    })
}

/// The configuration of the published model `name`, cut to its first `layers` layers if asked.
pub fn published(name: &str, layers: Option<usize>) -> Result<Config> {
    let Some(model) = PUBLISHED.iter().find(|model| model.name == name) else {
        let known: Vec<&str> = PUBLISHED.iter().map(|model| model.name).collect();
        return Err(Error::Published { found: name.to_owned(), known: known.join(", ") });
    };
    let mut config = (model.make)();
    if let Some(layers) = layers {
        config["num_hidden_layers"] = layers.into();
    }
    Ok(Config::parse(format!("{name} (published sizes)"), &config.to_string())?)
}
/// The published model `name`, cut to two layers, with weights given by a formula: the same numbers on any machine.
pub fn formula_checkpoint(name: &str) -> Result<Checkpoint> {
    let config = published(name, Some(2))?;
    let tensors = Architecture::parse(&config)?.inventory().required().to_vec();
    let store = Synthetic::formula(tensors);
    let folder = Folder::Embedded { name: "synthetic", files: &[] };
    Ok(Checkpoint::from_parts(name, config, Arc::new(store), folder)?)
}
