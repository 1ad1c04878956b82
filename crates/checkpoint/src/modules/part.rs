//! The tensors of one module, wherever they are: beside each other under the module's name, or slices of stacked ones.

use std::sync::Arc;

use crate::{Error, Result, Tensor, TensorInfo, TensorSource};

/// Where a module's tensors are.
#[derive(Clone)]
pub struct Part {
    source: Arc<dyn TensorSource>,
    /// What comes before the tensors' suffixes.
    base: String,
    /// The slice of each tensor's first dimension that is the module's.
    index: Option<usize>,
}

impl Part {
    /// Tensors `{base}{suffix}`.
    pub fn new(source: Arc<dyn TensorSource>, base: impl Into<String>) -> Self {
        Self { source, base: base.into(), index: None }
    }

    /// Slice `index` along the first dimension of each tensor.
    pub fn at(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    /// What comes before the suffixes.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The slice, if the module is one of a stack.
    pub fn index(&self) -> Option<usize> {
        self.index
    }

    /// A tensor's name in the file.
    pub fn name(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.base)
    }

    /// Whether there is a tensor with this suffix.
    pub fn has(&self, suffix: &str) -> bool {
        self.source.contains(&self.name(suffix))
    }

    /// The tensor with this suffix, or the module's slice of it. Its data is not read.
    pub fn tensor(&self, suffix: &str) -> Result<Tensor> {
        let tensor = self.source.tensor(&self.name(suffix))?;
        match self.index {
            None => Ok(tensor),
            Some(index) => tensor.index(index),
        }
    }

    /// Name, type and shape of the tensor with this suffix.
    pub fn info(&self, suffix: &str) -> Result<TensorInfo> {
        Ok(self.tensor(suffix)?.info)
    }

    /// An error about the tensor with this suffix.
    pub fn wrong(&self, suffix: &str, why: impl std::fmt::Display) -> Error {
        Error::invalid(format!("tensor {:?}", self.name(suffix)), why)
    }
}
