//! Thresholds measured on a device, one small file for each device and driver, beside those of processors.

use super::Thresholds;
use crate::device::Info;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// Where thresholds for this device with its driver are saved; `None` without a home directory.
pub fn file(info: &Info) -> Option<PathBuf> {
    let slug = |text: &str| {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
        words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
    };
    let folder = marlin_cpu::kernels::folder()?;
    Some(folder.join(format!("gpu-{}-{}.json", slug(&info.name), slug(&info.driver))))
}

/// The thresholds saved for this device. A file that cannot be understood counts as none: nothing but speed depends on it.
pub fn saved(info: &Info) -> Option<Thresholds> {
    read(&file(info)?)
}

fn read(file: &Path) -> Option<Thresholds> {
    let text = std::fs::read_to_string(file).ok()?;
    serde_json::from_str::<Thresholds>(&text).ok().map(Thresholds::within_limits)
}

/// Saves thresholds for this device, and says where.
pub fn save(info: &Info, thresholds: &Thresholds) -> Result<PathBuf> {
    let none = || Error::new(ErrorKind::NotFound, "there is no home directory; set MARLIN_CACHE to a folder");
    let file = file(info).ok_or_else(none)?;
    write(&file, thresholds)?;
    Ok(file)
}

fn write(file: &Path, thresholds: &Thresholds) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let aside = file.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&aside, serde_json::to_string_pretty(thresholds)? + "\n")?;
    std::fs::rename(&aside, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_and_kept_within_limits() {
        let folder = std::env::temp_dir().join(format!("marlin-gpu-thresholds-{}", std::process::id()));
        let file = folder.join("a/b.json");
        let wanted = Thresholds { few_rows: 9, sort_pairs: 2, attention_groups: 8 };
        write(&file, &wanted).unwrap();
        assert_eq!(read(&file), Some(wanted));
        let more = std::fs::read_to_string(&file).unwrap().replace("\"few_rows\": 9", "\"few_rows\": 99");
        std::fs::write(&file, more).unwrap();
        assert_eq!(read(&file), Some(Thresholds { few_rows: 16, ..wanted }));
        std::fs::write(&file, "{}").unwrap();
        assert_eq!(read(&file), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
