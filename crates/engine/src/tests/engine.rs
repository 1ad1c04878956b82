use super::*;
use common::*;

#[allow(dead_code)]
#[path = "../../tests/common/mod.rs"]
mod common;

/// A step that the device refuses ends the requests that took part; the engine goes on.
#[test]
fn a_failed_step_ends_its_requests_only() {
    for pipeline in [false, true] {
        failed_step(pipeline);
    }
}

fn failed_step(pipeline: bool) {
    let pipeline = Some(pipeline);
    let mut engine = engine(EngineOptions { max_batch: 2, prefix_cache: false, pipeline, ..options() });
    let ids = [1, 2, 3].map(|seed| engine.submit(request(prompt(seed, 10), 5, 0)).unwrap());
    engine.step().unwrap();
    // A pool of one block: block tables no longer fit it.
    let small = engine.backend.kv(engine.model.kv_spec(4, 1)).unwrap();
    let good = std::mem::replace(&mut engine.kv, small);
    let error = engine.step().unwrap_err().to_string();
    assert!(error.contains("of a pool of 1"), "{error}");
    engine.kv = good;
    assert_eq!(engine.scheduler.pool().available(), engine.scheduler.pool().total());
    let mut ends = HashMap::new();
    while !engine.is_idle() {
        for event in engine.step().unwrap() {
            if let Event::Finished(f) = event {
                ends.insert(f.id, (f.reason, f.usage.generated_tokens));
            }
        }
    }
    for id in &ids[..2] {
        assert_eq!(ends[id], (FinishReason::Error(error.clone()), 1));
    }
    assert_eq!(ends[&ids[2]], (FinishReason::Length, 5));
    assert_eq!((engine.stats().failed, engine.stats().full), (2, 1));
}
