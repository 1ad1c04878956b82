#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::container::gguf::GgufFile;
use crate::{TensorSource, Weight};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/gguf").join(name)
}

const TYPES: [DType; 13] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2K,
    DType::Q3K,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
    DType::Iq4Nl,
    DType::Iq4Xs,
    DType::Mxfp4,
];

/// All rows of a tensor of any type, as f32.
fn values(tensor: Tensor) -> Vec<f32> {
    if tensor.info.dtype.is_float() {
        return tensor.to_f32().unwrap();
    }
    let cols = *tensor.info.shape.last().unwrap();
    let shape = [tensor.info.elements() / cols, cols];
    Weight::Packed(std::sync::Arc::new(Blocks::new(tensor, shape, HeadOrder::Plain).unwrap())).dequantize().unwrap()
}

/// Random blocks, their values computed by the `gguf` package: the same bits (but for the sign of a zero in FP4, which
/// GGML's table does not keep).
#[test]
fn every_type_agrees_with_python() {
    let file = GgufFile::open(&data("blocks.gguf")).unwrap();
    for dtype in TYPES {
        let found = values(file.store.tensor(dtype.name()).unwrap());
        let expected = file.store.tensor(&format!("{dtype}.values")).unwrap().to_f32().unwrap();
        assert_eq!(found.len(), expected.len());
        for (i, (a, b)) in found.iter().zip(&expected).enumerate() {
            let same = a.to_bits() == b.to_bits() || dtype == DType::Mxfp4 && *a == 0.0 && *b == 0.0;
            assert!(same, "{dtype} {i}: {a} {b}");
        }
    }
}

/// Any ranges of rows give the rows of the whole, in any order of heads, within 1.05 of the file's bytes.
#[test]
fn ranges_are_parts_of_the_whole() {
    let file = GgufFile::open(&data("blocks.gguf")).unwrap();
    for dtype in TYPES {
        let tensor = file.store.tensor(dtype.name()).unwrap().rows(0..4).unwrap();
        let blocks = |order| Blocks::new(tensor.clone(), [4, 512], order).unwrap();
        let whole = blocks(HeadOrder::Plain).unpack(0..4).unwrap();
        assert!(whole.bytes() as f64 <= 1.05 * tensor.info.bytes() as f64, "{dtype}: {}", whole.bytes());
        let row = |g: Grouped, r| {
            let mut out = vec![0.0; 512];
            Weight::Grouped(Box::new(g)).dequantize_row(r, &mut out).unwrap();
            out.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let paired = HeadOrder::Paired { head: 4 };
        for (r, from) in [0, 2, 1, 3].into_iter().enumerate() {
            assert_eq!(row(blocks(HeadOrder::Plain).unpack(r..4).unwrap(), 0), row(whole.clone(), r), "{dtype}");
            assert_eq!(row(blocks(paired).unpack(r..r + 1).unwrap(), 0), row(whole.clone(), from), "{dtype}");
        }
        assert_eq!(blocks(paired).unpack(2..2).unwrap().rows(), 0);
        let refused = blocks(paired).unpack(2..5).unwrap_err().to_string();
        assert!(refused.contains("rows 2..5 are not within its 4"), "{refused}");
    }
}

#[test]
fn an_exponent_that_is_no_number_is_refused() {
    let tensor = GgufFile::open(&data("blocks.gguf")).unwrap().store.tensor("MXFP4").unwrap();
    let mut bytes = tensor.data.to_vec();
    bytes[17 * 20] = 255;
    let tensor = Tensor { data: bytes.into(), ..tensor };
    let blocks = Blocks::new(tensor, [5, 512], HeadOrder::Plain).unwrap();
    assert!(blocks.unpack(0..1).is_ok());
    assert!(blocks.unpack(1..2).unwrap_err().to_string().contains("tensor \"MXFP4\": a block's exponent is 255"));
}

/// CRC-32 as zlib computes it.
fn crc32(values: &[f32]) -> u32 {
    let mut crc = u32::MAX;
    for byte in values.iter().flat_map(|v| (v + 0.0).to_le_bytes()) {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// Every tensor of files that llama.cpp wrote, by the checksums of what the `gguf` package reads.
#[test]
fn files_of_llama_cpp_agree_with_python() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/interop/gguf");
    if !folder.exists() {
        eprintln!("SKIPPED: {} is not there", folder.display());
        return;
    }
    let expected: BTreeMap<String, BTreeMap<String, u32>> =
        serde_json::from_str(&std::fs::read_to_string(data("interop.json")).unwrap()).unwrap();
    for (name, tensors) in expected {
        let file = GgufFile::open(&folder.join(&name)).unwrap();
        assert_eq!(file.store.tensors().len(), tensors.len(), "{name}");
        for (tensor, crc) in tensors {
            assert_eq!(crc32(&values(file.store.tensor(&tensor).unwrap())), crc, "{name} {tensor}");
        }
    }
}
