//! GGUF files that llama.cpp wrote, against what llama.cpp computes from them; read from `../shared` where that exists.
//!
//! llama.cpp multiplies quantised weights with inputs rounded to 8 bits, and these backends with inputs as they are, so
//! logits agree within that noise: root mean square of the difference over the standard deviation of the logits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{BLOCK, root, step};
use marlin_backend::{Backend, Reference};
use marlin_checkpoint::Checkpoint;
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_models::{Architecture, LoadOptions, Model};
use std::path::{Path, PathBuf};

/// Every GGUF file that is here.
fn files() -> Vec<PathBuf> {
    let folder = root().join("../shared/interop/gguf");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: {} is absent", folder.display());
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    found.retain(|path| path.extension().is_some_and(|e| e == "gguf"));
    found.sort();
    found
}

fn ids(name: &str) -> Vec<u32> {
    let bytes = std::fs::read(root().join("../shared/text").join(name)).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

/// An array of f32 as numpy writes it.
fn npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn load<B: Backend>(b: &B, path: &Path) -> Model<B> {
    let checkpoint = Checkpoint::open(path).unwrap();
    Model::load(b, &checkpoint, LoadOptions::default(), &mut |_| {}).unwrap()
}

/// Logits at every position.
fn logits<B: Backend>(b: &B, model: &Model<B>, ids: &[u32]) -> Vec<f32> {
    let kv = b.kv(model.kv_spec(BLOCK, ids.len().div_ceil(BLOCK))).unwrap();
    let batch = b.begin(&step(ids, 0, ids.len()), &kv, None).unwrap();
    let logits = model.forward(b, &batch, &kv, None).unwrap();
    b.submit().unwrap();
    b.read(&logits).unwrap()
}

fn last<B: Backend>(b: &B, path: &Path) -> Vec<f32> {
    let model = load(b, path);
    let all = logits(b, &model, &ids("tale.i32"));
    all[all.len() - model.info().vocab..].to_vec()
}

fn exact() -> CpuBackend {
    CpuBackend::new(CpuOptions { exact: true, ..CpuOptions::default() })
}

#[test]
fn every_file_is_the_model_it_was_made_from() {
    for path in files() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let architecture = Architecture::parse(&checkpoint.config).unwrap();
        let modules = checkpoint.modules().unwrap();
        let report = architecture.inventory().check(modules.as_ref(), checkpoint.store.as_ref()).unwrap();
        assert!(report.modules.iter().all(|(_, stored)| matches!(stored.scheme, "gguf" | "dense")));
        let source = ["fable-qwen3", "fable-llama", "fable-qwen2-moe", "fable-glm4-moe-lite"];
        let source = source.into_iter().find(|s| name(&path).starts_with(s));
        let original = Checkpoint::open(root().join("../shared/models").join(source.unwrap())).unwrap();
        let info = Architecture::parse(&original.config).unwrap();
        let (found, expected) = (architecture.info(), info.info());
        assert_eq!(found, expected, "{}", path.display());
    }
}

/// Largest root mean square of the difference of logits, over their standard deviation.
const NOISE: f64 = 0.02;

#[test]
fn logits_agree_with_llama_cpp() {
    for path in files() {
        let expected = npy(&path.with_file_name(format!("{}.logits-kvf32.npy", name(&path))));
        let found = last(&exact(), &path);
        assert_eq!(found.len(), expected.len());
        let mean = expected.iter().map(|v| f64::from(*v)).sum::<f64>() / expected.len() as f64;
        let variance = |f: &dyn Fn(usize) -> f64| {
            ((0..expected.len()).map(|i| f(i).powi(2)).sum::<f64>() / expected.len() as f64).sqrt()
        };
        let deviation = variance(&|i| f64::from(expected[i]) - mean);
        let off = variance(&|i| f64::from(found[i] - expected[i]));
        let top = |v: &[f32]| (0..v.len()).max_by(|a, b| v[*a].total_cmp(&v[*b])).unwrap();
        let (a, b) = (top(&found), top(&expected));
        println!("{}: {:.2} % of the deviation, top {a} and {b}", name(&path), 100.0 * off / deviation);
        assert!(off / deviation < NOISE, "{}: {}", path.display(), off / deviation);
        assert!(a == b || f64::from(expected[b] - expected[a]) < 3.0 * off, "{}: {a} {b}", path.display());
    }
}

/// Windows of 512 ids every 256; of every window but the first only the new half is scored.
fn perplexity(path: &Path, ids: &[u32]) -> f64 {
    let b = exact();
    let model = load(&b, path);
    let vocab = model.info().vocab;
    let (mut sum, mut scored) = (0.0, 0);
    for begin in (0..ids.len() - 256).step_by(256) {
        let window = &ids[begin..ids.len().min(begin + 512)];
        let all = logits(&b, &model, window);
        let first = if begin == 0 { 1 } else { 256 };
        for i in first..window.len() {
            let row = &all[(i - 1) * vocab..i * vocab];
            let total = row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
            sum += total - f64::from(row[window[i] as usize]);
            scored += 1;
        }
    }
    assert_eq!(scored, ids.len() - 1);
    (sum / f64::from(u32::try_from(scored).unwrap())).exp()
}

#[test]
fn perplexity_agrees_with_llama_cpp() {
    if files().is_empty() {
        return;
    }
    let folder = root().join("../shared/interop");
    let manifest = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    for file in ["gguf/fable-llama-Q3_K_M.gguf", "gguf/fable-glm4-moe-lite-Q4_K_M.gguf"] {
        let entry = manifest["entries"].as_array().unwrap().iter().find(|e| e["path"] == file).unwrap();
        let expected = entry["runs"]["kv_f32"]["ppl"].as_f64().unwrap();
        let found = perplexity(&folder.join(file), &ids("heldout-8000.i32"));
        println!("{file}: {found:.4}, llama.cpp {expected:.4}");
        assert!((found / expected - 1.0).abs() < 0.003, "{file}: {found} {expected}");
    }
}

#[test]
fn backends_agree() {
    for path in files() {
        let (a, b) = (last(&exact(), &path), last(&Reference, &path));
        common::assert_close(&name(&path), &a, &b, 2e-3);
    }
}
