//! Modules of a safetensors checkpoint with the names of transformers.

use std::sync::Arc;

use super::schemes::SCHEMES;
use super::{Found, LatentProjection, LatentSizes, Modules, Part, Stored};
use crate::{Config, Dense, Error, Linear, Result, Tensor, TensorSource, Weight};

/// Modules over named tensors. How each is stored is decided by which of its tensors are there.
pub struct HuggingFace {
    source: Arc<dyn TensorSource>,
    config: Config,
}

/// Saved by old versions of transformers; computed from the configuration instead.
const DERIVED: &str = "rotary_emb.inv_freq";

impl HuggingFace {
    /// The modules in `source`, as `config` describes them.
    pub fn new(source: Arc<dyn TensorSource>, config: Config) -> Self {
        Self { source, config }
    }

    fn part(&self, base: impl Into<String>) -> Part {
        Part::new(self.source.clone(), base)
    }

    /// The module in `part` as some scheme stores it.
    fn look(&self, part: &Part, features: [usize; 2]) -> Result<Option<Found>> {
        for scheme in SCHEMES {
            if let Some(found) = scheme(part, features, &self.config)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// One of transformers' stacked experts: `{experts}.gate_up_proj` `[experts, 2 x intermediate, hidden]`, rows of gate,
    /// then of up, and `{experts}.down_proj` `[experts, hidden, intermediate]`.
    fn stacked(&self, module: &str, features: [usize; 2]) -> Result<Option<Found>> {
        let Some((prefix, e, part)) = expert(module) else { return Ok(None) };
        let (name, half) = match part {
            "gate_proj" => ("gate_up_proj", Some(0)),
            "up_proj" => ("gate_up_proj", Some(1)),
            _ => ("down_proj", None),
        };
        let stack = format!("{prefix}.{name}");
        if !self.source.contains(&stack) {
            return Ok(None);
        }
        let tensor = self.source.tensor(&stack)?;
        let [rows, cols] = features;
        let each = [if half.is_some() { 2 * rows } else { rows }, cols];
        let mut whole = vec![tensor.info.shape.first().copied().unwrap_or(0)];
        whole.extend(each);
        let tensor = tensor.expect_shape(&whole)?.index(e)?;
        let mut tensor = match half {
            Some(half) => tensor.rows(half * rows..(half + 1) * rows)?,
            None => tensor,
        };
        if !tensor.info.dtype.is_float() {
            return Err(Error::DType { name: stack, expected: "BF16, F16, F32 or F64", found: tensor.info.dtype });
        }
        tensor.info.name = module.to_owned();
        let stored = Stored {
            scheme: "dense",
            detail: tensor.info.dtype.name().to_lowercase(),
            bits: 8 * tensor.info.dtype.size() as u32,
            group: None,
            features: features.to_vec(),
            bytes: tensor.info.bytes() as u64,
            tensors: vec![stack],
        };
        let name = module.to_owned();
        Ok(Some(Found::new(stored, move || Ok(Linear::new(&name, Weight::Dense(Dense::new(tensor.clone())?), None)))))
    }
}

/// The parts of an expert's name: `{prefix}.{e}.{part}`, where the prefix ends with `.experts`.
pub(crate) fn expert(module: &str) -> Option<(&str, usize, &str)> {
    let (rest, part) = module.rsplit_once('.')?;
    let (prefix, e) = rest.rsplit_once('.')?;
    Some((prefix, e.parse().ok().filter(|_| prefix.ends_with(".experts"))?, part))
}

impl Modules for HuggingFace {
    fn linear(&self, module: &str, features: [usize; 2]) -> Result<Found> {
        if let Some(found) = self.look(&self.part(module), features)? {
            return Ok(found);
        }
        if let Some(found) = self.stacked(module, features)? {
            return Ok(found);
        }
        Err(Error::MissingTensor { name: format!("{module}.weight"), within: self.source.describe() })
    }

    fn latent(&self, module: &str, sizes: LatentSizes) -> Result<LatentProjection<Found>> {
        let LatentSizes { heads, nope, value, rank } = sizes;
        Ok(LatentProjection::Whole(self.linear(module, [heads * (nope + value), rank])?))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Found<Tensor>> {
        let tensor = self.source.tensor(name)?.expect_shape(&[len])?;
        if !tensor.info.dtype.is_float() {
            let expected = "BF16, F16, F32 or F64";
            return Err(Error::DType { name: name.to_owned(), expected, found: tensor.info.dtype });
        }
        let stored = Stored {
            scheme: "dense",
            detail: tensor.info.dtype.name().to_lowercase(),
            bits: 8 * tensor.info.dtype.size() as u32,
            group: None,
            features: vec![len],
            bytes: tensor.info.bytes() as u64,
            tensors: vec![name.to_owned()],
        };
        Ok(Found::new(stored, move || Ok(tensor.clone())))
    }

    fn ignores(&self, tensor: &str) -> bool {
        tensor.ends_with(DERIVED)
    }
}
