//! Models that nobody has to download: published sizes, made-up weights, in any scheme.

use crate::error::{Failure, Result};
use marlin_checkpoint::{Checkpoint, Config, Folder, Synthetic, TensorInfo, TensorSource, scheme_checkpoint};
use marlin_models::{Architecture, published};
use std::sync::Arc;

/// `NAME[@SCHEME][:layers=N]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// A published model.
    pub name: String,
    /// How its weights are stored; bf16 if not said.
    pub scheme: Option<String>,
    /// Its first layers only.
    pub layers: Option<usize>,
}

impl Model {
    /// What the value of an option called `option` means.
    pub fn parse(option: &str, text: &str) -> Result<Self> {
        let wrong = || {
            let expected = "NAME, NAME@SCHEME, NAME:layers=N or NAME@SCHEME:layers=N, such as qwen3-8b@exl3-3:layers=4";
            Failure::text(format!("{option}: expected {expected}; found {text:?}"))
        };
        let (model, layers) = match text.split_once(':') {
            None => (text, None),
            Some((model, rest)) => {
                let layers = rest.strip_prefix("layers=").and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                (model, Some(layers.ok_or_else(wrong)?))
            }
        };
        let (name, scheme) = match model.split_once('@') {
            None => (model, None),
            Some((name, scheme)) => (name, Some(scheme)),
        };
        if name.is_empty() || scheme == Some("") {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), scheme: scheme.map(str::to_owned), layers })
    }

    /// Its configuration and the parameters that it asks for.
    pub fn plain(&self) -> Result<(Config, Vec<TensorInfo>)> {
        let config = published(&self.name, self.layers)?;
        let tensors = Architecture::parse(&config)?.inventory().required().to_vec();
        Ok((config, tensors))
    }

    /// Pseudo-random weights in the scheme, and the configuration that says so.
    pub fn random(&self, seed: u64) -> Result<(Config, Arc<dyn TensorSource>)> {
        let (config, tensors) = self.plain()?;
        Ok(match &self.scheme {
            None => (config, Arc::new(Synthetic::random(tensors, seed))),
            Some(scheme) => scheme_checkpoint(config, &tensors, scheme, seed)?,
        })
    }

    /// The same as a checkpoint, named as it was asked for.
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        let (config, store) = self.random(0)?;
        let folder = Folder::Embedded { name: "synthetic", files: &[] };
        let scheme = self.scheme.as_ref().map(|s| format!("@{s}")).unwrap_or_default();
        let layers = self.layers.map(|n| format!(":layers={n}")).unwrap_or_default();
        let name = format!("{}{scheme}{layers} (random weights)", self.name);
        Ok(Checkpoint::from_parts(name, config, store, folder)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_three_parts() {
        let parse = |text: &str| {
            let m = Model::parse("--synthetic", text).unwrap();
            (m.name, m.scheme.unwrap_or_default(), m.layers.unwrap_or_default())
        };
        assert_eq!(parse("qwen3-8b"), ("qwen3-8b".into(), "".into(), 0));
        assert_eq!(parse("qwen3-8b@exl3-3"), ("qwen3-8b".into(), "exl3-3".into(), 0));
        assert_eq!(parse("a@fp4:layers=6"), ("a".into(), "fp4".into(), 6));
        for bad in ["", "@fp4", "a@", "a:layers=0", "a:6", "a@fp4:layers=x"] {
            let error = Model::parse("--synthetic", bad).unwrap_err().to_string();
            assert!(error.starts_with("--synthetic: expected NAME") && error.ends_with(&format!("{bad:?}")), "{error}");
        }
    }
}
