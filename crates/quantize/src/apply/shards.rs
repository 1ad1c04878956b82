//! A checkpoint's tensors on their way to the disk, module after module, so that a killed run loses nothing that was done.
//!
//! A module's bytes are appended to the data of the shard under way, and only then a line to the journal: what is not in
//! the journal is cut off when work is resumed. A full shard is written as a safetensors file and named, then its line
//! goes to the journal, and only then its data are removed.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use marlin_checkpoint::{DType, Error as Bad, INDEX_NAME, SINGLE_NAME, TensorInfo, check_space, header, write_error};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ModuleReport;
use crate::files::{aside, write_json};
use crate::{Error, Result};

/// A tensor that was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Placed {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

impl Placed {
    fn info(&self) -> Result<TensorInfo> {
        let unknown = || Bad::invalid(JOURNAL, format!("unknown type {:?}", self.dtype));
        let dtype = DType::from_name(&self.dtype).ok_or_else(unknown)?;
        Ok(TensorInfo { name: self.name.clone(), dtype, shape: self.shape.clone() })
    }
}

/// A line of the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
enum Line {
    /// A module's tensors are in the shard under way.
    Module { module: String, tensors: Vec<Placed>, reports: Vec<ModuleReport> },
    /// The shard under way is a file now.
    Shard(usize),
}

/// What was written of a module.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The module, the stack of modules, or the tensor that was copied.
    pub module: String,
    /// Its tensors.
    pub tensors: Vec<TensorInfo>,
    /// How the modules were quantised, if it is of such.
    pub reports: Vec<ModuleReport>,
    /// Its shard, from 0.
    pub shard: usize,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes() as u64).sum()
    }
}

const JOURNAL: &str = "journal.jsonl";

/// The tensors of a checkpoint, being written.
pub(super) struct Shards {
    folder: PathBuf,
    limit: u64,
    journal: File,
    entries: Vec<Entry>,
    done: HashSet<String>,
    /// The shard under way, from 0, its data and their length.
    shard: usize,
    data: File,
    length: u64,
}

fn data_path(folder: &Path, shard: usize) -> PathBuf {
    folder.join(format!("data-{shard:05}"))
}

fn shard_path(folder: &Path, shard: usize) -> PathBuf {
    folder.join(format!("shard-{shard:05}.safetensors"))
}

fn open(path: &Path) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    Ok(file.map_err(|e| Bad::io(path, e))?)
}

impl Shards {
    /// Goes on with what is in `folder`: nothing, at first.
    pub(super) fn resume(folder: &Path, limit: u64) -> Result<Self> {
        let path = folder.join(JOURNAL);
        let io = |e| Bad::io(&path, e);
        let mut journal = open(&path)?;
        let mut text = Vec::new();
        journal.read_to_end(&mut text).map_err(io)?;
        let (mut entries, mut shard, mut good) = (Vec::new(), 0, 0);
        for line in text.split_inclusive(|b| *b == b'\n') {
            let line_bytes = line.len();
            // The last line may be torn.
            let Some(Ok(line)) = line.strip_suffix(b"\n").map(serde_json::from_slice::<Line>) else { break };
            match line {
                Line::Module { module, tensors, reports } => {
                    let tensors = tensors.iter().map(Placed::info).collect::<Result<_>>()?;
                    entries.push(Entry { module, tensors, reports, shard });
                }
                Line::Shard(written) => shard = written + 1,
            }
            good += line_bytes;
        }
        journal.set_len(good as u64).and_then(|()| journal.seek(SeekFrom::End(0))).map_err(io)?;
        let length = entries.iter().filter(|e| e.shard == shard).map(Entry::bytes).sum();
        let path = data_path(folder, shard);
        let mut data = open(&path)?;
        let found = data.metadata().map_err(|e| Bad::io(&path, e))?.len();
        if found < length {
            let why =
                format!("has {found} bytes, but the journal tells of {length}; delete the folder and begin again");
            return Err(Bad::invalid(path.display(), why).into());
        }
        data.set_len(length).and_then(|()| data.seek(SeekFrom::End(0))).map_err(|e| Bad::io(&path, e))?;
        if shard > 0 {
            // Removed before, or now.
            let _ = std::fs::remove_file(data_path(folder, shard - 1));
        }
        let done = entries.iter().map(|e| e.module.clone()).collect();
        Ok(Self { folder: folder.to_owned(), limit, journal, entries, done, shard, data, length })
    }

    /// Whether `module` is written.
    pub(super) fn has(&self, module: &str) -> bool {
        self.done.contains(module)
    }

    /// What is written, in order.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Writes a module's tensors. They are all in one shard.
    pub(super) fn push(
        &mut self,
        module: &str,
        tensors: &[(TensorInfo, &[u8])],
        reports: Vec<ModuleReport>,
    ) -> Result<()> {
        let bytes: u64 = tensors.iter().map(|(_, data)| data.len() as u64).sum();
        for (info, data) in tensors {
            if data.len() != info.bytes() {
                let why = format!(
                    "expected {} bytes for {} {:?}, found {}",
                    info.bytes(),
                    info.dtype,
                    info.shape,
                    data.len()
                );
                return Err(Bad::invalid(format!("tensor {:?}", info.name), why).into());
            }
        }
        if self.length > 0 && self.length + bytes > self.limit {
            self.close()?;
        }
        let path = data_path(&self.folder, self.shard);
        for (_, data) in tensors {
            self.data.write_all(data).map_err(|e| write_error(&path, bytes, e))?;
        }
        self.data.sync_data().map_err(|e| write_error(&path, bytes, e))?;
        let placed = |info: &TensorInfo| Placed {
            name: info.name.clone(),
            dtype: info.dtype.name().to_owned(),
            shape: info.shape.clone(),
        };
        let line = Line::Module {
            module: module.to_owned(),
            tensors: tensors.iter().map(|(info, _)| placed(info)).collect(),
            reports: reports.clone(),
        };
        self.note(&line)?;
        self.length += bytes;
        self.done.insert(module.to_owned());
        let tensors = tensors.iter().map(|(info, _)| info.clone()).collect();
        self.entries.push(Entry { module: module.to_owned(), tensors, reports, shard: self.shard });
        Ok(())
    }

    fn note(&mut self, line: &Line) -> Result<()> {
        let path = self.folder.join(JOURNAL);
        let mut text = serde_json::to_vec(line).map_err(|e| Bad::invalid(path.display(), e))?;
        text.push(b'\n');
        let put = self.journal.write_all(&text).and_then(|()| self.journal.sync_data());
        Ok(put.map_err(|e| write_error(&path, text.len() as u64, e))?)
    }

    /// Makes a file of the shard under way, and begins the next.
    fn close(&mut self) -> Result<()> {
        let from = data_path(&self.folder, self.shard);
        let to = shard_path(&self.folder, self.shard);
        let partial = aside(&to);
        check_space(&self.folder, self.length)?;
        // Tensors with the bytes of the data they are in; wider elements first, so that every tensor is aligned.
        let mut tensors: Vec<(TensorInfo, u64)> = Vec::new();
        let mut position = 0;
        for info in self.entries.iter().filter(|e| e.shard == self.shard).flat_map(|e| &e.tensors) {
            tensors.push((info.clone(), position));
            position += info.bytes() as u64;
        }
        tensors.sort_by_key(|(info, _)| std::cmp::Reverse(info.dtype.size()));
        let infos: Vec<TensorInfo> = tensors.iter().map(|(info, _)| info.clone()).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let full = |e| Error::from(write_error(&partial, self.length, e));
        let mut out = File::create(&partial).map_err(|e| Bad::io(&partial, e))?;
        out.write_all(&header(&infos, &metadata)).map_err(full)?;
        for (info, at) in tensors {
            self.data.seek(SeekFrom::Start(at)).map_err(|e| Bad::io(&from, e))?;
            let copied = std::io::copy(&mut Read::by_ref(&mut self.data).take(info.bytes() as u64), &mut out);
            copied.map_err(full)?;
        }
        out.sync_all().map_err(full)?;
        std::fs::rename(&partial, &to).map_err(|e| Bad::io(&to, e))?;
        self.note(&Line::Shard(self.shard))?;
        self.shard += 1;
        self.length = 0;
        self.data = open(&data_path(&self.folder, self.shard))?;
        std::fs::remove_file(&from).map_err(|e| Bad::io(&from, e))?;
        Ok(())
    }

    /// Gives the shards their names in the folder `whole`, with an index if there are several. May be repeated.
    pub(super) fn finish(&mut self, whole: &Path) -> Result<u64> {
        if self.length > 0 || self.shard == 0 {
            self.close()?;
        }
        let count = self.shard;
        let name = |shard: usize| match count {
            1 => SINGLE_NAME.to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        };
        for shard in 0..count {
            let to = whole.join(name(shard));
            if !to.exists() {
                std::fs::rename(shard_path(&self.folder, shard), &to).map_err(|e| Bad::io(&to, e))?;
            }
        }
        let total = self.entries.iter().map(Entry::bytes).sum();
        if count > 1 {
            let map: BTreeMap<&str, String> =
                self.entries.iter().flat_map(|e| e.tensors.iter().map(|t| (t.name.as_str(), name(e.shard)))).collect();
            write_json(&whole.join(INDEX_NAME), &json!({ "metadata": { "total_size": total }, "weight_map": map }))?;
        }
        Ok(total)
    }
}
