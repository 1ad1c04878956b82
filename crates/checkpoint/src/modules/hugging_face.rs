//! Modules of a safetensors checkpoint with the names of transformers.

use std::sync::Arc;

use super::schemes::{SCHEMES, gpt_oss, mmfp4, only_activations};
use super::{Found, LatentProjection, LatentSizes, Modules, Part, Stored};
use crate::{Config, DType, Dense, Error, Linear, Result, Tensor, TensorSource, Weight};

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
            if let Some(mut found) = scheme(part, features, &self.config)? {
                self.claim_zeros(part, features[0], &mut found.stored)?;
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Quantisers write a bias of zeros where a model has none; it belongs to the module then and changes nothing.
    fn claim_zeros(&self, part: &Part, rows: usize, stored: &mut Stored) -> Result<()> {
        const BIAS: &str = ".bias";
        if stored.scheme == "dense" || !part.has(BIAS) || part.info(BIAS)?.shape != [rows] {
            return Ok(());
        }
        let tensor = part.tensor(BIAS)?;
        if tensor.info.dtype.is_float() && tensor.to_f32()?.iter().all(|b| *b == 0.0) {
            stored.tensors.push(part.name(BIAS));
        }
        Ok(())
    }

    /// A routed expert's matrix that is a slice of a stack.
    fn expert(&self, module: &str, features: [usize; 2]) -> Result<Option<Found>> {
        let Some((experts, e, matrix)) = expert(module) else { return Ok(None) };
        // MLX names the stack of all experts' matrices.
        let mlp = experts.strip_suffix("experts").unwrap_or(experts);
        if let Some(found) = self.look(&self.part(format!("{mlp}switch_mlp.{matrix}")).at(e), features)? {
            return Ok(Some(found));
        }
        match gpt_oss::find(&self.part(experts).at(e), matrix, features)? {
            Some(found) => Ok(Some(found)),
            None => self.stacked(experts, e, matrix, features),
        }
    }

    /// One of transformers' stacked experts: `{experts}.gate_up_proj` `[experts, 2 x intermediate, hidden]`, rows of gate,
    /// then of up, and `{experts}.down_proj` `[experts, hidden, intermediate]`.
    fn stacked(&self, experts: &str, e: usize, matrix: &str, features: [usize; 2]) -> Result<Option<Found>> {
        let (suffix, half) = match matrix {
            "gate_proj" => (".gate_up_proj", Some(0)),
            "up_proj" => (".gate_up_proj", Some(1)),
            _ => (".down_proj", None),
        };
        let part = self.part(experts).at(e);
        if !part.has(suffix) {
            return Ok(None);
        }
        let stack = part.name(suffix);
        let whole = self.source.info(&stack)?;
        if whole.dtype == DType::U32 {
            return mmfp4::stacked(&part, suffix, features, half);
        }
        let [rows, cols] = features;
        let tall = if half.is_some() { 2 * rows } else { rows };
        let expected = vec![whole.shape.first().copied().unwrap_or(0), tall, cols];
        if whole.shape != expected {
            return Err(Error::Shape { name: stack, expected, found: whole.shape });
        }
        part.info(suffix)?;
        if !whole.dtype.is_float() {
            return Err(Error::DType { name: stack, expected: "BF16, F16, F32 or F64", found: whole.dtype });
        }
        let stored = Stored::dense(whole.dtype, &features, stack);
        let name = format!("{experts}.{e}.{matrix}");
        Ok(Some(Found::new(stored, move || {
            let tensor = part.tensor(suffix)?;
            let mut tensor = match half {
                Some(half) => tensor.rows(half * rows..(half + 1) * rows)?,
                None => tensor,
            };
            tensor.info.name.clone_from(&name);
            Ok(Linear::new(&name, Weight::Dense(Dense::new(tensor)?), None))
        })))
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
        if let Some(found) = self.expert(module, features)? {
            return Ok(found);
        }
        Err(Error::MissingTensor { name: format!("{module}.weight"), within: self.source.describe() })
    }

    fn latent(&self, module: &str, sizes: LatentSizes) -> Result<LatentProjection<Found>> {
        let LatentSizes { heads, nope, value, rank } = sizes;
        // MLX has cut the projection in two: `embed_q` [heads, rank, nope] and `unembed_out` [heads, value, rank].
        let attention = module.strip_suffix("kv_b_proj").unwrap_or(module);
        let part = |name: &str| self.part(format!("{attention}{name}")).merged();
        if let Some(k) = self.look(&part("embed_q"), [heads * rank, nope])? {
            let v = self.look(&part("unembed_out"), [heads * value, rank])?;
            let name = format!("{attention}unembed_out.weight");
            let v =
                v.ok_or_else(|| Error::invalid(format!("tensor {name:?}"), "expected beside embed_q, found nothing"))?;
            return Ok(LatentProjection::Split { k, v });
        }
        Ok(LatentProjection::Whole(self.linear(module, [heads * (nope + value), rank])?))
    }

    fn vector(&self, name: &str, len: usize) -> Result<Found<Tensor>> {
        let tensor = self.source.tensor(name)?.expect_shape(&[len])?;
        if !tensor.info.dtype.is_float() {
            let expected = "BF16, F16, F32 or F64";
            return Err(Error::DType { name: name.to_owned(), expected, found: tensor.info.dtype });
        }
        let stored = Stored::dense(tensor.info.dtype, &[len], name.to_owned());
        Ok(Found::new(stored, move || Ok(tensor.clone())))
    }

    fn ignores(&self, tensor: &str) -> bool {
        tensor.ends_with(DERIVED) || only_activations(tensor)
    }
}
