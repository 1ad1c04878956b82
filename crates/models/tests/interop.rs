//! Checkpoints that other programs have quantised, against those programs' logits and perplexities: everything in
//! `../shared/interop` (skipped where that is absent).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{BLOCK, load, root, step};
use marlin_backend::{Backend, SequenceStep, Step, Token};
use marlin_checkpoint::{Checkpoint, Store, TensorSource};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_models::{Architecture, Model, Residency};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A folder of `../shared`, or `None` (said loudly).
fn shared(part: &str) -> Option<PathBuf> {
    let path = root().join("../shared").join(part);
    if !path.exists() {
        eprintln!("SKIPPED: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn exact() -> CpuBackend {
    CpuBackend::new(CpuOptions { exact: true, ..CpuOptions::default() })
}

/// The f32 values of a `.npy` file.
fn npy(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert!(String::from_utf8_lossy(&bytes[10..header]).contains("'<f4'"), "{}", path.display());
    bytes[header..].as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn ids(path: &Path) -> Vec<u32> {
    std::fs::read(path).unwrap().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// Logits of every position.
fn logits(b: &CpuBackend, model: &Model<CpuBackend>, ids: &[u32]) -> Vec<f32> {
    let kv = b.kv(model.kv_spec(BLOCK, ids.len().div_ceil(BLOCK))).unwrap();
    let batch = b.begin(&step(ids, 0, ids.len()), &kv, None).unwrap();
    b.read(&model.forward(b, &batch, &kv, None).unwrap()).unwrap()
}

fn top(row: &[f32]) -> usize {
    row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
}

/// Our logits of one position against a peer's: the greatest difference must be within `tolerance`, and the favourite
/// the same unless the peer itself prefers it by less than the difference.
fn compare(what: &str, ours: &[f32], peer: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), peer.len(), "{what}");
    let worst = ours.iter().zip(peer).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("{what}: off by {worst}");
    assert!(ours.iter().all(|v| v.is_finite()) && worst <= tolerance, "{what}: off by {worst}, more than {tolerance}");
    let (favourite, theirs) = (top(ours), top(peer));
    let margin = peer[theirs] - peer[favourite];
    assert!(margin <= 2.0 * worst, "{what}: prefers {favourite}, the peer {theirs} by {margin}");
}

/// Mean negative log-likelihood over windows of 512 ids, 256 apart, each scoring what no earlier one has.
fn nll(b: &CpuBackend, model: &Model<CpuBackend>, ids: &[u32]) -> (f64, usize) {
    let vocab = model.info().vocab;
    let (mut sum, mut scored) = (0.0, 1);
    let mut begin = 0;
    while scored < ids.len() {
        let window = &ids[begin..ids.len().min(begin + 512)];
        let kv = b.kv(model.kv_spec(BLOCK, 512 / BLOCK)).unwrap();
        let outputs: Vec<u32> = (scored - 1 - begin..window.len() - 1).map(|i| i as u32).collect();
        let step = Step {
            tokens: window.iter().map(|id| Token::Id(*id)).collect(),
            sequences: vec![SequenceStep {
                cached: 0,
                len: window.len(),
                blocks: (0..window.len().div_ceil(BLOCK) as u32).collect(),
            }],
            outputs: outputs.clone(),
        };
        let batch = b.begin(&step, &kv, None).unwrap();
        let rows = b.read(&model.forward(b, &batch, &kv, None).unwrap()).unwrap();
        for (row, at) in rows.chunks_exact(vocab).zip(outputs) {
            let most = f64::from(row[top(row)]);
            let total: f64 = row.iter().map(|l| (f64::from(*l) - most).exp()).sum();
            sum += most + total.ln() - f64::from(row[window[at as usize + 1] as usize]);
        }
        scored = begin + window.len();
        begin += 256;
    }
    (sum, ids.len() - 1)
}

/// Opens, passes the inventory, and takes no more memory than on disk.
fn open(folder: &Path, scheme: &str) -> Checkpoint {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let inventory = Architecture::parse(&checkpoint.config).unwrap().inventory();
    let modules = checkpoint.modules().unwrap();
    let report = inventory.check(modules.as_ref(), checkpoint.store.as_ref()).unwrap();
    let of_scheme = report.modules.iter().filter(|(_, stored)| stored.scheme == scheme).count();
    assert!(of_scheme >= report.modules.len() / 3, "{}: {of_scheme} of {scheme}", folder.display());
    checkpoint
}

fn manifest() -> Option<(PathBuf, Value)> {
    let folder = shared("interop")?;
    let text = std::fs::read_to_string(folder.join("manifest.json")).unwrap();
    Some((folder, serde_json::from_str(&text).unwrap()))
}

/// Every run in the manifest of the entries of `format`: (entry's path, run's name, run).
fn runs(manifest: &Value, format: &str) -> Vec<(String, String, Value)> {
    let entries = manifest["entries"].as_array().unwrap().iter().filter(|e| e["format"] == format);
    let runs = entries.flat_map(|e| {
        let path = e["path"].as_str().unwrap().to_owned();
        e["runs"].as_object().unwrap().iter().map(move |(name, run)| (path.clone(), name.clone(), run.clone()))
    });
    runs.collect()
}

/// Compares last logits and perplexity with one run of the manifest.
fn against(run: &Value, folder: &Path, path: &str, scheme: &str, tolerance: f32, nll_tolerance: f64) {
    open(&folder.join(path), scheme);
    let b = exact();
    let model = load(&b, &folder.join(path), Residency::Resident);
    let prompt = ids(&shared("text/tale.i32").unwrap());
    let all = logits(&b, &model, &prompt);
    let last = &all[all.len() - model.info().vocab..];
    compare(path, last, &npy(&folder.join(run["logits_last"].as_str().unwrap())), tolerance);
    if let Some(expected) = run["nll_sum"].as_f64().filter(|_| run["ppl_tokens"].as_u64() == Some(2048)) {
        let text = ids(&shared("text/heldout-8000.i32").unwrap());
        let (sum, scored) = nll(&b, &model, &text[..2048]);
        assert_eq!(Some(scored as u64), run["tokens_scored"].as_u64());
        let off = (sum - expected).abs() / scored as f64;
        println!("{path}: nll {sum:.3}, peer {expected:.3}, off by {off:.2e} for each token");
        assert!(off <= nll_tolerance, "{path}: nll off by {off} for each token");
    }
}

#[test]
fn mlx_checkpoints_mean_what_mlx_says() {
    let Some((folder, manifest)) = manifest() else { return };
    let mut seen = 0;
    for (path, name, run) in runs(&manifest, "mlx") {
        if name == "f32_dequantized" {
            against(&run, &folder, &path, "mlx", 2e-3, 1e-4);
            seen += 1;
        }
    }
    assert!(seen >= 5);
}

#[test]
fn gptq_checkpoints_agree_with_transformers() {
    let Some((folder, manifest)) = manifest() else { return };
    for (path, _, run) in runs(&manifest, "gptq") {
        against(&run, &folder, &path, "gptq", 2e-2, 1e-2);
    }
}

#[test]
fn nvfp4_checkpoints_agree_with_transformers() {
    let Some((folder, manifest)) = manifest() else { return };
    for (path, _, run) in runs(&manifest, "ct-nvfp4") {
        against(&run, &folder, &path, "nvfp4", 0.3, 1e-2);
    }
}

#[test]
fn exl3_checkpoints_agree_with_exllamav3() {
    let Some(folder) = shared("interop/exl3") else { return };
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        open(&path, "exl3");
        let b = exact();
        let model = load(&b, &path, Residency::Resident);
        let peer = Store::open(&path.join("peer-reference.safetensors")).unwrap();
        let ids: Vec<u32> = peer
            .tensor("tale.input_ids")
            .unwrap()
            .data
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| u32::from_le_bytes(*b))
            .collect();
        let expected = peer.tensor("tale.logits").unwrap().to_f32().unwrap();
        let vocab = model.info().vocab;
        let ours = logits(&b, &model, &ids);
        for (i, (ours, peer)) in ours.chunks_exact(vocab).zip(expected.chunks_exact(vocab)).enumerate() {
            compare(&format!("{} position {i}", path.display()), ours, peer, 0.1);
        }
    }
}
