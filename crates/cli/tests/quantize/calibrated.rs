//! Statistics of a text, on disk and on the way.

use crate::common::{marlin, shared};
use crate::{original, path, quantise, same, text};
use std::path::Path;

#[test]
fn statistics_on_disk_do_what_a_text_does() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let at = |name: &str| path(folder.path(), name);
    let (stats, a, b) = (at("stats"), at("a"), at("b"));
    let calibrate =
        ["calibrate", original(), "--text", &text, "--samples", "3", "--length", "64", "-o", &stats, "--threads", "1"];
    marlin(&calibrate).ok();
    let refused = marlin(&calibrate).error(1);
    assert!(refused.contains("--resume continues"), "{refused}");
    marlin(&quantise(&text, &a, &["--format", "int4"])).ok();
    let from_stats = ["quantize", original(), "--format", "int4", "--stats", &stats, "--shard-size", "2", "-o", &b];
    marlin(&from_stats).ok();
    same(Path::new(&a), Path::new(&b));

    // A layer that is missing, and one that has not seen everything.
    let (layer, head) = (Path::new(&stats).join("layer-00002.safetensors"), Path::new(&stats).join("head.safetensors"));
    let kept = std::fs::read(&layer).unwrap();
    std::fs::remove_file(&layer).unwrap();
    let out = at("c");
    let again = ["quantize", original(), "--format", "int4", "--stats", &stats, "-o", &out];
    let missing = marlin(&again).error(1);
    assert!(missing.contains("layer-00002.safetensors: is missing: the calibration was interrupted"), "{missing}");
    std::fs::copy(&head, &layer).unwrap();
    let unseen = marlin(&again).error(1);
    assert!(unseen.contains("model.layers.2.") && unseen.contains("calibration has not seen its inputs"), "{unseen}");
    assert!(!Path::new(&out).exists());
    // Continued, it is as before.
    std::fs::remove_file(&layer).unwrap();
    std::fs::remove_file(&head).unwrap();
    marlin(&[&calibrate[..], &["--resume"]].concat()).ok();
    assert!(std::fs::read(&layer).unwrap() == kept);
    if let Some(other) = shared("models/fable-qwen3") {
        let refused = marlin(&["quantize", &other, "--format", "int4", "--stats", &stats, "-o", &at("d")]).error(1);
        assert!(refused.contains("these are statistics of fable-glm4-moe-lite"), "{refused}");
    }
}

/// Weights that make up for how far their inputs have drifted diverge less from the original, here on the text itself.
#[test]
fn sequential_weights_make_up_for_drift() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let mean = |name: &str, bits: &str, more: &[&str]| {
        let out = path(folder.path(), name);
        let some = ["--format", "int4", "--bits", bits, "--text", &text, "--samples", "12", "--length", "128"];
        marlin(&[&["quantize", original(), "-o", &out][..], &some, more].concat()).ok();
        marlin(&["eval", "kld", original(), &out, "--text", &text, "--json"]).json()["mean"].as_f64().unwrap()
    };
    for bits in ["3", "3.5"] {
        let (plain, sequential) = (mean("plain", bits, &[]), mean("sequential", bits, &["--sequential"]));
        assert!(sequential < 0.9 * plain, "{bits} bits: {sequential} against {plain}");
        assert!(std::fs::read_dir(folder.path()).unwrap().count() == 3);
        for name in ["plain", "sequential"] {
            std::fs::remove_dir_all(folder.path().join(name)).unwrap();
        }
    }
}
