//! The tokens of a GGUF file.

use std::collections::HashSet;

use crate::Result;
use crate::container::gguf::{Array, Metadata};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    /// Found by the model of the tokenizer.
    Normal,
    /// Stands for what cannot be encoded.
    Unknown,
    /// Special: not part of a text.
    Control,
    /// Part of texts, found before the model looks.
    UserDefined,
    /// A place without a token.
    Unused,
    /// A byte, spelled `<0xE4>`.
    Byte,
}

/// Control tokens that end an answer, whatever the file calls the end.
const STOPS: [&str; 11] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "< EOT >",
    "_<EOT>",
];
/// In GLM's vocabularies (known by `[gMASK]`) the next speaker's name ends an answer.
const GLM: &str = "[gMASK]";
const GLM_STOPS: [&str; 2] = ["<|user|>", "<|observation|>"];

/// The tokens, and what the file says of them.
pub(super) struct Vocabulary<'a> {
    pub metadata: &'a Metadata,
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece), ...
    pub model: &'a str,
    tokens: &'a Array,
    kinds: Vec<TokenKind>,
}

impl<'a> Vocabulary<'a> {
    /// The tokens of a file, if it has any.
    pub fn new(metadata: &'a Metadata) -> Result<Option<Self>> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const KINDS: &str = "tokenizer.ggml.token_type";
        let model = metadata.text("tokenizer.ggml.model")?.filter(|model| !matches!(*model, "none" | "no_vocab"));
        let (Some(model), Some(tokens)) = (model, metadata.array(TOKENS)?) else { return Ok(None) };
        if tokens.texts().is_none() {
            return Err(metadata.wrong(TOKENS, "an array of strings"));
        }
        let kinds = match metadata.array(KINDS)? {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(array) => {
                let kind = |n: &i64| match n {
                    2 => TokenKind::Unknown,
                    3 => TokenKind::Control,
                    4 => TokenKind::UserDefined,
                    5 => TokenKind::Unused,
                    6 => TokenKind::Byte,
                    _ => TokenKind::Normal,
                };
                let expected = || metadata.wrong(KINDS, format!("{} integers, one for each token", tokens.len()));
                let all = array.integers().filter(|all| all.len() == tokens.len()).ok_or_else(expected)?;
                all.iter().map(kind).collect()
            }
        };
        Ok(Some(Self { metadata, model, tokens, kinds }))
    }

    /// Each token's text and kind, in the order of ids.
    pub fn tokens(&self) -> impl Iterator<Item = (&'a str, TokenKind)> {
        self.tokens.texts().into_iter().flatten().zip(self.kinds.iter().copied())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The id under `tokenizer.ggml.{name}_token_id`, if it is a token's.
    pub fn id(&self, name: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        // Some files write 2^32 - 1 for "none".
        match self.metadata.usize(&key)? {
            None | Some(0xffff_ffff) => Ok(None),
            Some(id) if id < self.len() => Ok(Some(id)),
            Some(_) => Err(self.metadata.wrong(&key, format!("an id below {}, the number of tokens", self.len()))),
        }
    }

    /// The text of the token whose id is under `tokenizer.ggml.{name}_token_id`.
    pub fn named(&self, name: &str) -> Result<Option<&'a str>> {
        Ok(self.id(name)?.and_then(|id| self.tokens.texts()?.nth(id)))
    }

    /// Tokens that end an answer: those the file names, then those that are known by their text.
    pub fn stops(&self) -> Result<Vec<usize>> {
        let mut stops = Vec::new();
        for name in ["eos", "eot", "eom"] {
            stops.extend(self.id(name)?);
        }
        let control = || self.tokens().enumerate().filter(|(_, (_, kind))| *kind == TokenKind::Control);
        let glm = control().any(|(_, (text, _))| text == GLM);
        let known = |text: &str| STOPS.contains(&text) || glm && GLM_STOPS.contains(&text);
        stops.extend(control().filter(|(_, (text, _))| known(text)).map(|(id, _)| id));
        let mut seen = HashSet::new();
        stops.retain(|id| seen.insert(*id));
        Ok(stops)
    }
}
