//! What a checkpoint answers, written beside it, so that anybody can see whether it is still the same.

use std::collections::BTreeMap;
use std::path::Path;

use marlin_backend::{Backend, LatentForm, Pass, SequenceStep, Step, Token};
use marlin_checkpoint::{Checkpoint, Error as Bad};
use marlin_cpu::{CpuBackend, CpuOptions};
use marlin_models::{LoadOptions, Model, Residency};
use serde::{Deserialize, Serialize};

use crate::files::{hash_file, read_json, write_json};
use crate::{Error, Result};

/// The file.
const NAME: &str = "fingerprint.json";
/// Tokens of the prompt.
const PROMPT: usize = 16;
/// Logits that are kept of each position.
const TOP: usize = 8;
/// Difference of a logit, through its size or 1, that is allowed: kernels may sum in another order one day.
const TOLERANCE: f32 = 1e-3;

/// A checkpoint's files, and its logits for a short prompt, computed in f32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Version of this file.
    pub format: u32,
    /// The prompt.
    pub prompt: Vec<u32>,
    /// The largest logits after each token of the prompt, largest first.
    pub logits: Vec<Vec<(u32, f32)>>,
    /// Every other file.
    pub files: BTreeMap<String, FileHash>,
}

/// A file's contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What [`Fingerprint::verify`] found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Files that were looked at.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Largest difference of a logit; `None` if they were not computed, as files are wrong already.
    pub difference: Option<f32>,
    /// What is wrong, one line each; nothing if all is well.
    pub wrong: Vec<String>,
}

/// Ids spread over the vocabulary, by a fixed rule.
fn prompt(vocab: usize) -> Vec<u32> {
    (0..PROMPT).map(|i| (i * i * 7919 + i * 104_729 + 11) % vocab.max(1)).map(|id| id as u32).collect()
}

/// Logits `[prompt, vocab]`, one layer in memory at a time. `go_on` is asked before each layer, and may stop by answering
/// false.
fn logits(folder: &Path, prompt: &[u32], threads: usize, go_on: &mut dyn FnMut() -> bool) -> Result<(Vec<f32>, usize)> {
    const BLOCK: usize = 16;
    let b = CpuBackend::new(CpuOptions { threads, exact: true, ..CpuOptions::default() });
    let checkpoint = Checkpoint::open(folder)?;
    let options = LoadOptions { residency: Residency::Streamed, ..LoadOptions::default() };
    let model = Model::load(&b, &checkpoint, options, &mut |_| {})?;
    let vocab = model.info().vocab;
    if let Some(id) = prompt.iter().find(|id| **id as usize >= vocab) {
        return Err(Bad::invalid(folder.join(NAME).display(), format!("token {id} is not in the vocabulary")).into());
    }
    let blocks = prompt.len().div_ceil(BLOCK);
    let kv = b.kv(model.kv_spec(BLOCK, blocks))?;
    let step = Step {
        tokens: prompt.iter().map(|id| Token::Id(*id)).collect(),
        sequences: vec![SequenceStep { cached: 0, len: prompt.len(), blocks: (0..blocks as u32).collect() }],
        outputs: (0..prompt.len() as u32).collect(),
    };
    let batch = b.begin(&step, &kv, None)?;
    let pass = |layer| Pass { batch: &batch, kv: &kv, layer, latent_form: LatentForm::Auto, observer: None };
    let mut h = model.embed(&b, &batch)?;
    for layer in 0..model.info().layers {
        if !go_on() {
            return Err(Error::Stopped);
        }
        h = model.layer(&b, h, &pass(layer))?;
    }
    let logits = model.head(&b, &h, &pass(model.info().layers))?;
    b.submit()?;
    Ok((b.read(&logits)?, vocab))
}

/// The larger difference; one that is no number is the largest.
fn worse(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

impl Fingerprint {
    /// That of the checkpoint in `folder`. `threads` threads compute it (0: the physical cores).
    pub fn make(folder: &Path, threads: usize) -> Result<Self> {
        let vocab = marlin_models::Architecture::parse(&Checkpoint::open(folder)?.config)?.info().vocab;
        let prompt = prompt(vocab);
        let (values, vocab) = logits(folder, &prompt, threads, &mut || true)?;
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            let why = format!("logit {} after token {} is {}; a weight is damaged", at % vocab, at / vocab, values[at]);
            return Err(Bad::invalid(folder.display(), why).into());
        }
        let top = |row: &[f32]| {
            let mut all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
            // Equal logits in the order of their ids.
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            all.truncate(TOP);
            all
        };
        let logits = values.chunks_exact(vocab).map(top).collect();
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).map_err(|e| Bad::io(folder, e))? {
            let entry = entry.map_err(|e| Bad::io(folder, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != NAME && !name.starts_with('.') && entry.path().is_file() {
                let (sha256, bytes) = hash_file(&entry.path(), &mut |_| true)?;
                files.insert(name, FileHash { bytes, sha256 });
            }
        }
        Ok(Self { format: 1, prompt, logits, files })
    }

    /// Writes it into the checkpoint's folder.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(NAME), self)
    }

    /// The fingerprint in a checkpoint's folder.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(NAME);
        if !path.exists() {
            let why = "there is no fingerprint; metal-marlin quantize writes one with every checkpoint";
            return Err(Bad::invalid(path.display(), why).into());
        }
        let found: Self = read_json(&path)?;
        match found.format {
            1 => Ok(found),
            other => Err(Bad::invalid(path.display(), format!("format {other}, expected 1")).into()),
        }
    }

    /// Compares the checkpoint in `folder` with this: files first and, if they are right, the logits. `read` hears of the
    /// bytes that were read and of all, also while logits are computed, and may stop by answering false.
    pub fn verify(&self, folder: &Path, threads: usize, read: &mut dyn FnMut(u64, u64) -> bool) -> Result<Verdict> {
        let total = self.files.values().map(|f| f.bytes).sum();
        let (mut done, mut wrong) = (0, Vec::new());
        for (name, expected) in &self.files {
            let path = folder.join(name);
            // A name is that of a file in the folder, whoever wrote it.
            if name.contains(['/', '\\']) || name == ".." {
                return Err(Bad::invalid(folder.join(NAME).display(), format!("{name:?} is no file's name")).into());
            }
            let length = match std::fs::metadata(&path) {
                Ok(meta) => meta.len(),
                Err(e) => {
                    wrong.push(format!("{name}: {e}"));
                    continue;
                }
            };
            if length != expected.bytes {
                wrong.push(format!("{name}: expected {} bytes, found {length}", expected.bytes));
                continue;
            }
            let mut hear = |bytes| {
                done += bytes;
                read(done, total)
            };
            if hash_file(&path, &mut hear)?.0 != expected.sha256 {
                wrong.push(format!("{name}: its contents have changed (SHA-256 differs)"));
            }
        }
        let mut difference = None;
        if self.logits.len() != self.prompt.len() {
            let (rows, tokens) = (self.logits.len(), self.prompt.len());
            wrong.push(format!("{NAME}: expected logits after each of {tokens} tokens, found {rows} rows of them"));
        }
        if wrong.is_empty() {
            let (found, vocab) = logits(folder, &self.prompt, threads, &mut || read(done, total))?;
            let mut worst = 0.0_f32;
            for (position, (row, top)) in found.chunks_exact(vocab).zip(&self.logits).enumerate() {
                for (id, expected) in top {
                    let logit = row.get(*id as usize).copied().unwrap_or(f32::NAN);
                    let off = (logit - expected).abs();
                    worst = worse(worst, off);
                    if off.is_nan() || off > TOLERANCE * expected.abs().max(1.0) {
                        wrong.push(format!("logit {id} after token {position}: expected {expected}, computed {logit}"));
                    }
                }
            }
            difference = Some(worst);
        }
        Ok(Verdict { files: self.files.len(), bytes: total, difference, wrong })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_number_is_not_forgotten() {
        let worst = |offs: &[f32]| offs.iter().copied().fold(0.0, worse);
        assert!(worst(&[1.0, f32::NAN, 2.0]).is_nan());
        assert_eq!(worst(&[1.0, 3.0, 2.0]), 3.0);
    }
}
