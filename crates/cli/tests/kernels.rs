//! `kernels`, `bench kernels`, and the counters of slower paths.

#![cfg(feature = "builtin-model")]
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::*;
use std::path::Path;

/// Runs at the scalar level, with settings saved in `cache`.
fn scalar(args: &[&str], cache: &Path) -> Outcome {
    let mut command = command(args);
    command.env("MARLIN_SIMD", "scalar").env("MARLIN_CACHE", cache);
    finish(command, "")
}

#[test]
fn the_table_is_shown_and_explained() {
    let cache = tempfile::tempdir().unwrap();
    let found = scalar(&["kernels", "--json"], cache.path()).json();
    assert_eq!((&found["simd"], &found["thresholds_from"]), (&"scalar".into(), &"default".into()));
    let rows = found["table"].as_array().unwrap();
    let row = |name: &str| rows.iter().find(|r| r["kernel"] == name).unwrap();
    assert_eq!(
        (&row("dense_gemv_bf16")["available"], &row("dense_gemv_bf16")["rows"]),
        (&false.into(), &"1 to 2".into())
    );
    assert_eq!(row("dense_gemm_tiles_f32")["rows"], "3 to 8");
    let text = scalar(&["kernels"], cache.path()).ok();
    assert!(text.contains("grouped_gemm_bytes") && text.contains("384 rows and more"), "{text}");
    let found = scalar(&["kernels", "--explain", "8", &fable(), "--json"], cache.path()).json();
    let choice = &found["choices"][0];
    assert_eq!((&choice["kernel"], &choice["weights"]), (&"dense_gemm_tiles_f32".into(), &"dense bf16".into()));
    assert!(choice["why"].as_str().unwrap().contains("which scalar lacks; 8 is within 3 to 8"), "{choice}");
    let choices = found["choices"].as_array().unwrap();
    let router = choices.iter().find(|c| c["router"] == true).unwrap();
    assert_eq!((&router["modules"], &router["why"]), (&5.into(), &"routers are always computed in f32".into()));
    assert_eq!(choice["modules"], 295 - 5);
    let text = scalar(&["kernels", "--explain", "1", "--exact"], cache.path()).ok();
    assert!(text.contains("trellis_exact_f32") && text.contains("--exact computes in f32"), "{text}");
    assert!(marlin(&["kernels", &fable()]).error(2).contains("required arguments were not provided"));
}

#[test]
fn thresholds_are_measured_saved_and_used() {
    let cache = tempfile::tempdir().unwrap();
    let args = ["bench", "kernels", "--small", "--schemes", "bf16,fp8", "--batches", "1,3", "--megabytes", "1"];
    let found = scalar(&[&args[..], &["--repeats", "1", "--save", "--json"]].concat(), cache.path()).json();
    let results = found["results"].as_array().unwrap();
    let taken: Vec<_> = results.iter().map(|r| (r["kernel"].as_str().unwrap(), r["rows"].as_u64().unwrap())).collect();
    assert_eq!(taken[0], ("dense_gemv_f32", 1));
    assert_eq!(taken[2..], [("grouped_f32", 1), ("grouped_f32", 3)]);
    assert!(results.iter().all(|r| r["bytes_per_second"].as_f64().unwrap() > 0.0 && r["shape"][0] == 3072));
    let file = found["saved"].as_str().unwrap();
    assert!(Path::new(file).starts_with(cache.path().join("kernels")) && file.ends_with("-scalar.json"), "{file}");
    let text = std::fs::read_to_string(file).unwrap();
    let text = text
        .replace(&format!("\"dense_gemv_rows\": {}", found["thresholds"]["dense_gemv_rows"]), "\"dense_gemv_rows\": 1");
    std::fs::write(file, text).unwrap();
    let found = scalar(&["kernels", "--json"], cache.path()).json();
    assert_eq!((&found["thresholds_from"], &found["thresholds"]["dense_gemv_rows"]), (&file.into(), &1.into()));
    assert_eq!(found["table"][0]["rows"], "1 to 1");
}

#[test]
fn slower_paths_are_counted() {
    let model = "qwen3-0.6b@fp8:layers=1";
    let args = ["bench", "latency", "--synthetic", model, "--prompt", "0", "--generate", "1", "--warmup", "0"];
    let found = marlin(&[&args[..], &["--repeats", "1", "--json"]].concat()).json();
    // Two steps, each with q, k, v, o, gate, up and down.
    assert_eq!(
        (&found["fallbacks"]["total"], &found["fallbacks"]["by_reason"]["float_codes"]),
        (&14.into(), &14.into())
    );
    let last = &found["fallbacks"]["last"];
    assert_eq!((&last["module"], &last["batch"]), (&"model.layers.0.mlp.down_proj".into(), &1.into()));
    let exact = marlin(&[&args[..], &["--repeats", "1", "--json", "--exact"]].concat()).json();
    assert_eq!(exact["fallbacks"]["total"], 0);
    let said = marlin(&["run", "Once", "-n", "2", "--verbose"]).stderr;
    assert!(said.contains("slower paths: none taken"), "{said}");
    assert_eq!(marlin(&["run", "Once", "-n", "2", "--json"]).json()["fallbacks"]["total"], 0);
}

#[test]
fn every_kv_type_of_the_backend_has_a_name() {
    let help = marlin(&["run", "--help"]).ok();
    assert!(help.contains("[possible values: auto, f32, bf16, f16"), "{help}");
    for kv in ["f32", "f16"] {
        marlin(&["run", "Once", "-n", "2", "--kv-type", kv]).ok();
    }
    assert!(marlin(&["run", "Once", "--kv-type", "f8"]).error(2).contains("invalid value 'f8'"));
}

/// The table of a GPU needs none: a chip is named.
#[test]
fn the_table_of_any_chip_is_shown() {
    let found = marlin(&["kernels", "--chip", "m3 max", "--json"]).json();
    assert_eq!((&found["chip"]["name"], &found["chip"]["cores"]), (&"Apple M3 Max".into(), &40.into()));
    let rows = found["kernels"].as_array().unwrap();
    let of = |found: &[serde_json::Value], weights: &str| -> Vec<(String, String)> {
        let rows = found.iter().filter(|r| r["weights"] == weights);
        rows.map(|r| (r["rows"].as_str().unwrap().to_owned(), r["kernel"].as_str().unwrap().to_owned())).collect()
    };
    let trellis = of(rows, "trellis of 3 bits, mul1");
    let ranges: Vec<&str> = trellis.iter().map(|(rows, _)| rows.as_str()).collect();
    assert_eq!(ranges, ["1", "2", "3 to 16", "17 and more"]);
    assert!(trellis[0].1.starts_with("mm_trellis_gemv_3_mul1_1_") && trellis[3].1.starts_with("mm_trellis_gemm_3"));
    let limit = found["limits"].as_array().unwrap().iter().find(|l| l["weights"] == "trellis of 3 bits, mul1").unwrap();
    assert_eq!((&limit["bytes"], limit["by_memory"].as_f64().unwrap().round()), (&0.375.into(), 137.0));
    // The M1 reads weights for fewer rows at a time; tensor cores have kernels of their own.
    let found = marlin(&["kernels", "--chip", "Apple M1", "--json"]).json();
    assert_eq!(of(found["kernels"].as_array().unwrap(), "dense bf16")[2].0, "3 to 8");
    let text = marlin(&["kernels", "--chip", "sm_90", "--explain", "1"]).ok();
    assert!(text.contains("mm_trellis_stream_3_mul1") && text.contains("on tensor cores"), "{text}");
    let text = marlin(&["kernels", "--chip", "sm_90", "--explain", "300", "--exact"]).ok();
    assert!(text.contains("mm_trellis_gemm_3") && text.contains("--exact multiplies in f32"), "{text}");
    let text = marlin(&["kernels", "--chip", "sm_80", "--explain", "4", &built_in()]).ok();
    assert!(text.contains("model.layers.") && text.contains(" more"), "{text}");
    assert!(marlin(&["kernels", "--chip", "M99"]).error(1).contains("expected one of Apple M1, "));
}

/// Where there is nothing to capture, that is told, and measured all the same.
#[test]
fn captures_are_for_gpus() {
    let args =
        ["bench", "latency", "--prompt", "2", "--generate", "1", "--warmup", "0", "--repeats", "1", "--device", "cpu"];
    for option in [&["--capture", "x.gputrace"][..], &["--cuda-profiler"]] {
        let found = marlin(&[&args[..], option].concat());
        assert!(found.stderr.contains("note: nothing is captured: the CPU has no command queue"), "{}", found.stderr);
        assert_eq!(found.code, Some(0));
    }
}
