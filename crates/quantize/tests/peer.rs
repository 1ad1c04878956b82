//! A real model's matrices against exllamav3's coding of them, from `../shared` (skipped where that is absent).

#![allow(clippy::unwrap_used)] // a failing test may panic

use marlin_checkpoint::Checkpoint;
use marlin_checkpoint::weight::Codebook;
use marlin_cpu::Cpu;
use marlin_quantize::{Exl3, Matrix, Method};
use std::path::{Path, PathBuf};

/// A folder of `../shared`, or `None` (said loudly).
fn shared(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(part);
    if !path.exists() {
        eprintln!("SKIPPED: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn matrix(folder: &Path, module: &str, features: [usize; 2]) -> Matrix {
    let modules = Checkpoint::open(folder).unwrap().modules().unwrap();
    let values = modules.linear(module, features).unwrap().build().unwrap().matrix().unwrap();
    Matrix::new(features[0], features[1], values).unwrap()
}

fn nmse(found: &Matrix, want: &Matrix) -> f64 {
    let error: f64 = found.data().iter().zip(want.data()).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    error / want.data().iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()
}

/// Without a Hessian the plain error is what is made least, so it must not be above that of a peer who has spent some of it
/// on a Hessian.
#[test]
fn plain_errors_are_not_above_exllamav3s() {
    let Some(original) = shared("models/fable-qwen3") else { return };
    for (folder, bits, book, module, features) in [
        ("fable-qwen3-exl3-3.0bpw-mul1", 3, Codebook::Mul1, "model.layers.0.self_attn.q_proj", [512, 256]),
        ("fable-qwen3-exl3-4.0bpw-3inst", 4, Codebook::ThreeInst, "model.layers.5.mlp.down_proj", [256, 768]),
    ] {
        let Some(peer) = shared(&format!("interop/exl3/{folder}")) else { return };
        let method = Exl3::new(bits, book).unwrap();
        let weight = matrix(&original, module, features);
        let theirs = nmse(&matrix(&peer, module, features), &weight);
        let ours = nmse(&method.quantise(&Cpu::new(0), module, &weight, None).unwrap().decoded, &weight);
        println!("{}, {module}: {ours:.5}, exllamav3 {theirs:.5}", method.name());
        assert!(ours <= theirs, "{module}: {ours} against {theirs}");
    }
}
