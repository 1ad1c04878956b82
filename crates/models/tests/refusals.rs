//! Checkpoints that do not fit their configuration are refused before a weight is read, and the message says where.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

mod common;

use marlin_backend::Reference;
use marlin_checkpoint::{Checkpoint, Config, DType, Result, Tensor, TensorInfo, TensorSource};
use marlin_models::{Architecture, LoadOptions, Model};
use std::sync::Arc;

/// The built-in model's tensors under changed names, shapes and types; `values` replaces the bytes of one tensor.
struct Changed {
    inner: Arc<dyn TensorSource>,
    tensors: Vec<TensorInfo>,
    values: Option<(String, Vec<u8>)>,
}

impl TensorSource for Changed {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let changed = self.tensors.iter().find(|t| t.name == name);
        let mut tensor = match self.inner.tensor(name) {
            Ok(tensor) => tensor,
            Err(e) => match changed {
                Some(info) => Tensor { info: info.clone(), data: vec![0; info.bytes()].into() },
                None => return Err(e),
            },
        };
        if let Some(info) = changed {
            tensor.info = info.clone();
        }
        if let Some((changed, bytes)) = &self.values
            && changed == name
        {
            tensor.data = bytes.clone().into();
        }
        Ok(tensor)
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.iter().any(|t| t.name == name)
    }

    fn describe(&self) -> String {
        "changed".into()
    }
}

fn fable() -> Checkpoint {
    Checkpoint::open(common::root().join("models/fable-glm4-moe-lite")).unwrap()
}

fn refusal(change: impl FnOnce(&mut Changed)) -> String {
    let mut checkpoint = fable();
    let tensors = checkpoint.store.tensors().to_vec();
    let mut changed = Changed { inner: checkpoint.store.clone(), tensors, values: None };
    change(&mut changed);
    checkpoint.store = Arc::new(changed);
    match Model::load(&Reference, &checkpoint, LoadOptions::default(), &mut |_| {}) {
        Ok(_) => "accepted".into(),
        Err(error) => error.to_string(),
    }
}

fn info(name: &str, shape: &[usize]) -> TensorInfo {
    TensorInfo { name: name.into(), dtype: DType::BF16, shape: shape.to_vec() }
}

fn assert_says(found: &str, expected: &str) {
    assert!(found.contains(expected), "{found}");
}

#[test]
fn tensors_that_are_missing_or_left_over_or_of_another_shape_or_type() {
    let q_a = "model.layers.2.self_attn.q_a_proj.weight";
    let at = |c: &Changed, name: &str| c.tensors.iter().position(|t| t.name == name).unwrap();
    assert_says(&refusal(|c| drop(c.tensors.remove(at(c, q_a)))), &format!("tensor {q_a:?} [128, 256] is missing"));
    assert_says(&refusal(|c| c.tensors.push(info("model.extra", &[3]))), "tensor \"model.extra\" [3] is not part of");
    let i = |c: &mut Changed| at(c, q_a);
    assert_says(
        &refusal(|c| {
            let i = i(c);
            c.tensors[i].shape = vec![256, 128]
        }),
        "expected shape [128, 256], found [256, 128]",
    );
    assert_says(
        &refusal(|c| {
            let i = i(c);
            c.tensors[i].dtype = DType::I16
        }),
        "expected BF16, F16, F32 or F64, found I16",
    );
    assert_eq!(refusal(|c| c.tensors.push(info("model.layers.0.self_attn.rotary_emb.inv_freq", &[16]))), "accepted");
}

#[test]
fn stacks_of_experts_must_be_whole_and_alone() {
    let prefix = "model.layers.1.mlp.experts";
    let stack = |c: &mut Changed, both: usize, inner: usize| {
        c.tensors.retain(|t| !t.name.starts_with(prefix));
        c.tensors.push(info(&format!("{prefix}.gate_up_proj"), &[16, both, 256]));
        c.tensors.push(info(&format!("{prefix}.down_proj"), &[16, 256, inner]));
    };
    assert_says(&refusal(|c| stack(c, 128, 64)), "expected shape [16, 256, 256], found [16, 128, 256]");
    assert_says(
        &refusal(|c| {
            stack(c, 256, 128);
            c.tensors.push(info(&format!("{prefix}.junk"), &[1]));
        }),
        "junk\" [1] is not part of this architecture",
    );
    assert_says(
        &refusal(|c| c.tensors.push(info(&format!("{prefix}.gate_up_proj"), &[16, 256, 256]))),
        "gate_up_proj\" [16, 256, 256] is not part of this architecture",
    );
}

#[test]
fn values_that_are_not_finite_are_named() {
    for name in
        ["model.layers.4.mlp.down_proj.weight", "model.norm.weight", "model.layers.3.mlp.gate.e_score_correction_bias"]
    {
        let found = refusal(|c| {
            // The layer is sparse: its shared expert stands for a dense one.
            let name = name.replace("mlp.down_proj", "mlp.shared_experts.down_proj");
            let tensor = c.inner.tensor(&name).unwrap();
            let size = tensor.info.dtype.size();
            let mut bytes = tensor.data.to_vec();
            bytes[7 * size..8 * size].fill(0xff);
            c.values = Some((name, bytes));
        });
        assert_says(&found, "element 7 of the weight is NaN");
        assert_says(&found, name.split('.').nth(1).unwrap());
    }
}

#[test]
fn configurations_that_make_no_sense() {
    let config = |key: &str, value: &str| {
        let text = std::fs::read_to_string(common::root().join("models/fable-glm4-moe-lite/config.json")).unwrap();
        let mut object: serde_json::Value = serde_json::from_str(&text).unwrap();
        object[key] = serde_json::from_str(value).unwrap();
        let config = Config::parse("config.json", &object.to_string()).unwrap();
        Architecture::parse(&config).map(|_| ()).map_err(|e| e.to_string())
    };
    for (key, value) in [
        ("num_hidden_layers", "4000000000"),
        ("num_hidden_layers", "0"),
        ("n_routed_experts", "100000000"),
        ("num_nextn_predict_layers", "300000"),
        ("vocab_size", "9000000000000000"),
        ("rms_norm_eps", "-1"),
        ("num_experts_per_tok", "17"),
        ("hidden_act", "\"gelu\""),
        ("mlp_layer_types", "[\"dense\", \"dens\", \"sparse\", \"sparse\", \"sparse\", \"sparse\"]"),
        ("layer_types", "[\"sliding_attention\"]"),
    ] {
        assert_says(&config(key, value).unwrap_err(), &format!("config.json: key {key:?}: expected"));
    }
    assert_says(
        &config("model_type", "\"gpt9\"").unwrap_err(),
        "architecture \"gpt9\" is not supported; supported: llama, qwen3",
    );
    assert!(config("rms_norm_eps", "1e-5").is_ok());
}
