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
    /// Whether the first two of three dimensions count as one.
    merged: bool,
}

impl Part {
    /// Tensors `{base}{suffix}`.
    pub fn new(source: Arc<dyn TensorSource>, base: impl Into<String>) -> Self {
        Self { source, base: base.into(), index: None, merged: false }
    }

    /// Slice `index` along the first dimension of each tensor.
    pub fn at(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    /// Tensors of three dimensions become matrices: the first two dimensions count as one.
    pub fn merged(self) -> Self {
        Self { merged: true, ..self }
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

    /// The tensor with this suffix, or the module's slice of it.
    pub fn tensor(&self, suffix: &str) -> Result<Tensor> {
        let tensor = self.source.tensor(&self.name(suffix))?;
        let tensor = match self.index {
            None => tensor,
            Some(index) => tensor.index(index)?,
        };
        let shape = self.shape(&tensor.info.shape);
        tensor.reshape(shape)
    }

    /// The tensor with this suffix as the file has it, whatever slice of other tensors the module is.
    pub fn whole(&self, suffix: &str) -> Result<Tensor> {
        self.source.tensor(&self.name(suffix))
    }

    /// Name, type and shape of the tensor with this suffix, or of the module's slice of it; no data is made.
    pub fn info(&self, suffix: &str) -> Result<TensorInfo> {
        let mut info = self.source.info(&self.name(suffix))?;
        if let Some(index) = self.index {
            if info.shape.first().is_none_or(|&count| index >= count) {
                return Err(self.wrong(
                    suffix,
                    format!(
                        "has shape {:?}, so no part {index}..{} of its first dimension",
                        info.shape,
                        index.saturating_add(1)
                    ),
                ));
            }
            info.shape.remove(0);
        }
        info.shape = self.shape(&info.shape);
        Ok(info)
    }

    fn shape(&self, shape: &[usize]) -> Vec<usize> {
        match shape {
            &[first, second, third] if self.merged => vec![first.saturating_mul(second), third],
            _ => shape.to_vec(),
        }
    }

    /// An error about the tensor with this suffix.
    pub fn wrong(&self, suffix: &str, why: impl std::fmt::Display) -> Error {
        Error::invalid(format!("tensor {:?}", self.name(suffix)), why)
    }
}
