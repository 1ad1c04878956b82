//! Hidden states between layers, kept in files: one window in memory at a time.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use marlin_checkpoint::{Error as Bad, check_space, write_error};

use crate::Result;
use crate::files::{aside, bytes_of};

/// Hidden states before a layer: `[windows, values]` f32, little-endian.
pub(crate) struct States {
    path: PathBuf,
    file: File,
    values: usize,
}

/// States on their way to a file.
pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    windows: usize,
    values: usize,
}

/// The file of the states before layer `layer`.
pub(crate) fn path(folder: &Path, layer: usize) -> PathBuf {
    folder.join(format!("states-{layer:05}.f32"))
}

impl Writer {
    /// States before `layer`, of `values` values a window.
    pub(crate) fn create(folder: &Path, layer: usize, windows: usize, values: usize) -> Result<Self> {
        check_space(folder, 4 * (windows * values) as u64)?;
        let path = path(folder, layer);
        let partial = aside(&path);
        let file = BufWriter::new(File::create(&partial).map_err(|e| Bad::io(&partial, e))?);
        Ok(Self { path, file, windows, values })
    }

    /// The next window's states.
    pub(crate) fn push(&mut self, values: &[f32]) -> Result<()> {
        self.windows -= 1;
        let left = 4 * ((self.windows + 1) * self.values) as u64;
        Ok(self.file.write_all(&bytes_of(values)).map_err(|e| write_error(&self.path, left, e))?)
    }

    /// Gives the file its name, and opens it.
    pub(crate) fn finish(mut self) -> Result<States> {
        self.file.flush().and_then(|()| self.file.get_ref().sync_all()).map_err(|e| write_error(&self.path, 0, e))?;
        std::fs::rename(aside(&self.path), &self.path).map_err(|e| Bad::io(&self.path, e))?;
        States::open(&self.path, self.values)
    }
}

impl States {
    fn open(path: &Path, values: usize) -> Result<Self> {
        let file = File::open(path).map_err(|e| Bad::io(path, e))?;
        Ok(Self { path: path.to_owned(), file, values })
    }

    /// Those before `layer`, if they are there and whole.
    pub(crate) fn find(folder: &Path, layer: usize, windows: usize, values: usize) -> Result<Option<Self>> {
        let path = path(folder, layer);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() == 4 * (windows * values) as u64 => Ok(Some(Self::open(&path, values)?)),
            _ => Ok(None),
        }
    }

    /// The states of window `window`.
    pub(crate) fn window(&mut self, window: usize) -> Result<Vec<f32>> {
        let mut bytes = vec![0; 4 * self.values];
        let from = SeekFrom::Start((window * bytes.len()) as u64);
        self.file.seek(from).and_then(|_| self.file.read_exact(&mut bytes)).map_err(|e| Bad::io(&self.path, e))?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// Removes the file.
    pub(crate) fn remove(self) {
        drop(self.file);
        // A file that cannot be removed is only in the way.
        let _ = std::fs::remove_file(&self.path);
    }
}
