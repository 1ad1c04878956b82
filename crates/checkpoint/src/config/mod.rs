//! `config.json` as an object with typed getters; the errors name the key, what was expected and what was found.

mod generation;
mod rope;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

pub use generation::GenerationConfig;
pub use rope::{RopeConfig, RopeScaling};

use crate::{DType, Error, Result};

/// A checkpoint's `config.json`. A key whose value is null counts as absent, as in transformers.
#[derive(Clone, Debug)]
pub struct Config {
    file: String,
    object: Map<String, Value>,
}

/// Keys that hold a nested configuration; all say that the checkpoint is more than a text decoder.
const NESTED: [&str; 10] = [
    "text_config",
    "language_config",
    "llm_config",
    "thinker_config",
    "vision_config",
    "audio_config",
    "talker_config",
    "speech_config",
    "encoder",
    "decoder",
];

impl Config {
    /// Reads the object in `text`; `file` stands for it in messages. Nested (multimodal, encoder-decoder) configurations
    /// are refused.
    pub fn parse(file: impl Into<String>, text: &str) -> Result<Self> {
        let config = Self::object(file, text)?;
        let nested: Vec<&str> =
            NESTED.into_iter().filter(|key| config.get(key).is_some_and(Value::is_object)).collect();
        if !nested.is_empty() || config.get("is_encoder_decoder") == Some(&Value::Bool(true)) {
            let what = if nested.is_empty() { "is_encoder_decoder".to_owned() } else { nested.join(", ") };
            let why = format!(
                "this is a multimodal or encoder-decoder model (it has {what}); only text models with a flat configuration can be run"
            );
            return Err(Error::invalid(config.file, why));
        }
        Ok(config)
    }

    /// Reads any JSON object, without looking at what it describes.
    pub fn object(file: impl Into<String>, text: &str) -> Result<Self> {
        let file = file.into();
        // Editors on some systems put a byte order mark first.
        match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(Value::Object(object)) => Ok(Self { file, object }),
            Ok(other) => Err(Error::invalid(file, format!("expected a JSON object, found {}", shown(&other)))),
            Err(e) => Err(Error::invalid(file, format!("not valid JSON: {e}"))),
        }
    }

    /// What stands for the file in messages.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The value of `key`, unless absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// The same configuration with `key` set.
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.object.insert(key.to_owned(), value);
        self
    }

    /// All keys and values, in the order of the file.
    pub fn entries(&self) -> &Map<String, Value> {
        &self.object
    }

    /// An integer from 0, which must be there.
    pub fn usize(&self, key: &str) -> Result<usize> {
        self.maybe_usize(key)?.ok_or_else(|| self.absent(key, "an integer"))
    }

    /// An integer from 0, or `default` if absent.
    pub fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.maybe_usize(key)?.unwrap_or(default))
    }

    /// An integer from 0, if there. (`4096.0` counts.)
    pub fn maybe_usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "an integer from 0", integer)
    }

    /// A finite number, which must be there.
    pub fn f64(&self, key: &str) -> Result<f64> {
        self.maybe_f64(key)?.ok_or_else(|| self.absent(key, "a number"))
    }

    /// A finite number, or `default` if absent.
    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.maybe_f64(key)?.unwrap_or(default))
    }

    /// A finite number, if there.
    pub fn maybe_f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    /// A finite number as f32, which must be there.
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.maybe_f32(key)?.ok_or_else(|| self.absent(key, "a number"))
    }

    /// A finite number as f32, or `default` if absent.
    pub fn f32_or(&self, key: &str, default: f32) -> Result<f32> {
        Ok(self.maybe_f32(key)?.unwrap_or(default))
    }

    /// A finite number as f32, if there.
    pub fn maybe_f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |v| v.as_f64().map(|x| x as f32).filter(|x| x.is_finite()))
    }

    /// A truth value, or `default` if absent.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.maybe_bool(key)?.unwrap_or(default))
    }

    /// A truth value, if there.
    pub fn maybe_bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string, which must be there.
    pub fn string(&self, key: &str) -> Result<&str> {
        self.maybe_string(key)?.ok_or_else(|| self.absent(key, "a string"))
    }

    /// A string, or `default` if absent.
    pub fn string_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        Ok(self.maybe_string(key)?.unwrap_or(default))
    }

    /// A string, if there.
    pub fn maybe_string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of integers from 0, if there.
    pub fn maybe_usizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.typed(key, "a list of integers from 0", |v| v.as_array()?.iter().map(integer).collect())
    }

    /// A list of strings, if there.
    pub fn maybe_strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A nested object as a configuration of its own, if there.
    pub fn maybe_object(&self, key: &str) -> Result<Option<Self>> {
        let object = self.typed(key, "an object", |v| v.as_object().cloned())?;
        Ok(object.map(|object| Self { file: format!("{} ({key})", self.file), object }))
    }

    /// The architecture, such as `qwen3`.
    pub fn model_type(&self) -> Result<&str> {
        self.string("model_type")
    }

    /// Element type the checkpoint was made for: `dtype`, or `torch_dtype` in older files.
    pub fn dtype(&self) -> Result<Option<DType>> {
        let key = if self.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        self.typed(key, "bfloat16, float16, float32 or float64", |v| {
            let name = v.as_str()?;
            Some(match name.strip_prefix("torch.").unwrap_or(name) {
                "bfloat16" => DType::BF16,
                "float16" | "half" => DType::F16,
                "float32" | "float" => DType::F32,
                "float64" | "double" => DType::F64,
                _ => return None,
            })
        })
    }

    /// How the weights were quantised (`gptq`, `exl3`, ...), or `None` for a plain checkpoint.
    pub fn quantization_method(&self) -> Option<&str> {
        let section = self.get("quantization_config").or_else(|| self.get("quantization"))?;
        Some(section.get("quant_method").or_else(|| section.get("mode")).and_then(Value::as_str).unwrap_or("unnamed"))
    }

    /// The error for a key whose value is of the right type but makes no sense.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.object.get(key).map_or_else(|| "nothing".to_owned(), shown);
        Error::Config { file: self.file.clone(), key: key.to_owned(), expected: expected.into(), found }
    }

    fn absent(&self, key: &str, expected: &str) -> Error {
        self.wrong(key, expected)
    }

    fn typed<'a, T>(&'a self, key: &str, expected: &str, f: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        self.get(key).map(|v| f(v).ok_or_else(|| self.wrong(key, expected))).transpose()
    }
}

/// `4096`, or `4096.0`.
fn integer(value: &Value) -> Option<usize> {
    match value.as_u64() {
        Some(n) => usize::try_from(n).ok(),
        // Every integer up to 2^53 is exact.
        None => value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..9.0e15).contains(x)).map(|x| x as usize),
    }
}

/// A value for a message, cut if long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}
