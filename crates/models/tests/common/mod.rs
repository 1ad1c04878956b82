//! What the tests against transformers share.
#![allow(dead_code)] // each test uses a part

use marlin_backend::{Backend, LatentForm, Pass, SequenceStep, Step, Token};
use marlin_checkpoint::{Checkpoint, Store, TensorSource};
use marlin_models::{LoadOptions, Model, Residency};
use std::path::{Path, PathBuf};

const TOLERANCE: f32 = 2e-3;
pub const BLOCK: usize = 32;

/// Schemes of made-up checkpoints, and what their modules say they are.
pub const SCHEMES: [(&str, &str); 23] = [
    ("exl3-3", "exl3"),
    ("exl3-4-3inst", "exl3"),
    ("exl3-2.5-mcg", "exl3"),
    ("fp4", "fp4"),
    ("mxfp4", "mxfp4"),
    ("nvfp4", "nvfp4"),
    ("mlx-2", "mlx"),
    ("mlx-3", "mlx"),
    ("mlx-4", "mlx"),
    ("mlx-5", "mlx"),
    ("mlx-6", "mlx"),
    ("mlx-8", "mlx"),
    ("mlx-mxfp4", "mlx"),
    ("mlx-nvfp4", "mlx"),
    ("mlx-mxfp8", "mlx"),
    ("gptq-2", "gptq"),
    ("gptq-3", "gptq"),
    ("gptq-4", "gptq"),
    ("gptq-8", "gptq"),
    ("awq", "awq"),
    ("awq-4", "awq"),
    ("int8", "compressed-tensors"),
    ("fp8", "fp8"),
];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Folders of the models that are here.
pub fn models() -> Vec<PathBuf> {
    let mut found = vec![root().join("models/fable-glm4-moe-lite")];
    let shared = root().join("../shared/models");
    match std::fs::read_dir(&shared) {
        Ok(entries) => found.extend(entries.map(|e| e.unwrap().path()).filter(|p| !p.ends_with("fable-glm4-moe-lite"))),
        Err(_) => eprintln!("SKIPPED: {} is absent; only the model in the repository is compared", shared.display()),
    }
    found
}

pub struct Expected(Store);

impl Expected {
    pub fn open(folder: &Path) -> Self {
        Self::at(&folder.join("reference.safetensors"))
    }

    pub fn at(file: &Path) -> Self {
        Self(Store::open(file).unwrap())
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.0.tensor(name).unwrap().to_f32().unwrap()
    }

    pub fn ids(&self, name: &str) -> Vec<u32> {
        let tensor = self.0.tensor(name).unwrap();
        tensor.data.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

pub fn load<B: Backend>(b: &B, folder: &Path, residency: Residency) -> Model<B> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    Model::load(b, &checkpoint, LoadOptions { residency, ..LoadOptions::default() }, &mut |_| {}).unwrap()
}

/// One sequence, its blocks in no particular order.
pub fn step(ids: &[u32], cached: usize, total: usize) -> Step {
    let blocks = total.div_ceil(BLOCK) as u32;
    Step {
        tokens: ids.iter().map(|id| Token::Id(*id)).collect(),
        sequences: vec![SequenceStep { cached, len: ids.len(), blocks: (0..blocks).rev().collect() }],
        outputs: (0..ids.len() as u32).collect(),
    }
}

pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |a: f32, b| if b > a || b.is_nan() { b } else { a });
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

/// Logits at every position and, where they are stored, hidden states before every layer and after the last.
pub fn compare<B: Backend>(b: &B, folder: &Path, prompt: &str, form: LatentForm) {
    let expected = Expected::open(folder);
    let ids = expected.ids(&format!("{prompt}.input_ids"));
    let model = load(b, folder, Residency::Resident);
    let kv = b.kv(model.kv_spec(BLOCK, ids.len().div_ceil(BLOCK))).unwrap();
    let batch = b.begin(&step(&ids, 0, ids.len()), &kv, None).unwrap();
    let name = format!("{} {prompt}", name_of(folder));
    let mut states = vec![model.embed(b, &batch).unwrap()];
    let pass = |layer| Pass { batch: &batch, kv: &kv, layer, latent_form: form, observer: None };
    for i in 0..model.info().layers {
        let h = model.layer(b, states[i].clone(), &pass(i)).unwrap();
        states.push(h);
    }
    let logits = model.head(b, &states[model.info().layers], &pass(model.info().layers)).unwrap();
    b.submit().unwrap();
    let hidden = format!("{prompt}.hidden");
    if expected.has(&hidden) {
        let all = expected.floats(&hidden);
        let each = ids.len() * model.info().hidden;
        // The last stored state is after the final norm, which the head applies itself.
        for (i, state) in states[..model.info().layers].iter().enumerate() {
            let want = &all[i * each..(i + 1) * each];
            let scale = want.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert_close(&format!("{name} hidden {i}"), &b.read(state).unwrap(), want, TOLERANCE * scale);
        }
    }
    let logits = b.read(&logits).unwrap();
    let vocab = model.info().vocab;
    assert_close(
        &format!("{name} last"),
        &logits[logits.len() - vocab..],
        &expected.floats(&format!("{prompt}.logits_last")),
        TOLERANCE,
    );
    let top_ids = expected.ids(&format!("{prompt}.topk_ids"));
    let top: Vec<f32> = top_ids.iter().enumerate().map(|(i, id)| logits[i / 16 * vocab + *id as usize]).collect();
    assert_close(&format!("{name} top 16"), &top, &expected.floats(&format!("{prompt}.topk_values")), TOLERANCE);
    let sums: Vec<f32> = logits
        .chunks_exact(vocab)
        .map(|row| row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln() as f32)
        .collect();
    assert_close(&format!("{name} log-sum-exp"), &sums, &expected.floats(&format!("{prompt}.logsumexp")), TOLERANCE);
}

pub fn name_of(folder: &Path) -> String {
    folder.file_name().unwrap().to_string_lossy().into_owned()
}
