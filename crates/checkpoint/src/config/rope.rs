//! Rotary position embedding, from either form of `config.json`.

use std::sync::Arc;

use serde_json::Value;

use super::Config;
use crate::{Error, Result};

/// How positions turn queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Share of each head's dimensions that is rotated.
    pub partial_rotary_factor: f64,
    /// Change of the frequencies for contexts longer than the model was first trained on.
    pub scaling: RopeScaling,
}

/// Change of the frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, smooth between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// Context the model was first trained on.
        original_max_position_embeddings: f64,
    },
    /// Each frequency divided by a number of its own: what GGUF files store of Llama 3.1's scaling. In a configuration
    /// this is `{"rope_type": "divisors", "divisors": [...]}`, which is our own.
    Divisors(Arc<[f32]>),
}

impl Config {
    /// The rotary embedding: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.
    pub fn rope(&self, default_theta: f64) -> Result<RopeConfig> {
        let new = self.maybe_object("rope_parameters")?;
        let old = self.maybe_object("rope_scaling")?;
        let scaling = match (&new, &old) {
            (Some(new), Some(old)) => {
                let (a, b) = (scaling(new)?, scaling(old)?);
                if a != b {
                    return Err(self.wrong("rope_scaling", "what rope_parameters says, or null"));
                }
                a
            }
            (Some(one), None) | (None, Some(one)) => scaling(one)?,
            (None, None) => RopeScaling::None,
        };
        let number = |key: &str| -> Result<Option<f64>> {
            match new.as_ref().map(|n| n.maybe_f64(key)).transpose()?.flatten() {
                Some(x) => Ok(Some(x)),
                None => self.maybe_f64(key),
            }
        };
        let theta = number("rope_theta")?.unwrap_or(default_theta);
        if theta <= 1.0 {
            return Err(self.wrong("rope_theta", format!("a number above 1 (not {theta})")));
        }
        let partial_rotary_factor = number("partial_rotary_factor")?.unwrap_or(1.0);
        if !(partial_rotary_factor > 0.0 && partial_rotary_factor <= 1.0) {
            return Err(self
                .wrong("partial_rotary_factor", format!("a number above 0, at most 1 (not {partial_rotary_factor})")));
        }
        Ok(RopeConfig { theta, partial_rotary_factor, scaling })
    }
}

fn scaling(section: &Config) -> Result<RopeScaling> {
    if let Some((key, _)) = section.entries().iter().find(|(_, v)| v.is_object()) {
        return Err(Error::invalid(
            section.file(),
            format!("a rope of its own for each kind of layer ({key:?}) is not supported"),
        ));
    }
    let kind = match section.maybe_string("rope_type")? {
        Some(kind) => kind,
        None => section.string_or("type", "default")?,
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "llama3" => {
            let factor = section.f64("factor")?;
            let low_freq_factor = section.f64("low_freq_factor")?;
            let high_freq_factor = section.f64("high_freq_factor")?;
            let original_max_position_embeddings = section.f64("original_max_position_embeddings")?;
            if factor < 1.0 {
                return Err(section.wrong("factor", "a number from 1"));
            }
            if low_freq_factor <= 0.0 || high_freq_factor <= low_freq_factor {
                return Err(section.wrong("high_freq_factor", "a number above low_freq_factor, which is above 0"));
            }
            if original_max_position_embeddings < 1.0 {
                return Err(section.wrong("original_max_position_embeddings", "a number from 1"));
            }
            Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings })
        }
        "divisors" => {
            let expected = "a list of finite numbers above 0";
            let one = |v: &Value| v.as_f64().map(|x| x as f32).filter(|x| x.is_finite() && *x > 0.0);
            let all = section.typed("divisors", expected, |v| v.as_array()?.iter().map(one).collect())?;
            Ok(RopeScaling::Divisors(all.ok_or_else(|| section.absent("divisors", expected))?))
        }
        other => Err(Error::invalid(
            section.file(),
            format!(
                "rope type {other:?} is not supported (\"default\" and \"llama3\" are); the model would answer wrongly with another"
            ),
        )),
    }
}
