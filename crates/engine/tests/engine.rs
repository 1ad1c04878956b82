//! The engine on a tiny random model and the reference backend.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use marlin_backend::{Backend, Deferred, Reference};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_engine::{
    Engine, EngineOptions, Event, FinishReason, Finished, Request, RequestId, Sampling, Window, log_probability,
};
use std::collections::HashMap;

/// Tokens, text and end of each request.
type Outcome = HashMap<RequestId, (Vec<u32>, String, Option<Finished>)>;

fn drain<B: Backend>(engine: &mut Engine<B>) -> Outcome {
    let mut outcome = Outcome::new();
    for _ in 0..10_000 {
        if engine.is_idle() {
            return outcome;
        }
        for event in engine.step().unwrap() {
            let entry = outcome.entry(event.id()).or_default();
            assert!(entry.2.is_none(), "an event after the end");
            match event {
                Event::Token(t) => {
                    entry.0.push(t.token);
                    entry.1.push_str(&t.text);
                }
                Event::Finished(f) => {
                    entry.1.push_str(&f.text);
                    entry.2 = Some(f);
                }
            }
        }
    }
    panic!("the engine does not end");
}

fn requests() -> Vec<Request> {
    [(1, 19), (17, 30), (40, 9), (5, 40), (33, 25), (40, 12)]
        .into_iter()
        .zip(0..)
        .map(|((len, generate), seed)| {
            let mut r = request(prompt(seed, len), generate, u64::from(seed));
            if seed == 2 {
                r.sampling.temperature = 0.0;
            }
            r
        })
        .collect()
}

/// Each request on an engine of its own.
fn alone() -> Vec<Vec<u32>> {
    requests().into_iter().map(|r| engine(options()).complete(r).unwrap().tokens).collect()
}

fn together<B: Backend>(engine: &mut Engine<B>) -> Vec<Vec<u32>> {
    let ids: Vec<RequestId> = requests().into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let mut outcome = drain(engine);
    let total = engine.stats().pool.total;
    assert_eq!(engine.stats().pool.used, 0);
    assert_eq!(engine.stats().pool.cached + engine.stats().pool.free, total);
    ids.iter().map(|id| outcome.remove(id).unwrap().0).collect()
}

#[test]
fn together_as_alone_in_chunks_of_any_size() {
    let alone = alone();
    assert!(alone.iter().zip(requests()).all(|(t, r)| t.len() == r.max_tokens.unwrap()));
    for (chunk, block_size, max_batch, prefix_cache) in
        [(1, 4, 32, true), (3, 1, 32, false), (7, 32, 3, true), (64, 8, 32, true), (512, 4, 2, false)]
    {
        let options = EngineOptions { prefill_chunk: Some(chunk), block_size, max_batch, prefix_cache, ..options() };
        assert_eq!(together(&mut engine(options)), alone, "chunk {chunk}, blocks of {block_size}");
    }
}

#[test]
fn preemption_changes_no_token() {
    for (kv_tokens, prefix_cache) in [(60, true), (60, false), (80, true), (100, false)] {
        let mut engine =
            engine(EngineOptions { kv_tokens: Some(kv_tokens), prefix_cache, prefill_chunk: Some(16), ..options() });
        assert_eq!(together(&mut engine), alone());
        assert!(engine.stats().preemptions > 0, "{kv_tokens}: {:?}", engine.stats());
    }
}

#[test]
fn nothing_is_read_before_it_is_submitted() {
    let mut engine = engine_on(Deferred::new(Reference), EngineOptions { prefill_chunk: Some(7), ..options() });
    assert_eq!(together(&mut engine), alone());
    assert_eq!(engine.backend().pending(), 0);
    let logits = engine.logits(&prompt(1, 9), false).unwrap();
    assert_eq!(logits.len(), 9 * VOCAB);
}

/// The CPU in exact mode; and an engine may live on a thread of its own.
#[test]
fn on_the_cpu_and_on_another_thread() {
    let cpu = || CpuBackend::new(CpuOptions { threads: 2, exact: true, ..CpuOptions::default() });
    let mut single = engine_on(cpu(), options());
    let alone: Vec<_> = requests().into_iter().map(|r| single.complete(r).unwrap().tokens).collect();
    let mut engine = engine_on(cpu(), EngineOptions { kv_tokens: Some(80), prefill_chunk: Some(7), ..options() });
    let together = std::thread::spawn(move || (together(&mut engine), engine.stats().preemptions)).join().unwrap();
    assert_eq!(together.0, alone);
    assert!(together.1 > 0);
}

#[test]
fn cancelling_frees_blocks_and_leaves_others_alone() {
    let mut engine = engine(EngineOptions { prefix_cache: false, max_batch: 2, ..options() });
    let ids: Vec<RequestId> = requests().into_iter().map(|r| engine.submit(r).unwrap()).collect();
    for _ in 0..3 {
        engine.step().unwrap();
    }
    let used = engine.stats().pool.used;
    // One running, one waiting.
    assert!(engine.cancel(ids[1]) && engine.cancel(ids[4]));
    assert!(!engine.cancel(ids[4]) && !engine.cancel(RequestId(99)));
    assert!(engine.stats().pool.used < used);
    let outcome = drain(&mut engine);
    for i in [1, 4] {
        let finished = outcome[&ids[i]].2.as_ref().unwrap();
        assert_eq!(finished.reason, FinishReason::Cancelled);
        assert_eq!(finished.usage.prompt_tokens, requests()[i].prompt.len());
    }
    let alone = alone();
    for i in [2, 3, 5] {
        assert_eq!(outcome[&ids[i]].0, alone[i]);
    }
    let stats = engine.stats();
    assert_eq!((stats.pool.used, stats.pool.free, stats.cancelled, stats.full), (0, stats.pool.total, 2, 4));
}

#[test]
fn logits_that_are_not_numbers_end_their_request_only() {
    let mut engine = engine(options());
    let good = engine.submit(request(prompt(1, 10), 12, 1)).unwrap();
    let bad = engine.submit(request([5, 6, 7, 8, POISON], 12, 1)).unwrap();
    let outcome = drain(&mut engine);
    let (tokens, _, finished) = &outcome[&bad];
    assert!(tokens.is_empty());
    let FinishReason::Error(why) = &finished.as_ref().unwrap().reason else { panic!("{finished:?}") };
    assert!(why.contains(&format!("request {bad}")) && why.contains("after token 5"), "{why}");
    assert_eq!(outcome[&good].0.len(), 12);
    assert_eq!((engine.stats().failed, engine.stats().pool.used), (1, 0));
}

#[test]
fn the_next_turn_computes_its_new_end_only() {
    let mut engine = engine(options());
    let first = engine.complete(request(prompt(3, 30), 21, 1)).unwrap();
    assert_eq!(first.finished.usage.cached_tokens, 0);
    let mut next = prompt(3, 30);
    next.extend(&first.tokens);
    next.extend(prompt(9, 6));
    let before = engine.stats();
    let second = engine.complete(request(next.clone(), 5, 2)).unwrap();
    // Of 51 tokens the last was never computed: 50 tokens are 12 blocks of 4.
    assert_eq!(second.finished.usage.cached_tokens, 48);
    assert_eq!(engine.stats().computed_tokens - before.computed_tokens, 57 - 48 + 4);
    assert_eq!(engine.stats().pool.hits, 48);
    engine.clear_prefix_cache();
    let again = engine.complete(request(next, 5, 2)).unwrap();
    assert_eq!((again.finished.usage.cached_tokens, again.tokens), (0, second.tokens));
}

#[test]
fn stop_strings_cross_tokens() {
    let mut engine = engine(options());
    let whole = engine.complete(request(prompt(4, 12), 40, 3)).unwrap();
    assert_eq!(whole.text.len(), whole.tokens.iter().filter(|t| **t != EOS).count());
    assert_eq!(whole.finished.reason, FinishReason::Length);
    for at in [0, 7, 20, 35] {
        let stop = &whole.text[at..at + 3];
        let end = whole.text.find(stop).unwrap();
        let mut stopped = request(prompt(4, 12), 40, 3);
        stopped.stop = vec!["not there".into(), stop.into()];
        let answer = engine.complete(stopped).unwrap();
        assert_eq!(answer.text, whole.text[..end]);
        assert_eq!(answer.finished.reason, FinishReason::StopString(stop.into()));
        assert_eq!(answer.tokens, whole.tokens[..answer.tokens.len()]);
    }
}

#[test]
fn end_tokens_end() {
    let mut engine = engine(options());
    let whole = engine.complete(request(prompt(4, 12), 40, 3)).unwrap();
    let mut stopped = request(prompt(4, 12), 40, 3);
    stopped.stop_tokens = vec![whole.tokens[10]];
    let answer = engine.complete(stopped).unwrap();
    let end = whole.tokens.iter().position(|t| *t == whole.tokens[10]).unwrap();
    assert_eq!(answer.tokens, whole.tokens[..=end]);
    assert_eq!(answer.finished.reason, FinishReason::StopToken(whole.tokens[10]));
    assert_eq!(answer.finished.usage.generated_tokens, end + 1);
    let mut forced = request(prompt(4, 12), 40, 3);
    forced.ignore_eos = false;
    forced.sampling.logit_bias.push((EOS, 1000.0));
    let answer = engine.complete(forced).unwrap();
    assert_eq!((answer.tokens, answer.text.as_str()), (vec![EOS], ""));
}

#[test]
fn what_can_never_be_carried_out_is_refused() {
    let mut engine = engine(EngineOptions { kv_tokens: Some(100), ..options() });
    let mut refuse = |r: Request| engine.submit(r).unwrap_err().to_string();
    assert!(refuse(request([], 1, 0)).contains("prompt is empty"));
    assert!(refuse(request([1, 64], 1, 0)).contains("prompt token 1 is 64, but the model's vocabulary has 64"));
    let long = refuse(request(prompt(1, 500), 13, 0));
    assert!(long.contains("500 prompt tokens and 13 to generate are 513, but the context is 512"), "{long}");
    let large = refuse(request(prompt(1, 90), 11, 0));
    assert!(large.contains("need 26 KV blocks of 4") && large.contains("25 (100 tokens)"), "{large}");
    assert!(refuse(request([1], 0, 0)).contains("max_tokens"));
    let with = |sampling| Request { sampling, ..request([1], 1, 0) };
    let d = Sampling::default;
    assert!(refuse(with(Sampling { temperature: f32::NAN, ..d() })).contains("temperature"));
    assert!(refuse(with(Sampling { top_p: 1.5, ..d() })).contains("top_p: expected a number from 0 to 1, found 1.5"));
    assert!(refuse(with(Sampling { repetition_penalty: 0.0, ..d() })).contains("repetition_penalty"));
    assert!(refuse(with(Sampling { logit_bias: vec![(64, 1.0)], ..d() })).contains("logit_bias"));
    let stop_token = refuse(Request { stop_tokens: vec![64], ..request([1], 1, 0) });
    assert_eq!(stop_token, "stop_tokens: expected tokens below 64, found 64");
    assert!(refuse(Request { stop: vec![String::new()], ..request([1], 1, 0) }).contains("stop"));
    assert!(engine.is_idle());
    // Without a limit an answer goes on to the end of what fits.
    let all = engine.complete(Request { max_tokens: None, ..request(prompt(1, 90), 1, 0) }).unwrap();
    assert_eq!((all.tokens.len(), all.finished.reason), (10, FinishReason::Length));
}

#[test]
fn without_a_tokenizer_there_are_ids() {
    let options = options();
    let (b, model) = (std::sync::Arc::new(Reference), std::sync::Arc::new(model(&Reference)));
    let mut engine = Engine::new(b, model, None, vec![EOS], options).unwrap();
    let answer = engine.complete(requests().remove(1)).unwrap();
    assert_eq!((&answer.tokens, answer.text.as_str()), (&alone()[1], ""));
    let stop = Request { stop: vec!["a".into()], ..request([1], 1, 0) };
    assert!(engine.submit(stop).unwrap_err().to_string().contains("tokenizer"));
}

#[test]
fn log_probabilities_are_those_of_the_logits() {
    let mut engine = engine(options());
    let mut asked = request(prompt(6, 20), 10, 4);
    asked.sampling.top_logprobs = 5;
    let id = engine.submit(asked).unwrap();
    let mut events = Vec::new();
    while !engine.is_idle() {
        events.extend(engine.step().unwrap());
    }
    let mut ids = prompt(6, 20);
    for event in events {
        let Event::Token(t) = event else { continue };
        assert_eq!(t.id, id);
        let logits = engine.logits(&ids, true).unwrap();
        assert!((log_probability(&logits, t.token) - f64::from(t.logprob)).abs() < 1e-5);
        let mut best: Vec<u32> = (0..VOCAB as u32).collect();
        best.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        assert_eq!(t.top.iter().map(|x| x.0).collect::<Vec<_>>(), best[..5]);
        assert!(t.margin > 0.0);
        ids.push(t.token);
    }
    let scored = engine.token_logprobs(&ids).unwrap();
    assert_eq!(scored.len(), ids.len() - 1);
}

#[test]
fn scores_do_not_depend_on_chunks_or_windows() {
    let ids = prompt(8, 50);
    let mut whole = engine(options());
    let expected = whole.logits(&ids, false).unwrap();
    let row = |p: usize| expected[p * VOCAB..(p + 1) * VOCAB].to_vec();
    assert_eq!(whole.logits(&ids, true).unwrap(), row(49));
    for (chunk, rows) in [(1, 1), (3, 2), (7, 100), (64, 5), (200, 1000)] {
        let options = EngineOptions { prefill_chunk: Some(chunk), logits_memory: rows * VOCAB * 4, ..options() };
        let mut engine = engine(options);
        // A running request keeps its blocks and goes on afterwards.
        engine.submit(request(prompt(1, 10), 12, 1)).unwrap();
        engine.step().unwrap();
        let used = engine.stats().pool.used;
        let windows = [
            Window { tokens: &ids, from: 20 },
            Window { tokens: &ids[..30], from: 0 },
            Window { tokens: &ids[..1], from: 0 },
            Window { tokens: &ids, from: 49 },
        ];
        let mut seen = vec![Vec::new(); 4];
        engine
            .score(&windows, &mut |found| {
                assert!(found.values.len() <= rows * VOCAB);
                for (position, logits) in found.rows() {
                    assert_eq!(logits, row(position), "position {position} in chunks of {chunk}");
                    seen[found.window].push(position);
                }
                Ok(())
            })
            .unwrap();
        let wanted: [Vec<usize>; 4] = [(20..50).collect(), (0..30).collect(), vec![0], vec![49]];
        assert_eq!(seen, wanted);
        assert_eq!(engine.stats().pool.used, used);
        drain(&mut engine);
        assert_eq!(engine.stats().pool.used, 0);
    }
}

#[test]
fn a_receiver_that_gives_up_leaves_nothing_behind() {
    let mut engine = engine(options());
    let ids = prompt(8, 50);
    let stop = engine.score(&[Window { tokens: &ids, from: 0 }], &mut |_| {
        Err(marlin_engine::Error::Receiver("the disk is full".into()))
    });
    assert_eq!(stop.unwrap_err().to_string(), "the disk is full");
    assert_eq!(engine.stats().pool.used, 0);
}

#[test]
fn seeds_repeat_and_differ() {
    let mut engine = engine(options());
    let mut run = |seed| {
        let mut r = request(prompt(2, 10), 20, 0);
        r.sampling.seed = seed;
        let answer = engine.complete(r).unwrap();
        (answer.tokens, answer.finished.seed)
    };
    let (fresh, seed) = run(None);
    assert_eq!(run(Some(seed)).0, fresh);
    assert_ne!(run(Some(1)).0, run(Some(2)).0);
}

#[test]
fn usage_adds_up() {
    let mut engine = engine(EngineOptions { max_batch: 1, ..options() });
    engine.submit(request(prompt(1, 30), 10, 1)).unwrap();
    let second = engine.submit(request(prompt(1, 30), 10, 1)).unwrap();
    let outcome = drain(&mut engine);
    let usage = outcome[&second].2.as_ref().unwrap().usage;
    assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.generated_tokens), (30, 28, 10));
    assert_eq!(usage.queue + usage.prefill, usage.time_to_first_token);
    assert!(usage.queue > std::time::Duration::ZERO && usage.decode > std::time::Duration::ZERO);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.generated_tokens, stats.full), (60, 20, 2));
    assert_eq!(stats.computed_tokens, 30 + 9 + 2 + 9);
}
