//! The CPU backend: exact mode against transformers, and one sequence against itself in other company.
//!
//! `fable-glm4-moe-lite` is in the repository; the other models are read from `../shared/models` where that exists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{Expected, compare, load, models, root};
use marlin_backend::{Backend, LatentForm, SampleRow, SequenceStep, Step, Token};
use marlin_cpu::{Cpu, CpuBackend, CpuOptions, KvType, Level};
use marlin_models::{Model, Residency};
use std::path::Path;

const BLOCK: usize = 32;

fn cpu(exact: bool) -> CpuBackend {
    CpuBackend::new(CpuOptions { exact, ..CpuOptions::default() })
}

#[test]
fn exact_mode_agrees_with_transformers() {
    for folder in models() {
        for prompt in ["tale", "chat", "long", "one"] {
            compare(&cpu(true), &folder, prompt, LatentForm::Auto);
        }
    }
}

#[test]
fn every_level_of_simd_agrees_with_transformers() {
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        let b = CpuBackend::on(Cpu::with_level(2, level), CpuOptions { exact: true, ..CpuOptions::default() });
        for folder in models() {
            compare(&b, &folder, "chat", LatentForm::Auto);
        }
    }
}

#[test]
fn expanded_latent_attention_agrees_with_transformers() {
    compare(&cpu(true), &root().join("models/fable-glm4-moe-lite"), "long", LatentForm::Expanded);
}

/// A pool and sequences in it, one step at a time.
struct Runner<'a> {
    b: &'a CpuBackend,
    model: &'a Model<CpuBackend>,
    kv: <CpuBackend as Backend>::Kv,
}

impl<'a> Runner<'a> {
    fn new(b: &'a CpuBackend, model: &'a Model<CpuBackend>) -> Self {
        Self { b, model, kv: b.kv(model.kv_spec(BLOCK, 64)).unwrap() }
    }

    /// Logits of the last row of every part: (tokens, tokens before them, first block).
    fn step(&self, parts: &[(&[u32], usize, u32)]) -> Vec<Vec<f32>> {
        let mut step = Step::default();
        for (ids, cached, first) in parts {
            step.tokens.extend(ids.iter().map(|id| Token::Id(*id)));
            let blocks = (cached + ids.len()).div_ceil(BLOCK) as u32;
            step.sequences.push(SequenceStep {
                cached: *cached,
                len: ids.len(),
                blocks: (*first..first + blocks).collect(),
            });
            step.outputs.push(step.tokens.len() as u32 - 1);
        }
        let batch = self.b.begin(&step, &self.kv, None).unwrap();
        let logits = self.model.forward(self.b, &batch, &self.kv, None).unwrap();
        let all = self.b.read(&logits).unwrap();
        all.chunks_exact(self.model.info().vocab).map(<[f32]>::to_vec).collect()
    }
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m: f32, d| if d > m || d.is_nan() { d } else { m })
}

/// Every length of prompt prefilled whole, in chunks, and beside other sequences: the greatest difference of the last
/// row's logits from those of the whole prefill.
fn company(b: &CpuBackend, folder: &Path, lengths: usize) -> f32 {
    let model = load(b, folder, Residency::Resident);
    let ids = Expected::open(folder).ids("long.input_ids");
    let run = Runner::new(b, &model);
    let whole: Vec<Vec<f32>> = (1..=lengths).map(|n| run.step(&[(&ids[..n], 0, 0)]).remove(0)).collect();
    assert!(whole.iter().flatten().all(|l| l.is_finite()), "{}", folder.display());
    let mut off = 0.0f32;
    for chunk in [1, 3, 7, 64] {
        // All prompts share their full chunks; every length of the last one is tried.
        for start in (0..lengths).step_by(chunk) {
            for n in start + 1..=(start + chunk).min(lengths) {
                off = off.max(worst(&run.step(&[(&ids[start..n], start, 0)])[0], &whole[n - 1]));
            }
        }
    }
    run.step(&[(&ids[..77], 0, 16)]);
    for n in 1..=lengths {
        let parts = [(&ids[77..78], 77, 16), (&ids[..n], 0, 0), (&ids[5..25], 0, 32)];
        off = off.max(worst(&run.step(&parts)[1], &whole[n - 1]));
    }
    off
}

#[test]
fn exact_logits_do_not_depend_on_chunks_or_company() {
    for folder in models() {
        assert_eq!(company(&cpu(true), &folder, 300), 0.0, "{}", folder.display());
    }
}

/// Fast mode rounds inputs, and rounds them alike in any company; but matrix tiles, which serve larger batches only, sum in
/// another order, after which a value on the edge of two `bf16` or two experts may fall to the other side.
#[test]
fn fast_logits_do_not_depend_on_chunks_or_company() {
    let level = Level::ALL.into_iter().rev().find(|level| level.available() && *level != Level::Amx).unwrap();
    let b = CpuBackend::on(Cpu::with_level(2, level), CpuOptions::default());
    for folder in models() {
        let off = company(&b, &folder, 300);
        assert!(off <= 1e-4, "{}: {off}", folder.display());
    }
}

/// What fast mode is off from exact mode, as the root mean square over all logits of a prefill relative to theirs: with
/// matrix tiles no more than this, and no more than half again as much as without.
const FAST_TOLERANCE: f64 = 0.005;

#[test]
fn fast_logits_by_matrix_tiles_are_as_near_to_exact_ones() {
    if !Level::Amx.available() {
        println!("SKIPPED: this machine has no matrix tiles");
        return;
    }
    for folder in models() {
        let ids = Expected::open(&folder).ids("long.input_ids");
        let logits = |b: &CpuBackend| {
            let model = load(b, &folder, Residency::Resident);
            let run = Runner::new(b, &model);
            let ends = [12, 13, 31, 32, 33, 100, 255, 300];
            ends.map(|end| run.step(&[(&ids[..end], 0, 0)]).remove(0)).concat()
        };
        let exact = logits(&cpu(true));
        let size: f64 = exact.iter().map(|v| f64::from(*v).powi(2)).sum();
        let off = |level| {
            let fast = logits(&CpuBackend::on(Cpu::with_level(2, level), CpuOptions::default()));
            let off: f64 = fast.iter().zip(&exact).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            (off / size).sqrt()
        };
        let (tiles, without) = (off(Level::Amx), off(Level::Avx512Bf16));
        println!("{}: {tiles:.5} with matrix tiles, {without:.5} without", folder.display());
        assert!(
            tiles > 0.0 && tiles < FAST_TOLERANCE && tiles < 1.5 * without,
            "{}: {tiles} {without}",
            folder.display()
        );
    }
}

/// What fast mode states: logits of a long prefill of latent attention, which expands keys and values, part from those
/// of short chunks by at most this. A greedy choice may change only where it led by less.
const EXPANDED_TOLERANCE: f32 = 0.15;

#[test]
fn fast_latent_attention_parts_within_its_tolerance() {
    let folder = root().join("models/fable-glm4-moe-lite");
    let b = cpu(false);
    let model = load(&b, &folder, Residency::Resident);
    let mut ids = Expected::open(&folder).ids("long.input_ids");
    ids.extend(ids.clone());
    let run = Runner::new(&b, &model);
    let mut parted = 0.0f32;
    for length in [384, 450, 512, 600] {
        let whole = run.step(&[(&ids[..length], 0, 0)]).remove(0);
        let mut chunked = Vec::new();
        for start in (0..length).step_by(64) {
            chunked = run.step(&[(&ids[start..(start + 64).min(length)], start, 32)]).remove(0);
        }
        let off = worst(&whole, &chunked);
        assert!(off <= EXPANDED_TOLERANCE, "{length}: {off}");
        parted = parted.max(off);
    }
    assert!(parted > 0.0, "no prefill was expanded");
    println!("parted by at most {parted}");
}

#[test]
fn greedy_text_equals_that_of_transformers() {
    for folder in models() {
        let b = cpu(true);
        let model = load(&b, &folder, Residency::Resident);
        let reference: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("reference.json")).unwrap()).unwrap();
        for prompt in ["tale", "chat"] {
            let expected: Vec<u32> = reference["greedy"][prompt]["ids"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| id.as_u64().unwrap() as u32)
                .collect();
            assert_eq!(expected.len(), 64);
            let mut ids = Expected::open(&folder).ids(&format!("{prompt}.input_ids"));
            let (kv, prompt_len, vocab) = (b.kv(model.kv_spec(BLOCK, 8)).unwrap(), ids.len(), model.info().vocab);
            let (mut cached, mut samples) = (0, None);
            while ids.len() < prompt_len + 64 {
                // From the second step on the token is the previous step's sample, unread.
                let tokens: Vec<Token> =
                    if cached == 0 { ids.iter().map(|id| Token::Id(*id)).collect() } else { vec![Token::Sampled(0)] };
                let len = tokens.len();
                let step = Step {
                    tokens,
                    sequences: vec![SequenceStep { cached, len, blocks: (0..8).collect() }],
                    outputs: vec![len as u32 - 1],
                };
                let batch = b.begin(&step, &kv, samples.as_ref()).unwrap();
                let logits = model.forward(&b, &batch, &kv, None).unwrap();
                let sampled = b.sample(&logits, &[SampleRow::greedy(vocab)]).unwrap();
                cached += len;
                ids.push(b.read_samples(&sampled).unwrap()[0].token);
                samples = Some(sampled);
            }
            assert_eq!(ids[prompt_len..], expected, "{} {prompt}", folder.display());
        }
    }
}

#[test]
fn half_precision_kv_memory_stays_close() {
    let folder = root().join("models/fable-glm4-moe-lite");
    let ids = Expected::open(&folder).ids("long.input_ids");
    let logits = |kv| {
        let b = CpuBackend::new(CpuOptions { exact: true, kv, ..CpuOptions::default() });
        let model = load(&b, &folder, Residency::Resident);
        Runner::new(&b, &model).step(&[(&ids, 0, 0)]).remove(0)
    };
    let exact = logits(KvType::Auto);
    assert!(worst(&exact, &logits(KvType::F16)) < 0.02);
    assert!(worst(&exact, &logits(KvType::Bf16)) < 0.15);
}
