//! Token ids in files: 32-bit little-endian integers, nothing else.

use crate::error::{Failure, Result};
use std::path::Path;

/// The ids in `path`.
pub fn read(path: &Path) -> Result<Vec<u32>> {
    let bad = |why: String| Failure::text(format!("{}: {why}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| bad(e.to_string()))?;
    if bytes.len() % 4 != 0 {
        let n = bytes.len();
        return Err(bad(format!("expected 32-bit little-endian token ids, found {n} bytes, not a multiple of 4")));
    }
    if bytes.is_empty() {
        return Err(bad("expected token ids, found an empty file".to_owned()));
    }
    let ids = bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    ids.enumerate()
        .map(|(i, id)| u32::try_from(id).map_err(|_| bad(format!("id {i} is {id}; expected token ids from 0"))))
        .collect()
}
