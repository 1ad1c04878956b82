//! The small files of a checkpoint, made from a GGUF file's metadata.

use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::tokenizer::tokenizer;
use super::vocabulary::Vocabulary;
use crate::container::gguf::GgufFile;
use crate::folder::MadeFiles;
use crate::{Config, Result};

/// Makes `config.json`, `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` when they are asked for.
pub(crate) struct GgufFolder {
    file: Arc<GgufFile>,
    config: Config,
}

impl GgufFolder {
    /// The files of the model in `file`, whose configuration is `config`.
    pub fn new(file: Arc<GgufFile>, config: Config) -> Self {
        Self { file, config }
    }

    fn vocabulary(&self) -> Result<Option<Vocabulary<'_>>> {
        Vocabulary::new(&self.file.metadata)
    }
}

impl fmt::Debug for GgufFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GgufFolder({:?})", self.file.metadata.file())
    }
}

impl MadeFiles for GgufFolder {
    fn origin(&self) -> &str {
        self.file.metadata.file()
    }

    fn contains(&self, name: &str) -> bool {
        match name {
            "config.json" => true,
            "chat_template.jinja" => self.file.metadata.get("tokenizer.chat_template").is_some(),
            // What cannot be made says why when it is asked for.
            "tokenizer.json" | "tokenizer_config.json" => self.vocabulary().map_or(true, |found| found.is_some()),
            _ => false,
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>> {
        Ok(match name {
            "config.json" => Some(Value::Object(self.config.entries().clone()).to_string()),
            "chat_template.jinja" => self.file.metadata.text("tokenizer.chat_template")?.map(str::to_owned),
            "tokenizer.json" => self.vocabulary()?.map(|v| tokenizer(&v)).transpose()?,
            "tokenizer_config.json" => self.vocabulary()?.map(|v| tokenizer_config(&v)).transpose()?,
            _ => None,
        })
    }
}

/// The names of special tokens.
fn tokenizer_config(vocabulary: &Vocabulary) -> Result<String> {
    let mut out = Map::new();
    for (ours, theirs) in [("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")] {
        if let Some(text) = vocabulary.named(theirs)? {
            out.insert(format!("{ours}_token"), text.into());
        }
    }
    Ok(Value::Object(out).to_string())
}
