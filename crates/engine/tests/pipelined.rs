//! The engine's tests again with every step enqueued before the one before it is read; and that this changes no text, whoever
//! ends wherever.
#![allow(clippy::unwrap_used, clippy::panic)]
#![allow(clippy::duplicate_mod)] // each file of tests has its helpers

#[allow(dead_code)]
mod common;
#[path = "engine.rs"]
mod engine;
#[path = "fable.rs"]
mod fable;

use common::*;
use marlin_backend::{Backend, Deferred, Reference};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_engine::{Engine, EngineOptions, Event, FinishReason, Request, RequestId, Stats, Wait};
use std::collections::HashMap;

/// A request, after how many steps it comes, and after how many of its tokens it is cancelled.
#[derive(Clone)]
struct Asked {
    request: Request,
    after: usize,
    cancel: Option<usize>,
}

/// Tokens with their log-probabilities and margins, bit for bit; text and end.
type Told = (Vec<(u32, u32, u32)>, String, Option<FinishReason>);

fn carry_out<B: Backend>(engine: &mut Engine<B>, asked: &[Asked]) -> Vec<Told> {
    let mut told: Vec<Told> = vec![Default::default(); asked.len()];
    let mut whose: HashMap<RequestId, usize> = HashMap::new();
    for step in 0.. {
        assert!(step < 10_000, "the engine does not end");
        for (i, a) in asked.iter().enumerate().filter(|(_, a)| a.after == step) {
            whose.insert(engine.submit(a.request.clone()).unwrap(), i);
        }
        if engine.is_idle() && asked.iter().all(|a| a.after <= step) {
            break;
        }
        for event in engine.step().unwrap() {
            let (id, i) = (event.id(), whose[&event.id()]);
            assert!(told[i].2.is_none(), "an event after the end");
            match event {
                Event::Token(t) => {
                    told[i].0.push((t.token, t.logprob.to_bits(), t.margin.to_bits()));
                    told[i].1.push_str(&t.text);
                    if asked[i].cancel == Some(told[i].0.len()) {
                        engine.cancel(id);
                    }
                }
                Event::Finished(f) => {
                    told[i].1.push_str(&f.text);
                    told[i].2 = Some(f.reason);
                }
            }
        }
    }
    let pool = engine.stats().pool;
    assert_eq!((pool.used, pool.cached + pool.free), (0, pool.total));
    told
}

fn plain(prompt: impl IntoIterator<Item = u32>, max_tokens: usize, seed: u64) -> Request {
    let mut request = request(prompt, max_tokens, 4 * seed);
    assert_eq!((request.sampling.repetition_penalty, request.sampling.frequency_penalty), (1.0, 0.0));
    request.sampling.temperature = if seed % 3 == 2 { 0.0 } else { 0.9 };
    request
}

fn at_once(request: Request) -> Asked {
    Asked { request, after: 0, cancel: None }
}

fn ahead(options: EngineOptions) -> EngineOptions {
    EngineOptions { pipeline: Some(true), ..options }
}

fn waiting(options: EngineOptions) -> EngineOptions {
    EngineOptions { pipeline: Some(false), ..options }
}

/// The same requests both ways; gives what was counted on the way ahead.
fn both(options: EngineOptions, asked: &[Asked]) -> (Vec<Told>, Stats) {
    let mut one = engine_on(Reference, waiting(options.clone()));
    let expected = carry_out(&mut one, asked);
    let stats = one.stats();
    assert_eq!((stats.steps_ahead, stats.discarded_tokens, stats.waits.total()), (0, 0, 0));
    let mut other = engine_on(Reference, ahead(options));
    assert_eq!(carry_out(&mut other, asked), expected);
    (expected, other.stats())
}

#[test]
fn one_answer_is_computed_ahead_to_its_last_token_and_no_further() {
    let (told, stats) = both(options(), &[at_once(plain(prompt(1, 20), 30, 1))]);
    assert_eq!((told[0].0.len(), &told[0].2), (30, &Some(FinishReason::Length)));
    assert_eq!((stats.steps, stats.steps_ahead, stats.computed_tokens), (30, 29, 20 + 29));
    assert_eq!((stats.discarded_tokens, stats.waits.total()), (0, 0));
}

/// Stop tokens and stop strings, at every place of an answer, beside another one that goes on.
#[test]
fn ends_at_every_place() {
    let whole = both(options(), &[at_once(plain(prompt(4, 9), 24, 1))]).0.remove(0);
    let mut discarded = 0;
    for place in 0..24 {
        let by_token = Request { stop_tokens: vec![whole.0[place].0], ..plain(prompt(4, 9), 24, 1) };
        let letter = whole.1[place.min(whole.1.len() - 1)..].chars().take(2).collect::<String>();
        let by_text = Request { stop: vec![letter], ..plain(prompt(4, 9), 24, 1) };
        let (told, stats) = both(options(), &[by_token, by_text, plain(prompt(5, 3), 30, 3)].map(at_once));
        let end = whole.0.iter().position(|t| t.0 == whole.0[place].0).unwrap();
        assert_eq!(told[0].0, whole.0[..=end]);
        assert!(matches!(told[0].2, Some(FinishReason::StopToken(_))));
        assert!(matches!(told[1].2, Some(FinishReason::StopString(_))), "{:?}", told[1]);
        assert_eq!((told[2].0.len(), stats.waits.total()), (30, 0));
        discarded += stats.discarded_tokens;
    }
    assert!(discarded >= 40, "{discarded}");
}

#[test]
fn a_cancelled_request_leaves_others_alone() {
    for cancel in 1..9 {
        let asked = |seed, cancel| Asked { request: plain(prompt(seed, 7), 12, u64::from(seed)), after: 0, cancel };
        let asked = [asked(1, None), asked(2, Some(cancel)), asked(3, Some(1)), asked(4, None)];
        let (told, _) = both(options(), &asked);
        assert_eq!((told[1].0.len(), &told[1].2), (cancel, &Some(FinishReason::Cancelled)));
        assert_eq!((told[0].0.len(), told[3].0.len()), (12, 12));
    }
}

/// What is computed ahead for a cancelled request is not waited for.
#[test]
fn nothing_stays_under_way_for_nobody() {
    let mut engine = engine_on(Reference, ahead(options()));
    let id = engine.submit(plain(prompt(1, 10), 12, 1)).unwrap();
    engine.step().unwrap();
    assert!(engine.cancel(id));
    assert_eq!((engine.stats().discarded_tokens, engine.stats().pool.used), (10, 0));
    assert_eq!(engine.step().unwrap().len(), 1);
    assert!(engine.is_idle());
}

/// Pseudo-random numbers (Marsaglia 2003).
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Requests that come at any time and share beginnings, some with penalties, end tokens, stop strings or a user who has enough.
fn workload(seed: u64, context: usize) -> Vec<Asked> {
    let mut random = Xorshift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut all = Vec::new();
    for number in 0..12 {
        let len = 1 + random.below(context / 2);
        let begins = if random.below(2) == 0 { 1 } else { number };
        let generate = 1 + random.below(context - len);
        let draws = random.below(1000) as u64;
        let mut r = match random.below(6) {
            0 => request(prompt(begins, len), generate, 4 * draws + 1),
            _ => plain(prompt(begins, len), generate, draws),
        };
        match random.below(4) {
            0 => r.stop_tokens = vec![random.below(60) as u32, random.below(60) as u32],
            1 => r.stop = vec![char::from(b'A' + random.below(26) as u8).into()],
            _ => {}
        }
        let cancel = (random.below(6) == 0).then(|| 1 + random.below(20));
        all.push(Asked { request: r, after: random.below(40), cancel });
    }
    all
}

#[test]
fn random_workloads_give_the_same_texts() {
    let (mut ahead, mut preemptions, mut discarded, mut hits) = (0, 0, 0, 0);
    let mut waits = [0; Wait::ALL.len()];
    for seed in 0..30 {
        let (block_size, chunk) = ([1, 4, 8][seed as usize % 3], [1, 3, 16, 200][seed as usize % 4]);
        let options = EngineOptions {
            block_size,
            prefill_chunk: Some(chunk),
            max_batch: 2 + seed as usize % 5,
            kv_tokens: Some(if seed % 2 == 0 { 64 } else { 2048 }),
            prefix_cache: seed % 5 > 0,
            ..options()
        };
        let (told, stats) = both(options, &workload(seed, 60));
        assert!(told.iter().all(|t| t.2.is_some()), "{seed}");
        ahead += stats.steps_ahead;
        preemptions += stats.preemptions;
        discarded += stats.discarded_tokens;
        hits += stats.pool.hits;
        Wait::ALL.into_iter().zip(&mut waits).for_each(|(wait, n)| *n += stats.waits.of(wait));
    }
    let [penalties, logprobs, host, blocks] = waits;
    assert!(
        ahead > 300 && preemptions > 10 && discarded > 20 && hits > 100,
        "{ahead} {preemptions} {discarded} {hits}"
    );
    assert!(penalties > 100 && blocks > 10 && (logprobs, host) == (0, 0), "{waits:?}");
}

#[test]
fn the_same_on_backends_that_compute_late_and_on_the_processor() {
    let asked = workload(77, 60);
    let options = || EngineOptions { kv_tokens: Some(128), prefill_chunk: Some(7), ..options() };
    let expected = carry_out(&mut engine_on(Reference, waiting(options())), &asked);
    let mut late = engine_on(Deferred::new(Reference), ahead(options()));
    assert_eq!(carry_out(&mut late, &asked), expected);
    assert_eq!(late.backend().pending(), 0);
    let cpu = || CpuBackend::new(CpuOptions { threads: 2, exact: true, ..CpuOptions::default() });
    let expected = carry_out(&mut engine_on(cpu(), waiting(options())), &asked);
    let mut processor = engine_on(cpu(), ahead(options()));
    assert_eq!(carry_out(&mut processor, &asked), expected);
    assert!(processor.stats().steps_ahead > 20);
    // Which by itself waits, for it gains nothing.
    assert!(!cpu().pipelines());
}

/// A token that means nothing ends its request; the one computed after it is thrown away with it.
#[test]
fn poison_ends_its_request_only() {
    let mut poisoned = plain([5, 6, 7, 8, POISON], 12, 1);
    poisoned.sampling.logit_bias.clear();
    let asked = [poisoned, plain(prompt(1, 10), 12, 3), plain([5, 6, 7, 8, 9], 12, 4)].map(at_once);
    let (told, stats) = both(options(), &asked);
    assert!(matches!(&told[0].2, Some(FinishReason::Error(why)) if why.contains("after token 5")), "{:?}", told[0]);
    assert!(told[0].0.is_empty());
    assert_eq!((told[1].0.len(), told[2].0.len(), stats.discarded_tokens), (12, 12, 1));
}

#[test]
fn reasons_have_codes_of_their_own() {
    let codes: std::collections::HashSet<_> = Wait::ALL.map(Wait::code).into_iter().collect();
    assert_eq!(codes.len(), Wait::ALL.len());
}
