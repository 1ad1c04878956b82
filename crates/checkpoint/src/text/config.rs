//! The parts of `tokenizer_config.json` that decide what a prompt looks like.

use serde_json::{Map, Value};

use crate::{Error, Result};

/// The named special tokens and the chat templates of a `tokenizer_config.json`.
#[derive(Debug, Clone, Default)]
pub struct TokenizerConfig {
    /// `bos_token`, `eos_token`, ... -> their text. Chat templates see these as variables.
    special_tokens: Map<String, Value>,
    /// (name, Jinja source); a single unnamed template is called `default`.
    templates: Vec<(String, String)>,
}

impl TokenizerConfig {
    /// Read the text of a `tokenizer_config.json`. `file` is its name, for errors.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let value: Value =
            serde_json::from_str(text).map_err(|e| Error::invalid(file, format!("not valid JSON: {e}")))?;
        let Value::Object(map) = value else {
            return Err(Error::invalid(file, format!("expected a JSON object, found {}", kind(&value))));
        };
        let mut special_tokens = Map::new();
        for (key, value) in &map {
            // `bos_token: "<s>"`, `eos_token: {"content": "</s>", ...}`, `additional_special_tokens: [...]`, absent or
            // null; and `add_bos_token: true`, which is a switch and not a token.
            let listed = key == "additional_special_tokens";
            if !key.ends_with("_token") && !listed {
                continue;
            }
            if let (true, Value::Array(items)) = (listed, value) {
                let items = items.iter().filter_map(token_text).map(Value::from).collect();
                special_tokens.insert(key.clone(), Value::Array(items));
            } else if let Some(text) = token_text(value) {
                special_tokens.insert(key.clone(), Value::from(text));
            }
        }
        Ok(Self { special_tokens, templates: templates(file, map.get("chat_template"))? })
    }

    /// The text of a named special token such as `bos_token`, if the file gives one.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special_tokens.get(name).and_then(Value::as_str)
    }

    pub(super) fn special_tokens(&self) -> &Map<String, Value> {
        &self.special_tokens
    }

    pub(super) fn templates(&self) -> &[(String, String)] {
        &self.templates
    }
}

fn token_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(token) => token.get("content").and_then(Value::as_str),
        _ => None,
    }
}

fn templates(file: &str, value: Option<&Value>) -> Result<Vec<(String, String)>> {
    let bad = |found: &Value| {
        Error::invalid(
            file,
            format!(
                "chat_template: expected a string or a list of {{\"name\", \"template\"}} objects, found {}",
                kind(found)
            ),
        )
    };
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => Ok(vec![("default".into(), source.clone())]),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                let field = |key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
                field("name").zip(field("template")).ok_or_else(|| bad(item))
            })
            .collect(),
        Some(other) => Err(bad(other)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
