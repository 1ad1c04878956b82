//! Calibration text: files to windows of tokens.

use std::path::{Path, PathBuf};

use marlin_checkpoint::Error as Bad;
use marlin_checkpoint::text::{ChatOptions, ChatTemplate, Message, Tokenizer};
use serde::Deserialize;

use crate::files::Hash;
use crate::{Error, Result};

/// How much of a text is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Windows at most.
    pub windows: usize,
    /// Tokens of a window.
    pub length: usize,
}

impl Default for Sampling {
    /// 128 windows of 2048 tokens, the smaller of the usual budgets.
    fn default() -> Self {
        Self { windows: 128, length: 2048 }
    }
}

/// Windows of tokens to calibrate with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Samples {
    /// Windows of the same length.
    pub windows: Vec<Vec<u32>>,
    /// SHA-256 of their tokens as 32-bit little-endian integers.
    pub hash: String,
    /// Tokens of the whole text.
    pub available: usize,
}

/// A line of a `.jsonl` file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text { text: String },
    Chat { messages: Vec<Message> },
}

impl Samples {
    /// Windows of `tokens`: side by side, and spread evenly over the text where there is more than is wanted.
    pub fn of(tokens: &[u32], sampling: Sampling) -> Result<Self> {
        let Sampling { windows, length } = sampling;
        if length < 2 || windows == 0 {
            return Err(Error::setting(
                "samples",
                "at least one window of two tokens",
                format!("{windows} x {length}"),
            ));
        }
        let there = tokens.len() / length;
        if there == 0 {
            return Err(Error::ShortText { found: tokens.len(), length });
        }
        let count = windows.min(there);
        let windows: Vec<Vec<u32>> = (0..count)
            .map(|i| {
                let from = i * there / count * length;
                tokens[from..from + length].to_vec()
            })
            .collect();
        Ok(Self::whole(windows, tokens.len()))
    }

    /// As many of the windows, evenly spread, as have at most `tokens` tokens, but at least one.
    pub fn some(&self, tokens: usize) -> Self {
        let length = self.windows.first().map_or(1, Vec::len).max(1);
        let count = (tokens / length).clamp(1, self.windows.len().max(1));
        let windows = (0..count.min(self.windows.len())).map(|i| self.windows[i * self.windows.len() / count].clone());
        Self::whole(windows.collect(), self.available)
    }

    fn whole(windows: Vec<Vec<u32>>, available: usize) -> Self {
        let mut hash = Hash::new();
        windows.iter().flatten().for_each(|id| hash.add(&id.to_le_bytes()));
        Self { windows, hash: hash.finish(), available }
    }

    /// Windows of the texts in `files`, one after another: `.jsonl` files have a text (`{"text": ...}`) or a conversation
    /// (`{"messages": [...]}`, written out by the chat template) a line, all others are one text. Texts end with the
    /// tokenizer's end-of-sequence token if it names one.
    pub fn read(
        files: &[PathBuf],
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
        sampling: Sampling,
    ) -> Result<Self> {
        let mut tokens = Vec::new();
        for path in files {
            let text = std::fs::read_to_string(path).map_err(|e| Bad::io(path, e))?;
            if path.extension().is_none_or(|e| e != "jsonl") {
                tokens.extend(tokenizer.encode(&text, false)?);
                tokens.extend(tokenizer.eos());
                continue;
            }
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
                tokens.extend(self::line(path, number + 1, line, tokenizer, template)?);
                tokens.extend(tokenizer.eos());
            }
        }
        Self::of(&tokens, sampling)
    }
}

fn line(
    path: &Path,
    number: usize,
    line: &str,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> Result<Vec<u32>> {
    let what = || format!("{} line {number}", path.display());
    let parsed: Line = serde_json::from_str(line).map_err(|_| {
        Bad::invalid(what(), "expected {\"text\": \"...\"} or {\"messages\": [{\"role\": ..., \"content\": ...}]}")
    })?;
    Ok(match parsed {
        Line::Text { text } => tokenizer.encode(&text, false)?,
        Line::Chat { messages } => {
            let template =
                template.ok_or_else(|| Bad::invalid(what(), "a conversation, but the model has no chat template"))?;
            let options = ChatOptions { add_generation_prompt: false, ..ChatOptions::default() };
            tokenizer.encode_chat(&template.render(&messages, &options)?)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_spread_over_the_text() {
        let tokens: Vec<u32> = (0..103).collect();
        let starts = |windows| {
            let samples = Samples::of(&tokens, Sampling { windows, length: 10 }).unwrap();
            assert!(samples.windows.iter().all(|w| w.windows(2).all(|p| p[1] == p[0] + 1) && w.len() == 10));
            samples.windows.iter().map(|w| w[0]).collect::<Vec<_>>()
        };
        assert_eq!(starts(1), [0]);
        assert_eq!(starts(4), [0, 20, 50, 70]);
        assert_eq!(starts(10), (0..10).map(|i| 10 * i).collect::<Vec<_>>());
        assert_eq!(starts(500), starts(10));
    }

    #[test]
    fn short_texts_are_refused() {
        let refused = |tokens: usize, windows, length| {
            let tokens: Vec<u32> = (0..tokens as u32).collect();
            Samples::of(&tokens, Sampling { windows, length }).unwrap_err().to_string()
        };
        assert_eq!(
            refused(99, 5, 100),
            "the calibration text has 99 tokens, and a window 100; give more text, or shorter windows (--length)"
        );
        assert_eq!(refused(99, 0, 10), "samples: expected at least one window of two tokens, found 0 x 10");
    }

    #[test]
    fn the_hash_is_of_the_tokens() {
        let hash = |tokens: &[u32]| Samples::of(tokens, Sampling { windows: 9, length: 2 }).unwrap().hash;
        // printf '\1\0\0\0\2\0\0\0' | sha256sum
        assert_eq!(hash(&[1, 2]), "34fb5c825de7ca4aea6e712f19d439c1da0c92c37b423936c5f618545ca4fa1f");
    }
}
