//! The engine on real checkpoints: transformers' greedy ids and texts. `fable-glm4-moe-lite` is in the repository; the
//! other models are read from `../shared/models` where that exists.
#![allow(clippy::unwrap_used, clippy::panic)]

use marlin_backend::{Backend, Reference};
use marlin_checkpoint::text::Tokenizer;
use marlin_checkpoint::{Checkpoint, Store, TensorSource};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_engine::{
    Completion, Engine, EngineOptions, Event, FinishReason, Request, RequestId, Sampling, Window, log_probability,
};
use marlin_models::{LoadOptions, Model};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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

fn prompt(folder: &Path, name: &str) -> Vec<u32> {
    let tensors = Store::open(&folder.join("reference.safetensors")).unwrap();
    let ids = tensors.tensor(&format!("{name}.input_ids")).unwrap();
    ids.data.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// A prompt of the reference and its greedy continuation.
fn expected(folder: &Path, name: &str) -> Expected {
    let text = std::fs::read_to_string(folder.join("reference.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let greedy = &json["greedy"][name];
    Expected {
        prompt: prompt(folder, name),
        ids: greedy["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        text: greedy["text"].as_str().unwrap().into(),
    }
}

/// The CPU in f32: like the reference, but fast enough for whole answers.
fn cpu() -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: 2, exact: true, ..CpuOptions::default() })
}

fn engine<B: Backend>(b: B, folder: &Path, options: EngineOptions) -> Engine<B> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let model = Model::load(&b, &checkpoint, LoadOptions::default(), &mut |_| {}).unwrap();
    let json = std::fs::read(folder.join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_bytes("tokenizer.json", &json, None).unwrap();
    let eos = checkpoint.generation.eos;
    Engine::new(Arc::new(b), Arc::new(model), Some(tokenizer), eos, options).unwrap()
}

fn defaults() -> EngineOptions {
    EngineOptions { pipeline: Some(module_path!().starts_with("pipelined")), ..EngineOptions::default() }
}

fn greedy(prompt: &[u32], tokens: usize) -> Request {
    Request { max_tokens: Some(tokens), ..Request::new(prompt.to_vec()) }
}

/// Both prompts in one batch, prefilled in small chunks.
fn compare<B: Backend>(b: B, folder: &Path, tokens: usize) {
    let options = EngineOptions { kv_tokens: Some(512), prefill_chunk: Some(16), ..defaults() };
    let mut engine = engine(b, folder, options);
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
    compare(Reference, &fable(), 16);
    compare(cpu(), &fable(), 64);
}

#[test]
fn the_other_models_continue_as_in_transformers() {
    let shared = root().join("../shared/models");
    let Ok(entries) = std::fs::read_dir(&shared) else {
        eprintln!("SKIPPED: {} is absent; only the model in the repository is compared", shared.display());
        return;
    };
    for folder in entries.map(|e| e.unwrap().path()).filter(|p| !p.ends_with("fable-glm4-moe-lite")) {
        compare(Reference, &folder, 3);
        compare(cpu(), &folder, 64);
    }
}

/// Tokens and log-probabilities of requests, all submitted at once.
fn together(engine: &mut Engine<CpuBackend>, requests: &[Request]) -> Vec<Vec<(u32, f32)>> {
    let ids: Vec<RequestId> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
    let mut found = vec![Vec::new(); ids.len()];
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Token(t) = event {
                found[ids.iter().position(|id| *id == t.id).unwrap()].push((t.token, t.logprob));
            }
        }
    }
    assert_eq!(engine.stats().pool.used, 0);
    found
}

/// Bit for bit: the log-probabilities too.
#[test]
fn company_chunks_and_preemption_change_nothing_in_exact_mode() {
    let (tale, long) = (prompt(&fable(), "tale"), prompt(&fable(), "long"));
    let request = |(prompt, tokens): (&[u32], usize), seed| {
        let sampling = Sampling {
            temperature: if seed == 0 { 0.0 } else { 0.9 },
            top_k: 40,
            top_p: 0.95,
            repetition_penalty: 1.1,
            seed: Some(seed),
            ..Sampling::default()
        };
        Request { sampling, ignore_eos: true, ..greedy(prompt, tokens) }
    };
    let prompts = [(&tale[..], 40), (&tale[..1], 30), (&long[..97], 24), (&tale[..7], 50), (&long[..64], 20)];
    let requests: Vec<Request> = prompts.into_iter().zip(0..).map(|(p, seed)| request(p, seed)).collect();
    let options = || EngineOptions { kv_tokens: Some(1024), block_size: 16, ..defaults() };
    let mut single = engine(cpu(), &fable(), EngineOptions { prefix_cache: false, ..options() });
    let alone: Vec<_> = requests.iter().flat_map(|r| together(&mut single, std::slice::from_ref(r))).collect();
    for (prefill_chunk, block_size, kv_tokens) in [(1, 16, 1024), (3, 8, 1024), (7, 32, 1024), (64, 16, 160)] {
        let options =
            EngineOptions { prefill_chunk: Some(prefill_chunk), block_size, kv_tokens: Some(kv_tokens), ..defaults() };
        let mut engine = engine(cpu(), &fable(), options);
        assert_eq!(together(&mut engine, &requests), alone, "chunks of {prefill_chunk}");
        assert_eq!(engine.stats().preemptions > 0, kv_tokens == 160, "{:?}", engine.stats());
    }
}

/// A second turn after the first finds all whole blocks of prompt and answer, and goes on as if computed from nothing.
#[test]
fn a_chat_goes_on_where_it_was() {
    let options = EngineOptions { kv_tokens: Some(512), block_size: 8, ..defaults() };
    let mut engine = engine(cpu(), &fable(), options);
    let chat = expected(&fable(), "chat");
    let first = engine.complete(greedy(&chat.prompt, 30)).unwrap();
    let mut next = chat.prompt.clone();
    next.extend(&first.tokens);
    next.extend(&chat.ids[30..33]);
    let known = (chat.prompt.len() + 29) / 8 * 8;
    let computed = engine.stats().computed_tokens;
    let warm = engine.complete(greedy(&next, 20)).unwrap();
    assert_eq!(warm.finished.usage.cached_tokens, known);
    assert_eq!(engine.stats().computed_tokens - computed, (next.len() - known + 19) as u64);
    engine.clear_prefix_cache();
    let cold = engine.complete(greedy(&next, 20)).unwrap();
    let parts = |c: &Completion| (c.tokens.clone(), c.logprobs.clone());
    assert_eq!(parts(&warm), parts(&cold));
    assert_eq!(warm.tokens, chat.ids[33..53]);
}

#[test]
fn a_stop_string_ends_the_tale() {
    let options = EngineOptions { kv_tokens: Some(256), ..defaults() };
    let mut engine = engine(cpu(), &fable(), options);
    let tale = expected(&fable(), "tale");
    let stop = Request { stop: vec!["iful and b".into()], ..greedy(&tale.prompt, 64) };
    let answer = engine.complete(stop).unwrap();
    assert_eq!(answer.text, " a very beaut");
    assert_eq!(answer.finished.reason, FinishReason::StopString("iful and b".into()));
}

/// Perplexity over held-out text in windows of 512 tokens every 256, several in a step, as transformers has it.
#[test]
fn perplexity_is_that_of_transformers() {
    let path = root().join("../shared/text/heldout-8000.i32");
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("SKIPPED: {} is absent", path.display());
        return;
    };
    let ids: Vec<u32> = bytes.as_chunks::<4>().0.iter().take(2048).map(|b| u32::from_le_bytes(*b)).collect();
    let options = EngineOptions { prefill_chunk: Some(1024), logits_memory: 4 << 20, ..defaults() };
    let mut engine = engine(cpu(), &fable(), options);
    // Every window rates the tokens that the one before has not.
    let (mut windows, mut rated) = (Vec::new(), 1);
    for start in (0..ids.len()).step_by(256) {
        let end = (start + 512).min(ids.len());
        windows.push(Window { tokens: &ids[start..end], from: rated - 1 - start });
        rated = end;
        if end == ids.len() {
            break;
        }
    }
    let (mut sum, mut count) = (0.0, 0);
    engine
        .score(&windows, &mut |rows| {
            for (position, logits) in rows.rows() {
                let window = windows[rows.window].tokens;
                if let Some(next) = window.get(position + 1) {
                    sum -= log_probability(logits, *next);
                    count += 1;
                }
            }
            Ok(())
        })
        .unwrap();
    let perplexity = (sum / f64::from(count)).exp();
    assert_eq!(count, 2047);
    assert!((perplexity / 35.093_252 - 1.0).abs() < 2e-4, "{perplexity}");
    assert_eq!(engine.stats().pool.used, 0);
}
