//! EXL3 (exllamav3): `{module}.trellis` I16 `[in / 16, out / 16, 16 x bits]` with signs and scales of inputs (`suh`, or signs
//! alone in the older `su`) and outputs (`svh`, `sv`), both padded to a multiple of 128; a tensor `mcg` or `mul1` says which
//! codebook.

use std::sync::Arc;

use super::super::{Found, Part};
use super::claim::{Claim, integers, wrong};
use crate::weight::{Codebook, InputTransform, OutputTransform, Trellis, Weight};
use crate::{Config, DType, Linear, Result, Tensor};

/// Size of the rotations, of which inputs and outputs are padded to a multiple.
const BLOCK: usize = 128;

/// Tensors that name a codebook, by the multiplier in them.
const MARKERS: [(&str, u32, Codebook); 2] =
    [(".mcg", 0xcbac_1fed, Codebook::Mcg), (".mul1", 0x83dc_d12d, Codebook::Mul1)];

pub(super) fn find(part: &Part, features: [usize; 2], _: &Config) -> Result<Option<Found>> {
    if !part.has(".trellis") {
        return Ok(None);
    }
    let mut claim = Claim::new(part, "exl3", features)?;
    if part.has(".scale") {
        return Err(
            part.wrong(".scale", "an early form of EXL3 with a scale beside the signs, which no reader supports")
        );
    }
    let [rows, cols] = features.map(|n| n.next_multiple_of(BLOCK));
    let info = claim.info(".trellis", &[DType::I16, DType::U16])?;
    let bits = match info.shape.as_slice() {
        &[down, across, words]
            if [16 * across, 16 * down] == [rows, cols] && words % 16 == 0 && (16..=128).contains(&words) =>
        {
            words / 16
        }
        found => {
            let why = format!("expected [{}, {}, 16 x bits of 1 to 8], found {found:?}", cols / 16, rows / 16);
            return Err(wrong(&info, why));
        }
    };
    let mut codebook = Codebook::ThreeInst;
    for (suffix, multiplier, book) in MARKERS.into_iter().filter(|m| part.has(m.0)) {
        let info = claim.scalar(suffix, &[DType::I32, DType::U32])?;
        let found = integers(&part.tensor(suffix)?).next().unwrap_or_default() as u32;
        if found != multiplier {
            return Err(wrong(&info, format!("expected the multiplier {multiplier:#010x}, found {found:#010x}")));
        }
        if codebook != Codebook::ThreeInst {
            return Err(wrong(&info, "expected one codebook, found a tensor \"mcg\" too"));
        }
        codebook = book;
    }
    let input = side(&mut claim, [".suh", ".su"], cols)?;
    let output = side(&mut claim, [".svh", ".sv"], rows)?;
    let detail = match codebook {
        Codebook::ThreeInst => "3inst",
        Codebook::Mcg => "mcg",
        Codebook::Mul1 => "mul1",
    };
    Ok(Some(claim.found(detail, bits as u32, None, move |part| {
        let weight = Weight::Trellis(Trellis::new(part.tensor(".trellis")?, codebook)?);
        let input = InputTransform::Hadamard { scale: Some(factors(part.tensor(input)?)?), block: BLOCK };
        let output = OutputTransform::Hadamard { scale: Some(factors(part.tensor(output)?)?), block: BLOCK };
        Linear::new(part.base(), weight, None).with_transforms(input, output)?.with_features(features)
    })))
}

/// The suffix of the scales of one side, or of its signs if there are no scales.
fn side(claim: &mut Claim, [scales, signs]: [&'static str; 2], size: usize) -> Result<&'static str> {
    if !claim.part.has(scales) && claim.part.has(signs) {
        claim.need(signs, &[DType::I16, DType::U16], &[size / 16])?;
        return Ok(signs);
    }
    claim.need(scales, &[DType::F16, DType::BF16, DType::F32], &[size])?;
    Ok(scales)
}

/// Scales as they are; of signs, bit i of word w is channel 16 w + i, and a set bit is -1.
fn factors(tensor: Tensor) -> Result<Arc<[f32]>> {
    if tensor.info.dtype.is_float() {
        return Ok(tensor.to_f32()?.into());
    }
    let words = tensor.data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    Ok(words.flat_map(|w| (0..16).map(move |i| if w >> i & 1 == 1 { -1.0 } else { 1.0 })).collect())
}
