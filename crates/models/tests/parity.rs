//! The reference backend against transformers: logits, hidden states and greedy text of the tiny trained models.
//!
//! `fable-glm4-moe-lite` is in the repository; the other models are read from `../shared/models` where that exists.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use common::{BLOCK, Expected, assert_close, compare, load, models, root, step};
use marlin_backend::{Backend, Deferred, LatentForm, Observer, Reference};
use marlin_models::Residency;
use std::sync::Mutex;

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
        "model.layers.1.self_attn.kv_b_proj",
        "model.layers.5.self_attn.o_proj",
        "model.layers.2.mlp.gate",
        "model.layers.0.mlp.gate_proj",
        "model.layers.3.mlp.shared_experts.down_proj",
        "lm_head",
    ] {
        assert!(seen.iter().any(|n| n == name), "{name}");
    }
    let experts = seen.iter().filter(|n| n.contains(".mlp.experts.")).count();
    assert!(experts > 5 * 3 * 4, "{experts}");
}
