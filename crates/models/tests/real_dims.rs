//! Published dimensions: two-layer checkpoints with full vocabularies, weights by formula, against transformers' f32
//! logits of a short and a long prompt in `../shared/real-dims` (skipped where that is absent).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

use marlin_backend::{Backend, SequenceStep, Step, Token};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_models::{LoadOptions, Model, formula_checkpoint};
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Of the standard deviation of the reference logits.
const TOLERANCE: f32 = 2e-3;
const BLOCK: usize = 64;

/// The checkpoints are large; one at a time.
static MEMORY: Mutex<()> = Mutex::new(());

/// Arrays of a numpy `.npz` file as f32 (integers are converted).
fn npz(path: &Path) -> HashMap<String, Vec<f32>> {
    let mut archive = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    (0..archive.len())
        .map(|i| {
            let mut file = archive.by_index(i).unwrap();
            let name = file.name().unwrap().trim_end_matches(".npy").to_owned();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            let header = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
            let description = String::from_utf8_lossy(&bytes[10..header]).into_owned();
            let words = bytes[header..].as_chunks::<4>().0.iter();
            let values = if description.contains("'<f4'") {
                words.map(|b| f32::from_le_bytes(*b)).collect()
            } else {
                assert!(description.contains("'<i4'"), "{name}: {description}");
                words.map(|b| i32::from_le_bytes(*b) as f32).collect()
            };
            (name, values)
        })
        .collect()
}

/// Logits of the last row of a prompt, prefilled in chunks, and of every row of the first chunk.
fn prefill(b: &CpuBackend, model: &Model<CpuBackend>, length: usize, chunk: usize, all: bool) -> Vec<f32> {
    let vocab = model.info().vocab;
    let ids: Vec<Token> = (0..length).map(|j| Token::Id(((j * 7919 + 13) % (vocab - 100)) as u32)).collect();
    let blocks = length.div_ceil(BLOCK);
    let kv = b.kv(model.kv_spec(BLOCK, blocks)).unwrap();
    let mut logits = Vec::new();
    for start in (0..length).step_by(chunk) {
        let len = chunk.min(length - start);
        let step = Step {
            tokens: ids[start..start + len].to_vec(),
            sequences: vec![SequenceStep { cached: start, len, blocks: (0..blocks as u32).collect() }],
            outputs: if all { (0..len as u32).collect() } else { vec![len as u32 - 1] },
        };
        let batch = b.begin(&step, &kv, None).unwrap();
        let out = model.forward(b, &batch, &kv, None).unwrap();
        b.submit().unwrap();
        if all || start + len == length {
            logits = b.read(&out).unwrap();
        }
    }
    logits
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |a: f32, b| if b > a || b.is_nan() { b } else { a })
}

fn deviation(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt()
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../../shared/real-dims/{name}.npz"));
    if !path.exists() {
        eprintln!("SKIPPED: {} is absent", path.display());
        return;
    }
    let _one = MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    let expected = npz(&path);
    let b = CpuBackend::new(CpuOptions { exact: true, ..CpuOptions::default() });
    let model = Model::load(&b, &formula_checkpoint(name).unwrap(), LoadOptions::default(), &mut |_| {}).unwrap();
    let vocab = model.info().vocab;

    let short = prefill(&b, &model, 64, 64, true);
    let last = &expected["short_last"];
    let limit = TOLERANCE * deviation(last);
    let rows: Vec<&[f32]> = short.chunks_exact(vocab).collect();
    let top: Vec<f32> =
        expected["short_top_ids"].iter().enumerate().map(|(i, id)| rows[i / 16][*id as usize]).collect();
    let sums: Vec<f32> =
        rows.iter().map(|row| row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln() as f32).collect();
    let long = prefill(&b, &model, 8300, 1024, false);
    let found = [
        ("short, last row", worst(rows[63], last)),
        ("short, top 16", worst(&top, &expected["short_top_logits"])),
        ("short, log-sum-exp", worst(&sums, &expected["short_lse"])),
        ("long, last row", worst(&long, &expected["long_last"])),
    ];
    for (what, off) in found {
        println!("{name}: {what}: off by {off:.2e}, {:.2e} of the deviation", off / deviation(last));
        assert!(off <= limit, "{name}: {what}: off by {off}, limit {limit}");
    }
}

#[test]
fn llama_3_1_8b() {
    check("llama-3.1-8b");
}

#[test]
fn qwen3_8b() {
    check("qwen3-8b");
}

#[test]
fn qwen2_moe_a2_7b() {
    check("qwen2-moe-a2.7b");
}

#[test]
fn qwen3_30b_a3b() {
    check("qwen3-30b-a3b");
}

#[test]
fn glm_4_7_flash() {
    check("glm-4.7-flash");
}
