//! Thresholds measured on this machine and saved, one small file for each processor and level.

use super::Thresholds;
use crate::Level;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// The folder of measured settings of kernels: `kernels` in `$MARLIN_CACHE`, or in `metal-marlin` in `$XDG_CACHE_HOME` or `~/.cache`.
pub fn folder() -> Option<PathBuf> {
    Some(cache(|name| std::env::var(name).ok())?.join("kernels"))
}

fn cache(lookup: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let path = |name: &str| lookup(name).filter(|v| !v.trim().is_empty()).map(PathBuf::from);
    path("MARLIN_CACHE")
        .or_else(|| path("XDG_CACHE_HOME").map(|p| p.join("metal-marlin")))
        .or_else(|| path("HOME").or_else(std::env::home_dir).map(|p| p.join(".cache/metal-marlin")))
}

/// A processor's name as part of a file's name.
fn slug(name: &str) -> String {
    let words: Vec<String> = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.join("-")
}

/// Where thresholds for this processor at this level are saved.
pub fn file(level: Level) -> Option<PathBuf> {
    Some(folder()?.join(format!("{}-{}.json", slug(&processor()), level.name())))
}

/// The thresholds saved for this processor at this level. A file that cannot be understood counts as none: nothing but
/// speed depends on it.
pub fn saved(level: Level) -> Option<Thresholds> {
    if !folder()?.is_dir() {
        return None;
    }
    read(&file(level)?)
}

fn read(file: &Path) -> Option<Thresholds> {
    let text = std::fs::read_to_string(file).ok()?;
    serde_json::from_str::<Thresholds>(&text).ok().map(Thresholds::within_limits)
}

/// Saves thresholds for this processor at this level, and says where.
pub fn save(level: Level, thresholds: &Thresholds) -> Result<PathBuf> {
    let none = || Error::new(ErrorKind::NotFound, "there is no home directory; set MARLIN_CACHE to a folder");
    let file = file(level).ok_or_else(none)?;
    write(&file, thresholds)?;
    Ok(file)
}

fn write(file: &Path, thresholds: &Thresholds) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(thresholds)? + "\n";
    let aside = file.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&aside, text)?;
    std::fs::rename(&aside, file)
}

/// What the processor is called.
pub fn processor() -> String {
    if cfg!(target_os = "macos") {
        let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", "machdep.cpu.brand_string"]).output();
        let name = output.ok().and_then(|o| String::from_utf8(o.stdout).ok()).map(|s| s.trim().to_owned());
        return name.filter(|n| !n.is_empty()).unwrap_or_else(|| "unknown".to_owned());
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines().find(|l| l.starts_with(name)).and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned())
    };
    field("model name").or_else(|| field("Model")).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_follow_the_environment() {
        let with = |pairs: &'static [(&str, &str)]| {
            cache(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert_eq!(with(&[("MARLIN_CACHE", "/m"), ("XDG_CACHE_HOME", "/x")]), Some("/m".into()));
        assert_eq!(with(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]), Some("/x/metal-marlin".into()));
        assert_eq!(with(&[("HOME", "/h"), ("MARLIN_CACHE", " ")]), Some("/h/.cache/metal-marlin".into()));
        assert_eq!(slug("Intel(R) Xeon(R) @ 2.10GHz"), "intel-r-xeon-r-2-10ghz");
    }

    #[test]
    fn what_is_saved_is_read_and_kept_within_limits() {
        let folder = std::env::temp_dir().join(format!("marlin-thresholds-{}", std::process::id()));
        let file = folder.join("a/b.json");
        let wanted = Thresholds { dense_gemv_rows: 1, dense_widen_rows: 16, ..Thresholds::of(Level::Scalar) };
        write(&file, &wanted).unwrap();
        assert_eq!(read(&file), Some(wanted));
        let too_much =
            std::fs::read_to_string(&file).unwrap().replace("\"trellis_fine_rows\": 4", "\"trellis_fine_rows\": 99");
        std::fs::write(&file, too_much).unwrap();
        assert_eq!(read(&file), Some(wanted));
        std::fs::write(&file, "{\"rows\": 1}").unwrap();
        assert_eq!(read(&file), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
