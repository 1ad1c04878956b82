//! The configuration that a GGUF file's metadata amounts to, with the keys of transformers.

use serde_json::{Map, Value, json};

use super::vocabulary::Vocabulary;
use crate::container::gguf::{GgufFile, Metadata};
use crate::{Config, Error, Result, TensorSource};

/// The key of the architecture's name.
pub(super) const ARCHITECTURE: &str = "general.architecture";

/// Rows of GLM-4.7-Flash's vocabulary: files made before 21 January 2026 give its router the wrong function.
const GLM_FLASH_VOCABULARY: usize = 154_880;

/// Keys of one architecture.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.metadata.same_usize(&self.key(name))
    }

    fn number(&self, name: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.key(name))
    }

    fn wrong(&self, name: &str, expected: impl Into<String>) -> Error {
        self.metadata.wrong(&self.key(name), expected)
    }

    fn need(&self, name: &str) -> Result<usize> {
        self.usize(name)?.ok_or_else(|| self.wrong(name, "an integer from 0"))
    }
}

/// An object of JSON that is being made; what is `None` is left out.
struct Out(Map<String, Value>);

impl Out {
    fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn maybe(&mut self, key: &str, value: Option<impl Into<Value>>) {
        value.into_iter().for_each(|value| self.put(key, value));
    }
}

/// The configuration of the model in `file`.
pub(crate) fn config(file: &GgufFile) -> Result<Config> {
    let metadata = &file.metadata;
    let architecture =
        metadata.text(ARCHITECTURE)?.ok_or_else(|| metadata.wrong(ARCHITECTURE, "the name of an architecture"))?;
    let keys = Keys { metadata, prefix: architecture };
    let mut out = Out(Map::new());
    let name = match architecture {
        "llama" if keys.usize("expert_count")?.unwrap_or(0) > 0 => "mixtral",
        "llama" => "llama",
        "qwen3" => "qwen3",
        "qwen2moe" => "qwen2_moe",
        "qwen3moe" => "qwen3_moe",
        // The latent attention of DeepSeek; what differs from GLM is refused by its keys.
        "deepseek2" => "glm4_moe_lite",
        // What else its keys mean is not known; the models say which architectures are supported.
        other => return Config::parse(metadata.file(), &json!({ "model_type": other }).to_string()),
    };
    out.put("model_type", name);
    common(&keys, file, &mut out)?;
    match name {
        "llama" | "qwen3" | "qwen2_moe" | "qwen3_moe" => grouped_attention(&keys, file, &mut out)?,
        "glm4_moe_lite" => latent_attention(&keys, &mut out)?,
        _ => {}
    }
    match name {
        "qwen2_moe" | "qwen3_moe" => qwen_experts(&keys, name, &mut out)?,
        "glm4_moe_lite" => glm_experts(&keys, file, &mut out)?,
        _ => {}
    }
    rope(&keys, file, &mut out)?;
    let vocabulary = Vocabulary::new(metadata)?;
    let stops: Vec<usize> = vocabulary.as_ref().map(Vocabulary::stops).transpose()?.unwrap_or_default();
    out.maybe("eos_token_id", (!stops.is_empty()).then_some(stops));
    out.maybe("bos_token_id", metadata.usize("tokenizer.ggml.bos_token_id")?);
    out.maybe("pad_token_id", metadata.usize("tokenizer.ggml.padding_token_id")?);
    Config::parse(metadata.file(), &Value::Object(out.0).to_string())
}

/// Layers that are computed with: without those that predict further tokens.
fn layers(keys: &Keys) -> Result<usize> {
    let (blocks, further) = (keys.need("block_count")?, keys.usize("nextn_predict_layers")?.unwrap_or(0));
    blocks.checked_sub(further).ok_or_else(|| keys.wrong("nextn_predict_layers", format!("at most {blocks}")))
}

/// What every architecture has.
fn common(keys: &Keys, file: &GgufFile, out: &mut Out) -> Result<()> {
    out.put("hidden_size", keys.need("embedding_length")?);
    out.put("num_hidden_layers", layers(keys)?);
    out.put("max_position_embeddings", keys.need("context_length")?);
    out.maybe("intermediate_size", keys.usize("feed_forward_length")?);
    out.put("num_attention_heads", keys.need("attention.head_count")?);
    let eps = keys.number("attention.layer_norm_rms_epsilon")?;
    out.put("rms_norm_eps", eps.ok_or_else(|| keys.wrong("attention.layer_norm_rms_epsilon", "a number"))?);
    // The key of the vocabulary's size is often absent, and the tokens may be fewer than the rows.
    let embedding = file.store.tensor("token_embd.weight")?;
    out.maybe("vocab_size", embedding.info.shape.first().copied());
    out.put("tie_word_embeddings", !file.store.contains("output.weight"));
    Ok(())
}

/// Size of a head where keys and values have the same.
fn head_dim(keys: &Keys) -> Result<usize> {
    let heads = keys.need("attention.head_count")?.max(1);
    let default = keys.need("embedding_length")? / heads;
    let [key, value] = ["attention.key_length", "attention.value_length"].map(|name| keys.usize(name));
    let (key, value) = (key?.unwrap_or(default), value?.unwrap_or(default));
    if key != value {
        return Err(keys.wrong("attention.value_length", format!("{key}, as many as in a key")));
    }
    Ok(key)
}

fn grouped_attention(keys: &Keys, file: &GgufFile, out: &mut Out) -> Result<()> {
    let head_dim = head_dim(keys)?;
    out.put("head_dim", head_dim);
    out.maybe("num_key_value_heads", keys.usize("attention.head_count_kv")?);
    let rotated = keys.usize("rope.dimension_count")?.unwrap_or(head_dim);
    if rotated != head_dim {
        return Err(keys.wrong("rope.dimension_count", format!("{head_dim}, all of a head")));
    }
    let bias = file.store.contains("blk.0.attn_q.bias");
    out.put(if keys.prefix == "qwen2moe" { "qkv_bias" } else { "attention_bias" }, bias);
    Ok(())
}

/// Multi-head latent attention. New files describe the compressed attention (one key of `kv_lora_rank` + rotated values)
/// and give the real sizes with `_mla`; old ones give the real sizes at once.
fn latent_attention(keys: &Keys, out: &mut Out) -> Result<()> {
    let rotated = keys.need("rope.dimension_count")?;
    let either = |new: &str, old: &str| match keys.usize(new)? {
        Some(n) => Ok(n),
        None => keys.need(old),
    };
    let key = either("attention.key_length_mla", "attention.key_length")?;
    let value = either("attention.value_length_mla", "attention.value_length")?;
    let Some(nope) = key.checked_sub(rotated) else {
        return Err(keys.wrong("rope.dimension_count", format!("at most {key}, the values of a key")));
    };
    out.maybe("q_lora_rank", keys.usize("attention.q_lora_rank")?);
    out.put("kv_lora_rank", keys.need("attention.kv_lora_rank")?);
    out.put("qk_rope_head_dim", rotated);
    out.put("qk_nope_head_dim", nope);
    out.put("v_head_dim", value);
    out.put("num_key_value_heads", keys.need("attention.head_count")?);
    Ok(())
}

fn qwen_experts(keys: &Keys, name: &str, out: &mut Out) -> Result<()> {
    out.put("num_experts", keys.need("expert_count")?);
    out.put("num_experts_per_tok", keys.need("expert_used_count")?);
    let width = keys.usize("expert_feed_forward_length")?;
    if name == "qwen2_moe" {
        // Early files give only the width of all chosen experts together.
        let used = keys.need("expert_used_count")?.max(1);
        let all = keys.usize("feed_forward_length")?;
        out.maybe("moe_intermediate_size", width.or(all.map(|all| all / used)));
        out.maybe("shared_expert_intermediate_size", keys.usize("expert_shared_feed_forward_length")?.or(all));
    } else {
        out.maybe("moe_intermediate_size", width);
    }
    // Not in the files: the architectures say so.
    out.put("norm_topk_prob", name == "qwen3_moe");
    if out.0.get("intermediate_size").is_none() {
        out.put("intermediate_size", 0);
    }
    Ok(())
}

fn glm_experts(keys: &Keys, file: &GgufFile, out: &mut Out) -> Result<()> {
    let vocabulary = file.store.tensor("token_embd.weight")?.info.shape.first().copied();
    let flash = vocabulary == Some(GLM_FLASH_VOCABULARY);
    let scoring = match keys.usize("expert_gating_func")? {
        Some(2) => "sigmoid",
        None | Some(0 | 1) if flash => "sigmoid",
        None | Some(0 | 1) => "softmax",
        Some(_) => return Err(keys.wrong("expert_gating_func", "1 (softmax) or 2 (sigmoid)")),
    };
    out.put("scoring_func", scoring);
    out.put("n_routed_experts", keys.need("expert_count")?);
    out.put("num_experts_per_tok", keys.need("expert_used_count")?);
    out.put("n_shared_experts", keys.usize("expert_shared_count")?.unwrap_or(0));
    out.put("moe_intermediate_size", keys.need("expert_feed_forward_length")?);
    out.put("first_k_dense_replace", keys.usize("leading_dense_block_count")?.unwrap_or(0));
    out.put("n_group", keys.usize("expert_group_count")?.unwrap_or(1).max(1));
    out.put("topk_group", keys.usize("expert_group_used_count")?.unwrap_or(1).max(1));
    out.put("norm_topk_prob", keys.metadata.bool(&keys.key("expert_weights_norm"))?.unwrap_or(flash));
    // 0 stands for "not scaled".
    let scale = keys.number("expert_weights_scale")?.filter(|x| *x != 0.0);
    out.put("routed_scaling_factor", scale.unwrap_or(1.0));
    out.put("num_nextn_predict_layers", keys.usize("nextn_predict_layers")?.unwrap_or(0));
    Ok(())
}

fn rope(keys: &Keys, file: &GgufFile, out: &mut Out) -> Result<()> {
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let mut rope = json!({ "rope_type": "default", "rope_theta": theta });
    let kind = keys.metadata.text(&keys.key("rope.scaling.type"))?;
    // An old key that some converters write with 1.
    let old = keys.number("rope.scale_linear")?.filter(|x| *x != 1.0);
    if let Some(kind) = kind.filter(|kind| *kind != "none").or(old.map(|_| "linear")) {
        rope["rope_type"] = kind.into();
        if let Some(factor) = keys.number("rope.scaling.factor")?.or(old) {
            rope["factor"] = factor.into();
        }
    } else if file.store.contains("rope_freqs.weight") {
        let divisors = file.store.tensor("rope_freqs.weight")?.to_f32()?;
        if divisors.iter().any(|x| *x != 1.0) {
            rope["rope_type"] = "divisors".into();
            rope["divisors"] = divisors.into();
        }
    }
    out.put("rope_parameters", rope);
    Ok(())
}
