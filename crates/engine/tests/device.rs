//! The engine on a GPU, the simulated one unless `MARLIN_TEST_DEVICE` is `cuda`: steps enqueued ahead, replayed from recordings, with
//! tokens that stay on the device, give the texts of steps that wait for each other.
#![allow(clippy::unwrap_used, clippy::panic)]

#[allow(dead_code)]
mod common;

use common::*;
use marlin_backend::Reference;
use marlin_engine::{EngineOptions, Event, Request, Sampling, Wait};
use marlin_gpu::kernels::Element;
use marlin_gpu::{Device, GpuBackend, GpuOptions};
use marlin_gpu_sim::{Order, Simulated};
use std::sync::Arc;

fn backend() -> Option<GpuBackend> {
    let options = GpuOptions { kv: Element::F32, memory: 1 << 30, threads: 1, record: true, exact: false };
    let open = |device: Arc<dyn Device>| Some(GpuBackend::new(device, options).unwrap());
    #[cfg(not(target_os = "macos"))]
    if std::env::var("MARLIN_TEST_DEVICE").is_ok_and(|d| d == "cuda") {
        return open(Arc::new(marlin_gpu::device::cuda::Cuda::open(0).unwrap()));
    }
    if let Some(why) = Simulated::absent() {
        eprintln!("SKIPPED: {why}");
        return None;
    }
    open(Arc::new(Simulated::new(Order::Forward)))
}

/// Greedy and drawn answers of different lengths; one that a stop token ends, and one with a list of probable tokens.
fn requests() -> Vec<Request> {
    let with = |seed: u32, generate, sampling| Request {
        sampling: Sampling { seed: Some(u64::from(seed)), ..sampling },
        max_tokens: Some(generate),
        ignore_eos: true,
        ..Request::new(prompt(seed, 3 + 4 * seed as usize))
    };
    let plain = Sampling::default;
    let drawn = || Sampling { temperature: 0.8, ..plain() };
    let mut all = vec![
        with(1, 14, plain()),
        with(2, 9, Sampling { top_k: 12, ..drawn() }),
        with(3, 12, Sampling { top_p: 0.8, min_p: 0.01, ..drawn() }),
        with(4, 3, Sampling { top_logprobs: 2, ..plain() }),
        with(5, 40, drawn()),
    ];
    all[4].stop_tokens = (0..20).collect();
    all
}

#[test]
fn steps_enqueued_ahead_give_the_same_texts_on_a_gpu() {
    let run = |pipeline: Option<bool>| {
        let mut engine = engine_on(backend()?, EngineOptions { pipeline, prefill_chunk: Some(16), ..options() });
        let ids: Vec<_> = requests().into_iter().map(|r| engine.submit(r).unwrap()).collect();
        let mut told = vec![Vec::new(); ids.len()];
        while !engine.is_idle() {
            for event in engine.step().unwrap() {
                if let Event::Token(t) = event {
                    told[ids.iter().position(|id| *id == t.id).unwrap()].push(t.token);
                }
            }
        }
        let slower = engine.backend().fallbacks().snapshot();
        Some((told, engine.stats(), slower.by_reason.get("sampled_on_cpu").copied()))
    };
    let Some((expected, stats, on_cpu)) = run(Some(false)) else { return };
    assert_eq!((stats.steps_ahead, stats.waits.total()), (0, 0));
    // By itself a GPU goes ahead, but for the steps whose tokens are chosen on the CPU.
    let (found, stats, also_on_cpu) = run(None).unwrap();
    assert_eq!(found, expected);
    assert!(stats.steps_ahead >= 8, "{stats:?}");
    assert!(on_cpu == Some(3) && also_on_cpu == Some(3), "{on_cpu:?} {also_on_cpu:?}");
    assert_eq!((stats.waits.of(Wait::LogProbabilities), stats.waits.total()), (3, 3));
    assert_eq!(stats.discarded_tokens, 1, "by the stop token");
    // And they are the tokens that the reference chooses.
    let mut reference = engine_on(Reference, options());
    let alone = requests().into_iter().map(|r| reference.complete(r).unwrap().tokens);
    assert_eq!(found, alone.collect::<Vec<_>>());
}
