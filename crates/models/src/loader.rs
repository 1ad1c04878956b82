//! From modules in a checkpoint to weights in a backend.

use crate::{Error, Inventory, Result};
use marlin_backend::blocks::Norm;
use marlin_backend::{Backend, Expert};
use marlin_checkpoint::{Found, LatentProjection, Linear, Modules};

/// Loads modules by name.
pub struct Loader<'a, B: Backend> {
    /// Where weights go.
    pub backend: &'a B,
    /// Where they come from.
    pub modules: &'a dyn Modules,
    /// What they are.
    pub inventory: &'a Inventory,
    /// Called with the bytes of every module taken.
    pub taken: &'a dyn Fn(u64),
}

impl<B: Backend> Loader<'_, B> {
    fn undeclared(module: &str) -> Error {
        Error::Tensors { checkpoint: module.to_owned(), why: "the architecture does not declare this module".into() }
    }

    /// The values of a vector, refused if one is not finite. (Backends look at matrices themselves, in parallel.)
    fn finite(&self, name: &str) -> Result<Vec<f32>> {
        let len = self.inventory.length(name).ok_or_else(|| Self::undeclared(name))?;
        let found = self.modules.vector(name, len)?;
        let values = found.build()?.to_f32()?;
        (self.taken)(found.stored.bytes);
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(index) => {
                Err(marlin_backend::Error::NotFinite { name: name.to_owned(), index, value: values[index] }.into())
            }
        }
    }

    fn found(&self, module: &str, found: &Found) -> Result<Linear> {
        let mut linear = found.build()?;
        module.clone_into(&mut linear.name);
        Ok(linear)
    }

    fn describe(&self, module: &str, bias: bool) -> Result<(Found, Linear)> {
        let features = self.inventory.features(module).ok_or_else(|| Self::undeclared(module))?;
        let found = self.modules.linear(module, features)?;
        let mut linear = self.found(module, &found)?;
        if bias {
            linear.bias = Some(self.finite(&format!("{module}.bias"))?);
        }
        Ok((found, linear))
    }

    /// The linear `module`, with `{module}.bias` if `bias`.
    pub fn linear(&self, module: &str, bias: bool) -> Result<B::Linear> {
        let (found, linear) = self.describe(module, bias)?;
        let loaded = self.backend.linear(linear)?;
        (self.taken)(found.stored.bytes);
        Ok(loaded)
    }

    /// The latent projection `module`.
    pub fn latent(&self, module: &str) -> Result<LatentProjection<B::Linear>> {
        let sizes = self.inventory.sizes(module).ok_or_else(|| Self::undeclared(module))?;
        let found = self.modules.latent(module, sizes)?;
        let load = |found: &Found| {
            let loaded = self.backend.linear(self.found(module, found)?)?;
            (self.taken)(found.stored.bytes);
            Ok(loaded)
        };
        found.as_ref().map(load).transpose()
    }

    /// A vector; `name` is whole.
    pub fn vector(&self, name: &str) -> Result<B::Vector> {
        Ok(self.backend.vector(self.finite(name)?)?)
    }

    /// The norm `{module}.weight`.
    pub fn norm(&self, module: &str, eps: f32) -> Result<Norm<B>> {
        Ok(Norm { weight: self.vector(&format!("{module}.weight"))?, eps })
    }

    /// `count` experts under `prefix`.
    pub fn experts(&self, prefix: &str, count: usize) -> Result<B::Experts> {
        let mut bytes = 0;
        let mut linear = |e: usize, part: &str| -> Result<Linear> {
            let (found, linear) = self.describe(&format!("{prefix}.{e}.{part}_proj"), false)?;
            bytes += found.stored.bytes;
            Ok(linear)
        };
        let mut expert = |e| Ok(Expert { gate: linear(e, "gate")?, up: linear(e, "up")?, down: linear(e, "down")? });
        let experts = (0..count).map(&mut expert).collect::<Result<Vec<_>>>()?;
        let loaded = self.backend.experts(experts)?;
        (self.taken)(bytes);
        Ok(loaded)
    }
}
