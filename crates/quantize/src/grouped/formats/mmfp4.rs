//! Our own FP4's tensors.

use marlin_checkpoint::DType;
use marlin_checkpoint::weight::grouped;

use super::super::coded::Coded;
use super::super::grid::Rounding;
use super::{integers, tensor};
use crate::Written;

/// `weight` U32 `[out, in / 8]`, `weight.scales` F16 `[out, groups]`, `weight.group_size` and, if inputs are rotated,
/// `weight.hadamard_block_size` I32 `[1]`.
pub fn tensors(coded: &Coded, rotation: Option<usize>) -> Vec<Written> {
    let [rows, cols] = [coded.decoded.rows(), coded.decoded.cols()];
    let scales = coded.factors.iter().flat_map(|f| Rounding::F16.bytes(f.scale)).collect();
    let mut tensors = vec![
        tensor("weight", DType::U32, &[rows, cols / 8], grouped::pack(&coded.codes, cols, 4)),
        tensor("weight.scales", DType::F16, &[rows, coded.groups()], scales),
        integers("weight.group_size", std::iter::once(coded.group as i32)),
    ];
    if let Some(block) = rotation {
        tensors.push(integers("weight.hadamard_block_size", std::iter::once(block as i32)));
    }
    tensors
}
