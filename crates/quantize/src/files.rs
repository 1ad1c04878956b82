//! Files that are whole or not there.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use marlin_checkpoint::{Error as Bad, TensorInfo, TensorSource, header, write_error};
use sha2::{Digest, Sha256};

use crate::Result;

/// Where `path` is written before it gets its name.
pub(crate) fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

/// Writes `parts` one after another; the file has its name only when all are on the disk.
pub(crate) fn write(path: &Path, parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Result<()> {
    let partial = aside(path);
    let put = || -> Result<()> {
        let mut file = File::create(&partial).map_err(|e| Bad::io(&partial, e))?;
        for part in parts {
            let part = part.as_ref();
            file.write_all(part).map_err(|e| write_error(path, part.len() as u64, e))?;
        }
        file.sync_all().map_err(|e| write_error(path, 0, e))?;
        std::fs::rename(&partial, path).map_err(|e| Bad::io(path, e))?;
        Ok(())
    };
    put().inspect_err(|_| {
        // Nothing more can be done about a file that cannot be removed.
        let _ = std::fs::remove_file(&partial);
    })
}

/// A folder that one process works in. The system lets go of it when the process ends, however it does.
#[derive(Debug)]
pub(crate) struct Lock(#[allow(dead_code)] File);

/// The file that is locked; calibration's folder may have files whose names begin with a dot.
const LOCK: &str = ".lock";

/// Keeps other processes out of `folder`; an error if one is in it.
pub(crate) fn lock(folder: &Path) -> Result<Lock> {
    let path = folder.join(LOCK);
    let open = File::options().write(true).create(true).truncate(false).open(&path);
    let file = open.map_err(|e| Bad::io(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => {
            let why = "another run is at work in it; wait until that has ended, or end it";
            Err(Bad::invalid(folder.display(), why).into())
        }
        // File systems that know no locks: one has to take care oneself.
        Err(TryLockError::Error(e)) if e.kind() == ErrorKind::Unsupported => Ok(Lock(file)),
        Err(TryLockError::Error(e)) => Err(Bad::io(&path, e).into()),
    }
}

impl Lock {
    /// Lets go of a folder whose work is done, and removes the file.
    pub(crate) fn release(self, folder: &Path) {
        // A file that cannot be removed is only in the way.
        let _ = std::fs::remove_file(folder.join(LOCK));
    }
}

/// Writes a value as indented JSON.
pub(crate) fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Bad::invalid(path.display(), e))? + "\n";
    write(path, [text.as_bytes()])
}

/// Reads a JSON file.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Bad::io(path, e))?;
    Ok(serde_json::from_str(&text).map_err(|e| Bad::invalid(path.display(), e))?)
}

/// Writes a safetensors file; `data` gives each tensor's bytes when it is their turn.
pub(crate) fn write_tensors(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorInfo],
    data: impl Iterator<Item = Vec<u8>>,
) -> Result<()> {
    write(path, std::iter::once(header(tensors, metadata)).chain(data))
}

/// Gives back the memory of a file's pages that hold layer `layer`, which has been used: a mapped checkpoint would otherwise
/// come to lie in memory whole, layer by layer. (Others with that number in their names lose nothing but time.)
pub(crate) fn release_layer(store: &dyn TensorSource, layer: usize) -> Result<()> {
    let number = format!(".{layer}.");
    for info in store.tensors().iter().filter(|info| info.name.contains(&number)) {
        store.tensor(&info.name)?.data.release();
    }
    Ok(())
}

/// SHA-256 in hexadecimal.
pub(crate) struct Hash(Sha256);

impl Hash {
    pub(crate) fn new() -> Self {
        Self(Sha256::new())
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> String {
        self.0.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The SHA-256 of a file, and its length; `read` hears of the bytes that were read and may stop by answering false.
pub(crate) fn hash_file(path: &Path, read: &mut dyn FnMut(u64) -> bool) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(|e| Bad::io(path, e))?;
    let (mut hash, mut length, mut buffer) = (Hash::new(), 0, vec![0; 4 << 20]);
    loop {
        match file.read(&mut buffer).map_err(|e| Bad::io(path, e))? {
            0 => return Ok((hash.finish(), length)),
            n => {
                hash.add(&buffer[..n]);
                length += n as u64;
                if !read(n as u64) {
                    return Err(crate::Error::Stopped);
                }
            }
        }
    }
}

/// The bytes of values, little-endian.
pub(crate) fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
