//! compressed-tensors' tensors.

use marlin_checkpoint::DType;
use marlin_checkpoint::weight::grouped;

use super::super::coded::Coded;
use super::super::float::{Fp4, Scale};
use super::super::grid::Rounding;
use super::tensor;
use crate::Written;

/// "pack-quantized": `weight_packed` I32 `[out, ceil(in x bits / 32)]`, `weight_scale` F16 `[out, groups]`, `weight_shape` I64
/// `[2]`, and `weight_zero_point` I32 `[ceil(out x bits / 32), groups]` if `zeros`.
pub fn integer(coded: &Coded, bits: u32, zeros: bool) -> Vec<Written> {
    let [rows, cols] = [coded.decoded.rows(), coded.decoded.cols()];
    let groups = coded.groups();
    let packed = grouped::pack(&coded.codes, cols, bits);
    let scales = coded.factors.iter().flat_map(|f| Rounding::F16.bytes(f.scale)).collect();
    let shape = [rows, cols].iter().flat_map(|n| (*n as i64).to_le_bytes()).collect();
    let mut tensors = vec![
        tensor("weight_packed", DType::I32, &[rows, packed.len() / rows / 4], packed),
        tensor("weight_scale", DType::F16, &[rows, groups], scales),
        tensor("weight_shape", DType::I64, &[2], shape),
    ];
    if zeros {
        // A stream along the outputs for each group, turned word by word.
        let columns: Vec<u8> = (0..groups)
            .flat_map(|group| (0..rows).map(move |row| (row, group)))
            .map(|(row, group)| coded.factors[row * groups + group].offset as u8)
            .collect();
        let streams = grouped::pack(&columns, rows, bits);
        let tall = streams.len() / groups / 4;
        let mut data = vec![0; streams.len()];
        for (group, stream) in streams.chunks_exact(4 * tall).enumerate() {
            for (word, bytes) in stream.as_chunks::<4>().0.iter().enumerate() {
                data[4 * (word * groups + group)..][..4].copy_from_slice(bytes);
            }
        }
        tensors.push(tensor("weight_zero_point", DType::I32, &[tall, groups], data));
    }
    tensors
}

/// NVFP4: `weight_packed` U8 `[out, in / 2]`, `weight_scale` F8_E4M3 `[out, in / 16]`, `weight_global_scale` F32 `[1]`.
pub fn nvfp4(coded: &Coded, global: f32) -> Vec<Written> {
    let [packed, scale] = fp4(coded, Fp4(Scale::E4m3 { global }), DType::F8E4M3);
    vec![packed, scale, tensor("weight_global_scale", DType::F32, &[1], global.to_le_bytes().to_vec())]
}

/// MXFP4: `weight_packed` U8 `[out, in / 2]`, `weight_scale` U8 (E8M0) `[out, in / 32]`.
pub fn mxfp4(coded: &Coded) -> Vec<Written> {
    fp4(coded, Fp4(Scale::E8m0), DType::U8).into()
}

fn fp4(coded: &Coded, grid: Fp4, factors: DType) -> [Written; 2] {
    let [rows, cols] = [coded.decoded.rows(), coded.decoded.cols()];
    // Two codes to a byte, the first in the low half.
    let packed = coded.codes.as_chunks::<2>().0.iter().map(|[low, high]| low | high << 4).collect();
    let scales = coded.factors.iter().map(|f| grid.byte(f.scale)).collect();
    [
        tensor("weight_packed", DType::U8, &[rows, cols / 2], packed),
        tensor("weight_scale", factors, &[rows, coded.groups()], scales),
    ]
}
