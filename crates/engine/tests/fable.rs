//! The engine on real checkpoints: transformers' greedy ids and texts. `fable-glm4-moe-lite` is in the repository; the
//! other models are read from `../shared/models` where that exists.
#![allow(clippy::unwrap_used, clippy::panic)]

use marlin_backend::Reference;
use marlin_checkpoint::text::Tokenizer;
use marlin_checkpoint::{Checkpoint, Store, TensorSource};
use marlin_engine::{Completion, Engine, EngineOptions, Event, FinishReason, Request};
use marlin_models::{LoadOptions, Model};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokens compared; the reference backend is slow.
const TOKENS: usize = 24;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn fable() -> PathBuf {
    root().join("models/fable-glm4-moe-lite")
}

struct Expected {
    prompt: Vec<u32>,
    ids: Vec<u32>,
    text: String,
}

/// A prompt of the reference and its greedy continuation.
fn expected(folder: &Path, name: &str) -> Expected {
    let text = std::fs::read_to_string(folder.join("reference.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let greedy = &json["greedy"][name];
    let tensors = Store::open(&folder.join("reference.safetensors")).unwrap();
    let prompt = tensors.tensor(&format!("{name}.input_ids")).unwrap();
    Expected {
        prompt: prompt.data.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
        ids: greedy["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        text: greedy["text"].as_str().unwrap().into(),
    }
}

fn engine(folder: &Path, options: EngineOptions) -> Engine<Reference> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let model = Model::load(&Reference, &checkpoint, LoadOptions::default(), &mut |_| {}).unwrap();
    let json = std::fs::read(folder.join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_bytes("tokenizer.json", &json, None).unwrap();
    let eos = checkpoint.generation.eos;
    Engine::new(Arc::new(Reference), Arc::new(model), Some(tokenizer), eos, options).unwrap()
}

fn greedy(prompt: &[u32], tokens: usize) -> Request {
    Request { max_tokens: Some(tokens), ..Request::new(prompt.to_vec()) }
}

/// Both prompts in one batch, prefilled in small chunks.
fn compare(folder: &Path, tokens: usize) {
    let options = EngineOptions { kv_tokens: Some(512), prefill_chunk: 16, ..EngineOptions::default() };
    let mut engine = engine(folder, options);
    let wanted = ["tale", "chat"].map(|name| expected(folder, name));
    let ids = wanted.each_ref().map(|e| engine.submit(greedy(&e.prompt, tokens)).unwrap());
    let (mut found, mut texts) = ([Vec::new(), Vec::new()], [String::new(), String::new()]);
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            let i = usize::from(event.id() == ids[1]);
            match event {
                Event::Token(t) => {
                    found[i].push(t.token);
                    texts[i].push_str(&t.text);
                }
                Event::Finished(f) => {
                    texts[i].push_str(&f.text);
                    assert_eq!(f.reason, FinishReason::Length);
                }
            }
        }
    }
    for i in 0..2 {
        assert_eq!(found[i], wanted[i].ids[..tokens], "{}", folder.display());
        assert!(wanted[i].text.starts_with(&texts[i]), "{:?} in {:?}", texts[i], wanted[i].text);
    }
}

#[test]
fn the_built_in_model_continues_as_in_transformers() {
    compare(&fable(), TOKENS);
}

#[test]
fn the_other_models_continue_as_in_transformers() {
    let shared = root().join("../shared/models");
    let Ok(entries) = std::fs::read_dir(&shared) else {
        eprintln!("SKIPPED: {} is absent; only the model in the repository is compared", shared.display());
        return;
    };
    for folder in entries.map(|e| e.unwrap().path()).filter(|p| !p.ends_with("fable-glm4-moe-lite")) {
        compare(&folder, 8);
    }
}

/// A second turn after the first finds all whole blocks of prompt and answer, and goes on as if computed from nothing.
#[test]
fn a_chat_goes_on_where_it_was() {
    let options = EngineOptions { kv_tokens: Some(512), block_size: 8, ..EngineOptions::default() };
    let mut engine = engine(&fable(), options);
    let chat = expected(&fable(), "chat");
    let first = engine.complete(greedy(&chat.prompt, 6)).unwrap();
    let mut next = chat.prompt.clone();
    next.extend(&first.tokens);
    next.extend(&chat.ids[6..9]);
    let known = (chat.prompt.len() + 5) / 8 * 8;
    let computed = engine.stats().computed_tokens;
    let warm = engine.complete(greedy(&next, 3)).unwrap();
    assert_eq!(warm.finished.usage.cached_tokens, known);
    assert_eq!(engine.stats().computed_tokens - computed, (next.len() - known + 2) as u64);
    engine.clear_prefix_cache();
    let cold = engine.complete(greedy(&next, 3)).unwrap();
    let parts = |c: &Completion| (c.tokens.clone(), c.logprobs.clone());
    assert_eq!(parts(&warm), parts(&cold));
    assert_eq!(warm.tokens, chat.ids[9..12]);
}

#[test]
fn a_stop_string_ends_the_tale() {
    let options = EngineOptions { kv_tokens: Some(256), ..EngineOptions::default() };
    let mut engine = engine(&fable(), options);
    let tale = expected(&fable(), "tale");
    let stop = Request { stop: vec!["iful and b".into()], ..greedy(&tale.prompt, TOKENS) };
    let answer = engine.complete(stop).unwrap();
    assert_eq!(answer.text, " a very beaut");
    assert_eq!(answer.finished.reason, FinishReason::StopString("iful and b".into()));
}
