//! Timing can be stopped in the middle of a round.
#![allow(clippy::unwrap_used)] // a failing test may panic

use marlin_backend::Reference;
use marlin_checkpoint::Checkpoint;
use marlin_engine::{Engine, EngineOptions, Sampling};
use marlin_eval::{Error, LatencyOptions, latency};
use marlin_models::{LoadOptions, Model};
use std::path::Path;
use std::sync::Arc;

#[test]
fn a_round_that_is_stopped_leaves_nothing_behind() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fable-glm4-moe-lite");
    let checkpoint = Checkpoint::open(folder).unwrap();
    let model = Model::load(&Reference, &checkpoint, LoadOptions::default(), &mut |_| {}).unwrap();
    let options = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
    let mut engine = Engine::new(Arc::new(Reference), Arc::new(model), None, Vec::new(), options).unwrap();
    let mut asked = 0;
    let options = LatencyOptions {
        prompt: 0,
        generate: 1000,
        depth: 2,
        warmup: 0,
        repeats: 1,
        experts: true,
        sampling: Sampling::default(),
    };
    let stopped = latency(&mut engine, &options, &mut |_, _| {
        asked += 1;
        asked < 5
    });
    assert!(matches!(stopped, Err(Error::Stopped)));
    assert!(engine.is_idle());
    assert_eq!((asked, engine.stats().steps, engine.stats().pool.used), (5, 3, 0));
}
