//! Checkpoints that other programs have quantised, against those programs' logits and perplexities: everything in
//! `../shared/interop` (skipped where that is absent).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{BLOCK, Expected, load, name_of, root, step};
use half::bf16;
use marlin_backend::{Backend, SequenceStep, Step, Token};
use marlin_checkpoint::{
    Checkpoint, DType, Error, Found, LatentProjection, LatentSizes, Modules, Tensor, TensorInfo, TensorSource, Weight,
};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_models::{Architecture, LoadOptions, Model, Residency};
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
        let config = e["config_quantization"].clone();
        e["runs"].as_object().unwrap().iter().map(move |(name, run)| {
            let mut run = run.clone();
            run["config_quantization"] = config.clone();
            (path.clone(), name.clone(), run)
        })
    });
    runs.collect()
}

/// The same model with every matrix decoded and rounded to bf16 as MLX does: the product, then the sum.
fn rounded(checkpoint: &Checkpoint) -> Checkpoint {
    let modules = checkpoint.modules().unwrap();
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    let mut add = |name: String, found: &Found, shape: Vec<usize>| {
        let round = |v: f32| bf16::from_f32(v).to_f32();
        let linear = found.build().unwrap();
        let mut values = linear.matrix().unwrap();
        if let Weight::Grouped(w) = &linear.weight
            && let Some(minimum) = w.minimum()
        {
            for (i, v) in values.iter_mut().enumerate() {
                let (row, col) = (i / w.cols(), i % w.cols());
                *v = round(w.scale().at(row, col) * f32::from(w.code(row, col))) + minimum.at(row, col);
            }
        }
        let data: Vec<u8> = values.into_iter().flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect();
        let info = TensorInfo { name: name.clone(), dtype: DType::BF16, shape };
        tensors.insert(name, Tensor { info, data: data.into() });
    };
    let (mut kept, config) = (Vec::new(), &checkpoint.config);
    for info in Architecture::parse(config).unwrap().inventory().required() {
        match (info.name.strip_suffix(".weight"), info.shape.as_slice()) {
            (Some(module), &[rows, cols]) => match module.strip_suffix("kv_b_proj") {
                None => add(info.name.clone(), &modules.linear(module, [rows, cols]).unwrap(), info.shape.clone()),
                Some(attention) => {
                    let size = |key| config.usize(key).unwrap();
                    let (heads, rank) = (size("num_attention_heads"), size("kv_lora_rank"));
                    let (nope, value) = (size("qk_nope_head_dim"), size("v_head_dim"));
                    match modules.latent(module, LatentSizes { heads, nope, value, rank }).unwrap() {
                        LatentProjection::Whole(whole) => add(info.name.clone(), &whole, info.shape.clone()),
                        LatentProjection::Split { k, v } => {
                            add(format!("{attention}embed_q.weight"), &k, vec![heads, rank, nope]);
                            add(format!("{attention}unembed_out.weight"), &v, vec![heads, value, rank]);
                        }
                    }
                }
            },
            _ => kept.push(info.name.clone()),
        }
    }
    tensors.extend(kept.into_iter().map(|name| (name.clone(), checkpoint.store.tensor(&name).unwrap())));
    let mut infos: Vec<TensorInfo> = tensors.values().map(|t| t.info.clone()).collect();
    infos.sort_by(|a, b| a.name.cmp(&b.name));
    let store = Arc::new(Memory { infos, tensors });
    Checkpoint::from_parts("rounded", config.clone(), store, checkpoint.folder.clone()).unwrap()
}

/// Tensors in memory.
struct Memory {
    infos: Vec<TensorInfo>,
    tensors: HashMap<String, Tensor>,
}

impl TensorSource for Memory {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }
    fn tensor(&self, name: &str) -> marlin_checkpoint::Result<Tensor> {
        let missing = || Error::MissingTensor { name: name.to_owned(), within: self.describe() };
        self.tensors.get(name).cloned().ok_or_else(missing)
    }
    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
    fn describe(&self) -> String {
        "memory".into()
    }
}

/// Compares last logits and perplexity with one run of the manifest.
fn against(run: &Value, folder: &Path, path: &str, checkpoint: &Checkpoint, tolerance: f32, nll_tolerance: f64) {
    let b = exact();
    let model = Model::load(&b, checkpoint, LoadOptions::default(), &mut |_| {}).unwrap();
    let prompt = ids(&shared("text/tale.i32").unwrap());
    let all = logits(&b, &model, &prompt);
    let last = &all[all.len() - model.info().vocab..];
    compare(path, last, &npy(&folder.join(run["logits_last"].as_str().unwrap())), tolerance);
    if let (Some(expected), Some(scored)) = (run["nll_sum"].as_f64(), run["tokens_scored"].as_u64()) {
        let text = ids(&shared("text/heldout-8000.i32").unwrap());
        let (sum, scored) = nll(&b, &model, &text[..scored as usize + 1]);
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
            let checkpoint = open(&folder.join(&path), "mlx");
            // MLX rounds affine weights to its scales' bf16 when it decodes them (small floats are exact in bf16).
            let small = run["config_quantization"]["mode"] != "affine";
            against(&run, &folder, &path, &rounded(&checkpoint), 2e-3, 1e-5);
            against(&run, &folder, &path, &checkpoint, if small { 2e-3 } else { 0.2 }, if small { 1e-5 } else { 1e-3 });
            seen += 1;
        }
    }
    assert!(seen >= 5);
}

#[test]
fn gptq_checkpoints_agree_with_transformers() {
    let Some((folder, manifest)) = manifest() else { return };
    for (path, _, run) in runs(&manifest, "gptq") {
        against(&run, &folder, &path, &open(&folder.join(&path), "gptq"), 2e-2, 1e-4);
    }
}

/// transformers rounds this checkpoint's activations to NVFP4 too, so logits agree only so far; that the weights are those
/// of the original model, give or take 4 bits, is seen one by one.
#[test]
fn nvfp4_checkpoints_agree_with_transformers() {
    let Some((folder, manifest)) = manifest() else { return };
    let original = Checkpoint::open(shared("models/fable-qwen3").unwrap()).unwrap();
    for (path, _, run) in runs(&manifest, "ct-nvfp4") {
        let checkpoint = open(&folder.join(&path), "nvfp4");
        let (modules, originals) = (checkpoint.modules().unwrap(), original.modules().unwrap());
        for info in Architecture::parse(&checkpoint.config).unwrap().inventory().required() {
            if let (Some(module), &[rows, cols]) = (info.name.strip_suffix(".weight"), info.shape.as_slice()) {
                let matrix = |from: &dyn Modules| from.linear(module, [rows, cols]).unwrap().build().unwrap().matrix();
                let (w, o) = (matrix(modules.as_ref()).unwrap(), matrix(originals.as_ref()).unwrap());
                let error: f64 = w.iter().zip(&o).map(|(w, o)| f64::from(w - o).powi(2)).sum();
                let norm: f64 = o.iter().map(|o| f64::from(*o).powi(2)).sum();
                assert!(error <= 0.012 * norm, "{module}: error {}", error / norm);
            }
        }
        against(&run, &folder, &path, &checkpoint, 1.3, 0.03);
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
        let peer = Expected::at(&path.join("peer-reference.safetensors"));
        let vocab = model.info().vocab;
        let ours = logits(&b, &model, &peer.ids("tale.input_ids"));
        for (i, (ours, peer)) in ours.chunks(vocab).zip(peer.floats("tale.logits").chunks(vocab)).enumerate() {
            compare(&format!("{} position {i}", name_of(&path)), ours, peer, 0.03);
        }
        let text = std::fs::read_to_string(path.join("peer-reference.json")).unwrap();
        let expected = serde_json::from_str::<Value>(&text).unwrap()["ppl_8000_512_256"].as_f64().unwrap();
        let (sum, scored) = nll(&b, &model, &ids(&shared("text/heldout-8000.i32").unwrap()));
        let ppl = (sum / scored as f64).exp();
        println!("{}: ppl {ppl}, peer {expected}", name_of(&path));
        assert!((ppl / expected - 1.0).abs() <= 1e-3, "{}: ppl {ppl}, peer {expected}", name_of(&path));
    }
}
