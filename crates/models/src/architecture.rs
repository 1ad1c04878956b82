//! The architectures, by the name `config.json` gives them.

use crate::glm4_moe_lite::Glm4MoeLite;
use crate::llama::Llama;
use crate::qwen2_moe::Qwen2Moe;
use crate::qwen3::Qwen3;
use crate::qwen3_moe::Qwen3Moe;
use crate::{Error, Inventory, Layer, Loader, Result};
use marlin_backend::{Backend, KvLayout};
use marlin_checkpoint::Config;

/// What a model is, apart from its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// `model_type` of the configuration.
    pub architecture: &'static str,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Rows of the output projection, padding included.
    pub vocab: usize,
    /// `max_position_embeddings`: the longest context.
    pub max_positions: usize,
    /// `rms_norm_eps`
    pub eps: f32,
    /// Whether the output projection is the embedding.
    pub tied: bool,
    /// What a token stores in each layer.
    pub kv: KvLayout,
}

impl ModelInfo {
    /// The keys that all architectures share.
    pub(crate) fn parse(config: &Config, architecture: &'static str, eps: f32, kv: KvLayout) -> Result<Self> {
        match config.string_or("hidden_act", "silu")? {
            "silu" => {}
            _ => return Err(config.wrong("hidden_act", "silu").into()),
        }
        let eps = config.f32_or("rms_norm_eps", eps)?;
        if eps <= 0.0 {
            return Err(config.wrong("rms_norm_eps", "a number above 0").into());
        }
        if let Some(types) = config.maybe_strings("layer_types")?
            && types.iter().any(|kind| *kind != "full_attention")
        {
            return Err(config.wrong("layer_types", "full_attention in every layer").into());
        }
        Ok(Self {
            architecture,
            layers: bounded(config, "num_hidden_layers", MOST_LAYERS)?,
            hidden: bounded(config, "hidden_size", MOST_WIDE)?,
            vocab: bounded(config, "vocab_size", MOST_WIDE)?,
            max_positions: bounded(config, "max_position_embeddings", u32::MAX as usize)?,
            eps,
            tied: config.bool_or("tie_word_embeddings", false)?,
            kv,
        })
    }
}

/// More layers than any model has; a configuration that asks for more is refused before anything is made of it.
const MOST_LAYERS: usize = 512;
/// Likewise for widths, vocabularies and experts.
const MOST_WIDE: usize = 1 << 24;

/// A count from 1 to `most`.
pub(crate) fn bounded(config: &Config, key: &str, most: usize) -> Result<usize> {
    match config.usize(key)? {
        count if (1..=most).contains(&count) => Ok(count),
        _ => Err(config.wrong(key, format!("a number from 1 to {most}")).into()),
    }
}

/// More experts than any model has.
pub(crate) const MOST_EXPERTS: usize = 1024;

/// A model's definition, read from its configuration.
#[derive(Clone, Debug)]
pub enum Architecture {
    /// Llama 2, 3, 3.1, 3.2.
    Llama(Llama),
    /// Qwen3, dense.
    Qwen3(Qwen3),
    /// Qwen1.5-MoE and Qwen2-MoE.
    Qwen2Moe(Qwen2Moe),
    /// Qwen3-MoE.
    Qwen3Moe(Qwen3Moe),
    /// GLM-4.7-Flash.
    Glm4MoeLite(Glm4MoeLite),
}

type Parse = fn(&Config) -> Result<Architecture>;

const ARCHITECTURES: [(&str, Parse); 5] = [
    ("llama", |c| Llama::parse(c).map(Architecture::Llama)),
    ("qwen3", |c| Qwen3::parse(c).map(Architecture::Qwen3)),
    ("qwen2_moe", |c| Qwen2Moe::parse(c).map(Architecture::Qwen2Moe)),
    ("qwen3_moe", |c| Qwen3Moe::parse(c).map(Architecture::Qwen3Moe)),
    ("glm4_moe_lite", |c| Glm4MoeLite::parse(c).map(Architecture::Glm4MoeLite)),
];

impl Architecture {
    /// The definition that `config.json` describes.
    pub fn parse(config: &Config) -> Result<Self> {
        let found = config.model_type()?;
        match ARCHITECTURES.iter().find(|(name, _)| *name == found) {
            Some((_, parse)) => parse(config),
            None => Err(Error::Architecture { found: found.to_owned(), supported: Self::names().join(", ") }),
        }
    }

    /// The names of all architectures.
    pub fn names() -> [&'static str; 5] {
        ARCHITECTURES.map(|(name, _)| name)
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        match self {
            Self::Llama(m) => &m.info,
            Self::Qwen3(m) => &m.info,
            Self::Qwen2Moe(m) => &m.info,
            Self::Qwen3Moe(m) => &m.info,
            Self::Glm4MoeLite(m) => &m.info,
        }
    }

    /// Every tensor the model is made of.
    pub fn inventory(&self) -> Inventory {
        let info = self.info();
        let mut inventory = Inventory::default();
        inventory.matrix("model.embed_tokens", info.vocab, info.hidden);
        for i in 0..info.layers {
            match self {
                Self::Llama(m) => m.declare(&mut inventory, i),
                Self::Qwen3(m) => m.declare(&mut inventory, i),
                Self::Qwen2Moe(m) => m.declare(&mut inventory, i),
                Self::Qwen3Moe(m) => m.declare(&mut inventory, i),
                Self::Glm4MoeLite(m) => m.declare(&mut inventory, i),
            }
        }
        inventory.vector("model.norm.weight", info.hidden);
        if info.tied {
            inventory.optional("lm_head", info.vocab, info.hidden);
        } else {
            inventory.matrix("lm_head", info.vocab, info.hidden);
        }
        if let Self::Glm4MoeLite(m) = self {
            m.declare_mtp(&mut inventory);
        }
        inventory
    }

    /// Layer `i`'s weights.
    pub(crate) fn layer<B: Backend>(&self, loader: &Loader<B>, i: usize) -> Result<Layer<B>> {
        match self {
            Self::Llama(m) => m.layer(loader, i),
            Self::Qwen3(m) => m.layer(loader, i),
            Self::Qwen2Moe(m) => m.layer(loader, i),
            Self::Qwen3Moe(m) => m.layer(loader, i),
            Self::Glm4MoeLite(m) => m.layer(loader, i),
        }
    }
}
