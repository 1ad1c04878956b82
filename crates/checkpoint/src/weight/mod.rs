//! The three kinds of weight that every format on disk is read into, and the [`Linear`] around them.

mod dense;

pub use dense::Dense;

use half::{bf16, f16};

use crate::DType;

/// A matrix `[rows, cols]` = `[out_features, in_features]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// f32, f16 or bf16 elements.
    Dense(Dense),
}

impl Weight {
    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            Self::Dense(w) => w.rows(),
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            Self::Dense(w) => w.cols(),
        }
    }

    /// Bytes the weight takes in memory.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(w) => w.data().len(),
        }
    }

    /// Values of row `row` into `out` (`cols` of them); the plain reference.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        match self {
            Self::Dense(w) => w.dequantize_row(row, out),
        }
    }

    /// All values, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.rows() * self.cols()];
        for (row, values) in out.chunks_exact_mut(self.cols().max(1)).enumerate() {
            self.dequantize_row(row, values);
        }
        out
    }
}

/// A linear layer: y = weight · x + bias.
#[derive(Clone, Debug)]
pub struct Linear {
    /// Name of the module in the checkpoint, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The matrix `[out_features, in_features]`.
    pub weight: Weight,
    /// Added to the output, `[out_features]`.
    pub bias: Option<Vec<f32>>,
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
