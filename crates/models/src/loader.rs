//! From tensors in a checkpoint to weights in a backend.

use crate::Result;
use marlin_backend::blocks::Norm;
use marlin_backend::{Backend, Expert};
use marlin_checkpoint::{Dense, Linear, Tensor, TensorSource, Weight};

/// Loads modules by name.
pub struct Loader<'a, B: Backend> {
    /// Where weights go.
    pub backend: &'a B,
    /// Where they come from.
    pub source: &'a dyn TensorSource,
    /// Called with the bytes of every tensor taken.
    pub taken: &'a dyn Fn(usize),
}

impl<B: Backend> Loader<'_, B> {
    fn tensor(&self, name: &str) -> Result<Tensor> {
        Ok(self.source.tensor(name)?)
    }

    /// The values of a vector, refused if one is not finite. (Backends look at matrices themselves, in parallel.)
    fn finite(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.tensor(name)?;
        (self.taken)(tensor.info.bytes());
        let values = tensor.to_f32()?;
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(index) => {
                Err(marlin_backend::Error::NotFinite { name: name.to_owned(), index, value: values[index] }.into())
            }
        }
    }

    fn plain(&self, module: &str, tensor: Tensor, bias: Option<Vec<f32>>) -> Result<Linear> {
        (self.taken)(tensor.info.bytes());
        let weight = Weight::Dense(Dense::new(tensor)?);
        Ok(Linear::new(module, weight, bias))
    }

    /// The linear `{module}.weight`, with `{module}.bias` if `bias`.
    pub fn linear(&self, module: &str, bias: bool) -> Result<B::Linear> {
        let weight = self.tensor(&format!("{module}.weight"))?;
        let bias = bias.then(|| self.finite(&format!("{module}.bias"))).transpose()?;
        Ok(self.backend.linear(self.plain(module, weight, bias)?)?)
    }

    /// A vector; `name` is whole.
    pub fn vector(&self, name: &str) -> Result<B::Vector> {
        Ok(self.backend.vector(self.finite(name)?)?)
    }

    /// The norm `{module}.weight`.
    pub fn norm(&self, module: &str, eps: f32) -> Result<Norm<B>> {
        Ok(Norm { weight: self.vector(&format!("{module}.weight"))?, eps })
    }

    /// `count` experts under `prefix`, stored one by one or stacked.
    pub fn experts(&self, prefix: &str, count: usize) -> Result<B::Experts> {
        let expert = |e: usize| {
            let parts = marlin_checkpoint::expert(self.source, prefix, e)?;
            let linear = |part: &str, tensor| self.plain(&format!("{prefix}.{e}.{part}_proj"), tensor, None);
            Ok(Expert {
                gate: linear("gate", parts.gate)?,
                up: linear("up", parts.up)?,
                down: linear("down", parts.down)?,
            })
        };
        let experts = (0..count).map(expert).collect::<Result<Vec<_>>>()?;
        Ok(self.backend.experts(experts)?)
    }
}
