//! GGUF's names for transformers' modules.

/// Modules of a layer.
const LAYER: [(&str, &str); 24] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("eh_proj", "nextn.eh_proj"),
    ("embed_tokens", "nextn.embed_tokens"),
    ("enorm", "nextn.enorm"),
    ("hnorm", "nextn.hnorm"),
    ("shared_head.norm", "nextn.shared_head_norm"),
];

/// Projections of experts.
const EXPERT: [(&str, &str); 3] = [("gate_proj", "ffn_gate"), ("up_proj", "ffn_up"), ("down_proj", "ffn_down")];

fn look(table: &[(&'static str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|row| row.0 == name).map(|row| row.1)
}

/// A layer's number and what follows it.
fn layer(module: &str) -> Option<(usize, &str)> {
    let (number, rest) = module.strip_prefix("model.layers.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// What GGUF calls `module`, without `.weight` or `.bias`.
pub(super) fn module(module: &str) -> Option<String> {
    match module {
        "model.embed_tokens" => return Some("token_embd".to_owned()),
        "model.norm" => return Some("output_norm".to_owned()),
        "lm_head" => return Some("output".to_owned()),
        _ => {}
    }
    let (i, rest) = layer(module)?;
    let shared = || {
        let part = rest.strip_prefix("mlp.shared_experts.").or_else(|| rest.strip_prefix("mlp.shared_expert."))?;
        look(&EXPERT, part).map(|name| format!("{name}_shexp"))
    };
    let head = || (rest == "shared_head.head").then(|| "nextn.shared_head_head".to_owned());
    let name = look(&LAYER, rest).map(str::to_owned).or_else(shared).or_else(head)?;
    Some(format!("blk.{i}.{name}"))
}

/// What GGUF calls the vector `name`.
pub(super) fn vector(name: &str) -> Option<String> {
    if let Some((i, "mlp.gate.e_score_correction_bias")) = layer(name) {
        return Some(format!("blk.{i}.exp_probs_b.bias"));
    }
    let (base, suffix) = name.rsplit_once('.')?;
    matches!(suffix, "weight" | "bias").then_some(())?;
    module(base).map(|base| format!("{base}.{suffix}"))
}

/// Where an expert's projection is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExpertPlace {
    /// The tensor of all experts.
    pub stack: String,
    /// The tensor of gates and ups together, rows of gate first, and which half it is.
    pub fused: Option<(String, usize)>,
    /// The expert.
    pub expert: usize,
}

/// Where the expert's projection `module` is, if it is one.
pub(super) fn expert(module: &str) -> Option<ExpertPlace> {
    let (i, rest) = layer(module)?;
    let (expert, part) = rest.strip_prefix("mlp.experts.")?.split_once('.')?;
    let name = look(&EXPERT, part)?;
    let half = [("ffn_gate", 0), ("ffn_up", 1)].into_iter().find(|row| row.0 == name);
    Some(ExpertPlace {
        stack: format!("blk.{i}.{name}_exps.weight"),
        fused: half.map(|(_, half)| (format!("blk.{i}.ffn_gate_up_exps.weight"), half)),
        expert: expert.parse().ok()?,
    })
}

/// The layer that a tensor of the file belongs to.
pub(super) fn layer_of(tensor: &str) -> Option<usize> {
    tensor.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_converter() {
        for (from, to) in [
            ("model.embed_tokens", "token_embd"),
            ("model.layers.12.self_attn.o_proj", "blk.12.attn_output"),
            ("model.layers.0.mlp.gate", "blk.0.ffn_gate_inp"),
            ("model.layers.3.mlp.shared_expert.up_proj", "blk.3.ffn_up_shexp"),
            ("model.layers.3.mlp.shared_experts.down_proj", "blk.3.ffn_down_shexp"),
            ("model.layers.47.shared_head.head", "blk.47.nextn.shared_head_head"),
        ] {
            assert_eq!(module(from).as_deref(), Some(to));
        }
        assert_eq!(module("model.layers.x.self_attn.o_proj"), None);
        assert_eq!(vector("model.norm.weight").as_deref(), Some("output_norm.weight"));
        assert_eq!(vector("model.layers.1.self_attn.q_proj.bias").as_deref(), Some("blk.1.attn_q.bias"));
        let correction = vector("model.layers.1.mlp.gate.e_score_correction_bias");
        assert_eq!(correction.as_deref(), Some("blk.1.exp_probs_b.bias"));
        let place = expert("model.layers.1.mlp.experts.63.up_proj").unwrap();
        assert_eq!((place.stack.as_str(), place.expert), ("blk.1.ffn_up_exps.weight", 63));
        assert_eq!(place.fused, Some(("blk.1.ffn_gate_up_exps.weight".to_owned(), 1)));
        assert_eq!(expert("model.layers.1.mlp.down_proj"), None);
        assert_eq!(layer_of("blk.47.nextn.enorm.weight"), Some(47));
    }
}
