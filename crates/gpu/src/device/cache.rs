//! Compiled code on disk.

use std::path::PathBuf;

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

/// Puts a file in place at once, so that nobody reads half of it. A cache that cannot be written is done without.
#[cfg(not(target_os = "macos"))]
pub(super) fn store(path: &std::path::Path, data: &[u8]) {
    let own = path.with_extension(format!("{}.tmp", std::process::id()));
    if std::fs::write(&own, data).and_then(|()| std::fs::rename(&own, path)).is_err() {
        _ = std::fs::remove_file(&own);
    }
}

#[cfg(test)]
mod tests {
    use super::key;

    #[test]
    fn every_part_counts() {
        let all = [key(&["a", "b"]), key(&["ab", ""]), key(&["a", "c"]), key(&["b", "a"]), key(&["a"])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
        assert_eq!(key(&["a", "b"]), all[0]);
    }
}
