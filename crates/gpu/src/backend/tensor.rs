//! Activations, and sums of two that are not yet computed.

use super::GpuBackend;
use super::halves::Products;
use crate::kernels::{Add, CountArgs, RmsNorm, RmsNormArgs};
use crate::{Result, Slice};
use std::sync::{Arc, OnceLock};

/// Activations on the device.
#[derive(Clone)]
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// The values, or the first of two terms.
    pub(super) data: Slice<f32>,
    /// The second term, while nobody has asked for the sum: a norm that comes next adds it on the way.
    pub(super) addend: Option<Arc<Addend>>,
}

/// A term that is still to be added, and the sum as soon as it exists.
pub(super) struct Addend {
    pub second: Second,
    pub sum: OnceLock<Slice<f32>>,
}

/// The second term of a sum.
pub(super) enum Second {
    Values(Slice<f32>),
    /// Still to be finished.
    Products(Products),
}

impl Tensor {
    /// Values that are there, `[rows, cols]`.
    pub(super) fn of(rows: usize, cols: usize, data: Slice<f32>) -> Self {
        Self { rows, cols, data, addend: None }
    }

    /// The sum of this, which has no addend, and a term of the same shape, once somebody wants it.
    pub(super) fn plus(self, second: Second) -> Self {
        let addend = Addend { second, sum: OnceLock::new() };
        Self { addend: Some(Arc::new(addend)), ..self }
    }
}

impl GpuBackend {
    /// `x` with its addend added.
    pub(super) fn settled(&self, x: &Tensor) -> Result<Tensor> {
        let Some(addend) = &x.addend else { return Ok(x.clone()) };
        let sum = match addend.sum.get() {
            Some(sum) => sum.clone(),
            None => {
                let (y, groups) = self.each(x.rows, x.cols)?;
                let args = CountArgs { count: (x.rows * x.cols) as u32 };
                Add {}.launch(&self.gpu, groups, &x.data, &self.term(&addend.second)?, &y.data, &args)?;
                addend.sum.get_or_init(|| y.data).clone()
            }
        };
        Ok(Tensor::of(x.rows, x.cols, sum))
    }

    /// A term's values.
    fn term(&self, second: &Second) -> Result<Slice<f32>> {
        match second {
            Second::Values(values) => Ok(values.clone()),
            Second::Products(products) => self.finished(products),
        }
    }

    /// RMS norm of every group of `width` columns; an addend of `x` is added by the same kernel if groups are rows.
    pub(super) fn normed(&self, x: &Tensor, weight: &Slice<f32>, width: usize, eps: f32) -> Result<Tensor> {
        let y = self.uninitialised(x.rows, x.cols)?;
        let args = RmsNormArgs { width: width as u32, eps };
        let groups = [(x.rows * (x.cols / width)) as u32, 1, 1];
        match &x.addend {
            Some(addend) if width == x.cols && addend.sum.get().is_none() => {
                let sum = self.gpu.uninitialised(x.rows * x.cols)?;
                let kernel = RmsNorm::of(width, true);
                let second = self.term(&addend.second)?;
                kernel.launch(&self.gpu, groups, &x.data, &second, weight, &sum, &y.data, &args)?;
                addend.sum.get_or_init(|| sum);
            }
            _ => {
                let x = self.settled(x)?;
                let unused = self.gpu.uninitialised(1)?;
                let kernel = RmsNorm::of(width, false);
                kernel.launch(&self.gpu, groups, &x.data, &self.none, weight, &unused, &y.data, &args)?;
            }
        }
        Ok(y)
    }
}
