//! `inspect`, `logits`, `eval ppl`, `bench latency`, `doctor`: numbers.

#![cfg(feature = "builtin-model")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;

#[test]
fn inspect_counts() {
    let found = marlin(&["inspect", &fable(), "--json", "--tensors"]).json();
    assert_eq!(found["parameters"], reference()["params"]);
    assert_eq!(found["parameters"], 12_690_176);
    // 12 of 16 experts, each 3 x 128 x 256, in 5 layers take no part in a token.
    assert_eq!(found["active_parameters"], 12_690_176 - 12 * 3 * 128 * 256 * 5);
    assert_eq!(found["bytes"], 2 * 12_690_176 + 4 * 80);
    assert_eq!(found["dtypes"]["F32"]["tensors"], 5);
    assert_eq!(found["kv"]["bytes_per_token"], 6 * (128 + 32) * 2);
    assert_eq!((&found["architecture"], &found["runnable"]), (&"glm4_moe_lite".into(), &true.into()));
    assert_eq!((&found["context"], &found["vocab"], &found["layers"]), (&4096.into(), &4096.into(), &6.into()));
    assert_eq!(found["eos"], serde_json::json!([4087]));
    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!((tensors.len(), &found["tensor_count"]), (325, &325.into()));
    assert!(tensors.contains(&serde_json::json!({
        "name": "model.embed_tokens.weight", "dtype": "BF16", "shape": [4096, 256]
    })));
    let text = marlin(&["inspect", &fable()]).ok();
    assert!(text.contains("12,690,176 (12.7 M); active per token 6.8 M (4 of 16 experts)"), "{text}");
}

#[test]
fn inspect_tells_what_does_not_fit() {
    let folder = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(format!("{}/config.json", fable())).unwrap();
    std::fs::copy(format!("{}/model.safetensors", fable()), folder.path().join("model.safetensors")).unwrap();
    let path = folder.path().to_str().unwrap();
    let inspect = |from: &str, to: &str| {
        std::fs::write(folder.path().join("config.json"), config.replace(from, to)).unwrap();
        marlin(&["inspect", path, "--json"]).json()
    };
    let found = inspect("\"n_routed_experts\": 16", "\"n_routed_experts\": 17");
    assert!(found["problem"].as_str().unwrap().contains("model.layers.1.mlp."), "{}", found["problem"]);
    let found = inspect("glm4_moe_lite", "mamba");
    assert_eq!((&found["runnable"], &found["architecture"]), (&false.into(), &"mamba".into()));
    assert!(found["problem"].as_str().unwrap().contains("supported: llama, qwen3"), "{}", found["problem"]);
    assert_eq!(found["tensor_count"], 325);
}

/// Shape and values of a float32 NumPy file of two dimensions.
fn npy(path: &str) -> (String, Vec<f32>) {
    let bytes = std::fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8(bytes[10..end].to_vec()).unwrap();
    assert!(end % 64 == 0 && header.ends_with('\n') && header.contains("'descr': '<f4', 'fortran_order': False"));
    let shape = header.split("'shape': (").nth(1).and_then(|s| s.split(')').next()).unwrap().to_owned();
    (shape, bytes[end..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

#[test]
fn logits_are_those_of_transformers() {
    let folder = tempfile::tempdir().unwrap();
    let ids = ids_file(folder.path(), &reference_ids("tale"));
    let out = folder.path().join("logits.npy");
    let out = out.to_str().unwrap();
    marlin(&["logits", &fable(), "--ids", &ids, "--exact", "-o", out]).ok();
    let (shape, all) = npy(out);
    assert_eq!((shape.as_str(), all.len()), ("23, 4096", 23 * 4096));
    marlin(&["logits", &fable(), "--ids", &ids, "--exact", "--last", "-o", out]).ok();
    let (shape, last) = npy(out);
    assert_eq!(shape, "1, 4096");
    assert_eq!(last, all[22 * 4096..]);
    let expected = reference_floats("tale.logits_last");
    let worst = last.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 2e-3, "{worst}");
    let error = marlin(&["logits", &fable(), "--ids", &ids, "-o", "/no/such/folder/x.npy"]).error(1);
    assert!(error.starts_with("/no/such/folder/x.npy: "), "{error}");
}

#[test]
fn perplexity_is_that_of_transformers() {
    let (Some(ids), Some(text), Some(expected)) =
        (shared("text/heldout-8000.i32"), shared("text/fable-heldout.txt"), shared("text/hf-fp32.json"))
    else {
        return;
    };
    let expected: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(expected).unwrap()).unwrap();
    let expected = expected["fable-glm4-moe-lite"]["ppl_2048"].as_f64().unwrap();
    for (source, file, extra, tolerance) in
        [("--ids", &ids, "--exact", 2e-4), ("--text", &text, "--exact", 2e-4), ("--ids", &ids, "--json", 3e-3)]
    {
        let args = ["eval", "ppl", &fable(), source, file, "--tokens", "2048", "--json"];
        let args = if extra == "--json" { args.to_vec() } else { [&args[..], &[extra]].concat() };
        let found = marlin(&args).json();
        assert_eq!(found["tokens_scored"], 2047);
        let found = found["perplexity"].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() <= tolerance, "{found} {expected}");
    }
    let llama = ["--protocol", "llama.cpp", "--tokens", "1100"];
    let found = marlin(&[&["eval", "ppl", &fable(), "--ids", &ids, "--json"], &llama[..]].concat()).json();
    assert_eq!((&found["tokens_scored"], &found["windows"]), (&510.into(), &2.into()));
    let error = marlin(&["eval", "ppl", &fable(), "--ids", &ids, "--tokens", "9000"]).error(1);
    assert!(error.ends_with("--tokens asks for 9000 tokens, but there are 8000"), "{error}");
}

#[test]
fn perplexity_needs_a_text() {
    assert!(marlin(&["eval", "ppl", &fable()]).error(2).contains("required arguments were not provided"));
    let folder = tempfile::tempdir().unwrap();
    let ids = ids_file(folder.path(), &[7]);
    let error = marlin(&["eval", "ppl", &fable(), "--ids", &ids]).error(1);
    assert_eq!(error, "the text has 1 tokens; sliding needs at least 2");
    let error = marlin(&["eval", "ppl", &fable(), "--ids", &ids, "--protocol", "exl3", "--stride", "9"]).error(1);
    assert!(error.starts_with("--stride belongs to the sliding protocol"), "{error}");
}

#[test]
fn speed_is_reported_whatever_it_is() {
    let args = ["bench", "latency", "fable", "--prompt", "20", "--generate", "3", "--depth", "40", "--repeats", "2"];
    let found = marlin(&[&args[..], &["--json"]].concat()).json();
    for key in ["prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_ms", "inter_token_ms"] {
        for part in ["mean", "std", "two_sigma", "p50", "p95", "p99"] {
            assert!(found[key][part].as_f64().unwrap() >= 0.0, "{key} {part}");
        }
    }
    assert_eq!((&found["inter_token_ms"]["count"], &found["depth"]), (&6.into(), &40.into()));
    assert!(found["bandwidth_share"].as_f64().unwrap() > 0.0);
    // Three tokens, four experts each, in five of six layers.
    let experts: Vec<u64> = found["distinct_experts"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
    assert!(experts.len() == 5 && experts.iter().all(|n| (4..=12).contains(n)), "{experts:?}");
    // bf16 latents of 40 tokens and half of those generated.
    assert_eq!(found["kv_bytes_per_token"], 41 * 6 * 160 * 2);
    assert!(found["note"].as_str().unwrap().contains("stays in the caches"));
    let error = marlin(&["bench", "latency", "--synthetic", "qwen9-9b"]).error(1);
    assert!(error.starts_with("no published sizes are known for \"qwen9-9b\"; known: llama-3.2-1b, "), "{error}");
    let error = marlin(&["bench", "latency", "--synthetic", "qwen3-8b:layer=2"]).error(1);
    assert!(error.starts_with("--synthetic: expected NAME, NAME@SCHEME"), "{error}");
}

#[test]
fn the_machine_is_described() {
    let found = marlin(&["doctor", "--json"]).json();
    assert_eq!(found["built_in_model"], "fable");
    assert!(found["measured"]["read_bytes_per_second"].as_f64().unwrap() > 0.0);
    for mode in ["exact", "fast"] {
        assert_eq!(
            (&found["self_check"][mode]["passed"], &found["self_check"][mode]["logits"]),
            (&true.into(), &94208.into())
        );
    }
    assert!(found["threads"].as_u64().unwrap() > 0 && !found["simd"].as_str().unwrap().is_empty());
    assert!(marlin(&["doctor", "--quick"]).ok().contains("kernels use"));
}

/// The original of the built-in model with a tensor of a multi-token-prediction layer, as GLM-4.7-Flash has them.
struct WithMtp(marlin_checkpoint::Store, Vec<marlin_checkpoint::TensorInfo>);

impl marlin_checkpoint::TensorSource for WithMtp {
    fn tensors(&self) -> &[marlin_checkpoint::TensorInfo] {
        &self.1
    }
    fn tensor(&self, name: &str) -> marlin_checkpoint::Result<marlin_checkpoint::Tensor> {
        if self.0.contains(name) {
            return self.0.tensor(name);
        }
        marlin_checkpoint::Synthetic::formula(self.1.clone()).tensor(name)
    }
    fn contains(&self, name: &str) -> bool {
        self.1.iter().any(|t| t.name == name)
    }
    fn describe(&self) -> String {
        "with MTP".into()
    }
}

#[test]
fn tensors_for_speculation_are_recognised() {
    use marlin_checkpoint::TensorSource;
    let folder = tempfile::tempdir().unwrap();
    let store = marlin_checkpoint::Store::open(std::path::Path::new(&fable())).unwrap();
    let name = "model.layers.6.eh_proj.weight";
    let mut tensors = store.tensors().to_vec();
    let (dtype, shape) = (marlin_checkpoint::DType::BF16, vec![256, 512]);
    tensors.push(marlin_checkpoint::TensorInfo { name: name.into(), dtype, shape });
    // Two files and an index, while we are at it.
    marlin_checkpoint::write_sharded(&WithMtp(store, tensors), folder.path(), 15_000_000, &()).unwrap();
    let config = std::fs::read_to_string(format!("{}/config.json", fable())).unwrap();
    let config = config.replacen('{', "{\"num_nextn_predict_layers\": 1,", 1);
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let path = folder.path().to_str().unwrap();
    let found = marlin(&["inspect", path, "--json"]).json();
    assert_eq!((&found["parameters"], &found["mtp_parameters"]), (&12_690_176.into(), &(256 * 512).into()));
    assert_eq!(found["mtp_tensors"], serde_json::json!([name]));
    assert_eq!(found["files"], serde_json::json!(["config.json", "model.safetensors.index.json"]));
    let text = marlin(&["inspect", path, "--tensors"]).ok();
    assert!(text.contains("1 tensors, 131 K parameters: multi-token prediction, recognised, not used"), "{text}");
    assert!(text.contains("model.layers.6.eh_proj.weight  MTP\n"), "{text}");
    let ids = ids_file(folder.path(), &reference_ids("tale"));
    let found = marlin(&["run", "-m", path, "--prompt-ids", &ids, "-n", "8", "--json", "--exact", "--verbose"]);
    assert!(found.stderr.contains("1 tensors of the multi-token-prediction layers are not used"), "{}", found.stderr);
    assert_eq!(ids_of(&found.json()["token_ids"]), ids_of(&reference()["greedy"]["tale"]["ids"])[..8]);
}
