//! Models in several GGUF files: `{name}-00001-of-00003.gguf`, numbered from 1.

use std::path::{Path, PathBuf};

/// The numbers in a part's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartName {
    /// What comes before the numbers.
    pub prefix: String,
    /// Which part, from 1.
    pub number: usize,
    /// How many there are.
    pub count: usize,
}

impl PartName {
    /// The numbers in the name of `path`, if it is a part's.
    pub fn of(path: &Path) -> Option<Self> {
        let rest = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            let five = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
            five.then(|| text.parse().ok()).flatten()
        };
        Some(Self { prefix: prefix.to_owned(), number: digits(number)?, count: digits(count)? })
    }

    /// The path of part `number` beside `path`.
    pub fn sibling(&self, path: &Path, number: usize) -> PathBuf {
        path.with_file_name(format!("{}-{number:05}-of-{:05}.gguf", self.prefix, self.count))
    }
}
