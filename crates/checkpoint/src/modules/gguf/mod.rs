//! Modules of a GGUF file.

mod blocks;
mod config;
mod files;
mod names;
mod pre_tokenizer;
mod rows;
#[cfg(test)]
mod tests;
mod tokenizer;
mod vocabulary;

use std::sync::Arc;

pub(crate) use config::config;
pub(crate) use files::GgufFolder;

use super::{Found, LatentProjection, LatentSizes, Modules, Stored};
use crate::container::gguf::GgufFile;
use crate::{Config, Dense, Error, Linear, Result, Tensor, TensorSource, Weight};
use blocks::Blocks;
use rows::HeadOrder;

/// Tensors of a GGUF file by the names of transformers.
pub struct Gguf {
    source: Arc<dyn TensorSource>,
    /// Size of a head, if rows of query and key are in Llama's order.
    paired: Option<usize>,
    /// Layers that are computed with.
    layers: usize,
}

impl Gguf {
    /// The modules in `file`, whose configuration (made from its metadata) is `config`.
    pub fn new(file: &GgufFile, config: &Config) -> Result<Self> {
        let llama = file.metadata.text(config::ARCHITECTURE)? == Some("llama");
        let paired = if llama { Some(config.usize("head_dim")?) } else { None };
        if paired.is_some_and(|head| head == 0 || !head.is_multiple_of(2)) {
            return Err(config.wrong("head_dim", "an even number"));
        }
        Ok(Self { source: file.store.clone(), paired, layers: config.usize_or("num_hidden_layers", usize::MAX)? })
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor { name: name.to_owned(), within: self.source.describe() }
    }

    /// The order of the rows of `module`.
    fn order(&self, module: &str) -> HeadOrder {
        let rotated = module.ends_with(".self_attn.q_proj") || module.ends_with(".self_attn.k_proj");
        self.paired.filter(|_| rotated).map_or(HeadOrder::Plain, |head| HeadOrder::Paired { head })
    }

    /// The linear whose matrix is `tensor`: of this shape, or the same elements with more dimensions.
    fn matrix(&self, module: &str, mut tensor: Tensor, features: [usize; 2]) -> Result<Found> {
        let (name, dtype, order) = (tensor.info.name.clone(), tensor.info.dtype, self.order(module));
        order.check(&name, features[0])?;
        let blocks = blocks::codes_of(dtype);
        if blocks.is_none() && !dtype.is_float() {
            return Err(Error::DType { name, expected: "floats or blocks", found: dtype });
        }
        tensor.info.shape = features.to_vec();
        let (bits, group) = blocks.map_or((8 * dtype.size() as u32, None), |(bits, group)| (bits, Some(group)));
        let stored = Stored {
            scheme: if blocks.is_some() { "gguf" } else { "dense" },
            detail: dtype.name().to_lowercase(),
            bits,
            group,
            features: features.to_vec(),
            bytes: tensor.info.bytes() as u64,
            tensors: vec![name],
        };
        let module = module.to_owned();
        Ok(Found::new(stored, move || {
            let weight = match group {
                Some(_) => Weight::Packed(Arc::new(Blocks::new(tensor.clone(), features, order)?)),
                None => Weight::Dense(Dense::new(order.reordered(tensor.clone())?)?),
            };
            Ok(Linear::new(&module, weight, None))
        }))
    }

    /// The matrix of one expert of a stack.
    fn expert(&self, module: &str, place: &names::ExpertPlace, features: [usize; 2]) -> Result<Found> {
        let fused = place.fused.as_ref().filter(|(name, _)| self.source.contains(name));
        let [rows, cols] = features;
        let (stack, each) = match fused {
            Some((name, _)) => (name, 2 * rows),
            None => (&place.stack, rows),
        };
        let tensor = self.source.tensor(stack)?;
        let whole = [tensor.info.shape.first().copied().unwrap_or(0), each, cols];
        let mut tensor = tensor.expect_shape(&whole)?.index(place.expert)?;
        if let Some((_, half)) = fused {
            tensor = tensor.rows(half * rows..(half + 1) * rows)?;
        }
        self.matrix(module, tensor, features)
    }

    /// The tensor `name` if its shape is one of `shapes`; the error names the first.
    fn shaped(&self, name: &str, shapes: &[&[usize]]) -> Result<Tensor> {
        let tensor = self.source.tensor(name)?;
        match shapes.iter().any(|shape| tensor.info.shape == *shape) {
            true => Ok(tensor),
            false => tensor.expect_shape(shapes[0]),
        }
    }
}

impl Modules for Gguf {
    fn linear(&self, module: &str, features: [usize; 2]) -> Result<Found> {
        if let Some(place) = names::expert(module) {
            return self.expert(module, &place, features);
        }
        let name = names::module(module).ok_or_else(|| self.missing(module))? + ".weight";
        // One output is stored as a vector.
        let vector = [features[1]];
        let shapes: &[&[usize]] = if features[0] == 1 { &[&features, &vector] } else { &[&features] };
        let tensor = self.shaped(&name, shapes)?;
        self.matrix(module, tensor, features)
    }

    fn latent(&self, module: &str, sizes: LatentSizes) -> Result<LatentProjection<Found>> {
        let LatentSizes { heads, nope, value, rank } = sizes;
        let whole = names::module(module).ok_or_else(|| self.missing(module))?;
        let base = whole.strip_suffix("attn_kv_b").unwrap_or(&whole);
        let part = |name: &str, [rows, cols]: [usize; 2]| {
            let tensor = self.shaped(&format!("{base}{name}"), &[&[heads, rows, cols], &[heads * rows, cols]])?;
            self.matrix(module, tensor, [heads * rows, cols])
        };
        if !self.source.contains(&format!("{base}attn_k_b.weight")) && self.source.contains(&format!("{whole}.weight"))
        {
            return Ok(LatentProjection::Whole(self.linear(module, [heads * (nope + value), rank])?));
        }
        Ok(LatentProjection::Split {
            k: part("attn_k_b.weight", [rank, nope])?,
            v: part("attn_v_b.weight", [value, rank])?,
        })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Found<Tensor>> {
        let stored_name = names::vector(name).ok_or_else(|| self.missing(name))?;
        let tensor = self.source.tensor(&stored_name)?.expect_shape(&[len])?;
        let dtype = tensor.info.dtype;
        if !dtype.is_float() {
            return Err(Error::DType { name: stored_name, expected: "floats", found: dtype });
        }
        let order = self.order(name.strip_suffix(".bias").unwrap_or(""));
        order.check(&stored_name, len)?;
        let stored = Stored {
            scheme: "dense",
            detail: dtype.name().to_lowercase(),
            bits: 8 * dtype.size() as u32,
            group: None,
            features: vec![len],
            bytes: tensor.info.bytes() as u64,
            tensors: vec![stored_name],
        };
        Ok(Found::new(stored, move || order.reordered(tensor.clone())))
    }

    fn ignores(&self, tensor: &str) -> bool {
        // Frequencies are in the configuration; a projection that is there whole and in two is used in two.
        let frequencies = tensor.starts_with("rope_freqs.") || tensor.ends_with(".attn_rot_embd");
        let twice = || {
            tensor
                .strip_suffix("attn_kv_b.weight")
                .is_some_and(|b| self.source.contains(&format!("{b}attn_k_b.weight")))
        };
        frequencies || names::layer_of(tensor).is_some_and(|i| i >= self.layers) || twice()
    }
}
