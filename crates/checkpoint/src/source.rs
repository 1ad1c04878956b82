//! Where tensors come from: files, the program itself, or a formula.

use crate::{Bytes, DType, Error, Result};

/// What is known of a tensor without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in the checkpoint.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Stored bytes.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.elements())
    }
}

/// A stored tensor: row-major little-endian elements (or blocks of them), with no alignment promised.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name, type and shape.
    pub info: TensorInfo,
    /// `info.bytes()` bytes.
    pub data: Bytes,
}

impl Tensor {
    /// The tensor, provided it has this shape.
    pub fn expect_shape(self, shape: &[usize]) -> Result<Self> {
        if self.info.shape == shape {
            return Ok(self);
        }
        Err(Error::Shape { name: self.info.name, expected: shape.to_vec(), found: self.info.shape })
    }

    /// The same elements in another shape with as many.
    pub fn reshape(mut self, shape: Vec<usize>) -> Result<Self> {
        if shape.iter().product::<usize>() != self.info.elements() {
            return Err(Error::Shape { name: self.info.name, expected: shape, found: self.info.shape });
        }
        self.info.shape = shape;
        Ok(self)
    }

    /// Slice `index` along the first dimension, which is removed: expert `index` of a stacked tensor.
    pub fn index(&self, index: usize) -> Result<Self> {
        let mut slice = self.rows(index..index.saturating_add(1))?;
        slice.info.shape.remove(0);
        Ok(slice)
    }

    /// Rows `rows` of the first dimension.
    pub fn rows(&self, rows: std::ops::Range<usize>) -> Result<Self> {
        let outside = || {
            let why = format!("has shape {:?}, so no part {rows:?} of its first dimension", self.info.shape);
            Error::invalid(format!("tensor {:?}", self.info.name), why)
        };
        let (&count, rest) = self.info.shape.split_first().ok_or_else(outside)?;
        if rows.start > rows.end || rows.end > count {
            return Err(outside());
        }
        let (each, block) = (rest.iter().product::<usize>(), self.info.dtype.block());
        let [first, end] = [rows.start * each, rows.end * each];
        if !first.is_multiple_of(block) || !end.is_multiple_of(block) {
            let why = format!("part {rows:?} of shape {:?} is no whole blocks of {block}", self.info.shape);
            return Err(Error::invalid(format!("tensor {:?}", self.info.name), why));
        }
        let data = self.data.slice(self.info.dtype.bytes(first)..self.info.dtype.bytes(end)).ok_or_else(outside)?;
        let mut info = self.info.clone();
        info.shape[0] = rows.len();
        Ok(Self { info, data })
    }

    /// All values as f32 (f64 is rounded).
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        let found = self.info.dtype;
        crate::weight::floats_to_f32(found, &self.data).ok_or_else(|| Error::DType {
            name: self.info.name.clone(),
            expected: "F64, F32, F16 or BF16",
            found,
        })
    }
}

/// A set of named tensors.
pub trait TensorSource: Send + Sync {
    /// Every tensor, in the order of the source.
    fn tensors(&self) -> &[TensorInfo];

    /// The tensor called `name`; [`Error::MissingTensor`] if there is none.
    fn tensor(&self, name: &str) -> Result<Tensor>;

    /// What is known of the tensor called `name` without making its data; [`Error::MissingTensor`] if there is none.
    fn info(&self, name: &str) -> Result<TensorInfo> {
        Ok(self.tensor(name)?.info)
    }

    /// Whether a tensor is called `name`.
    fn contains(&self, name: &str) -> bool;

    /// What to call the source in an error message: a path or a name.
    fn describe(&self) -> String;
}
