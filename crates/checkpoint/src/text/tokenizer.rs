//! `tokenizer.json` through the `tokenizers` crate.

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::Value;

use super::TokenizerConfig;
use super::stream::{Stage, StreamDecoder, stages};
use crate::{Error, Result};

/// Longest run of whitespace that is encoded (characters). The regular expressions of pre-tokenisers step back through
/// such a run, and the engine gives up after a million steps, leaving the rest of the text in one piece.
const MAX_BLANK: usize = 500_000;

/// Text to token ids and back, as the checkpoint's `tokenizer.json` says. Cheap to clone.
///
/// **Special tokens written in text.** [`encode`](Self::encode) and [`encode_chat`](Self::encode_chat) both recognise
/// them (`<|endoftext|>` in a prompt becomes that one token), which is what Hugging Face tokenizers do by default and
/// what a rendered chat template needs. So a user's message can contain control tokens; a face that serves strangers
/// and minds should look for [`special_tokens`](Self::special_tokens) in what they send.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) hf: tokenizers::Tokenizer,
    pub(super) stages: Vec<Stage>,
    file: String,
    special: HashSet<u32>,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
}

impl Inner {
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }
}

impl Tokenizer {
    /// Read the contents of a `tokenizer.json`; `file` is its name, for errors. `config` (from
    /// `tokenizer_config.json`) names the bos, eos and pad tokens.
    pub fn from_bytes(file: &str, json: &[u8], config: Option<&TokenizerConfig>) -> Result<Self> {
        let bad = |why: String| {
            Error::invalid(file, format!("{why}; expected a Hugging Face fast tokenizer (download the file again?)"))
        };
        let value: Value = serde_json::from_slice(json).map_err(|e| bad(format!("not valid JSON: {e}")))?;
        if value.get("model").is_none() {
            return Err(bad("has no \"model\"".into()));
        }
        let stages = stages(file, value.get("decoder"))?;
        drop(value);
        let mut hf = tokenizers::Tokenizer::from_bytes(json).map_err(|e| bad(e.to_string()))?;
        // A saved file may carry the limits of a training run; callers decide about length here.
        hf.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        hf.with_padding(None);

        let special = hf.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(&id, _)| id).collect();
        let named = |name: &str| config.and_then(|c| c.special_token(name)).and_then(|text| hf.token_to_id(text));
        let inner = Inner {
            bos: named("bos_token"),
            eos: named("eos_token"),
            pad: named("pad_token"),
            // One past the largest id: ids need not be contiguous.
            vocab_size: hf.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1),
            file: file.to_owned(),
            stages,
            special,
            hf,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Ids of raw text. With `add_special_tokens` the tokenizer's own prefix and suffix (Llama's bos) are added, as
    /// for a prompt to be completed; without, the ids of the text alone.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        if text.len() > MAX_BLANK && longest_blank(text) > MAX_BLANK {
            let why = format!("expected at most {MAX_BLANK} whitespace characters in a row; shorten the text");
            return Err(Error::invalid(&self.inner.file, format!("cannot encode this text: {why}")));
        }
        let encoding = self.inner.hf.encode_fast(text, add_special_tokens);
        encoding
            .map(|e| e.get_ids().to_vec())
            .map_err(|e| Error::invalid(&self.inner.file, format!("cannot encode this text: {e}")))
    }

    /// Ids of a prompt rendered by a [`ChatTemplate`](super::ChatTemplate): the template wrote all special tokens,
    /// bos included, so none are added.
    pub fn encode_chat(&self, prompt: &str) -> Result<Vec<u32>> {
        self.encode(prompt, false)
    }

    /// The text of `ids`. Ids outside the vocabulary are ignored; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner
            .hf
            .decode(ids, skip_special)
            .map_err(|e| Error::invalid(&self.inner.file, format!("cannot decode these ids: {e}")))
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream_decoder(&self, skip_special: bool) -> StreamDecoder {
        StreamDecoder::new(self.inner.clone(), skip_special)
    }

    /// The token as the vocabulary spells it (byte-level tokens in their printable stand-ins).
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.hf.id_to_token(id)
    }

    /// The id of a token spelled as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.hf.token_to_id(token)
    }

    /// One more than the largest id, added tokens included. A model's embedding may have more rows (padding).
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// Whether `id` is a special (control) token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.is_special(id)
    }

    /// All special tokens: id and text, in order of id.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        let mut ids: Vec<u32> = self.inner.special.iter().copied().collect();
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| Some((id, self.id_to_token(id)?))).collect()
    }

    /// The beginning-of-sequence token that `tokenizer_config.json` names.
    pub fn bos(&self) -> Option<u32> {
        self.inner.bos
    }

    /// The end-of-sequence token that `tokenizer_config.json` names. `config.json` and `generation_config.json` may
    /// list more.
    pub fn eos(&self) -> Option<u32> {
        self.inner.eos
    }

    /// The padding token that `tokenizer_config.json` names.
    pub fn pad(&self) -> Option<u32> {
        self.inner.pad
    }
}

/// Characters in the longest run of whitespace.
fn longest_blank(text: &str) -> usize {
    text.split(|c: char| !c.is_whitespace()).map(|run| run.chars().count()).max().unwrap_or(0)
}
