//! What is refused, leaving nothing.

use crate::common::{marlin, root};
use crate::{files, original, path, quantise, text};
use std::path::{Path, PathBuf};

#[test]
fn bad_input_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let out = path(folder.path(), "out");
    let short = ["quantize", original(), "--format", "int4", "--text", &text, "--length", "4096", "-o", &out];
    let error = marlin(&short).error(1);
    assert!(error.starts_with("the calibration text has ") && error.contains("a window 4096"), "{error}");
    let error = marlin(&["quantize", original(), "--format", "int4", "--rounding", "gptq", "-o", &out]).error(1);
    assert!(error.contains("--rounding gptq needs a text"), "{error}");
    let error = marlin(&["quantize", original(), "--format", "int4", "--group", "100", "-o", &out]).error(1);
    assert!(error.contains("groups of 100 do not divide"), "{error}");
    let error = marlin(&["quantize", original(), "--format", "gptq", "-o", &out]).error(1);
    assert!(error.contains("some module (--bits)"), "{error}");
    let bad = folder.path().join("bad.jsonl");
    std::fs::write(&bad, "{\"text\": \"fine\"}\n{\"txt\": 1}\n").unwrap();
    let error =
        marlin(&["quantize", original(), "--format", "int4", "--text", &bad.to_string_lossy(), "-o", &out]).error(1);
    assert!(error.contains("bad.jsonl line 2: expected {\"text\""), "{error}");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(Path::new(&out).join("mine.txt"), "keep").unwrap();
    let error = marlin(&["quantize", original(), "--format", "int4", "-o", &out]).error(1);
    assert!(error.contains("is there already and will not be overwritten"), "{error}");
    assert_eq!(files(Path::new(&out)).len(), 1);
    assert!(!folder.path().join("out.unfinished").exists());
}

#[test]
fn what_cannot_succeed_is_refused_before_calibrating() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(folder.path());
    let out = path(folder.path(), "out");
    let error = |more: &[&str], output: &str| marlin(&quantise(&text, output, more)).error(1);
    let refused = error(&["--format", "gptq", "--bits", "4.5"], &out);
    assert!(refused.contains("gptq has no 5, only [2, 3, 4, 8]"), "{refused}");
    let refused = error(&["--format", "int4", "--order", "dynamic"], &out);
    assert!(refused.contains("an order with static groups"), "{refused}");
    let refused = error(&["--format", "int4", "--damping", "2"], &out);
    assert!(refused.contains("damping: expected 0 to 1, found 2"), "{refused}");
    for nameless in [".", &format!("{out}/..")] {
        let refused = error(&["--format", "int4"], nameless);
        assert!(refused.contains("has no name that the new folder could get"), "{refused}");
    }
    assert_eq!(files(folder.path()).into_keys().collect::<Vec<_>>(), ["text.txt"]);
    std::fs::create_dir(&out).unwrap();
    std::fs::write(Path::new(&out).join("mine.txt"), "keep").unwrap();
    let refused = error(&["--format", "int4", "--bits", "3.5"], &out);
    assert!(refused.contains("is there already"), "{refused}");
    assert!(!folder.path().join("out.stats").exists());
}

/// The built-in model's folder, with the bytes of `tensor` from `at` on replaced.
fn damaged(folder: &Path, tensor: &str, at: usize, bytes: &[u8]) -> PathBuf {
    let to = folder.join("damaged");
    std::fs::create_dir(&to).unwrap();
    for (name, contents) in files(&root().join("models/fable-glm4-moe-lite")) {
        std::fs::write(to.join(name), contents).unwrap();
    }
    let file = to.join("model.safetensors");
    let mut contents = std::fs::read(&file).unwrap();
    let range = marlin_checkpoint::container::Header::parse(&contents).unwrap();
    let (_, range) = range.tensors.into_iter().find(|(info, _)| info.name == tensor).unwrap();
    contents[range.start + at..][..bytes.len()].copy_from_slice(bytes);
    std::fs::write(&file, contents).unwrap();
    to
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // Row 1, column 3 of [128, 256] bf16.
    let module = "model.layers.1.self_attn.q_a_proj";
    let model = damaged(folder.path(), &format!("{module}.weight"), 2 * (256 + 3), &[0xc0, 0x7f]);
    let out = path(folder.path(), "out");
    let error = marlin(&["quantize", &model.to_string_lossy(), "--format", "int4", "-o", &out]).error(1);
    assert!(error.contains(&format!("{module}: weight [1, 3] is NaN; the checkpoint is damaged")), "{error}");
    assert!(!Path::new(&out).exists());
}
