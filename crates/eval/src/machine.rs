//! The machine and this process on it.

use serde::Serialize;

/// Largest resident memory of this process so far, file pages included, in bytes: `VmHWM` on Linux, `ru_maxrss` on
/// macOS.
pub fn peak_memory() -> Option<u64> {
    #[cfg(target_os = "macos")]
    {
        use nix::sys::resource::{UsageWho, getrusage};
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
        u64::try_from(usage.max_rss()).ok()
    }
    #[cfg(not(target_os = "macos"))]
    {
        kilobytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
    }
}

/// Memory of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    /// All of it, in bytes.
    pub total: Option<u64>,
    /// What could be had without swapping.
    pub available: Option<u64>,
    /// What this process's container allows, if that is less.
    pub limit: Option<u64>,
}

/// The machine's memory, as far as the system tells.
pub fn memory() -> Memory {
    if cfg!(target_os = "macos") {
        return Memory { total: sysctl("hw.memsize").and_then(|v| v.parse().ok()), ..Memory::default() };
    }
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = kilobytes(&text, "MemTotal:");
    let limit: Option<u64> =
        std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|t| t.trim().parse().ok());
    Memory {
        total,
        available: kilobytes(&text, "MemAvailable:"),
        limit: limit.filter(|limit| total.is_none_or(|total| *limit < total)),
    }
}

/// What the processor is called.
pub fn processor() -> String {
    marlin_cpu::kernels::processor()
}

/// Logical processors that this process may use.
pub fn logical_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Instruction-set extensions that matter here and that this machine has.
pub fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! ask {
        ($detect:ident: $($name:tt),*) => { $(if std::arch::$detect!($name) { found.push($name); })* };
    }
    #[cfg(target_arch = "x86_64")]
    ask!(is_x86_feature_detected: "avx", "fma", "f16c", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16", "avx512fp16", "avxvnni");
    #[cfg(target_arch = "aarch64")]
    ask!(is_aarch64_feature_detected: "neon", "fp16", "dotprod", "i8mm", "bf16", "sve");
    found
}

/// The number after `key` in lines such as `MemTotal: 12 kB`, in bytes.
fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn sysctl(name: &str) -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok()?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned()).filter(|s| !s.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_its_own_memory() {
        assert!(peak_memory().is_none_or(|bytes| bytes > 1 << 20));
        assert_eq!(kilobytes("A: 1 kB\nVmHWM:\t  25 kB\n", "VmHWM:"), Some(25 * 1024));
        assert!(!processor().is_empty() && logical_processors() > 0);
    }
}
