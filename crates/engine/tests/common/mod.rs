//! A llama with two narrow layers and random weights, made here, so that a step takes no time.

use marlin_backend::{Backend, Reference};
use marlin_checkpoint::text::Tokenizer;
use marlin_checkpoint::{Bytes, Checkpoint, Config, DType, Error, Folder, Result, Tensor, TensorInfo, TensorSource};
use marlin_engine::{Engine, EngineOptions, Request, Sampling};
use marlin_models::{LoadOptions, Model};
use std::sync::Arc;

pub const VOCAB: usize = 64;
pub const EOS: u32 = 63;
/// A token after which the logits are infinite.
pub const POISON: u32 = 13;

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512, "rope_theta": 10000.0, "tie_word_embeddings": false, "eos_token_id": 63,
    "hidden_act": "silu", "dtype": "float32"}"#;

struct Random {
    infos: Vec<TensorInfo>,
}

impl Random {
    fn new() -> Self {
        let mut shapes: Vec<(String, Vec<usize>)> = vec![
            ("model.embed_tokens.weight".into(), vec![VOCAB, 32]),
            ("model.norm.weight".into(), vec![32]),
            ("lm_head.weight".into(), vec![VOCAB, 32]),
        ];
        for i in 0..2 {
            let parts: [(&str, Vec<usize>); 9] = [
                ("input_layernorm", vec![32]),
                ("post_attention_layernorm", vec![32]),
                ("self_attn.q_proj", vec![32, 32]),
                ("self_attn.k_proj", vec![16, 32]),
                ("self_attn.v_proj", vec![16, 32]),
                ("self_attn.o_proj", vec![32, 32]),
                ("mlp.gate_proj", vec![48, 32]),
                ("mlp.up_proj", vec![48, 32]),
                ("mlp.down_proj", vec![32, 48]),
            ];
            shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{i}.{name}.weight"), shape)));
        }
        let info = |(name, shape)| TensorInfo { name, dtype: DType::F32, shape };
        Self { infos: shapes.into_iter().map(info).collect() }
    }
}

impl TensorSource for Random {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let missing = || Error::MissingTensor { name: name.into(), within: self.describe() };
        let info = self.infos.iter().find(|i| i.name == name).ok_or_else(missing)?.clone();
        let mut state =
            name.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        let spread = if info.shape.len() == 2 { 2.0 / (info.shape[1] as f32).sqrt() } else { 0.0 };
        let mut values: Vec<f32> = (0..info.elements()).map(|_| uniform() * spread).collect();
        if info.shape.len() == 1 {
            values.fill(1.0);
        }
        // Column 0 of the hidden state is set by the poisonous token alone, and makes the first logit overflow.
        match name {
            "model.embed_tokens.weight" => {
                for (token, row) in values.chunks_exact_mut(32).enumerate() {
                    row.iter_mut().for_each(|x| *x *= 3.0);
                    row[0] = if token == POISON as usize { 9.0 } else { 0.0 };
                }
            }
            "lm_head.weight" => {
                values.iter_mut().for_each(|x| *x *= 2.0);
                values.chunks_exact_mut(32).for_each(|row| row[0] = 0.0);
                values[0] = 3e38;
            }
            _ if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                let cols = info.shape[1];
                values[..cols].fill(0.0);
            }
            _ => {}
        }
        let data = Bytes::from(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        Ok(Tensor { info, data })
    }

    fn contains(&self, name: &str) -> bool {
        self.infos.iter().any(|i| i.name == name)
    }

    fn describe(&self) -> String {
        "random weights".into()
    }
}

pub fn model<B: Backend>(b: &B) -> Model<B> {
    let config = Config::parse("config.json", CONFIG).unwrap();
    let folder = Folder::Embedded { name: "tiny", files: &[] };
    let checkpoint = Checkpoint::from_parts("tiny", config, Arc::new(Random::new()), folder).unwrap();
    Model::load(b, &checkpoint, LoadOptions::default(), &mut |_| {}).unwrap()
}

/// Token `i` is the `i`th letter of base 64's alphabet; the last one is the end.
pub fn tokenizer() -> Tokenizer {
    let letters = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+']);
    let vocab: Vec<String> = letters.zip(0..).map(|(c, i)| format!("\"{c}\":{i}")).collect();
    let json = format!(
        r#"{{"version":"1.0","truncation":null,"padding":null,"normalizer":null,"post_processor":null,
        "added_tokens":[{{"id":63,"content":"<end>","single_word":false,"lstrip":false,"rstrip":false,
        "normalized":false,"special":true}}],
        "pre_tokenizer":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}},
        "decoder":{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}},
        "model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,
        "end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
        "vocab":{{{}}},"merges":[]}}}}"#,
        vocab.join(",")
    );
    Tokenizer::from_bytes("tokenizer.json", json.as_bytes(), None).unwrap()
}

/// Whether these are the tests with steps enqueued ahead.
pub fn pipelined() -> bool {
    module_path!().starts_with("pipelined")
}

pub fn options() -> EngineOptions {
    EngineOptions { block_size: 4, kv_tokens: Some(2048), pipeline: Some(pipelined()), ..EngineOptions::default() }
}

pub fn engine_on<B: Backend>(b: B, options: EngineOptions) -> Engine<B> {
    let model = model(&b);
    Engine::new(Arc::new(b), Arc::new(model), Some(tokenizer()), vec![EOS], options).unwrap()
}

pub fn engine(options: EngineOptions) -> Engine<Reference> {
    engine_on(Reference, options)
}

/// A request for `max_tokens` tokens, drawn with `seed`, that never meets the poison. Where steps are enqueued ahead, only
/// every fourth has penalties, which forbid that.
pub fn request(prompt: impl IntoIterator<Item = u32>, max_tokens: usize, seed: u64) -> Request {
    let penalties = !pipelined() || seed % 4 == 1;
    let sampling = Sampling {
        temperature: 0.9,
        top_p: 0.95,
        repetition_penalty: if penalties { 1.05 } else { 1.0 },
        frequency_penalty: if penalties { 0.1 } else { 0.0 },
        seed: Some(seed),
        logit_bias: vec![(POISON, f32::NEG_INFINITY)],
        ..Sampling::default()
    };
    Request { sampling, max_tokens: Some(max_tokens), ignore_eos: true, ..Request::new(prompt.into_iter().collect()) }
}

/// A prompt without the poison.
pub fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (i * i * 7 + i * 3 + seed * 11) % 62).map(|t| if t == POISON { 14 } else { t }).collect()
}
