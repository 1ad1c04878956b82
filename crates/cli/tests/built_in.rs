//! The model inside the binary: what it was made as, and that its answers are those of its values.

#![cfg(feature = "builtin-model")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use marlin_checkpoint::{Checkpoint, DType, Store, Synthetic, Tensor, TensorInfo, TensorSource};
use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn it_is_as_it_was_made() {
    let said = marlin(&["verify", &built_in(), "--json"]).json();
    assert_eq!(said["wrong"], serde_json::json!([]));
    let found = marlin(&["inspect", "fable", "--json"]).json();
    let original = marlin(&["inspect", &fable(), "--json"]).json();
    for key in ["parameters", "active_parameters", "architecture", "context", "vocab", "eos", "layers"] {
        assert_eq!(found[key], original[key], "{key}");
    }
    assert!(2 * found["bytes"].as_u64().unwrap() < original["bytes"].as_u64().unwrap());
    assert_eq!(marlin(&["inspect", &built_in(), "--json"]).json()["bytes"], found["bytes"]);
}

/// A checkpoint's parameters, decoded by the plain reference code and stored as F32.
struct Plain(Vec<TensorInfo>, BTreeMap<String, Vec<f32>>);

impl Plain {
    fn of(checkpoint: &Checkpoint) -> Self {
        let modules = checkpoint.modules().unwrap();
        // The original declares every name and shape.
        let declared = Store::open(Path::new(&fable())).unwrap();
        let values = declared.tensors().iter().map(|info| {
            let values = match (info.name.strip_suffix(".weight"), info.shape.as_slice()) {
                (Some(module), &[rows, cols]) if checkpoint.store.contains(&info.name) => {
                    let stored = checkpoint.store.tensor(&info.name).unwrap().to_f32().unwrap();
                    assert_eq!(stored.len(), rows * cols, "{module}");
                    stored
                }
                (Some(module), &[rows, cols]) => {
                    modules.linear(module, [rows, cols]).unwrap().build().unwrap().matrix().unwrap()
                }
                _ => checkpoint.store.tensor(&info.name).unwrap().to_f32().unwrap(),
            };
            (info.name.clone(), values)
        });
        let values = values.collect();
        let infos = declared.tensors().iter().map(|info| TensorInfo { dtype: DType::F32, ..info.clone() });
        Self(infos.collect(), values)
    }
}

impl TensorSource for Plain {
    fn tensors(&self) -> &[TensorInfo] {
        &self.0
    }
    fn tensor(&self, name: &str) -> marlin_checkpoint::Result<Tensor> {
        let Some(values) = self.1.get(name) else { return Synthetic::formula(Vec::new()).tensor(name) };
        let info = self.0.iter().find(|info| info.name == name).unwrap().clone();
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Ok(Tensor { info, data: bytes.into() })
    }
    fn contains(&self, name: &str) -> bool {
        self.1.contains_key(name)
    }
    fn describe(&self) -> String {
        "decoded".into()
    }
}

#[test]
fn it_answers_as_its_values_do_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    let plain = Plain::of(&Checkpoint::open(Path::new(&built_in())).unwrap());
    marlin_checkpoint::write_sharded(&plain, folder.path(), 1 << 30, &()).unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(format!("{}/{file}", fable()), folder.path().join(file)).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    let ids = ids_file(folder.path(), &reference_ids("tale"));
    let logits = |model: &str, file: &str| {
        let out = folder.path().join(file);
        marlin(&["logits", model, "--ids", &ids, "--exact", "-o", out.to_str().unwrap()]).ok();
        let bytes = std::fs::read(out).unwrap();
        bytes[128..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<f32>>()
    };
    let (found, expected) = (logits("fable", "own.npy"), logits(path, "plain.npy"));
    assert_eq!((found.len(), expected.len()), (23 * 4096, 23 * 4096));
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 2e-3, "{worst}");
    let prompt = reference()["prompt_text"]["tale"].as_str().unwrap().to_owned();
    let greedy = |model: &str| marlin(&["run", "-m", model, &prompt, "--exact", "--json", "-n", "64"]).json();
    let (found, expected) = (greedy("fable"), greedy(path));
    assert_eq!(found["token_ids"], expected["token_ids"]);
    assert_eq!(greedy(&built_in())["text"], found["text"]);
}

/// KL(original || built-in) of some tokens that no calibration has seen.
#[test]
fn it_is_close_to_the_original() {
    let Some(ids) = shared("text/heldout-8000.i32") else { return };
    let found = marlin(&["eval", "kld", &fable(), "fable", "--ids", &ids, "--tokens", "1025", "--json"]).json();
    let mean = found["mean"].as_f64().unwrap();
    assert!(mean < 0.01, "{mean}");
}
