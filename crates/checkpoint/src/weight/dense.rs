//! Plain matrices, used from the mapping as they are.

use crate::{Bytes, DType, Error, Result, Tensor};

/// A row-major `[rows, cols]` matrix of f32, f16 or bf16 in little-endian bytes with no alignment promised.
#[derive(Clone, Debug)]
pub struct Dense {
    dtype: DType,
    rows: usize,
    cols: usize,
    data: Bytes,
}

impl Dense {
    /// A matrix from a stored tensor of two dimensions. f64 is converted to f32 (the caller says so to the user).
    pub fn new(tensor: Tensor) -> Result<Self> {
        let Tensor { info, data } = tensor;
        let &[rows, cols] = info.shape.as_slice() else {
            return Err(Error::invalid(
                format!("tensor {:?}", info.name),
                format!("expected a matrix, found shape {:?}", info.shape),
            ));
        };
        if data.len() != info.bytes() {
            let why = format!(
                "expected {} bytes for {} {:?}, found {} bytes",
                info.bytes(),
                info.dtype,
                info.shape,
                data.len()
            );
            return Err(Error::invalid(format!("tensor {:?}", info.name), why));
        }
        match info.dtype {
            DType::F32 | DType::F16 | DType::BF16 => Ok(Self { dtype: info.dtype, rows, cols, data }),
            DType::F64 => {
                // Source pages are given back as they are consumed, so that the peak is not both.
                const PIECE: usize = 16 << 20;
                let mut values = Vec::with_capacity(data.len() / 2);
                for from in (0..data.len()).step_by(PIECE) {
                    let piece = data.slice(from..data.len().min(from + PIECE));
                    for bytes in piece.iter().flat_map(|piece| piece.as_chunks::<8>().0) {
                        values.extend_from_slice(&(f64::from_le_bytes(*bytes) as f32).to_le_bytes());
                    }
                    piece.iter().for_each(Bytes::release);
                }
                Ok(Self { dtype: DType::F32, rows, cols, data: values.into() })
            }
            found => Err(Error::DType { name: info.name, expected: "F64, F32, F16 or BF16", found }),
        }
    }

    /// Element type: f32, f16 or bf16.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    pub(super) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        let bytes = self.cols * self.dtype.size();
        let values = super::floats_to_f32(self.dtype, &self.data[row * bytes..(row + 1) * bytes]).unwrap_or_default();
        out.copy_from_slice(&values);
    }
}
