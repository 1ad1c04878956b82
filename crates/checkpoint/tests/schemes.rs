//! Small modules in every quantised format, written and decoded by `data/schemes/make.py`, which shares nothing with our code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

use std::path::{Path, PathBuf};
use std::sync::Arc;

use marlin_checkpoint::modules::HuggingFace;
use marlin_checkpoint::{Config, Modules, Store, TensorSource, Weight};
use serde_json::Value;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/schemes")
}

#[test]
fn every_format_has_the_values_that_python_computes() {
    let store: Arc<dyn TensorSource> = Arc::new(Store::open(&data().join("schemes.safetensors")).unwrap());
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(data().join("cases.json")).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 70);
    for case in cases {
        let module = case["module"].as_str().unwrap();
        let features = [0, 1].map(|i| case["features"][i].as_u64().unwrap() as usize);
        let config = Config::object(module, &case["config"].to_string()).unwrap();
        let modules = HuggingFace::new(store.clone(), config);
        let found = modules.linear(module, features).unwrap_or_else(|e| panic!("{module}: {e}"));
        assert_eq!(found.stored.scheme, case["scheme"], "{module}");
        let expected = store.tensor(&format!("expected.{module}")).unwrap().to_f32().unwrap();
        let linear = found.build().unwrap();
        let close = |what: &str, found: &[f32], expected: &[f32]| {
            let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            for (i, (a, b)) in found.iter().zip(expected).enumerate() {
                // Rotations add; everything else is the same product, rounded once.
                let tolerance = if module == "fp4.rotated" { 1e-6 * scale } else { 2e-7 * b.abs() };
                assert!((a - b).abs() <= tolerance, "{module} {what}: element {i} is {a}, not {b}");
            }
            assert_eq!(found.len(), expected.len(), "{module} {what}");
        };
        close("matrix", &linear.matrix().unwrap(), &expected);
        // What is unpacked some rows at a time is the same, wherever one begins.
        if let Weight::Packed(packed) = &linear.weight {
            let whole = linear.weight.dequantize().unwrap();
            for rows in [0..features[0], 8..features[0], 8..11, 0..1, 16..16] {
                let rows = rows.start.min(features[0])..rows.end.min(features[0]);
                let part = Weight::Grouped(Box::new(packed.unpack(rows.clone()).unwrap())).dequantize().unwrap();
                close("part", &part, &whole[rows.start * features[1]..rows.end * features[1]]);
            }
            let outside = std::ops::Range { start: 0, end: features[0] + 1 };
            assert!(packed.unpack(outside).is_err(), "{module}");
        }
        // Factors, zero points and all take about what they take in the file.
        let small = 64 + linear.weight.bytes() as u64 / 10;
        assert!((linear.weight.bytes() as u64) <= found.stored.bytes + small, "{module}");
    }
}
