//! A model some of whose linears are quantised already.

use std::collections::BTreeMap;
use std::sync::Arc;

use marlin_checkpoint::{
    Bytes, DType, Dense, Found, LatentProjection, LatentSizes, Linear, Modules, Result, Stored, Tensor, TensorInfo,
    Weight,
};

use crate::Matrix;
use crate::files::bytes_of;

/// Modules, some of them replaced by matrices.
pub(crate) struct Overlay {
    below: Arc<dyn Modules>,
    replaced: BTreeMap<String, (TensorInfo, Bytes)>,
}

impl Overlay {
    pub(crate) fn new(below: Arc<dyn Modules>) -> Self {
        Self { below, replaced: BTreeMap::new() }
    }

    /// Puts `weight` `[out, in]` in the place of `module`'s.
    pub(crate) fn replace(&mut self, module: &str, weight: &Matrix) {
        let shape = vec![weight.rows(), weight.cols()];
        let info = TensorInfo { name: format!("{module}.weight"), dtype: DType::F32, shape };
        self.replaced.insert(module.to_owned(), (info, bytes_of(weight.data()).into()));
    }
}

impl Modules for Overlay {
    fn linear(&self, module: &str, features: [usize; 2]) -> Result<Found> {
        let Some((info, data)) = self.replaced.get(module) else { return self.below.linear(module, features) };
        let stored = Stored {
            scheme: "dense",
            detail: "f32".to_owned(),
            bits: 32,
            group: None,
            features: features.to_vec(),
            bytes: data.len() as u64,
            tensors: vec![info.name.clone()],
        };
        let (name, tensor) = (module.to_owned(), Tensor { info: info.clone(), data: data.clone() });
        Ok(Found::new(stored, move || {
            let tensor = tensor.clone().expect_shape(&features)?;
            Ok(Linear::new(&name, Weight::Dense(Dense::new(tensor)?), None))
        }))
    }

    fn latent(&self, module: &str, sizes: LatentSizes) -> Result<LatentProjection<Found>> {
        self.below.latent(module, sizes)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Found<Tensor>> {
        self.below.vector(name, len)
    }

    fn ignores(&self, tensor: &str) -> bool {
        self.below.ignores(tensor)
    }
}
