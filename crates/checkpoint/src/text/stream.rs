//! Text from token ids as they arrive.
//!
//! A `decoder` in `tokenizer.json` is a chain of small rewrites over the whole list of tokens. Each has a streaming
//! twin here that keeps only what the next token could still change: at most three bytes of an unfinished character,
//! or the current run of byte-fallback tokens. The pieces, with [`StreamDecoder::finish`], add up to exactly what
//! [`Tokenizer::decode`](super::Tokenizer::decode) gives for the whole list.

use std::sync::Arc;

use serde_json::Value;

use super::tokenizer::Inner;
use crate::{Error, Result};

/// One rewrite of the chain, as configured.
#[derive(Debug, Clone)]
pub(super) enum Stage {
    /// GPT-2's 256 printable stand-ins for bytes; everything becomes one text.
    ByteLevel,
    /// Tokens `<0xE4>` are bytes; a run of them that is not UTF-8 is one U+FFFD per byte.
    ByteFallback,
    /// Text for text.
    Replace { from: String, to: String },
    /// The separator before the first token is dropped, others are spaces.
    Metaspace { separator: char, drop_first: bool },
    /// At most `start` leading and `stop` trailing characters `content` of each token are dropped.
    Strip { content: char, start: usize, stop: usize },
    /// From here on the tokens are one text.
    Fuse,
    /// No decoder at all: tokens with spaces between.
    Spaces,
}

/// The chain that a `tokenizer.json`'s `decoder` describes. Refuses what cannot be streamed.
pub(super) fn stages(file: &str, decoder: Option<&Value>) -> Result<Vec<Stage>> {
    let mut out = Vec::new();
    match decoder {
        None | Some(Value::Null) => out.push(Stage::Spaces),
        Some(decoder) => push_stages(file, decoder, &mut out)?,
    }
    // Once tokens are fused, only rewrites that look at one character, or at the start, can be streamed.
    let mut fused = false;
    for stage in &out {
        let streamable = match stage {
            Stage::ByteLevel | Stage::ByteFallback | Stage::Metaspace { .. } | Stage::Spaces => !fused,
            Stage::Replace { from, .. } => !from.is_empty() && (!fused || from.chars().count() == 1),
            Stage::Strip { stop, .. } => !fused || *stop == 0,
            Stage::Fuse => true,
        };
        if !streamable {
            return Err(Error::invalid(file, format!("decoder: {stage:?} is not supported at this place in a chain")));
        }
        fused |= matches!(stage, Stage::Fuse | Stage::ByteLevel);
    }
    Ok(out)
}

fn push_stages(file: &str, decoder: &Value, out: &mut Vec<Stage>) -> Result<()> {
    let bad = |why: String| Error::invalid(file, format!("decoder: {why}"));
    let text = |key: &str| decoder.get(key).and_then(Value::as_str);
    let letter = |key: &str| {
        let mut chars = text(key).unwrap_or_default().chars();
        chars.next().filter(|_| chars.next().is_none()).ok_or_else(|| bad(format!("{key:?} is not one character")))
    };
    let count = |key: &str| decoder.get(key).and_then(Value::as_u64).unwrap_or(0) as usize;
    match text("type").unwrap_or_default() {
        "Sequence" => {
            for inner in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                push_stages(file, inner, out)?;
            }
        }
        "ByteLevel" => out.push(Stage::ByteLevel),
        "ByteFallback" => out.push(Stage::ByteFallback),
        "Fuse" => out.push(Stage::Fuse),
        "Metaspace" => {
            // Older files say add_prefix_space instead of prepend_scheme.
            let never = text("prepend_scheme") == Some("never")
                || decoder.get("add_prefix_space").and_then(Value::as_bool) == Some(false);
            out.push(Stage::Metaspace { separator: letter("replacement")?, drop_first: !never });
        }
        "Strip" => {
            out.push(Stage::Strip { content: letter("content")?, start: count("start"), stop: count("stop") });
        }
        "Replace" => {
            let from = decoder.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
            let (Some(from), Some(to)) = (from, text("content")) else {
                return Err(bad("Replace is supported with a plain string pattern only".into()));
            };
            out.push(Stage::Replace { from: from.into(), to: to.into() });
        }
        other => {
            return Err(bad(format!(
                "{other:?} is not supported; generative models use ByteLevel, Metaspace or a Sequence of Replace, \
                 ByteFallback, Fuse and Strip"
            )));
        }
    }
    Ok(())
}

/// Turns token ids into text as they arrive; made by [`Tokenizer::stream_decoder`](super::Tokenizer::stream_decoder).
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Arc<Inner>,
    skip_special: bool,
    stages: Vec<Running>,
}

/// A stage and what it remembers.
#[derive(Debug, Clone)]
struct Running {
    stage: Stage,
    /// Tokens came through before this one.
    started: bool,
    /// Bytes that are not text yet.
    bytes: Vec<u8>,
    /// Characters still to be stripped from the start of fused text.
    strip: Option<usize>,
}

impl StreamDecoder {
    pub(super) fn new(tokenizer: Arc<Inner>, skip_special: bool) -> Self {
        let mut fused = false;
        let stages = tokenizer
            .stages
            .iter()
            .map(|stage| {
                let strip = match stage {
                    Stage::Strip { start, .. } if fused => Some(*start),
                    _ => None,
                };
                fused |= matches!(stage, Stage::Fuse | Stage::ByteLevel);
                Running { stage: stage.clone(), started: false, bytes: Vec::new(), strip }
            })
            .collect();
        Self { tokenizer, skip_special, stages }
    }

    /// The next token; gives the text that is now certain, if any. Ids outside the vocabulary are ignored, as
    /// [`Tokenizer::decode`](super::Tokenizer::decode) does.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
        }
        let token = self.tokenizer.hf.id_to_token(id)?;
        let mut text = String::new();
        run(&mut self.stages, token, &mut text);
        (!text.is_empty()).then_some(text)
    }

    /// The end: what was held back, with U+FFFD for characters that never became whole. The decoder is ready for
    /// another text afterwards.
    pub fn finish(&mut self) -> Option<String> {
        let mut text = String::new();
        for i in 0..self.stages.len() {
            let (before, after) = self.stages.split_at_mut(i + 1);
            if let Some(token) = before.last_mut().and_then(Running::finish) {
                run(after, token, &mut text);
            }
        }
        *self = Self::new(self.tokenizer.clone(), self.skip_special);
        (!text.is_empty()).then_some(text)
    }
}

/// Send one token through the rest of the chain; what comes out at the end is appended to `text`.
fn run(stages: &mut [Running], token: String, text: &mut String) {
    match stages.split_first_mut() {
        None => text.push_str(&token),
        Some((first, rest)) => first.push(token, &mut |token| run(rest, token, text)),
    }
}

impl Running {
    fn push(&mut self, token: String, emit: &mut dyn FnMut(String)) {
        let first = !std::mem::replace(&mut self.started, true);
        match &self.stage {
            Stage::Fuse => emit(token),
            Stage::Spaces if first => emit(token),
            Stage::Spaces => emit(format!(" {token}")),
            Stage::Replace { from, to } => emit(token.replace(from.as_str(), to)),
            Stage::Metaspace { separator, drop_first } => {
                let space = if first && *drop_first { "" } else { " " };
                emit(token.replace(*separator, space));
            }
            Stage::Strip { content, start, stop } => match &mut self.strip {
                Some(left) => {
                    let rest = strip_start(&token, *content, *left);
                    let dropped = (token.len() - rest.len()) / content.len_utf8();
                    // Anything but the character itself ends the leading run.
                    *left = if rest.is_empty() { *left - dropped } else { 0 };
                    emit(rest.to_owned());
                }
                None => {
                    let mut rest = strip_start(&token, *content, *start);
                    for _ in 0..*stop {
                        rest = rest.strip_suffix(*content).unwrap_or(rest);
                    }
                    emit(rest.to_owned());
                }
            },
            Stage::ByteLevel => {
                push_byte_level(&token, &mut self.bytes);
                let text = take_text(&mut self.bytes);
                if !text.is_empty() {
                    emit(text);
                }
            }
            Stage::ByteFallback => {
                if let Some(byte) = fallback_byte(&token) {
                    self.bytes.push(byte);
                } else {
                    if let Some(text) = self.finish() {
                        emit(text);
                    }
                    emit(token);
                }
            }
        }
    }

    fn finish(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes.is_empty() {
            return None;
        }
        match self.stage {
            Stage::ByteFallback => {
                let n = bytes.len();
                Some(String::from_utf8(bytes).unwrap_or_else(|_| "\u{fffd}".repeat(n)))
            }
            _ => Some(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }
}

fn strip_start(token: &str, content: char, most: usize) -> &str {
    let mut rest = token;
    for _ in 0..most {
        match rest.strip_prefix(content) {
            Some(shorter) => rest = shorter,
            None => break,
        }
    }
    rest
}

/// `<0xE4>` -> 0xE4.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// The bytes of a byte-level token; a token with any other character (an added one) stands for itself.
fn push_byte_level(token: &str, bytes: &mut Vec<u8>) {
    let before = bytes.len();
    for c in token.chars() {
        let Some(byte) = byte_of(c) else {
            bytes.truncate(before);
            bytes.extend_from_slice(token.as_bytes());
            return;
        };
        bytes.push(byte);
    }
}

/// GPT-2's table: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 on in order.
fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        x @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(x).ok(),
        x @ 0x100..=0x120 => u8::try_from(x - 0x100).ok(), // 0x00..=0x20
        x @ 0x121..=0x142 => u8::try_from(x - 0x121 + 0x7f).ok(), // 0x7f..=0xa0
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Takes everything that no later byte can change: whole characters, and U+FFFD for what can no longer become one. At
/// most three bytes stay.
fn take_text(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut used = 0;
    loop {
        match std::str::from_utf8(&bytes[used..]) {
            Ok(rest) => {
                text.push_str(rest);
                bytes.clear();
                return text;
            }
            Err(error) => {
                let good = used + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[used..good]));
                used = good;
                match error.error_len() {
                    Some(n) => {
                        text.push('\u{fffd}');
                        used += n;
                    }
                    None => {
                        bytes.drain(..used);
                        return text;
                    }
                }
            }
        }
    }
}
