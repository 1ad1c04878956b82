//! Effects of single changes, measured layer by layer, against whole models one of which is changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

use marlin_backend::{Backend, SequenceStep, Step, Token};
use marlin_checkpoint::Checkpoint;
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_eval::kld::Divergence;
use marlin_models::{LoadOptions, Model};
use marlin_quantize::grouped::{Factor, Format, Grouped, Rounder};
use marlin_quantize::planner::{Choice, Module};
use marlin_quantize::{
    Additions, Apply, Bench, Calibration, ExpertInputs, Method, Planned, Samples, Sampling, Stats, Trial, calibrate,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const LENGTH: usize = 40;
const EXPERT: &str = "model.layers.3.mlp.experts.5";
const ATTENTION: &str = "model.layers.1.self_attn.o_proj";

fn model() -> Checkpoint {
    Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fable-glm4-moe-lite")).unwrap()
}

fn samples() -> Samples {
    let tokens: Vec<u32> = (0..3 * LENGTH as u32).map(|i| (i * i * 31 + 7 * i + 3) % 4000).collect();
    Samples::of(&tokens, Sampling { windows: 9, length: LENGTH }).unwrap()
}

fn backend() -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: 1, exact: true, ..CpuOptions::default() })
}

/// Integers of 3 bits, which compressed-tensors' readers decode to what was measured with.
fn three_bits() -> Arc<dyn Method> {
    let format = Format::Packed { bits: 3, symmetric: true, group: Some(128) };
    Arc::new(Grouped { format, factor: Factor::Search, rounder: Rounder::Nearest })
}

/// Logits of every window's every token, from the whole model.
fn logits(checkpoint: &Checkpoint) -> Vec<Vec<f32>> {
    let b = backend();
    let model = Model::load(&b, checkpoint, LoadOptions::default(), &mut |_| {}).unwrap();
    let windows = samples().windows;
    let rows = windows.iter().flat_map(|window| {
        let kv = b.kv(model.kv_spec(8, LENGTH / 8)).unwrap();
        let step = Step {
            tokens: window.iter().map(|id| Token::Id(*id)).collect(),
            sequences: vec![SequenceStep { cached: 0, len: LENGTH, blocks: (0..LENGTH as u32 / 8).collect() }],
            outputs: (0..LENGTH as u32).collect(),
        };
        let batch = b.begin(&step, &kv, None).unwrap();
        let logits = b.read(&model.forward(&b, &batch, &kv, None).unwrap()).unwrap();
        logits.chunks_exact(model.info().vocab).map(<[f32]>::to_vec).collect::<Vec<_>>()
    });
    rows.collect()
}

/// The checkpoint with these modules quantised.
fn quantised(folder: &Path, stats: &Stats, modules: &[String]) -> Checkpoint {
    let planned = || Planned { method: three_bits(), bits: 3.125 };
    let methods: BTreeMap<String, Planned> = modules.iter().map(|module| (module.clone(), planned())).collect();
    let settings: Vec<(String, Option<Grouped>)> = modules
        .iter()
        .map(|module| {
            let format = Format::Packed { bits: 3, symmetric: true, group: Some(128) };
            (module.clone(), Some(Grouped { format, factor: Factor::Search, rounder: Rounder::Nearest }))
        })
        .collect();
    let config = marlin_quantize::grouped::settings(&settings).unwrap();
    let output = folder.join("out");
    let apply = Apply {
        checkpoint: &model(),
        methods: &methods,
        stacked: false,
        calibration: Calibration::Stats(stats),
        output: &output,
        shard_bytes: 1 << 30,
        resume: false,
        describe: &|_| Ok(Additions { config: config.clone().into_iter().collect(), files: Vec::new() }),
        how: serde_json::Value::Null,
        threads: 1,
    };
    let b = backend();
    apply.run(&b, b.cpu(), &mut |_| true).unwrap();
    Checkpoint::open(&output).unwrap()
}

#[test]
fn effects_are_those_of_whole_models() {
    let folder = tempfile::tempdir().unwrap();
    let b = backend();
    let stats_folder = folder.path().join("stats");
    let stats =
        calibrate(&b, b.cpu(), &model(), &samples(), ExpertInputs::Own, &stats_folder, false, &mut |_| true).unwrap();
    let of_expert: Vec<String> = ["gate_proj", "up_proj", "down_proj"].map(|part| format!("{EXPERT}.{part}")).into();
    let changes = [of_expert, vec![ATTENTION.to_owned()]];
    let trial = |modules: &Vec<String>| Trial { modules: modules.iter().map(|m| (m.clone(), three_bits())).collect() };
    let trials: Vec<Trial> = changes.iter().map(trial).collect();
    let (checkpoint, windows) = (model(), samples().windows);
    let bench = Bench {
        backend: &b,
        compute: b.cpu(),
        checkpoint: &checkpoint,
        stats: &stats,
        windows: &windows,
        folder: folder.path().join("states"),
    };
    let effects = bench.measure(&trials, &mut |_| true).unwrap();
    assert!(!bench.folder.exists());

    let reference = logits(&checkpoint);
    for (i, modules) in changes.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let changed = logits(&quantised(folder.path(), &stats, modules));
        let sum: f64 = reference.iter().zip(&changed).map(|(p, q)| Divergence::of(p, q, 0).kl).sum();
        let (found, wanted) = (effects[i].kl, sum / reference.len() as f64);
        assert!(wanted > 1e-6 && (found - wanted).abs() < 1e-3 * wanted, "{modules:?}: {found} {wanted}");
    }

    // Both modules' damages become what was measured with the stand-in; what has no choice stays as it is.
    let choices = |damages: &[f64]| -> Vec<Choice> {
        damages.iter().zip(3..).map(|(damage, bits)| Choice { bits, stored: 1, damage: *damage }).collect()
    };
    let module = |name: &str, damages: &[f64]| Module { name: name.to_owned(), weights: 1, choices: choices(damages) };
    let modules = [module(ATTENTION, &[0.5, 0.25]), module(&format!("{EXPERT}.up_proj"), &[0.5])];
    let scaled = bench.sensitivities(&modules, &mut |_| true).unwrap();
    assert_eq!(scaled[1], modules[1]);
    let [first, second] = [scaled[0].choices[0].damage, scaled[0].choices[1].damage];
    assert!(first > 0.0 && first == 2.0 * second);
    // Three bits do about sixteen times the squared error of the stand-in's four, each with factors of its own.
    let predicted = effects[1].damage * first / 0.5;
    assert!((predicted / effects[1].kl).ln().abs() < 0.7, "{predicted} {}", effects[1].kl);

    let stopped = bench.measure(&trials, &mut |_| false);
    assert!(matches!(stopped, Err(marlin_quantize::Error::Stopped)) && !bench.folder.exists());
    let across = Trial { modules: [&trials[0].modules[..], &trials[1].modules[..]].concat() };
    let refused = bench.measure(&[across], &mut |_| true).unwrap_err().to_string();
    assert_eq!(refused, format!("{ATTENTION}: is measured with modules of layer 3"));
}
