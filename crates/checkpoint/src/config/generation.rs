//! `generation_config.json`: where a model stops and how its makers would sample it.

use serde_json::Value;

use super::Config;
use crate::{Folder, Result};

/// Special tokens and the checkpoint's own sampling defaults; what a file does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Tokens that end an answer: those of `generation_config.json`, then those only `config.json` names.
    pub eos: Vec<u32>,
    /// Token every text begins with.
    pub bos: Option<u32>,
    /// Token that fills unused places.
    pub pad: Option<u32>,
    /// Whether to sample at all (otherwise the likeliest token).
    pub do_sample: Option<bool>,
    /// Divisor of the logits.
    pub temperature: Option<f32>,
    /// Smallest set of tokens with this probability.
    pub top_p: Option<f32>,
    /// The likeliest so many tokens.
    pub top_k: Option<usize>,
    /// Tokens at least this share as likely as the likeliest.
    pub min_p: Option<f32>,
    /// Divisor of the positive logits of tokens already there.
    pub repetition_penalty: Option<f32>,
}

impl GenerationConfig {
    /// Reads `generation_config.json` in `folder`, if there, and fills in from `config`.
    pub fn load(folder: &Folder, config: &Config) -> Result<Self> {
        let name = "generation_config.json";
        let own = folder.text(name)?.map(|text| Config::object(folder.describe(name), &text)).transpose()?;
        Self::merged(own.as_ref(), config)
    }

    /// From an optional `generation_config.json` and `config.json`.
    pub fn merged(own: Option<&Config>, config: &Config) -> Result<Self> {
        let both: Vec<&Config> = own.into_iter().chain([config]).collect();
        let mut eos = Vec::new();
        let (mut bos, mut pad) = (None, None);
        for file in &both {
            for id in ids(file, "eos_token_id")? {
                if !eos.contains(&id) {
                    eos.push(id);
                }
            }
            bos = bos.or(ids(file, "bos_token_id")?.first().copied());
            pad = pad.or(ids(file, "pad_token_id")?.first().copied());
        }
        // Sampling defaults in config.json are leftovers of old versions of transformers; only the file made for them counts.
        let Some(own) = own else { return Ok(Self { eos, bos, pad, ..Self::default() }) };
        let at_least = |key: &str, least: f32, most: f32| match own.maybe_f32(key)? {
            Some(x) if !(least..=most).contains(&x) => Err(own.wrong(key, format!("a number from {least} to {most}"))),
            other => Ok(other),
        };
        Ok(Self {
            eos,
            bos,
            pad,
            do_sample: own.maybe_bool("do_sample")?,
            temperature: at_least("temperature", 0.0, 1e4)?,
            top_p: at_least("top_p", 0.0, 1.0)?,
            top_k: own.maybe_usize("top_k")?,
            min_p: at_least("min_p", 0.0, 1.0)?,
            repetition_penalty: at_least("repetition_penalty", 1e-4, 1e4)?,
        })
    }
}

/// A token id or a list of them. Some old files write -1 for "none".
fn ids(config: &Config, key: &str) -> Result<Vec<u32>> {
    let wrong = || config.wrong(key, "a token id or a list of token ids");
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(wrong);
    match config.get(key) {
        None => Ok(Vec::new()),
        Some(v) if v.as_i64() == Some(-1) => Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().map(one).collect(),
        Some(v) => Ok(vec![one(v)?]),
    }
}
