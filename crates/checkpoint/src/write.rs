//! Writing safetensors: shards and their index, one tensor in memory at a time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::container::{INDEX_NAME, SINGLE_NAME};
use crate::{Error, Progress, Result, TensorInfo, TensorSource};

/// Writes all tensors of `source` into `folder` (made if absent) as `model.safetensors`, or as shards of at most
/// `shard_bytes` (unless one tensor alone is larger) with an index. Refuses to overwrite. Files appear under their names
/// only when all are complete, the index last; after an error none is left.
pub fn write_sharded(
    source: &dyn TensorSource,
    folder: &Path,
    shard_bytes: u64,
    progress: &dyn Progress,
) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let shards = plan(source.tensors(), shard_bytes)?;
    let names: Vec<String> = match shards.len() {
        1 => vec![SINGLE_NAME.to_owned()],
        n => (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors")).collect(),
    };
    for name in names.iter().map(String::as_str).chain([SINGLE_NAME, INDEX_NAME]) {
        if folder.join(name).exists() {
            return Err(Error::invalid(
                folder.join(name).display(),
                "is there already and will not be overwritten; name another folder",
            ));
        }
    }
    let total = shards.iter().flatten().map(|t| t.bytes() as u64).sum();
    check_space(folder, total)?;

    let mut unfinished = Unfinished(Vec::new());
    let mut weight_map = BTreeMap::new();
    for (name, tensors) in names.iter().zip(&shards) {
        let aside = folder.join(format!(".{name}.partial"));
        unfinished.0.push(aside.clone());
        progress.start(name, 0, tensors.iter().map(|t| t.bytes() as u64).sum());
        write_file(source, tensors, &aside, name, progress)?;
        weight_map.extend(tensors.iter().map(|t| (t.name.as_str(), name.as_str())));
        progress.finish(name);
    }
    if shards.len() > 1 {
        let aside = folder.join(format!(".{INDEX_NAME}.partial"));
        unfinished.0.push(aside.clone());
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        let text = serde_json::to_vec_pretty(&index).map_err(|e| Error::invalid(aside.display(), e))?;
        let mut file = File::create(&aside).map_err(|e| Error::io(&aside, e))?;
        file.write_all(&text).and_then(|()| file.sync_all()).map_err(|e| write_error(&aside, text.len() as u64, e))?;
    }
    let last = (shards.len() > 1).then_some(INDEX_NAME);
    for (i, name) in names.iter().map(String::as_str).chain(last).enumerate() {
        let to = folder.join(name);
        std::fs::rename(&unfinished.0[i], &to).map_err(|e| Error::io(&to, e))?;
        unfinished.0[i] = to;
    }
    unfinished.0.clear();
    Ok(())
}

/// Files to remove unless everything succeeds.
struct Unfinished(Vec<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for file in &self.0 {
            // Nothing more can be done about a file that cannot be removed.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Tensors of each shard, in the order of the source.
fn plan(tensors: &[TensorInfo], shard_bytes: u64) -> Result<Vec<Vec<TensorInfo>>> {
    let mut shards = vec![Vec::new()];
    let mut filled = 0_u64;
    for info in tensors {
        if info.dtype.is_block() {
            let expected = "a plain type (safetensors has no blocks)";
            return Err(Error::DType { name: info.name.clone(), expected, found: info.dtype });
        }
        let size = info.shape.iter().try_fold(info.dtype.size(), |n, &d| n.checked_mul(d));
        let bytes =
            size.ok_or_else(|| Error::invalid(format!("tensor {:?}", info.name), "its shape overflows"))? as u64;
        if filled > 0 && filled.saturating_add(bytes) > shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled = filled.saturating_add(bytes);
        shards.last_mut().into_iter().for_each(|shard| shard.push(info.clone()));
    }
    // Wider elements first, so that every tensor is aligned to its element.
    shards.iter_mut().for_each(|shard| shard.sort_by_key(|t| std::cmp::Reverse(t.dtype.size())));
    Ok(shards)
}

fn write_file(
    source: &dyn TensorSource,
    tensors: &[TensorInfo],
    path: &Path,
    item: &str,
    progress: &dyn Progress,
) -> Result<()> {
    let header = header(tensors, &BTreeMap::from([("format".to_owned(), "pt".to_owned())]));
    let position: usize = tensors.iter().map(TensorInfo::bytes).sum();
    let mut left = position as u64;
    let mut file = File::create(path).map_err(|e| Error::io(path, e))?;
    let mut put = |bytes: &[u8], left: u64| file.write_all(bytes).map_err(|e| write_error(path, left, e));
    put(&header, left)?;
    for info in tensors {
        let tensor = source.tensor(&info.name)?.expect_shape(&info.shape)?;
        if tensor.data.len() != info.bytes() {
            let why =
                format!("expected {} bytes from {}, found {}", info.bytes(), source.describe(), tensor.data.len());
            return Err(Error::invalid(format!("tensor {:?}", info.name), why));
        }
        for part in tensor.data.chunks(8 << 20) {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            put(part, left)?;
            left -= part.len() as u64;
            progress.advance(item, part.len() as u64);
        }
        tensor.data.release();
    }
    file.sync_all().map_err(|e| write_error(path, left, e))
}

/// A safetensors file up to its data: the header's length, and the header for tensors that follow in this order without
/// gaps. `metadata` is free text. The data begins at a multiple of 8 bytes.
pub fn header(tensors: &[TensorInfo], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".to_owned(), json!(metadata));
    let mut position = 0;
    for info in tensors {
        let end = position + info.bytes();
        entries.insert(
            info.name.clone(),
            json!({ "dtype": info.dtype.name(), "shape": info.shape, "data_offsets": [position, end] }),
        );
        position = end;
    }
    let mut text = serde_json::Value::Object(entries).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    header
}

/// The error of a write to `path` that failed with `left` bytes still to be written: a full disk is told apart.
pub fn write_error(path: &Path, left: u64, error: std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Error::DiskFull {
            path: path.to_owned(),
            needed: left,
            available: path.parent().and_then(free_space).unwrap_or(0).min(left),
        },
        _ => Error::io(path, error),
    }
}

/// Refuses to begin what the disk of `folder` has no room for: `needed` bytes.
pub fn check_space(folder: &Path, needed: u64) -> Result<()> {
    match free_space(folder) {
        Some(available) if available < needed => Err(Error::DiskFull { path: folder.to_owned(), needed, available }),
        _ => Ok(()),
    }
}

/// Bytes that may still be written below `folder`, if the system tells.
#[cfg(unix)]
fn free_space(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_space(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{DType, Store, Synthetic};

    fn info(name: &str, dtype: DType, shape: &[usize]) -> TensorInfo {
        TensorInfo { name: name.into(), dtype, shape: shape.to_vec() }
    }

    fn source() -> Synthetic {
        Synthetic::formula(vec![
            info("a.weight", DType::BF16, &[100, 30]),
            info("odd.bias", DType::F16, &[3]),
            info("b.weight", DType::F32, &[50, 20]),
            info("c.weight", DType::BF16, &[10, 10]),
        ])
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[derive(Default)]
    struct Counted(Mutex<u64>, Option<u64>);

    impl Progress for Counted {
        fn advance(&self, _: &str, bytes: u64) {
            *self.0.lock().unwrap() += bytes;
        }
        fn cancelled(&self) -> bool {
            self.1.is_some_and(|n| *self.0.lock().unwrap() >= n)
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let source = source();
        for (limit, files) in [(u64::MAX, 1), (6000, 2), (4100, 3), (1, 4)] {
            let folder = tempfile::tempdir().unwrap();
            let progress = Counted::default();
            write_sharded(&source, folder.path(), limit, &progress).unwrap();
            let found = names(folder.path());
            assert_eq!(found.iter().filter(|n| n.ends_with(".safetensors")).count(), files, "{found:?}");
            assert_eq!(found.len(), files + usize::from(files > 1), "{found:?}");
            assert_eq!(*progress.0.lock().unwrap(), 10_206);
            let store = Store::open(folder.path()).unwrap();
            assert_eq!(store.tensors().len(), 4);
            for info in source.tensors() {
                let (a, b) = (store.tensor(&info.name).unwrap(), source.tensor(&info.name).unwrap());
                assert_eq!((&a.info, &*a.data), (&b.info, &*b.data));
                assert_eq!(a.data.as_ptr() as usize % info.dtype.size(), 0);
                a.data.prefetch();
                a.data.release();
                assert_eq!(*a.data, *b.data);
            }
            let again = write_sharded(&source, folder.path(), limit, &()).unwrap_err().to_string();
            assert!(again.contains("is there already and will not be overwritten"), "{again}");
        }
    }

    #[test]
    fn nothing_is_left_after_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let failing = Synthetic::formula(vec![info("a.weight", DType::BF16, &[9, 9]), info("b", DType::I64, &[1])]);
        let error = write_sharded(&failing, folder.path(), 10, &()).unwrap_err().to_string();
        assert_eq!(error, "tensor \"b\": expected F32, F16 or BF16, found I64");
        assert!(names(folder.path()).is_empty());
        let error = write_sharded(&source(), folder.path(), 6000, &Counted(Mutex::default(), Some(6001))).unwrap_err();
        assert!(matches!(error, Error::Cancelled));
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_full_disk_is_said_before_and_while_writing() {
        let folder = tempfile::tempdir().unwrap();
        let huge = Synthetic::formula(vec![info("a.weight", DType::BF16, &[1 << 30, 1 << 29])]);
        let error = write_sharded(&huge, folder.path(), u64::MAX, &()).unwrap_err().to_string();
        assert!(error.contains("the disk is full: 1152921504606846976 bytes are needed"), "{error}");
        assert!(names(folder.path()).is_empty());
        #[cfg(target_os = "linux")]
        {
            let error = write_file(&source(), source().tensors(), Path::new("/dev/full"), "x", &()).unwrap_err();
            assert!(matches!(error, Error::DiskFull { needed: 10_206, .. }), "{error}");
        }
        let error = write_sharded(&source(), Path::new("/dev/null/x"), 1, &()).unwrap_err().to_string();
        assert!(error.starts_with("/dev/null/x: "), "{error}");
    }
}
