//! `inspect` of quantised checkpoints, `dequantise`, `compare`, `synthesise NAME@SCHEME`: what weights are.

#![cfg(feature = "builtin-model")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use serde_json::json;
use std::path::Path;

/// A checkpoint of qwen3-0.6b's first layer in a scheme.
fn layer(folder: &Path, scheme: &str) -> String {
    let path = folder.join(scheme).to_string_lossy().into_owned();
    let made = marlin(&["synthesise", &format!("qwen3-0.6b@{scheme}:layers=1"), "-o", &path]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    path
}

/// Features of the matrices in a layer of Qwen3-0.6B: q, k, v, o, gate, up, down.
const MATRICES: u64 = 1024 * (2048 + 1024 + 1024 + 2048 + 3 * 3072);
const EMBEDDING: u64 = 151_936 * 1024;

#[test]
fn quantised_checkpoints_are_written_inspected_and_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = layer(folder.path(), "mlx-4");
    let config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(format!("{path}/config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization"], json!({ "group_size": 64, "bits": 4, "mode": "affine" }));
    let found = marlin(&["inspect", &path, "--json", "--tensors"]).json();
    assert_eq!(found["runnable"], true, "{}", found["problem"]);
    let storage = &found["storage"];
    // A scale and a bias of 16 bits for every 64 codes of 4; the embedding is stored in the same way.
    assert_eq!((&storage["bits_per_weight"], &storage["bits_per_inner_weight"]), (&json!(4.5), &json!(4.5)));
    assert_eq!(storage["groups"], json!({ "64": MATRICES + EMBEDDING }));
    let bits = &storage["histogram"][0];
    assert_eq!((&bits["bits"], &bits["weights"]), (&json!(4), &json!(MATRICES + EMBEDDING)));
    assert_eq!((&bits["share"], &bits["bytes"]), (&json!(1.0), &json!((MATRICES + EMBEDDING) * 9 / 16)));
    let modules = found["modules"].as_array().unwrap();
    let down = modules.iter().find(|m| m["module"] == "model.layers.0.mlp.down_proj").unwrap();
    assert_eq!((&down["shape"], &down["group"]), (&json!([1024, 3072]), &json!(64)));
    assert_eq!((&down["scheme"], &down["bits"]), (&json!("mlx"), &json!({ "4": 1 })));
    let text = marlin(&["inspect", &path, "--tensors"]).ok();
    assert!(text.contains("bits a weight 4.50; without the embedding"), "{text}");
    assert!(text.contains("100.0 %") && text.contains("##############################"), "{text}");
    let args =
        ["bench", "latency", &path, "--prompt", "4", "--generate", "1", "--repeats", "1", "--warmup", "0", "--json"];
    assert_eq!(marlin(&args).json()["fallbacks"], json!({ "total": 0, "by_reason": {}, "last": null }));
}

#[test]
fn schemes_have_names() {
    let error = marlin(&["synthesise", "qwen3-0.6b@int5", "-o", "/nonexistent/x"]).error(1);
    assert!(error.starts_with("scheme \"int5\": expected one of exl3-1 to exl3-8"), "{error}");
    let error = marlin(&["bench", "latency", "--synthetic", "qwen3-8b@q4"]).error(1);
    assert!(error.contains("expected one of exl3-1"), "{error}");
    let error = marlin(&["synthesise", "qwen3-0.6b:layers=1", "--layers", "2", "-o", "/nonexistent/x"]).error(1);
    assert!(error.ends_with("says how many layers already; leave --layers out"), "{error}");
}

#[test]
fn experts_are_shown_as_ranges() {
    let found = marlin(&["inspect", &fable(), "--json", "--tensors"]).json();
    let modules = found["modules"].as_array().unwrap();
    let experts: Vec<_> = modules.iter().filter(|m| m["module"].as_str().unwrap().contains(".experts.")).collect();
    // gate, up and down of the 16 experts in 5 layers.
    assert_eq!(experts.len(), 15);
    assert!(experts.iter().all(|m| m["modules"] == 16 && m["bytes"] == 16 * 128 * 256 * 2));
    assert_eq!(experts[0]["module"], "model.layers.1.mlp.experts.0..15.gate_proj");
    assert_eq!(found["storage"]["bits_per_weight"], 16.0);
}

/// bf16 values of a tensor in a safetensors file, without the code under test.
fn bf16(file: &str, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(file).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let [from, to] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap() as usize);
    let data = &bytes[8 + size + from..8 + size + to];
    data.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16)).collect()
}

#[test]
fn dequantise_shows_what_the_file_holds() {
    let name = "model.layers.0.self_attn.o_proj";
    let expected = bf16(&format!("{}/model.safetensors", fable()), &format!("{name}.weight"));
    let cols = expected.len() / 256;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("o.npy");
    let found = marlin(&["dequantise", &fable(), name, "--rows", "3..5", "--cols", "0..4", "--json"]).json();
    assert_eq!(found["shape"], json!([256, cols]));
    assert_eq!((&found["stored"][0]["scheme"], &found["stored"][0]["bits"]), (&json!("dense"), &json!(16)));
    for (r, row) in found["values"].as_array().unwrap().iter().enumerate() {
        let row: Vec<f32> = row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        assert_eq!(row, expected[(3 + r) * cols..][..4]);
    }
    let n = expected.len() as f64;
    let mean = expected.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let std = (expected.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert!((found["mean"].as_f64().unwrap() - mean).abs() < 1e-9);
    assert!((found["std"].as_f64().unwrap() - std).abs() < 1e-9);
    assert_eq!(found["max"].as_f64().unwrap() as f32, expected.iter().fold(f32::MIN, |a, b| a.max(*b)));
    let out = out.to_str().unwrap();
    let text = marlin(&["dequantise", &fable(), &format!("{name}.weight"), "-o", out]).ok();
    assert!(text.contains("deviation") && text.contains("rows 0..4, columns 0..8"), "{text}");
    let file = std::fs::read(out).unwrap();
    assert_eq!(file.len(), 128 + 4 * expected.len());
    let values: Vec<f32> = file[128..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(values, expected);
    assert_eq!(marlin(&["dequantise", &fable(), "model.norm.weight", "--json"]).json()["shape"], json!([1, 256]));
}

#[test]
fn dequantise_says_what_there_is() {
    let error = marlin(&["dequantise", &fable(), "model.layers.0.mlp.gate"]).error(1);
    assert!(error.contains("there is no module") && error.contains("inspect --tensors"), "{error}");
    let error = marlin(&["dequantise", &fable(), "model.norm.weight", "--rows", "0..2"]).error(1);
    assert_eq!(error, "--rows: 0..2 is not within 0..1");
    assert!(marlin(&["dequantise", &fable(), "model.norm.weight", "--cols", "5"]).error(2).contains("expected A..B"));
}

/// The original of the built-in model, one value of one matrix changed.
fn changed(folder: &Path) -> (String, f32, Vec<f32>) {
    let name = "model.layers.2.self_attn.o_proj.weight";
    let file = format!("{}/model.safetensors", fable());
    let values = bf16(&file, name);
    let mut bytes = std::fs::read(&file).unwrap();
    let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + size]).unwrap();
    let from = 8 + size + header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    // 2.0 in bf16.
    bytes[from..from + 2].copy_from_slice(&0x4000u16.to_le_bytes());
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    std::fs::copy(format!("{}/config.json", fable()), folder.join("config.json")).unwrap();
    (folder.to_string_lossy().into_owned(), (2.0 - values[0]).abs(), values)
}

#[test]
fn compare_finds_the_one_that_differs() {
    let folder = tempfile::tempdir().unwrap();
    let (path, apart, values) = changed(folder.path());
    let found = marlin(&["compare", &fable(), &path, "--json"]).json();
    let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let (first, second) = (&found["modules"][0], &found["modules"][1]);
    assert_eq!(first["module"], "model.layers.2.self_attn.o_proj");
    assert!((first["relative_rms"].as_f64().unwrap() - f64::from(apart) / norm).abs() < 1e-9);
    assert!((first["max_abs"].as_f64().unwrap() - f64::from(apart)).abs() < 1e-9);
    assert!(first["cosine"].as_f64().unwrap() < 1.0);
    assert_eq!((&second["relative_rms"], &second["max_abs"]), (&json!(0.0), &json!(0.0)));
    assert_eq!(found["total"]["max_abs"], first["max_abs"]);
    // All parameters, and the 16 corrections of the router in each of 5 layers.
    assert_eq!(found["total"]["weights"], 12_690_176 + 80);
    let text = marlin(&["compare", &fable(), &path, "--worst", "3"]).ok();
    assert!(text.contains("o_proj") && text.contains("better ones (--worst 0 lists all)"), "{text}");
    let one = marlin(&["compare", &fable(), &path, "--module", "model.layers.1.self_attn.o_proj", "--json"]).json();
    assert_eq!((one["modules"].as_array().unwrap().len(), &one["total"]["relative_rms"]), (1, &json!(0.0)));
}

#[test]
fn compare_needs_the_same_architecture() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (layer(folder.path(), "exl3-3"), layer(folder.path(), "fp4"));
    let error = marlin(&["compare", &fable(), &a]).error(1);
    assert!(error.ends_with("only checkpoints of the same architecture can be compared"), "{error}");
    let error = marlin(&["compare", &a, &b, "--module", "model.layers.7.mlp.up_proj"]).error(1);
    assert!(error.contains("there is no module"), "{error}");
    // Unrelated random weights of the same size: as far apart as vectors at a right angle.
    let found = marlin(&["compare", &a, &b, "--module", "model.layers.0.mlp.up_proj", "--json"]).json();
    let line = &found["modules"][0];
    assert!((line["relative_rms"].as_f64().unwrap() - 2f64.sqrt()).abs() < 0.1, "{line}");
    assert!(line["cosine"].as_f64().unwrap().abs() < 0.02, "{line}");
    assert_eq!(line["stored"][0], "exl3 mul1");
}
