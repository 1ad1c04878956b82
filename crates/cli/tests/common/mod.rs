//! Runs the built binary.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)] // each test file uses a part of it

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a run gave.
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
}

impl Outcome {
    /// Succeeds, and gives standard output.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// Succeeds, and gives standard output as JSON.
    pub fn json(self) -> Value {
        serde_json::from_str(&self.ok()).unwrap()
    }

    /// Fails with this status, saying one line, which is given without `error: `.
    pub fn error(self, code: i32) -> String {
        assert_eq!((self.code, self.stdout.as_str()), (Some(code), ""), "{}", self.stderr);
        let line = self.stderr.lines().next().unwrap_or_default();
        assert!(code == 2 || self.stderr.trim_end().lines().count() == 1, "{}", self.stderr);
        line.strip_prefix("error: ").unwrap_or_else(|| panic!("{}", self.stderr)).to_owned()
    }
}

/// The command, with nothing of the caller's environment that could change its answers.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_metal-marlin"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MARLIN_") || name.to_string_lossy().starts_with("HF_") {
            command.env_remove(name);
        }
    }
    command.args(args).env("HF_HUB_CACHE", "/nonexistent").env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs the binary with `input` as standard input.
pub fn marlin_with(args: &[&str], input: &str) -> Outcome {
    finish(command(args), input)
}

/// Runs the binary without standard input.
pub fn marlin(args: &[&str]) -> Outcome {
    marlin_with(args, "")
}

/// Runs a command with `input` as standard input.
pub fn finish(mut command: Command, input: &str) -> Outcome {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // It may end without reading everything.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Outcome { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code() }
}

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The folder of the original that the built-in model was made from.
pub fn fable() -> String {
    root().join("models/fable-glm4-moe-lite").to_string_lossy().into_owned()
}

/// The built-in model's folder.
pub fn built_in() -> String {
    root().join("models/fable").to_string_lossy().into_owned()
}

/// The original's reference outputs, by transformers.
pub fn reference() -> Value {
    let path = root().join("models/fable-glm4-moe-lite/reference.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Test data kept beside the repository; `None`, loudly, where they are not.
pub fn shared(file: &str) -> Option<String> {
    let path = root().join("../shared").join(file);
    if path.exists() {
        return Some(path.to_string_lossy().into_owned());
    }
    eprintln!("SKIPPED: {} is not there", path.display());
    None
}

/// A file of token ids.
pub fn ids_file(folder: &Path, ids: &[i32]) -> String {
    let path = folder.join("ids.i32");
    std::fs::write(&path, ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
    path.to_string_lossy().into_owned()
}

/// Token ids in JSON.
pub fn ids_of(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

/// The ids of a reference prompt.
pub fn reference_ids(name: &str) -> Vec<i32> {
    use marlin_checkpoint::TensorSource;
    let path = root().join("models/fable-glm4-moe-lite/reference.safetensors");
    let store = marlin_checkpoint::Store::open(&path).unwrap();
    let tensor = store.tensor(&format!("{name}.input_ids")).unwrap();
    let width = tensor.info.dtype.size();
    tensor.data.chunks_exact(width).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Values of a reference tensor.
pub fn reference_floats(name: &str) -> Vec<f32> {
    use marlin_checkpoint::TensorSource;
    let path = root().join("models/fable-glm4-moe-lite/reference.safetensors");
    marlin_checkpoint::Store::open(&path).unwrap().tensor(name).unwrap().to_f32().unwrap()
}
