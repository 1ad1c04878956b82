//! GPTQ's tensors, version 1: codes along the inputs, zero points (less one) along the outputs, and the group of each input.

use marlin_checkpoint::DType;
use marlin_checkpoint::weight::grouped;

use super::super::coded::Coded;
use super::super::grid::Rounding;
use super::{integers, tensor};
use crate::Written;

/// `qweight` I32 `[in x bits / 32, out]`, `qzeros` I32 `[groups, out x bits / 32]`, `scales` F16 `[groups, out]`, `g_idx` I32
/// `[in]`.
pub fn tensors(coded: &Coded, bits: u32) -> Vec<Written> {
    let [rows, cols] = [coded.decoded.rows(), coded.decoded.cols()];
    let (groups, width) = (coded.groups(), bits as usize);
    // Each output's stream of codes, turned word by word.
    let streams = grouped::pack(&coded.codes, cols, bits);
    let words = cols * width / 32;
    let mut qweight = vec![0; streams.len()];
    for (row, stream) in streams.chunks_exact(4 * words).enumerate() {
        for (word, bytes) in stream.as_chunks::<4>().0.iter().enumerate() {
            qweight[4 * (word * rows + row)..][..4].copy_from_slice(bytes);
        }
    }
    let mut zeros = Vec::with_capacity(groups * rows);
    let mut scales = Vec::with_capacity(2 * groups * rows);
    for group in 0..groups {
        for row in 0..rows {
            let factors = coded.factors[row * groups + group];
            zeros.push((factors.offset as u8).wrapping_sub(1));
            scales.extend(Rounding::F16.bytes(factors.scale));
        }
    }
    let index = coded.index.clone().unwrap_or_else(|| (0..cols).map(|i| (i / coded.group) as u32).collect());
    vec![
        tensor("qweight", DType::I32, &[words, rows], qweight),
        tensor("qzeros", DType::I32, &[groups, rows * width / 32], grouped::pack(&zeros, rows, bits)),
        tensor("scales", DType::F16, &[groups, rows], scales),
        integers("g_idx", index.into_iter().map(|g| g as i32)),
    ]
}
