//! What every quantiser is: weights and their Hessian in, tensors of a checkpoint out.

use crate::{Compute, Hessian, Matrix, Result};
use marlin_checkpoint::DType;

/// A tensor to be written, row-major and little-endian.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// What follows the module's name and a dot: `trellis`, `qweight`, ...
    pub suffix: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Vec<u8>,
}

/// One linear, quantised.
#[derive(Clone, Debug)]
pub struct Quantised {
    /// Its tensors, as its format stores them.
    pub tensors: Vec<Written>,
    /// What a reader of the format multiplies with: the decoded weight `[out, in]` in the original space, rotations and
    /// scales undone.
    pub decoded: Matrix,
}

impl Quantised {
    /// Stored bits.
    pub fn bits(&self) -> u64 {
        self.tensors.iter().map(|t| 8 * t.data.len() as u64).sum()
    }
}

/// A way to quantise a linear, with its settings (bits, group, ...) fixed.
pub trait Method: Send + Sync {
    /// The field's name for it, with its settings: `exl3 3 bits mul1`.
    fn name(&self) -> String;

    /// Quantises `weight` `[out, in]`. `module` names it in errors. Without a Hessian all inputs count alike.
    fn quantise(
        &self,
        compute: &dyn Compute,
        module: &str,
        weight: &Matrix,
        hessian: Option<&Hessian>,
    ) -> Result<Quantised>;
}
