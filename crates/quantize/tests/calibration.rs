//! Streamed calibration against plain sums over what an observer of the whole model sees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

use marlin_backend::{Backend, LinearHandle, Observer, SequenceStep, Step, Token};
use marlin_checkpoint::Checkpoint;
use marlin_cpu::{CpuBackend, CpuLinear, CpuOptions, Tensor};
use marlin_models::{LoadOptions, Model};
use marlin_quantize::{ExpertInputs, Samples, Sampling, Stats, calibrate};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

const LENGTH: usize = 40;

fn model() -> Checkpoint {
    Checkpoint::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/fable-glm4-moe-lite")).unwrap()
}

fn samples() -> Samples {
    let tokens: Vec<u32> = (0..3 * LENGTH as u32).map(|i| (i * i * 31 + 7 * i + 3) % 4000).collect();
    Samples::of(&tokens, Sampling { windows: 9, length: LENGTH }).unwrap()
}

fn backend(threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads, exact: true, ..CpuOptions::default() })
}

fn stats(folder: &Path, threads: usize, experts: ExpertInputs) -> Stats {
    let b = backend(threads);
    calibrate(&b, b.cpu(), &model(), &samples(), experts, folder, false, &mut |_| true).unwrap()
}

/// Inputs of every linear, and weights of every expert's rows.
#[derive(Default)]
struct Seen {
    inputs: BTreeMap<String, Vec<Vec<f32>>>,
    weights: BTreeMap<String, Vec<f32>>,
}

struct Watcher(Mutex<Seen>);

impl Observer<CpuBackend> for Watcher {
    fn linear(&self, b: &CpuBackend, linear: &CpuLinear, input: &Tensor, _: &Tensor) -> marlin_backend::Result<()> {
        let rows = b.read(input)?;
        let mut seen = self.0.lock().unwrap();
        let all = seen.inputs.entry(linear.name().to_owned()).or_default();
        all.extend(rows.chunks_exact(linear.cols()).map(<[f32]>::to_vec));
        Ok(())
    }

    fn routing(&self, _: &CpuBackend, gate: &CpuLinear, choices: &[Vec<(u32, f32)>]) -> marlin_backend::Result<()> {
        let mut seen = self.0.lock().unwrap();
        for (expert, weight) in choices.iter().flatten() {
            let name = gate.name().replace("mlp.gate", &format!("mlp.experts.{expert}"));
            seen.weights.entry(name).or_default().push(*weight);
        }
        Ok(())
    }
}

/// The whole model at once, window by window.
fn watched() -> Seen {
    let b = backend(1);
    let model = Model::load(&b, &model(), LoadOptions::default(), &mut |_| {}).unwrap();
    let watcher = Watcher(Mutex::default());
    for window in &samples().windows {
        let kv = b.kv(model.kv_spec(8, LENGTH / 8)).unwrap();
        let step = Step {
            tokens: window.iter().map(|id| Token::Id(*id)).collect(),
            sequences: vec![SequenceStep { cached: 0, len: LENGTH, blocks: (0..LENGTH as u32 / 8).collect() }],
            outputs: (0..LENGTH as u32).collect(),
        };
        let batch = b.begin(&step, &kv, None).unwrap();
        model.forward(&b, &batch, &kv, Some(&watcher)).unwrap();
    }
    watcher.0.into_inner().unwrap()
}

/// `sum_t w_t^2 x_t^T x_t` in f64, against the sums that were found.
fn agrees(what: &str, found: &[f32], inputs: &[Vec<f32>], weights: Option<&[f32]>) {
    let size = inputs[0].len();
    assert_eq!(found.len(), size * size, "{what}");
    let mut sums = vec![0.0f64; size * size];
    for (t, x) in inputs.iter().enumerate() {
        let weight = weights.map_or(1.0, |w| f64::from(w[t]) * f64::from(w[t]));
        for i in 0..size {
            let scaled = weight * f64::from(x[i]);
            sums[i * size..][..size].iter_mut().zip(x).for_each(|(sum, v)| *sum += scaled * f64::from(*v));
        }
    }
    let largest = (0..size).map(|i| sums[i * size + i]).fold(0.0, f64::max);
    for (found, sum) in found.iter().zip(&sums) {
        assert!((f64::from(*found) - sum).abs() <= 1e-5 * largest, "{what}: {found} {sum}");
    }
}

#[test]
fn moments_are_those_of_the_inputs() {
    let seen = watched();
    let folder = tempfile::tempdir().unwrap();
    let stats = stats(folder.path(), 2, ExpertInputs::Own);
    assert_eq!((stats.about.layers, stats.about.windows, stats.about.length), (6, 3, LENGTH));
    let tokens = (3 * LENGTH) as f64;
    for (layer, modules) in [
        (0, ["self_attn.q_a_proj", "self_attn.q_b_proj", "mlp.gate_proj", "mlp.down_proj"]),
        (4, ["self_attn.q_a_proj", "self_attn.o_proj", "mlp.gate", "mlp.shared_experts.down_proj"]),
    ] {
        let found = stats.layer(layer).unwrap();
        assert_eq!((found.tokens, found.left_out), (3 * LENGTH as u64, 0));
        for module in modules {
            let name = format!("model.layers.{layer}.{module}");
            let hessian = found.hessian(&name).unwrap().unwrap();
            assert_eq!(hessian.tokens(), tokens);
            agrees(&name, hessian.sums().data(), &seen.inputs[&name], None);
        }
    }
    agrees(
        "head",
        stats.head().unwrap().hessian("lm_head").unwrap().unwrap().sums().data(),
        &seen.inputs["lm_head"],
        None,
    );

    let found = stats.layer(3).unwrap();
    let routed = &found.routed["model.layers.3.mlp.gate"];
    assert_eq!(routed.tokens.iter().sum::<u64>(), 4 * 3 * LENGTH as u64);
    let mut looked_at = 0;
    for expert in 0..16 {
        let prefix = format!("model.layers.3.mlp.experts.{expert}");
        let Some(weights) = seen.weights.get(&prefix) else { continue };
        assert_eq!(routed.tokens[expert], weights.len() as u64);
        for part in ["gate_proj", "down_proj"] {
            let name = format!("{prefix}.{part}");
            let moments = &found.moments[&name];
            assert_eq!(moments.hessian.tokens(), weights.len() as f64);
            agrees(&name, moments.hessian.sums().data(), &seen.inputs[&name], Some(weights));
            looked_at += 1;
        }
    }
    assert!(looked_at > 16, "{looked_at}");
}

#[test]
fn threads_and_interruptions_change_nothing() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    stats(one.path(), 1, ExpertInputs::Shared);
    let b = backend(3);
    // Stopped in the middle of several layers.
    for (i, stop) in [1, 5, 8].into_iter().enumerate() {
        let mut left = stop;
        let stopped =
            calibrate(&b, b.cpu(), &model(), &samples(), ExpertInputs::Shared, other.path(), i > 0, &mut |_| {
                left -= 1;
                left > 0
            });
        assert!(matches!(stopped, Err(marlin_quantize::Error::Stopped)));
        assert!(Stats::open(other.path()).unwrap_err().to_string().contains("was interrupted"));
    }
    let refused = calibrate(&b, b.cpu(), &model(), &samples(), ExpertInputs::Own, other.path(), true, &mut |_| true);
    assert!(refused.unwrap_err().to_string().contains("begun with another model, text or settings"));
    calibrate(&b, b.cpu(), &model(), &samples(), ExpertInputs::Shared, other.path(), true, &mut |_| true).unwrap();
    let files = |folder: &Path| {
        let names = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        names.map(|p| (p.file_name().unwrap().to_owned(), std::fs::read(&p).unwrap())).collect::<BTreeMap<_, _>>()
    };
    let (a, b) = (files(one.path()), files(other.path()));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    assert!(a == b);
    // Experts' gate and up share the router's inputs, scaled to their weights.
    let stats = Stats::open(one.path()).unwrap().layer(2).unwrap();
    assert!(!stats.moments.contains_key("model.layers.2.mlp.experts.0.gate_proj"));
    let of = |e: usize| stats.hessian(&format!("model.layers.2.mlp.experts.{e}.up_proj")).unwrap().unwrap();
    let (a, b) = (of(0), of(1));
    let ratio = a.sums().data()[0] / b.sums().data()[0];
    assert!(
        a.sums().data().iter().zip(b.sums().data()).all(|(a, b)| (a - ratio * b).abs() <= 1e-4 * a.abs().max(1e-3))
    );
}
