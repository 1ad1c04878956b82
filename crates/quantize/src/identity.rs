//! Which checkpoint something was made from.

use marlin_checkpoint::Checkpoint;

use crate::Result;
use crate::files::Hash;

/// Bytes at each end of a tensor that are looked at.
const ENDS: usize = 64;

/// SHA-256 of a checkpoint's configuration, of its tensors' names, types and shapes, and of both ends of each tensor's
/// data: tells checkpoints apart without reading all of them.
pub fn identity(checkpoint: &Checkpoint) -> Result<String> {
    let mut hash = Hash::new();
    hash.add(serde_json::Value::Object(checkpoint.config.entries().clone()).to_string().as_bytes());
    for info in checkpoint.store.tensors() {
        let data = checkpoint.store.tensor(&info.name)?.data;
        hash.add(format!("{} {} {:?}\n", info.name, info.dtype, info.shape).as_bytes());
        hash.add(&data[..data.len().min(ENDS)]);
        hash.add(&data[data.len().saturating_sub(ENDS)..]);
    }
    Ok(hash.finish())
}
