#![allow(clippy::unwrap_used)]

use super::*;
use crate::Checkpoint;
use crate::container::gguf::writer::Writer;
use crate::text::Tokenizer;

/// `n` values that are all different.
fn numbers(n: usize) -> impl Iterator<Item = f32> {
    (0..n).map(|i| i as f32)
}

/// Keys of a model of 2 layers with 4 heads of 4 over 16 hidden values, and an embedding of 8 tokens.
fn base(architecture: &str) -> Writer {
    let key = |name: &str| format!("{architecture}.{name}");
    Writer::new(architecture)
        .u32(&key("block_count"), 2)
        .u32(&key("context_length"), 64)
        .u32(&key("embedding_length"), 16)
        .u32(&key("feed_forward_length"), 32)
        .u32(&key("attention.head_count"), 4)
        .f32(&key("attention.layer_norm_rms_epsilon"), 1e-5)
        .floats("token_embd.weight", &[8, 16], numbers(128))
}

fn glm(vocabulary: usize) -> Writer {
    let key = |name: &str| format!("deepseek2.{name}");
    let mut file = base("deepseek2");
    if vocabulary != 8 {
        file = Writer::new("deepseek2").tensor("token_embd.weight", &[vocabulary, 1], 24, &vec![0; vocabulary]);
        for (name, n) in [("block_count", 2), ("context_length", 64), ("embedding_length", 1)] {
            file = file.u32(&key(name), n);
        }
        file = file.u32(&key("attention.head_count"), 4).f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    }
    for (name, n) in [
        ("attention.q_lora_rank", 6),
        ("attention.kv_lora_rank", 5),
        ("rope.dimension_count", 2),
        ("expert_count", 2),
        ("expert_used_count", 1),
        ("expert_feed_forward_length", 8),
    ] {
        file = file.u32(&key(name), n);
    }
    file
}

fn config_of(file: Writer) -> Config {
    config(&file.file()).unwrap()
}

fn modules(file: &Writer) -> Gguf {
    let file = file.file();
    Gguf::new(&file, &config(&file).unwrap()).unwrap()
}

fn matrix(found: &Found) -> Vec<f32> {
    found.build().unwrap().matrix().unwrap()
}

#[test]
fn llama_gets_its_rows_back() {
    let half: Vec<u8> = (0..256u16).flat_map(|i| half::f16::from_f32(f32::from(i)).to_le_bytes()).collect();
    let file = base("llama")
        .floats("blk.0.attn_q.weight", &[16, 16], numbers(256))
        .tensor("blk.1.attn_q.weight", &[16, 16], 1, &half)
        .floats("blk.0.attn_v.weight", &[16, 16], numbers(256))
        .floats("blk.0.attn_q.bias", &[16], numbers(16))
        .floats("blk.0.attn_k.bias", &[16], numbers(16));
    let modules = modules(&file);
    let q = modules.linear("model.layers.0.self_attn.q_proj", [16, 16]).unwrap();
    assert_eq!((q.stored.scheme, q.stored.bits, q.stored.bytes), ("dense", 32, 1024));
    let firsts: Vec<usize> = matrix(&q).chunks(16).map(|row| row[0] as usize / 16).collect();
    assert_eq!(firsts, [0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15]);
    assert_eq!(matrix(&modules.linear("model.layers.1.self_attn.q_proj", [16, 16]).unwrap()), matrix(&q));
    let v = modules.linear("model.layers.0.self_attn.v_proj", [16, 16]).unwrap();
    assert_eq!(matrix(&v), numbers(256).collect::<Vec<_>>());
    let bias = modules.vector("model.layers.0.self_attn.q_proj.bias", 16).unwrap().build().unwrap();
    assert_eq!(bias.to_f32().unwrap()[..4], [0.0, 2.0, 1.0, 3.0]);
    // Others keep their order.
    let file = base("qwen3").floats("blk.0.attn_q.weight", &[16, 16], numbers(256));
    let q = super::Gguf::new(&file.file(), &config_of(file.clone())).unwrap();
    let q = q.linear("model.layers.0.self_attn.q_proj", [16, 16]).unwrap();
    assert_eq!(matrix(&q), numbers(256).collect::<Vec<_>>());
}

#[test]
fn what_is_missing_or_of_another_shape() {
    let file = base("qwen2moe")
        .floats("blk.0.ffn_gate_inp_shexp.weight", &[16], numbers(16))
        .floats("blk.1.ffn_gate_inp_shexp.weight", &[1, 16], numbers(16))
        .tensor("blk.0.attn_q.weight", &[16, 16], 24, &[0; 256]);
    let file = file.u32("qwen2moe.expert_count", 2).u32("qwen2moe.expert_used_count", 1);
    let modules = modules(&file);
    for i in 0..2 {
        let gate = modules.linear(&format!("model.layers.{i}.mlp.shared_expert_gate"), [1, 16]).unwrap();
        assert_eq!(matrix(&gate), numbers(16).collect::<Vec<_>>());
    }
    let error = |module: &str, features| modules.linear(module, features).err().unwrap().to_string();
    assert!(error("lm_head", [8, 16]).starts_with("tensor \"output.weight\" is not in x.gguf"));
    assert!(error("model.embed_tokens", [8, 15]).contains("expected shape [8, 15], found [8, 16]"));
    assert!(error("model.layers.0.self_attn.q_proj", [16, 16]).contains("expected floats or blocks, found I8"));
    assert!(error("model.layers.0.nothing", [1, 1]).contains("is not in x.gguf"));
    assert!(
        error("model.layers.0.mlp.experts.0.up_proj", [1, 1]).starts_with("tensor \"blk.0.ffn_up_exps.weight\" is")
    );
}

#[test]
fn experts_are_slices_of_stacks() {
    let file = base("qwen3moe")
        .floats("blk.0.ffn_up_exps.weight", &[3, 2, 16], numbers(96))
        .floats("blk.1.ffn_gate_up_exps.weight", &[3, 4, 16], numbers(192))
        .u32("qwen3moe.expert_count", 3)
        .u32("qwen3moe.expert_used_count", 1);
    let modules = modules(&file);
    let of = |name: &str| modules.linear(&format!("model.layers.{name}_proj"), [2, 16]).unwrap();
    assert_eq!(matrix(&of("0.mlp.experts.2.up")), numbers(96).skip(64).collect::<Vec<_>>());
    assert_eq!(matrix(&of("1.mlp.experts.1.gate")), numbers(192).skip(64).take(32).collect::<Vec<_>>());
    assert_eq!(matrix(&of("1.mlp.experts.1.up")), numbers(192).skip(96).take(32).collect::<Vec<_>>());
    let beyond = modules.linear("model.layers.0.mlp.experts.3.up_proj", [2, 16]).err().unwrap().to_string();
    assert!(beyond.contains("no part 3..4"), "{beyond}");
}

#[test]
fn latent_projections_of_all_converters() {
    let sizes = LatentSizes { heads: 4, nope: 2, value: 3, rank: 5 };
    let module = "model.layers.0.self_attn.kv_b_proj";
    let split = |file: &Writer| {
        let modules = modules(file);
        let LatentProjection::Split { k, v } = modules.latent(module, sizes).unwrap() else { panic!("whole") };
        assert_eq!((k.stored.features.as_slice(), v.stored.features.as_slice()), (&[20, 2][..], &[12, 5][..]));
        assert_eq!(matrix(&k), numbers(40).collect::<Vec<_>>());
        assert_eq!(matrix(&v), numbers(60).collect::<Vec<_>>());
        modules.ignores("blk.0.attn_kv_b.weight")
    };
    let keys =
        |file: Writer| file.u32("deepseek2.attention.key_length_mla", 4).u32("deepseek2.attention.value_length_mla", 3);
    let new = keys(glm(8)).floats("blk.0.attn_k_b.weight", &[4, 5, 2], numbers(40)).floats(
        "blk.0.attn_v_b.weight",
        &[4, 3, 5],
        numbers(60),
    );
    split(&new);
    let flat = keys(glm(8))
        .floats("blk.0.attn_k_b.weight", &[20, 2], numbers(40))
        .floats("blk.0.attn_v_b.weight", &[12, 5], numbers(60))
        .floats("blk.0.attn_kv_b.weight", &[20, 5], numbers(100));
    assert!(split(&flat));
    let old = glm(8).u32("deepseek2.attention.key_length", 4).u32("deepseek2.attention.value_length", 3);
    let old = old.floats("blk.0.attn_kv_b.weight", &[20, 5], numbers(100));
    let modules = modules(&old);
    let LatentProjection::Whole(whole) = modules.latent(module, sizes).unwrap() else { panic!("split") };
    assert_eq!(matrix(&whole), numbers(100).collect::<Vec<_>>());
    assert!(!modules.ignores("blk.0.attn_kv_b.weight") && modules.ignores("blk.2.nextn.enorm.weight"));
    let config = config_of(old);
    assert_eq!((config.usize("qk_nope_head_dim").unwrap(), config.usize("v_head_dim").unwrap()), (2, 3));
}

/// Old files of GLM-4.7-Flash do not say that its router is a sigmoid; others do not get it unasked.
#[test]
fn the_routers_function() {
    let sizes =
        |file: Writer| file.u32("deepseek2.attention.key_length_mla", 4).u32("deepseek2.attention.value_length_mla", 3);
    let scoring = |file: Writer| config_of(sizes(file)).string("scoring_func").unwrap().to_owned();
    assert_eq!(scoring(glm(8)), "softmax");
    assert_eq!(scoring(glm(8).u32("deepseek2.expert_gating_func", 2)), "sigmoid");
    assert_eq!(scoring(glm(GLM)), "sigmoid");
    assert_eq!(scoring(glm(GLM).u32("deepseek2.expert_gating_func", 1)), "sigmoid");
    let odd = sizes(glm(8).u32("deepseek2.expert_gating_func", 4)).file();
    assert!(config(&odd).unwrap_err().to_string().contains("expected 1 (softmax) or 2 (sigmoid), found 4"));
    let flash = config_of(sizes(glm(GLM)));
    assert!(flash.bool_or("norm_topk_prob", false).unwrap());
    let scaled = config_of(sizes(glm(8)).f32("deepseek2.expert_weights_scale", 1.8));
    assert_eq!(scaled.f32("routed_scaling_factor").unwrap(), 1.8);
    assert!(!scaled.bool_or("norm_topk_prob", true).unwrap());
}

const GLM: usize = 154_880;

#[test]
fn configurations() {
    let plain = config_of(base("llama").u32("llama.attention.head_count_kv", 2));
    assert_eq!((plain.model_type().unwrap(), plain.usize("head_dim").unwrap()), ("llama", 4));
    assert_eq!((plain.usize("vocab_size").unwrap(), plain.usize("num_key_value_heads").unwrap()), (8, 2));
    assert!(plain.bool_or("tie_word_embeddings", false).unwrap());
    assert_eq!(plain.f32("rms_norm_eps").unwrap(), 1e-5);
    let own = config_of(base("llama").floats("output.weight", &[8, 16], numbers(128)));
    assert!(!own.bool_or("tie_word_embeddings", true).unwrap());
    let scaled =
        config_of(base("llama").floats("rope_freqs.weight", &[2], [1.0, 8.0]).f32("llama.rope.freq_base", 5e5));
    let rope = scaled.rope(1.0).unwrap();
    assert_eq!((rope.theta, rope.scaling), (5e5, crate::RopeScaling::Divisors([1.0, 8.0].into())));
    let ones = config_of(base("llama").floats("rope_freqs.weight", &[2], [1.0, 1.0]));
    assert_eq!(ones.rope(1.0).unwrap().scaling, crate::RopeScaling::None);
    let yarn = config_of(base("qwen3").text("qwen3.rope.scaling.type", "yarn").f32("qwen3.rope.scaling.factor", 4.0));
    assert!(yarn.rope(1.0).unwrap_err().to_string().contains("rope type \"yarn\" is not supported"));
    assert_eq!(config_of(base("llama").u32("llama.expert_count", 8)).model_type().unwrap(), "mixtral");
    assert_eq!(config_of(Writer::new("mamba")).model_type().unwrap(), "mamba");
    let arrays = config_of(base("qwen3").i32s("qwen3.attention.head_count_kv", &[2, 2]));
    assert_eq!(arrays.usize("num_key_value_heads").unwrap(), 2);
    let refused = |file: Writer| config(&file.file()).unwrap_err().to_string();
    assert_eq!(
        refused(base("qwen3").i32s("qwen3.attention.head_count_kv", &[2, 4])),
        "x.gguf: key \"qwen3.attention.head_count_kv\": expected an integer from 0, the same for every layer, found an array of 2 i32"
    );
    assert!(refused(base("llama").u32("llama.rope.dimension_count", 2)).contains("expected 4, all of a head, found 2"));
    assert!(refused(base("llama").u32("llama.attention.value_length", 2)).contains("expected 4, as many as in a key"));
    assert!(refused(base("llama").u32("llama.nextn_predict_layers", 3)).contains("expected at most 2, found 3"));
}

/// Byte-level tokens of a small alphabet, with these keys.
fn bpe(pre: &str) -> Writer {
    let tokens = ["a", "b", "Ġ", "1", "ab", "Ġab", "aab", "11", "<s>", "<e>", "<|im_end|>", "[unused]", "tool"];
    base("llama")
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", pre)
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &[1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 5, 4])
        .texts("tokenizer.ggml.merges", &["a b", "Ġ ab", "1 1"])
        .u32("tokenizer.ggml.bos_token_id", 8)
        .u32("tokenizer.ggml.eos_token_id", 9)
}

fn tokenizer_of(file: &Writer) -> Result<Tokenizer> {
    let folder = Checkpoint::from_gguf("x", file.file()).unwrap().folder;
    assert!(folder.contains("tokenizer.json"));
    let json = folder.require_text("tokenizer.json")?;
    Tokenizer::from_bytes("tokenizer.json", json.as_bytes(), None)
}

#[test]
fn byte_level_tokenizers() {
    let llama = tokenizer_of(&bpe("llama-bpe")).unwrap();
    // Whole pieces that are tokens are not merged; texts begin with bos.
    assert_eq!(llama.encode("aab ab", true).unwrap(), [8, 6, 5]);
    assert_eq!(llama.encode("111<|im_end|>toola", false).unwrap(), [7, 3, 10, 12, 0]);
    assert_eq!(llama.special_tokens().iter().map(|t| t.0).collect::<Vec<_>>(), [8, 9, 10]);
    let qwen = tokenizer_of(&bpe("qwen2")).unwrap();
    assert_eq!(qwen.encode("aab 11", true).unwrap(), [0, 4, 2, 3, 3]);
    let asked = bpe("qwen2").bool("tokenizer.ggml.add_bos_token", true).bool("tokenizer.ggml.add_eos_token", true);
    assert_eq!(tokenizer_of(&asked).unwrap().encode("ab", true).unwrap(), [8, 4, 9]);
    let not = bpe("llama-bpe").bool("tokenizer.ggml.add_bos_token", false);
    assert_eq!(tokenizer_of(&not).unwrap().encode("ab", true).unwrap(), [4]);
    assert_eq!(tokenizer_of(&bpe("glm4")).unwrap().encode("ab 11", true).unwrap(), [4, 2, 7]);
    for pre in ["gpt-2", "smollm", "default"] {
        let ids = tokenizer_of(&bpe(pre)).unwrap().encode("ab ab11", false).unwrap();
        assert_eq!(ids, if pre == "smollm" { vec![4, 5, 3, 3] } else { vec![4, 5, 7] }, "{pre}");
    }
    let unknown = tokenizer_of(&bpe("tiktoken-9")).unwrap_err().to_string();
    assert!(unknown.contains("x.gguf (tokenizer): the rule \"tiktoken-9\" for cutting texts"), "{unknown}");
    let checkpoint = Checkpoint::from_gguf("x", bpe("qwen2").file()).unwrap();
    assert_eq!((checkpoint.generation.eos, checkpoint.generation.bos), (vec![9, 10], Some(8)));
    let without = base("llama").text("tokenizer.ggml.model", "none");
    assert!(!Checkpoint::from_gguf("x", without.file()).unwrap().folder.contains("tokenizer.json"));
    let short = bpe("qwen2").u32("tokenizer.ggml.eot_token_id", 13).file();
    let error = config(&short).unwrap_err().to_string();
    assert!(error.contains("expected an id below 13, the number of tokens, found 13"), "{error}");
}

/// Scores decide, the leftmost of equals first; what no token covers becomes bytes.
#[test]
fn sentence_piece_tokenizers() {
    let mut tokens = vec!["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "ab", "bc", "▁a", "abc"];
    let mut kinds = vec![2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1];
    let mut scores = vec![0.0, 0.0, 0.0, -4.0, -5.0, -6.0, -7.0, -3.0, -1.0, -2.0, -3.5];
    let bytes: Vec<String> = (0..256).map(|b| format!("<0x{b:02X}>")).collect();
    tokens.extend(bytes.iter().map(String::as_str));
    kinds.resize(tokens.len(), 6);
    scores.resize(tokens.len(), 0.0);
    let file = base("llama")
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.unknown_token_id", 0);
    let tokenizer = tokenizer_of(&file).unwrap();
    // bc (-1) before ▁a (-2) before ab (-3): ▁a + bc; abc would need a + bc.
    assert_eq!(tokenizer.encode("abc", true).unwrap(), [1, 9, 8]);
    assert_eq!(tokenizer.encode("ababc", false).unwrap(), [9, 5, 10]);
    assert_eq!(tokenizer.encode("é", false).unwrap(), [3, 11 + 0xc3, 11 + 0xa9]);
    for text in ["abc", "a b  c", "né\u{1f98a}", " x"] {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }
    let bare = tokenizer_of(&file.clone().bool("tokenizer.ggml.add_space_prefix", false)).unwrap();
    assert_eq!(bare.encode("abc", false).unwrap(), [10]);
    let unigram = base("llama").text("tokenizer.ggml.model", "t5").texts("tokenizer.ggml.tokens", &["a"]);
    let error = tokenizer_of(&unigram).unwrap_err().to_string();
    assert!(error.contains("tokenizers of the kind \"t5\" are not supported"), "{error}");
}
