//! An engine that is warm compiles nothing any more: on the simulated GPU, or, where `MARLIN_TEST_DEVICE` is `cuda`, on the GPU that is there.
#![allow(clippy::unwrap_used)] // a failing test may panic

use marlin_backend::{Backend, SequenceStep, Step, Token};
use marlin_checkpoint::Checkpoint;
use marlin_engine::{Engine, EngineOptions, Request};
use marlin_gpu::kernels::Element;
use marlin_gpu::{Device, GpuBackend, GpuOptions};
use marlin_gpu_sim::{Order, Simulated};
use marlin_models::{LoadOptions, Model};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn device() -> Option<Arc<dyn Device>> {
    #[cfg(not(target_os = "macos"))]
    if std::env::var("MARLIN_TEST_DEVICE").is_ok_and(|d| d == "cuda") {
        return Some(Arc::new(marlin_gpu::device::cuda::Cuda::open(0).unwrap()));
    }
    if let Some(why) = Simulated::absent() {
        eprintln!("SKIPPED: {why}");
        return None;
    }
    Some(Arc::new(Simulated::new(Order::Forward)))
}

const CONTEXT: usize = 600;

fn engine(device: Arc<dyn Device>) -> Engine<GpuBackend> {
    let options = GpuOptions { kv: Element::Bf16, memory: 2 << 30, threads: 1, record: true, exact: false };
    let b = Arc::new(GpuBackend::new(device, options).unwrap());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fable");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let model = Arc::new(Model::load(b.as_ref(), &checkpoint, LoadOptions::default(), &mut |_| {}).unwrap());
    let options = EngineOptions {
        max_batch: 4,
        context: Some(CONTEXT),
        kv_tokens: Some(2 * CONTEXT),
        prefill_chunk: Some(300),
        ..EngineOptions::default()
    };
    Engine::new(b, model, None, Vec::new(), options).unwrap()
}

#[test]
fn a_warm_engine_compiles_nothing() {
    let Some(first) = device() else { return };
    let mut warm = engine(first);
    let seen = AtomicUsize::new(0);
    warm.warm(&|done, total| {
        assert!(done <= total);
        seen.fetch_max(done, Ordering::Relaxed);
    })
    .unwrap();
    assert!(seen.into_inner() > 10, "nobody was told of the progress");
    let b = warm.backend().clone();
    let ready = b.gpu().counts();
    assert!(ready.compiled + ready.found > 0);
    assert_eq!(b.fallbacks().snapshot(), Default::default(), "a rehearsal counts nothing");

    // Every length of prompt at several depths, and every batch: what would be launched has been compiled.
    let (model, kv) = (warm.model().clone(), b.kv(warm.model().kv_spec(32, 20)).unwrap());
    let forward = |parts: &[(usize, usize)]| {
        let sequence = |&(cached, len): &(usize, usize)| SequenceStep { cached, len, blocks: vec![0; 20] };
        let tokens = vec![Token::Id(0); parts.iter().map(|p| p.1).sum()];
        let outputs = vec![tokens.len() as u32 - 1];
        let step = Step { tokens, sequences: parts.iter().map(sequence).collect(), outputs };
        let batch = b.begin(&step, &kv, None).unwrap();
        model.forward(b.as_ref(), &batch, &kv, None).unwrap();
    };
    let ((), wanted) = b.gpu().rehearse(|| {
        for len in 1..=300 {
            for cached in [0, 7, 250, 300] {
                forward(&[(cached, len)]);
            }
        }
        for depth in (0..CONTEXT).step_by(13) {
            for rows in 1..=4 {
                forward(&vec![(depth, 1); rows]);
            }
            forward(&[(depth, 1), (0, 99)]);
        }
    });
    assert!(wanted.len() > 20);
    let cold: Vec<&str> = wanted.iter().map(|e| e.name.as_str()).filter(|name| !b.gpu().is_compiled(name)).collect();
    assert!(cold.is_empty(), "{cold:?}");

    // And some of it in earnest, drawn tokens and replayed steps among it.
    let ids = |n: u32| (0..n).map(|i| 7 + i * 31 % 900).collect::<Vec<u32>>();
    for prompt in [1, 3, 18] {
        let done = warm.complete(Request { max_tokens: Some(4), ..Request::new(ids(prompt)) }).unwrap();
        assert_eq!(done.tokens.len(), 4);
    }
    let now = b.gpu().counts();
    assert_eq!((now.compiled, now.found), (ready.compiled, ready.found));
    assert!(now.launches > ready.launches && now.replays > 0);

    // Another one finds everything on disk.
    let Some(second) = device() else { return };
    let again = engine(second);
    again.warm(&|_, _| {}).unwrap();
    let found = again.backend().gpu().counts();
    assert_eq!((found.compiled, found.found), (0, ready.compiled + ready.found));
}
