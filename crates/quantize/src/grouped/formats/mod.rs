//! One file for each family of formats: how codes and factors become tensors.

pub(super) mod compressed;
pub(super) mod gptq;
pub(super) mod mlx;
pub(super) mod mmfp4;

use marlin_checkpoint::DType;

use crate::Written;

fn tensor(suffix: &str, dtype: DType, shape: &[usize], data: Vec<u8>) -> Written {
    Written { suffix: suffix.to_owned(), dtype, shape: shape.to_vec(), data }
}

fn integers(suffix: &str, values: impl Iterator<Item = i32>) -> Written {
    let data: Vec<u8> = values.flat_map(i32::to_le_bytes).collect();
    tensor(suffix, DType::I32, &[data.len() / 4], data)
}
