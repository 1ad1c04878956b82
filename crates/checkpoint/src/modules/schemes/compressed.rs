//! compressed-tensors (llm-compressor, auto-round): `{module}.weight_packed` and what stands beside it.
//!
//! * I32: integers of 2 to 8 bits, each row a bit stream, the least significant bit first, of code + 2^(bits - 1), with
//!   `weight_scale` `[out, groups]`, perhaps `weight_zero_point` and, for act-order, `weight_g_idx`.
//! * U8 with `weight_global_scale`: NVFP4; without: MXFP4.
//!
//! Also `{module}.weight` I8 with `weight_scale` ("int-quantized").

use std::sync::Arc;

use super::super::{Found, Part};
use super::changed::{Change, Changed};
use super::claim::{Claim, FLOATS, Settings, group, integers, number, scales, wrong};
use super::gptq::sorted;
use crate::weight::{Grouped, InputTransform, OutputTransform, ScaleTree, ScaleType, Scales, ValueMap, Weight, Zero};
use crate::{Config, DType, Linear, Result};

pub(super) fn find(part: &Part, features: [usize; 2], config: &Config) -> Result<Option<Found>> {
    if part.has(".weight") && part.info(".weight")?.dtype == DType::I8 && part.has(".weight_scale") {
        return signed(part, features).map(Some);
    }
    if part.has(".scale_packed") {
        return Err(part.wrong(".scale_packed", "the sparse form of marlin-24, which this version does not read"));
    }
    if !part.has(".weight_packed") {
        return Ok(None);
    }
    match part.info(".weight_packed")?.dtype {
        DType::I32 => integer(part, features, config).map(Some),
        _ if part.has(".weight_global_scale") => nvfp4(part, features).map(Some),
        _ => mxfp4(part, features).map(Some),
    }
}

/// Inputs of a group by the configuration: `group_size` of the only group of modules, if there is one.
fn stated(config: &Config) -> Result<Option<usize>> {
    let Some(groups) = Settings::new(config)?.get("config_groups").and_then(|g| g.as_object()) else { return Ok(None) };
    let mut sizes = groups.values().map(|g| g.get("weights").and_then(|w| w.get("group_size")?.as_u64()));
    match (sizes.next(), sizes.next()) {
        (Some(size), None) => Ok(size.and_then(|n| usize::try_from(n).ok())),
        _ => Ok(None),
    }
}

fn integer(part: &Part, features: [usize; 2], config: &Config) -> Result<Found> {
    let [rows, cols] = features;
    let mut claim = Claim::new(part, "compressed-tensors", features)?;
    let words = part.info(".weight_packed")?.shape.last().copied().unwrap_or(0);
    let Some(bits) = (2..=8u32).find(|bits| cols.saturating_mul(*bits as usize).div_ceil(32) == words) else {
        let why = format!(
            "expected [{rows}, {cols} x bits / 32] for 2 to 8 bits, found [.., {words}] (early versions, which left bits of each word unused, are not read)"
        );
        return Err(part.wrong(".weight_packed", why));
    };
    claim.need(".weight_packed", &[DType::I32], &[rows, words])?;
    if part.has(".weight_shape") {
        let info = claim.need(".weight_shape", &[DType::I64, DType::I32], &[2])?;
        let tensor = part.tensor(".weight_shape")?;
        let found: Vec<i64> = match info.dtype {
            DType::I64 => tensor.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            _ => integers(&tensor).map(i64::from).collect(),
        };
        if found != [rows as i64, cols as i64] {
            return Err(wrong(&info, format!("expected [{rows}, {cols}], found {found:?}")));
        }
    }
    let groups = part_groups(part)?;
    let dtype = claim.info(".weight_scale", &FLOATS)?.dtype;
    let (block, size) = block(part, features, &groups, stated(config)?)?;
    let across = cols.div_ceil(block.1);
    // Zero points are packed along the outputs, or (in early versions) plain.
    let zero = match part.has(".weight_zero_point") {
        false => None,
        true if block.0 != 1 => return Err(part.wrong(".weight_zero_point", "expected zero points of groups only")),
        true => {
            let packed = part.info(".weight_zero_point")?.dtype == DType::I32;
            let tall = if packed { (rows * bits as usize).div_ceil(32) } else { rows };
            claim.need(".weight_zero_point", &[DType::I32, DType::I8], &[tall, across])?;
            Some(packed)
        }
    };
    let indexed = part.has(".weight_g_idx");
    if indexed {
        claim.need(".weight_g_idx", &[DType::I32], &[cols])?;
    }
    let detail = format!("int{bits} {}", dtype.name().to_lowercase());
    Ok(claim.found(detail, bits, size, move |part| {
        let map = match zero {
            None => ValueMap::Integer(Zero::Constant(1 << (bits - 1))),
            Some(packed) => {
                let tensor = part.tensor(".weight_zero_point")?;
                let at = |row: usize, group: usize| match packed {
                    true => stream(&tensor.data, across, bits as usize, row, group),
                    false => tensor.data[row * across + group].wrapping_add(1 << (bits - 1)),
                };
                let mut data = Vec::with_capacity(rows * across);
                for row in 0..rows {
                    for group in 0..across {
                        let zero = at(row, group);
                        if u32::from(zero) >= 1 << bits {
                            let why = format!("expected zero points of {bits} bits, found one outside (row {row})");
                            return Err(wrong(&tensor.info, why));
                        }
                        data.push(zero);
                    }
                }
                ValueMap::Integer(Zero::Groups(Scales::new(ScaleType::U8, rows, cols, block, data.into())?))
            }
        };
        let scale = ScaleTree::flat(scales(part.tensor(".weight_scale")?, features, block)?);
        let codes = part.tensor(".weight_packed")?.data;
        let whole = Grouped::new(features, bits, codes, map, scale, None)?;
        let order = match indexed {
            false => None,
            true => {
                let index = part.tensor(".weight_g_idx")?;
                // An index of -1 throughout was never filled in.
                if integers(&index).all(|i| i == -1) { None } else { sorted(&index, block.1, across)? }
            }
        };
        let Some(order) = order else {
            return Ok(Linear::new(part.base(), Weight::Grouped(Box::new(whole)), None));
        };
        let weight = Weight::Packed(Arc::new(Changed { whole, change: Change::Order(order.clone()) }));
        Linear::new(part.base(), weight, None)
            .with_transforms(InputTransform::Permutation(order), OutputTransform::None)
    }))
}

/// Code `row` of column `group` of words `[.., across]` packed along the rows.
fn stream(words: &[u8], across: usize, bits: usize, row: usize, group: usize) -> u8 {
    let byte = |bit: usize| words.get((bit / 32 * across + group) * 4 + bit / 8 % 4).copied().unwrap_or(0);
    let bit = row * bits;
    let two = u16::from(byte(bit)) | u16::from(byte(bit + 8)) << 8;
    (two >> (bit % 8)) as u8 & (0xff_u32 >> (8 - bits)) as u8
}

/// The shape of `weight_scale`.
fn part_groups(part: &Part) -> Result<Vec<usize>> {
    match part.has(".weight_scale") {
        true => Ok(part.info(".weight_scale")?.shape),
        false => Ok(Vec::new()),
    }
}

/// The rectangle that shares a scale: a group `[out, groups]`, a channel `[out, 1]` or `[out]`, or all `[1]`. And the group's
/// size, where there are groups.
pub(super) fn block(
    part: &Part,
    [rows, cols]: [usize; 2],
    shape: &[usize],
    stated: Option<usize>,
) -> Result<((usize, usize), Option<usize>)> {
    match *shape {
        [] | [1] => Ok(((rows, cols), None)),
        [n] | [n, 1] if n == rows => Ok(((1, cols), None)),
        [n, groups] if n == rows => {
            let size = group(part, ".weight_scale", cols, groups, stated)?;
            Ok(((1, size), Some(size)))
        }
        _ => {
            Err(part.wrong(".weight_scale", format!("expected [{rows}, groups], [{rows}, 1] or [1], found {shape:?}")))
        }
    }
}

fn nvfp4(part: &Part, features: [usize; 2]) -> Result<Found> {
    let [rows, cols] = features;
    let mut claim = Claim::new(part, "nvfp4", features)?;
    whole(part, ".weight_packed", cols, 16)?;
    claim.need(".weight_packed", &[DType::U8], &[rows, cols / 2])?;
    claim.need(".weight_scale", &[DType::F8E4M3], &[rows, cols / 16])?;
    let info = claim.scalar(".weight_global_scale", &FLOATS)?;
    if number(&part.tensor(".weight_global_scale")?)? == 0.0 {
        return Err(wrong(&info, "expected a divisor, found 0"));
    }
    Ok(claim.plain("e2m1 x e4m3 / f32", 4, Some(16), move |part| {
        let outer = Scales::whole(rows, cols, number(&part.tensor(".weight_global_scale")?)?)?;
        let scale = ScaleTree::divided(scales(part.tensor(".weight_scale")?, features, (1, 16))?, outer);
        let codes = part.tensor(".weight_packed")?.data;
        Ok(Weight::Grouped(Box::new(Grouped::new(features, 4, codes, ValueMap::E2M1, scale, None)?)))
    }))
}

fn mxfp4(part: &Part, features: [usize; 2]) -> Result<Found> {
    let [rows, cols] = features;
    let mut claim = Claim::new(part, "mxfp4", features)?;
    whole(part, ".weight_packed", cols, 32)?;
    claim.need(".weight_packed", &[DType::U8], &[rows, cols / 2])?;
    claim.need(".weight_scale", &[DType::U8, DType::F8E8M0], &[rows, cols / 32])?;
    Ok(claim.plain("e2m1 x e8m0", 4, Some(32), move |part| {
        let data = part.tensor(".weight_scale")?.data;
        let scale = ScaleTree::flat(Scales::new(ScaleType::E8M0, rows, cols, (1, 32), data)?);
        let codes = part.tensor(".weight_packed")?.data;
        Ok(Weight::Grouped(Box::new(Grouped::new(features, 4, codes, ValueMap::E2M1, scale, None)?)))
    }))
}

/// Refuses inputs that are no whole groups.
pub(super) fn whole(part: &Part, suffix: &str, cols: usize, size: usize) -> Result<()> {
    match cols.is_multiple_of(size) {
        true => Ok(()),
        false => Err(part.wrong(suffix, format!("groups of {size} do not divide {cols} inputs"))),
    }
}

/// Signed bytes.
fn signed(part: &Part, features: [usize; 2]) -> Result<Found> {
    let [rows, cols] = features;
    let mut claim = Claim::new(part, "compressed-tensors", features)?;
    claim.need(".weight", &[DType::I8], &[rows, cols])?;
    let dtype = claim.info(".weight_scale", &FLOATS)?.dtype;
    let (block, size) = block(part, features, &part_groups(part)?, None)?;
    whole(part, ".weight", cols, 4)?;
    let zeros = part.has(".weight_zero_point");
    if zeros {
        let info = claim.info(".weight_zero_point", &[DType::I8])?;
        let expected = rows.div_ceil(block.0) * cols.div_ceil(block.1);
        if info.elements() != expected {
            return Err(wrong(&info, format!("expected {expected} zero points, found {:?}", info.shape)));
        }
    }
    Ok(claim.plain(format!("int8 {}", dtype.name().to_lowercase()), 8, size, move |part| {
        let map = match zeros {
            false => ValueMap::Integer(Zero::Constant(128)),
            true => {
                let data: Vec<u8> = part.tensor(".weight_zero_point")?.data.iter().map(|z| z ^ 0x80).collect();
                ValueMap::Integer(Zero::Groups(Scales::new(ScaleType::U8, rows, cols, block, data.into())?))
            }
        };
        let scale = ScaleTree::flat(scales(part.tensor(".weight_scale")?, features, block)?);
        let whole = Grouped::new(features, 8, part.tensor(".weight")?.data, map, scale, None)?;
        Ok(Weight::Packed(Arc::new(Changed { whole, change: Change::Signed })))
    }))
}
