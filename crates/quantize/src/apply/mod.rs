//! From a checkpoint and a method for each module to a new checkpoint.
//!
//! Everything is made in `{output}.unfinished`, module after module; the output folder appears by one renaming when all is
//! there. A run that was killed is continued from the last module that was written, with the same result.

mod item;
mod layers;
mod overlay;
mod report;
mod shards;

pub use report::{ModuleReport, Report};
pub use shards::Entry;
pub(crate) use {item::matrix, overlay::Overlay, report::energy};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marlin_backend::Backend;
use marlin_checkpoint::{Checkpoint, Error as Bad, Folder, check_space};
use marlin_models::Architecture;
use serde_json::{Map, Value, json};

use crate::calibrate::{ExpertInputs, Samples, Stats, Watch};
use crate::files::{Lock, lock, read_json, write, write_json};
use crate::{Compute, Error, Fingerprint, Method, Result, identity};
use item::Items;
use shards::Shards;

/// The method for one module.
#[derive(Clone)]
pub struct Planned {
    /// How it is quantised.
    pub method: Arc<dyn Method>,
    /// Bits that will be stored for each weight, factors included; an estimate, to see whether the disk has room.
    pub bits: f64,
}

/// Where Hessians come from.
#[derive(Clone, Copy)]
pub enum Calibration<'a> {
    /// There are none: all inputs count alike.
    None,
    /// From statistics on disk.
    Stats(&'a Stats),
    /// From a text, layer by layer while quantising.
    Text {
        /// The windows.
        samples: &'a Samples,
        /// What gate and up projections of experts get.
        experts: ExpertInputs,
        /// Whether linears see what those before them have become, instead of what they were, and are made to give the
        /// original's outputs all the same.
        sequential: bool,
    },
}

/// What the format adds to a checkpoint's small files.
#[derive(Clone, Debug, Default)]
pub struct Additions {
    /// Keys of `config.json`.
    pub config: Vec<(String, Value)>,
    /// JSON files of their own.
    pub files: Vec<(String, Value)>,
}

/// Says what the format adds, of all that was written.
pub type Describe<'a> = &'a dyn Fn(&[Entry]) -> Result<Additions>;

/// A checkpoint to be made.
pub struct Apply<'a> {
    /// The original.
    pub checkpoint: &'a Checkpoint,
    /// How modules are quantised; all others are kept as they are.
    pub methods: &'a BTreeMap<String, Planned>,
    /// Whether experts of a layer are stored as one stack for each projection (`switch_mlp.up_proj`), as MLX has them; then
    /// all experts of a layer need methods of the same settings.
    pub stacked: bool,
    /// Where Hessians come from.
    pub calibration: Calibration<'a>,
    /// The folder to be made.
    pub output: &'a Path,
    /// Bytes of a shard at most (unless one module alone is larger).
    pub shard_bytes: u64,
    /// Whether to continue what an interrupted run has left.
    pub resume: bool,
    /// What the format adds to the small files.
    pub describe: Describe<'a>,
    /// What to say of how it was made, in `report.json`; a run is continued only with the same.
    pub how: Value,
    /// Threads for the fingerprint's exact computation; 0 takes the physical cores.
    pub threads: usize,
}

/// What was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Every module's errors, as in `report.json`.
    pub report: Report,
}

/// Small files that go along.
const COPIED: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
];
/// The same where it is not text.
const SENTENCEPIECE: &str = "tokenizer.model";
/// The folder, in the unfinished one, that becomes the output.
const WHOLE: &str = "whole";
const JOB: &str = "job.json";
/// What quantising did to each module.
pub const REPORT: &str = "report.json";

/// Where the output is made.
fn unfinished(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    output.with_file_name(format!("{name}.unfinished"))
}

/// Refuses an output without a name of its own, one that is there already, and, unless work is to `resume`, one that an
/// interrupted run has begun.
pub fn check_output(output: &Path, resume: bool) -> Result<()> {
    if output.file_name().is_none() {
        let why = "has no name that the new folder could get; name a folder that is not there yet";
        return Err(Bad::invalid(output.display(), why).into());
    }
    let taken = |path: &Path| std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
    if output.exists() && (!output.is_dir() || taken(output)) {
        let why = "is there already and will not be overwritten; name another folder";
        return Err(Bad::invalid(output.display(), why).into());
    }
    let folder = unfinished(output);
    if !resume && folder.join(JOB).exists() {
        let why = "an interrupted run has left its work; --resume continues it, or delete the folder to begin again";
        return Err(Bad::invalid(folder.display(), why).into());
    }
    Ok(())
}

impl Apply<'_> {
    /// Makes the checkpoint.
    pub fn run<B: Backend>(&self, backend: &B, compute: &dyn Compute, watch: Watch<'_>) -> Result<Outcome> {
        let inventory = Architecture::parse(&self.checkpoint.config)?.inventory();
        let modules = self.checkpoint.modules()?;
        let found = inventory.check(modules.as_ref(), self.checkpoint.store.as_ref())?;
        let items = Items::new(self.checkpoint, modules, inventory, &found.mtp, self.methods, self.stacked)?;
        if let Calibration::Stats(stats) = self.calibration {
            stats.check(self.checkpoint)?;
        }
        let (folder, lock) = self.begin(items.bytes())?;
        let mut shards = Shards::resume(&folder, self.shard_bytes)?;
        layers::write(self, &items, backend, compute, &folder, &mut shards, watch)?;
        self.finish(&folder, lock, &mut shards)
    }

    /// The unfinished folder, made or found, with its lock.
    fn begin(&self, bytes: u64) -> Result<(PathBuf, Lock)> {
        check_output(self.output, self.resume)?;
        let folder = unfinished(self.output);
        let job = self.job()?;
        let path = folder.join(JOB);
        std::fs::create_dir_all(&folder).map_err(|e| Bad::io(&folder, e))?;
        let lock = lock(&folder)?;
        if path.exists() {
            let found: Value = read_json(&path)?;
            if found != job {
                let why = "was begun with another model, text or settings: give the same, or delete the folder";
                return Err(Bad::invalid(folder.display(), why).into());
            }
            return Ok((folder, lock));
        }
        let started = || -> Result<()> {
            // Besides the tensors the shard under way is there twice for a while, and hidden states between two layers.
            let states = match self.calibration {
                Calibration::Text { samples, sequential, .. } => {
                    let tokens: usize = samples.windows.iter().map(Vec::len).sum();
                    let kinds = if sequential { 2 } else { 1 };
                    8 * (kinds * tokens * Architecture::parse(&self.checkpoint.config)?.info().hidden) as u64
                }
                _ => 0,
            };
            check_space(&folder, bytes + bytes.min(self.shard_bytes) + states)?;
            write_json(&path, &job)
        };
        match started() {
            Ok(()) => Ok((folder, lock)),
            Err(error) => {
                // Nothing was done in it.
                lock.release(&folder);
                let _ = std::fs::remove_dir(&folder);
                Err(error)
            }
        }
    }

    /// What must be the same when work is resumed.
    fn job(&self) -> Result<Value> {
        let methods: Map<String, Value> =
            self.methods.iter().map(|(module, planned)| (module.clone(), json!(planned.method.name()))).collect();
        let calibration = match self.calibration {
            Calibration::None => Value::Null,
            Calibration::Stats(stats) => json!({ "stats": stats.about }),
            Calibration::Text { samples, experts, sequential } => json!({
                "text": samples.hash,
                "windows": samples.windows.len(),
                "length": samples.windows.first().map_or(0, Vec::len),
                "own_expert_inputs": experts == ExpertInputs::Own,
                "sequential": sequential,
            }),
        };
        Ok(json!({
            "model": self.checkpoint.name,
            "model_identity": identity(self.checkpoint)?,
            "shard_bytes": self.shard_bytes,
            "calibration": calibration,
            "how": self.how,
            "methods": methods,
        }))
    }

    /// Adds the small files, and gives the whole its name.
    fn finish(&self, folder: &Path, lock: Lock, shards: &mut Shards) -> Result<Outcome> {
        let whole = folder.join(WHOLE);
        std::fs::create_dir_all(&whole).map_err(|e| Bad::io(&whole, e))?;
        let bytes = shards.finish(&whole)?;
        let modules: Vec<ModuleReport> = shards.entries().iter().flat_map(|e| e.reports.iter().cloned()).collect();
        let weights = modules.iter().map(|m| (m.shape[0] * m.shape[1]) as u64).sum::<u64>();
        let bits: f64 = modules.iter().map(|m| m.bits * (m.shape[0] * m.shape[1]) as f64).sum();
        let (model, how) = (self.checkpoint.name.clone(), self.how.clone());
        let report = Report { model, how, weights, bits: bits / weights.max(1) as f64, bytes, modules };
        write_json(&whole.join(REPORT), &report)?;
        for name in COPIED {
            if let Some(text) = self.checkpoint.folder.text(name)? {
                write(&whole.join(name), [text.as_bytes()])?;
            }
        }
        if let Folder::Disk(from) = &self.checkpoint.folder
            && from.join(SENTENCEPIECE).is_file()
        {
            let bytes = std::fs::read(from.join(SENTENCEPIECE)).map_err(|e| Bad::io(from.join(SENTENCEPIECE), e))?;
            write(&whole.join(SENTENCEPIECE), [bytes.as_slice()])?;
        }
        let settings = (self.describe)(shards.entries())?;
        for (name, value) in &settings.files {
            write_json(&whole.join(name), value)?;
        }
        let mut config = self.checkpoint.config.entries().clone();
        // How the original was quantised is no longer true.
        config.retain(|key, _| !matches!(key.as_str(), "quantization_config" | "quantization"));
        config.extend(settings.config);
        write_json(&whole.join("config.json"), &config)?;
        Fingerprint::make(&whole, self.threads)?.write(&whole)?;
        if self.output.is_dir() {
            std::fs::remove_dir(self.output).map_err(|e| Bad::io(self.output, e))?;
        }
        std::fs::rename(&whole, self.output).map_err(|e| Bad::io(self.output, e))?;
        drop(lock);
        std::fs::remove_dir_all(folder).map_err(|e| Bad::io(folder, e))?;
        Ok(Outcome { report })
    }
}

impl Error {
    /// A module that is not what was expected of it.
    pub(crate) fn module(module: &str, why: impl Into<String>) -> Self {
        Self::Module { module: module.to_owned(), why: why.into() }
    }
}
