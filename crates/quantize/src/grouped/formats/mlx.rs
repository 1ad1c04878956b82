//! MLX's tensors: each row of codes a bit stream in U32 words.

use marlin_checkpoint::DType;
use marlin_checkpoint::weight::grouped;

use super::super::coded::Coded;
use super::super::float::{Fp4, Scale};
use super::super::grid::Rounding;
use super::tensor;
use crate::{Error, Result, Written};

/// `weight` U32 `[out, in x bits / 32]`, `scales` and `biases` `[out, groups]`.
pub fn affine(coded: &Coded, bits: u32, rounding: Rounding) -> Vec<Written> {
    let [rows, cols] = [coded.decoded.rows(), coded.decoded.cols()];
    let dtype = match rounding {
        Rounding::F16 => DType::F16,
        Rounding::BF16 => DType::BF16,
    };
    let shape = [rows, coded.groups()];
    let scales = coded.factors.iter().flat_map(|f| rounding.bytes(f.scale)).collect();
    let biases = coded.factors.iter().flat_map(|f| rounding.bytes(f.offset)).collect();
    vec![
        tensor("weight", DType::U32, &[rows, cols * bits as usize / 32], grouped::pack(&coded.codes, cols, bits)),
        tensor("scales", dtype, &shape, scales),
        tensor("biases", dtype, &shape, biases),
    ]
}

/// `weight` U32 `[out, in / 8]`, `scales` U8 (E8M0) `[out, in / 32]`.
pub fn mxfp4(coded: &Coded) -> Vec<Written> {
    let [rows, cols] = [coded.decoded.rows(), coded.decoded.cols()];
    let grid = Fp4(Scale::E8m0);
    let scales = coded.factors.iter().map(|f| grid.byte(f.scale)).collect();
    vec![
        tensor("weight", DType::U32, &[rows, cols / 8], grouped::pack(&coded.codes, cols, 4)),
        tensor("scales", DType::U8, &[rows, coded.groups()], scales),
    ]
}

/// The tensors of experts of equal settings as one stack, `[experts, ...]`, as MLX keeps them (`switch_mlp.up_proj`).
pub fn stack(experts: &[Vec<Written>]) -> Result<Vec<Written>> {
    let Some(first) = experts.first() else { return Err(Error::setting("experts", "at least one", 0)) };
    let mut stacked: Vec<Written> = first
        .iter()
        .map(|t| Written { shape: [&[experts.len()], &t.shape[..]].concat(), data: Vec::new(), ..t.clone() })
        .collect();
    for (e, expert) in experts.iter().enumerate() {
        if expert.len() != stacked.len() {
            return Err(Error::setting("experts", "tensors as the first has them", format!("others in expert {e}")));
        }
        for (to, from) in stacked.iter_mut().zip(expert) {
            if (&to.suffix, to.dtype, &to.shape[1..]) != (&from.suffix, from.dtype, &from.shape[..]) {
                let expected = format!("{} {} {:?} in every expert of a stack", to.suffix, to.dtype, &to.shape[1..]);
                let found = format!("{} {} {:?} in expert {e}", from.suffix, from.dtype, from.shape);
                return Err(Error::setting("experts", expected, found));
            }
            to.data.extend_from_slice(&from.data);
        }
    }
    Ok(stacked)
}
