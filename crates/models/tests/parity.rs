//! The reference backend against transformers: logits, hidden states and greedy text of the tiny trained models.
//!
//! `fable-glm4-moe-lite` is in the repository; the other models are read from `../shared/models` where that exists.

use marlin_backend::{Backend, Deferred, LatentForm, Observer, Pass, Reference, SequenceStep, Step, Token};
use marlin_checkpoint::{Checkpoint, Store, TensorSource};
use marlin_models::{LoadOptions, Model, Residency};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const TOLERANCE: f32 = 2e-3;
const BLOCK: usize = 32;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Folders of the models that are here.
fn models() -> Vec<PathBuf> {
    let mut found = vec![root().join("models/fable-glm4-moe-lite")];
    let shared = root().join("../shared/models");
    match std::fs::read_dir(&shared) {
        Ok(entries) => found.extend(entries.map(|e| e.unwrap().path()).filter(|p| !p.ends_with("fable-glm4-moe-lite"))),
        Err(_) => eprintln!("SKIPPED: {} is absent; only the model in the repository is compared", shared.display()),
    }
    found
}

struct Expected(Store);

impl Expected {
    fn open(folder: &Path) -> Self {
        Self(Store::open(&folder.join("reference.safetensors")).unwrap())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.0.tensor(name).unwrap().to_f32().unwrap()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let tensor = self.0.tensor(name).unwrap();
        tensor.data.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

fn load<B: Backend>(b: &B, folder: &Path, residency: Residency) -> Model<B> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    Model::load(b, &checkpoint, LoadOptions { residency, ..LoadOptions::default() }, &mut |_| {}).unwrap()
}

/// One sequence, its blocks in no particular order.
fn step(ids: &[u32], cached: usize, total: usize) -> Step {
    let blocks = total.div_ceil(BLOCK) as u32;
    Step {
        tokens: ids.iter().map(|id| Token::Id(*id)).collect(),
        sequences: vec![SequenceStep { cached, len: ids.len(), blocks: (0..blocks).rev().collect() }],
        outputs: (0..ids.len() as u32).collect(),
    }
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let worst = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |a: f32, b| if b > a || b.is_nan() { b } else { a });
    assert!(worst <= tolerance, "{what}: off by {worst}");
}

/// Logits at every position and, where they are stored, hidden states before every layer and after the last.
fn compare<B: Backend>(b: &B, folder: &Path, prompt: &str, form: LatentForm) {
    let expected = Expected::open(folder);
    let ids = expected.ids(&format!("{prompt}.input_ids"));
    let model = load(b, folder, Residency::Resident);
    let kv = b.kv(model.kv_spec(BLOCK, ids.len().div_ceil(BLOCK))).unwrap();
    let batch = b.begin(&step(&ids, 0, ids.len()), &kv, None).unwrap();
    let name = format!("{} {prompt}", folder.file_name().unwrap().to_string_lossy());
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

#[test]
fn reference_backend_agrees_with_transformers() {
    for folder in models() {
        for prompt in ["tale", "chat", "one"] {
            compare(&Reference, &folder, prompt, LatentForm::Absorbed);
        }
    }
}

#[test]
fn expanded_latent_attention_agrees_with_transformers() {
    compare(&Reference, &root().join("models/fable-glm4-moe-lite"), "tale", LatentForm::Expanded);
}

#[test]
fn models_do_not_assume_that_results_are_there_at_once() {
    for folder in models() {
        let b = Deferred::new(Reference);
        compare(&b, &folder, "one", LatentForm::Auto);
        assert!(b.executed() > 0 && b.pending() == 0);
    }
    let b = Deferred::new(Reference);
    let model = load(&b, &root().join("models/fable-glm4-moe-lite"), Residency::Resident);
    let kv = b.kv(model.kv_spec(BLOCK, 1)).unwrap();
    let batch = b.begin(&step(&[5], 0, 1), &kv, None).unwrap();
    let logits = model.forward(&b, &batch, &kv, None).unwrap();
    assert!(b.read(&logits).unwrap_err().to_string().contains("read before submit"));
}

#[derive(Default)]
struct Names(Mutex<Vec<String>>);

impl Observer<Reference> for Names {
    fn linear(
        &self,
        b: &Reference,
        linear: &marlin_checkpoint::Linear,
        input: &<Reference as Backend>::Tensor,
        output: &<Reference as Backend>::Tensor,
    ) -> marlin_backend::Result<()> {
        let (x, y) = (b.read(input)?, b.read(output)?);
        let rows = x.len() / linear.weight.cols();
        assert_eq!(y.len(), rows * linear.weight.rows(), "{}", linear.name);
        self.0.lock().unwrap().push(linear.name.clone());
        Ok(())
    }
}

#[test]
fn an_observer_sees_every_linear_and_changes_nothing_and_layers_may_be_streamed() {
    let folder = root().join("models/fable-glm4-moe-lite");
    let ids = Expected::open(&folder).ids("tale.input_ids");
    let run = |residency, observer: Option<&dyn Observer<Reference>>| {
        let model = load(&Reference, &folder, residency);
        let kv = Reference.kv(model.kv_spec(BLOCK, 1)).unwrap();
        let batch = Reference.begin(&step(&ids, 0, ids.len()), &kv, None).unwrap();
        Reference.read(&model.forward(&Reference, &batch, &kv, observer).unwrap()).unwrap()
    };
    let names = Names::default();
    let plain = run(Residency::Resident, None);
    assert_eq!(plain, run(Residency::Streamed, None));
    assert_close("observed", &run(Residency::Resident, Some(&names)), &plain, 1e-5);
    let seen = names.0.into_inner().unwrap();
    for name in [
        "model.layers.0.self_attn.q_a_proj",
        "model.layers.0.self_attn.kv_a_proj_with_mqa",
        "model.layers.0.self_attn.q_b_proj",
        "model.layers.5.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.3.mlp.shared_experts.down_proj",
        "lm_head",
    ] {
        assert!(seen.iter().any(|n| n == name), "{name}");
    }
    let experts = seen.iter().filter(|n| n.contains(".mlp.experts.")).count();
    assert!(experts > 5 * 3 * 4, "{experts}");
}
