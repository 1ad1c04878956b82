//! Compiled code on disk.

#[cfg(not(target_os = "macos"))]
use std::path::Path;
use std::path::PathBuf;
#[cfg(not(target_os = "macos"))]
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// A 128-bit hash of several texts: two runs of FNV-1a that begin differently. A key of a cache whose entries are also
/// checked by their length, not a defence.
fn key(parts: &[&str]) -> String {
    let run = |seed: u64| {
        parts
            .iter()
            .flat_map(|p| p.bytes().chain([0xff]))
            .fold(seed, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
    };
    format!("{:016x}{:016x}", run(0xcbf2_9ce4_8422_2325), run(0x9ae1_6a3b_2f90_404f))
}

/// Where code made of these texts lies: `MARLIN_KERNEL_CACHE`, or a folder of the user's cache. `None` without either.
pub(super) fn path(parts: &[&str], extension: &str) -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let folder = var("MARLIN_KERNEL_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|p| p.join("metal-marlin/kernels")))
        .or_else(|| var("LOCALAPPDATA").map(|p| p.join("metal-marlin/kernels")))
        .or_else(|| var("HOME").map(|p| p.join(".cache/metal-marlin/kernels")))?;
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join(format!("{}.{extension}", key(parts))))
}

/// Puts a file in place at once, with its length and a sum behind it. A cache that cannot be written is done without.
#[cfg(not(target_os = "macos"))]
pub(super) fn store(path: &Path, data: &[u8]) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let own = path.with_extension(format!("{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Relaxed)));
    let all = [data, &trailer(data)].concat();
    if std::fs::write(&own, all).and_then(|()| std::fs::rename(&own, path)).is_err() {
        _ = std::fs::remove_file(&own);
    }
}

/// What [`store`] has put there; `None` if there is nothing, or something else than was written.
#[cfg(not(target_os = "macos"))]
pub(super) fn load(path: &Path) -> Option<Vec<u8>> {
    let mut all = std::fs::read(path).ok()?;
    let found = all.split_off(all.len().checked_sub(16)?);
    (found == trailer(&all)).then_some(all)
}

/// Length and sum of `data`.
#[cfg(not(target_os = "macos"))]
fn trailer(data: &[u8]) -> [u8; 16] {
    let sum = data.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(data.len() as u64).to_le_bytes());
    bytes[8..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    #[cfg(not(target_os = "macos"))]
    fn what_was_damaged_on_disk_is_not_taken() {
        let path = std::env::temp_dir().join(format!("marlin-code-{}.cubin", std::process::id()));
        super::store(&path, b"machine code");
        assert_eq!(super::load(&path).unwrap(), b"machine code");
        let good = std::fs::read(&path).unwrap();
        let mut flipped = good.clone();
        flipped[3] ^= 1;
        for bad in [&good[..good.len() - 1], &good[1..], &good[..7], &flipped[..], b""] {
            std::fs::write(&path, bad).unwrap();
            assert_eq!(super::load(&path), None);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(super::load(&path), None);
    }

    #[test]
    fn every_part_counts() {
        let all = [key(&["a", "b"]), key(&["ab", ""]), key(&["a", "c"]), key(&["b", "a"]), key(&["a"])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
        assert_eq!(key(&["a", "b"]), all[0]);
    }
}
