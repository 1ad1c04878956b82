//! The three kinds of weight that every format on disk is read into, and the [`Linear`] around them.

mod dense;
pub mod grouped;
mod linear;
mod packed;
mod scales;
#[cfg(test)]
mod tests;
mod transform;
pub mod trellis;
pub mod values;

pub use dense::Dense;
pub use grouped::{Grouped, ValueMap, Zero};
pub use linear::Linear;
pub use packed::Packed;
pub use scales::{ScaleTree, ScaleType, Scales};
pub use transform::{InputTransform, OutputTransform, hadamard};
pub use trellis::{Codebook, Trellis};

use std::sync::Arc;

use half::{bf16, f16};

use crate::{DType, Result};

/// A matrix `[rows, cols]` = `[out_features, in_features]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// f32, f16 or bf16 elements.
    Dense(Dense),
    /// Codes of 2 to 8 bits with a factor for each group.
    Grouped(Box<Grouped>),
    /// The same as another format's file packs it.
    Packed(Arc<dyn Packed>),
    /// EXL3's windows into a bit stream.
    Trellis(Trellis),
}

impl Weight {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(w) => w.rows(),
            Self::Grouped(w) => w.rows(),
            Self::Packed(w) => w.shape()[0],
            Self::Trellis(w) => w.rows(),
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Self::Dense(w) => w.cols(),
            Self::Grouped(w) => w.cols(),
            Self::Packed(w) => w.shape()[1],
            Self::Trellis(w) => w.cols(),
        }
    }

    /// Bytes the weight takes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(w) => w.data().len(),
            Self::Grouped(w) => w.bytes(),
            Self::Packed(w) => w.bytes(),
            Self::Trellis(w) => w.words().len(),
        }
    }

    /// Values of row `row` into `out` (`cols` of them); the plain reference.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<()> {
        match self {
            Self::Dense(w) => w.dequantize_row(row, out),
            Self::Grouped(w) => w.dequantize_row(row, out),
            Self::Packed(w) => {
                let first = row - row % w.granule();
                w.unpack(first..(first + w.granule()).min(w.shape()[0]))?.dequantize_row(row - first, out);
            }
            Self::Trellis(w) => w.dequantize_row(row, out),
        }
        Ok(())
    }

    /// All values, row-major.
    pub fn dequantize(&self) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        for (row, values) in out.chunks_exact_mut(self.cols().max(1)).enumerate() {
            self.dequantize_row(row, values)?;
        }
        Ok(out)
    }

    /// Gives back the memory of the file's pages, for a reader that has copied them elsewhere.
    pub fn release(&self) {
        match self {
            Self::Dense(w) => w.data().release(),
            Self::Grouped(w) => w.release(),
            Self::Packed(w) => w.release(),
            Self::Trellis(w) => w.words().release(),
        }
    }
}

/// Little-endian floats of `dtype` as f32, or `None` if `dtype` is no float of 16 bits or more.
pub(crate) fn floats_to_f32(dtype: DType, data: &[u8]) -> Option<Vec<f32>> {
    fn each<const N: usize>(data: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
        data.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
    }
    Some(match dtype {
        DType::F64 => each::<8>(data, |b| f64::from_le_bytes(b) as f32),
        DType::F32 => each::<4>(data, f32::from_le_bytes),
        DType::F16 => each::<2>(data, |b| f16::from_le_bytes(b).to_f32()),
        DType::BF16 => each::<2>(data, |b| bf16::from_le_bytes(b).to_f32()),
        _ => return None,
    })
}
