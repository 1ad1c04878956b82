//! Whole models on the GPU backend against the CPU's exact mode: on the simulated GPU a few tokens of the model in the repository;
//! where `MARLIN_TEST_DEVICE` is `cuda`, every model and checkpoint that is here, at every length.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{BLOCK, Expected, models, name_of, root};
use marlin_backend::{Backend, SampleRow, SequenceStep, Step, Token};
use marlin_checkpoint::Checkpoint;
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_gpu::kernels::Element;
use marlin_gpu::{Device, GpuBackend, GpuOptions};
use marlin_gpu_sim::{Order, Simulated};
use marlin_models::{LoadOptions, Model};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Greatest difference of a logit, in standard deviations of the reference's logits.
const LIMIT: f64 = 1e-2;

fn real() -> bool {
    std::env::var("MARLIN_TEST_DEVICE").is_ok_and(|d| d == "cuda")
}

fn device() -> Option<Arc<dyn Device>> {
    #[cfg(not(target_os = "macos"))]
    if real() {
        return Some(Arc::new(marlin_gpu::device::cuda::Cuda::open(0).unwrap()));
    }
    if let Some(why) = Simulated::absent() {
        eprintln!("SKIPPED: {why}");
        return None;
    }
    Some(Arc::new(Simulated::new(Order::Shuffled(3))))
}

/// With f32 products only, or with all kernels.
fn gpu(exact: bool) -> Option<GpuBackend> {
    let options = GpuOptions { kv: Element::F32, memory: 8 << 30, threads: 0, record: true, exact };
    Some(GpuBackend::new(device()?, options).unwrap())
}

fn load<B: Backend>(b: &B, path: &Path) -> Model<B> {
    let checkpoint = Checkpoint::open(path).unwrap();
    Model::load(b, &checkpoint, LoadOptions::default(), &mut |_| {}).unwrap()
}

/// A sequence of its own in `kv`, one step at a time.
struct Sequence<'a, B: Backend> {
    b: &'a B,
    model: &'a Model<B>,
    kv: B::Kv,
    cached: usize,
}

impl<'a, B: Backend> Sequence<'a, B> {
    fn new(b: &'a B, model: &'a Model<B>) -> Self {
        Self { b, model, kv: b.kv(model.kv_spec(BLOCK, 20)).unwrap(), cached: 0 }
    }

    fn forward(&mut self, tokens: Vec<Token>, outputs: Vec<u32>, previous: Option<&B::Samples>) -> B::Tensor {
        let len = tokens.len();
        let blocks = (0..20).rev().collect();
        let step = Step { tokens, sequences: vec![SequenceStep { cached: self.cached, len, blocks }], outputs };
        self.cached += len;
        let batch = self.b.begin(&step, &self.kv, previous).unwrap();
        self.model.forward(self.b, &batch, &self.kv, None).unwrap()
    }

    /// Logits of these tokens, the last one's or everyone's.
    fn logits(&mut self, ids: &[u32], all: bool) -> Vec<f32> {
        let last = ids.len() as u32 - 1;
        let outputs = if all { (0..=last).collect() } else { vec![last] };
        let y = self.forward(ids.iter().map(|id| Token::Id(*id)).collect(), outputs, None);
        self.b.read(&y).unwrap()
    }

    /// The next `count` tokens, each the most probable one, with their margins.
    fn greedy(&mut self, prompt: &[u32], count: usize) -> Vec<(u32, f32)> {
        let vocab = self.model.info().vocab;
        let mut tokens: Vec<Token> = prompt.iter().map(|id| Token::Id(*id)).collect();
        let mut samples: Option<B::Samples> = None;
        let mut text = Vec::new();
        while text.len() < count {
            let last = tokens.len() as u32 - 1;
            let logits = self.forward(std::mem::take(&mut tokens), vec![last], samples.as_ref());
            let chosen = self.b.sample(&logits, &[SampleRow::greedy(vocab)]).unwrap();
            let sample = &self.b.read_samples(&chosen).unwrap()[0];
            text.push((sample.token, sample.margin));
            tokens.push(Token::Sampled(0));
            samples = Some(chosen);
        }
        text
    }
}

/// The greatest difference in standard deviations of `expected`; NaN stays NaN.
fn off(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let n = expected.len() as f64;
    let mean = expected.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let deviation = (expected.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    let worst = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs()));
    worst.fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m }) / deviation
}

/// The worst of these deviations, and how many are beyond the limit.
fn beyond(each: Vec<f64>) -> (f64, usize) {
    let parted = each.iter().filter(|d| **d > LIMIT).count();
    // NaN is worst of all.
    (each.into_iter().max_by(f64::total_cmp).unwrap_or(0.0), parted)
}

/// Mean negative log-likelihood of `ids` given their logits.
fn likelihood(logits: &[f32], ids: &[u32], vocab: usize) -> f64 {
    let rows = logits.chunks_exact(vocab).zip(&ids[1..]);
    let each = rows.map(|(row, id)| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|l| f64::from(l - max).exp()).sum();
        sum.ln() + f64::from(max) - f64::from(row[*id as usize])
    });
    each.sum::<f64>() / (ids.len() - 1) as f64
}

/// Texts to run: those of a model's own folder, or of the model it was made from.
fn prompt(path: &Path) -> Vec<u32> {
    let own = |folder: &Path| {
        folder.join("reference.safetensors").exists().then(|| Expected::open(folder).ids("long.input_ids"))
    };
    let shared = root().join("../shared/models");
    let name = name_of(path);
    let of_family = ["fable-glm4-moe-lite", "fable-qwen3-moe", "fable-qwen2-moe", "fable-qwen3", "fable-llama"];
    let family = of_family.into_iter().find(|f| name.starts_with(f));
    own(path)
        .or_else(|| own(&shared.join(family?)))
        .or_else(|| own(&root().join("models/fable-glm4-moe-lite")))
        .unwrap()
}

/// Checkpoints that other programs have quantised.
fn interop() -> Vec<PathBuf> {
    let shared = root().join("../shared/interop");
    let list = |part: &str| -> Vec<PathBuf> {
        let mut found: Vec<_> =
            std::fs::read_dir(shared.join(part)).into_iter().flatten().map(|e| e.unwrap().path()).collect();
        found.sort();
        found
    };
    let deep = ["exl3", "mlx", "autoround/gptq", "autoround/ct-nvfp4"].into_iter().flat_map(list);
    let folders = deep.filter(|p| p.join("config.json").exists());
    folders.chain(list("gguf").into_iter().filter(|p| p.extension().is_some_and(|e| e == "gguf"))).collect()
}

/// All of it, for one model; gives what is beyond the limits.
fn whole(path: &Path, exact: bool) -> Vec<String> {
    let cpu = CpuBackend::new(CpuOptions { exact: true, ..CpuOptions::default() });
    let b = gpu(exact).unwrap();
    let name = format!("{}, {}", name_of(path), if exact { "exact" } else { "fast" });
    let ids = prompt(path);
    let began = Instant::now();
    let model = load(&b, path);
    let loaded = began.elapsed();
    let reference = load(&cpu, path);
    let vocab = model.info().vocab;
    let expected = Sequence::new(&cpu, &reference).logits(&ids, true);
    let found = Sequence::new(&b, &model).logits(&ids, true);
    let rows = found.chunks_exact(vocab).zip(expected.chunks_exact(vocab));
    let (all, parted) = beyond(rows.map(|(found, expected)| off(found, expected)).collect());
    let perplexity = (likelihood(&found, &ids, vocab) - likelihood(&expected, &ids, vocab)).exp_m1();
    // Every length, whole and in chunks: the last row's logits.
    let mut each = Vec::new();
    let row = |n: usize| &expected[(n - 1) * vocab..n * vocab];
    for n in 1..=ids.len().min(300) {
        let mut note = |found: &[f32]| each.push(off(found, row(n)));
        note(&Sequence::new(&b, &model).logits(&ids[..n], false));
        if n > 1 && n % 7 == 3 {
            for chunk in [1, 5, 32] {
                let mut s = Sequence::new(&b, &model);
                let mut last = Vec::new();
                ids[..n].chunks(chunk).for_each(|part| last = s.logits(part, false));
                note(&last);
            }
        }
    }
    let lengths = each.len();
    let (worst, lengths_parted) = beyond(each);
    let text = Sequence::new(&cpu, &reference).greedy(&ids[..40], 32);
    let same = Sequence::new(&b, &model).greedy(&ids[..40], 32);
    let parts = text.iter().zip(&same).position(|(a, b)| a.0 != b.0);
    println!(
        "{name}: loaded and checked in {:.2} s; logits off by {all:.1e} ({parted} of {} beyond the limit; every length {worst:.1e}, {lengths_parted} of {lengths}) deviations, perplexity by {:.4} %, text {}, fallbacks {:?}",
        loaded.as_secs_f64(),
        ids.len(),
        100.0 * perplexity,
        parts.map_or("equal".to_owned(), |i| format!("parts at {i} with a margin of {}", text[i].1)),
        b.fallbacks().snapshot().by_reason,
    );
    // Written so that NaN fails.
    let checks = [
        (all <= LIMIT && worst <= LIMIT, format!("{name}: logits off by {all}, {worst}")),
        (perplexity.abs() <= 2e-3, format!("{name}: perplexity off by {perplexity}")),
        (parts.is_none_or(|i| text[i].1 < 0.02), format!("{name}: the text parts where no other token is near")),
    ];
    checks.into_iter().filter(|(good, _)| !good).map(|(_, what)| what).collect()
}

#[test]
fn every_model_on_the_real_gpu() {
    if !real() {
        eprintln!("SKIPPED: MARLIN_TEST_DEVICE is not cuda");
        return;
    }
    let all = models().into_iter().chain(interop()).filter(|p| !p.ends_with("fable-draft"));
    let wrong: Vec<String> = all.flat_map(|path| [true, false].map(|exact| whole(&path, exact))).flatten().collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The model in the repository: latent attention, a mixture with groups and a shared expert, and dense layers.
#[test]
fn the_model_in_the_repository_on_the_simulated_gpu() {
    if real() {
        return;
    }
    let path = root().join("models/fable-glm4-moe-lite");
    let ids = prompt(&path);
    // Many rows, few, one; the last two are replayed.
    parts(&path, &[&ids[..18], &ids[18..21], &ids[21..22], &ids[22..23], &ids[23..24]]);
}

/// Parts of a text one after another, with f32 products only and with all kernels; two of them are replayed.
fn parts(path: &Path, texts: &[&[u32]]) {
    let cpu = CpuBackend::new(CpuOptions { exact: true, ..CpuOptions::default() });
    let reference = load(&cpu, path);
    for exact in [true, false] {
        let Some(b) = gpu(exact) else { return };
        let model = load(&b, path);
        let mut on = (Sequence::new(&b, &model), Sequence::new(&cpu, &reference));
        for part in texts {
            let d = off(&on.0.logits(part, true), &on.1.logits(part, true));
            println!("exact {exact}, {} tokens: off by {d:.1e} deviations", part.len());
            assert!(d <= LIMIT, "exact {exact}, {} tokens: off by {d} deviations", part.len());
        }
        assert_eq!(b.fallbacks().snapshot().total, 0);
        assert_eq!(b.gpu().counts().replays, 2);
    }
}

/// Grouped-query attention and trellises, where the checkpoint is here.
#[test]
fn a_trellis_checkpoint_on_the_simulated_gpu() {
    let path = root().join("../shared/interop/exl3/fable-qwen3-exl3-3.0bpw-mul1");
    if real() || !path.exists() {
        eprintln!("SKIPPED: {} is absent", path.display());
        return;
    }
    let ids = prompt(&path);
    parts(&path, &[&ids[..3], &ids[3..4], &ids[4..5], &ids[5..6]]);
}
