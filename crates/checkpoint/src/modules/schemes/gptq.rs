//! GPTQ (AutoGPTQ, GPTQModel, auto-round): `{module}.qweight` I32 `[in x bits / 32, out]`, `qzeros` I32 `[groups, out x bits /
//! 32]`, `scales` `[groups, out]` and, for act-order, `g_idx` I32 `[in]`, each input's group.
//!
//! value = scale x (code - zero). Files of the first version store zero - 1, which loaders correct modulo 2^bits.

use std::sync::Arc;

use super::super::{Found, Part};
use super::claim::{Claim, FLOATS, Settings, group, integers, scale_type, wrong};
use super::columns::{Columns, Order, Zeros};
use crate::weight::{InputTransform, OutputTransform, ScaleType, Weight};
use crate::{Config, DType, Linear, Result, Tensor};

pub(super) fn find(part: &Part, features: [usize; 2], config: &Config) -> Result<Option<Found>> {
    let settings = Settings::new(config)?;
    let [rows, cols] = features;
    if !part.has(".qweight") || part.info(".qweight")?.dtype != DType::I32 {
        return Ok(None);
    }
    let words = match part.info(".qweight")?.shape.as_slice() {
        // AWQ has the inputs as they are, and words along the outputs.
        &[down, across] if [down, across] == [cols, rows / 8] => return Ok(None),
        &[down, across] if across == rows => down,
        _ if is_awq(settings) => return Ok(None),
        found => {
            let why = format!("expected [{cols} x bits / 32, {rows}], found {found:?}");
            return Err(part.wrong(".qweight", why));
        }
    };
    if is_awq(settings) {
        return Ok(None);
    }
    let mut claim = Claim::new(part, "gptq", features)?;
    let bits = (words.saturating_mul(32) / cols) as u32;
    if !matches!(bits, 2 | 3 | 4 | 8) || cols * bits as usize != words * 32 {
        let why = format!("expected {cols} x bits / 32 words for 2, 3, 4 or 8 bits, found {words}");
        return Err(part.wrong(".qweight", why));
    }
    claim.need(".qweight", &[DType::I32], &[words, rows])?;
    let [groups, _] = claim.matrix(".scales", &FLOATS)?;
    if !(rows * bits as usize).is_multiple_of(32) {
        return Err(part.wrong(".qzeros", format!("{rows} zero points of {bits} bits are no whole words")));
    }
    claim.need(".qzeros", &[DType::I32], &[groups, rows * bits as usize / 32])?;
    let scales = part.info(".scales")?;
    if scales.shape != [groups, rows] {
        return Err(crate::Error::Shape { name: scales.name, expected: vec![groups, rows], found: scales.shape });
    }
    let kind = scale_type(scales.dtype).unwrap_or(ScaleType::F16);
    let add = version(settings)?;
    let size = size(settings, part, bits, cols, groups)?;
    let indexed = part.has(".g_idx");
    if indexed {
        claim.need(".g_idx", &[DType::I32], &[cols])?;
    }
    let detail = if add == 1 { "v1" } else { "v2" };
    Ok(Some(claim.found(detail, bits, Some(size), move |part| {
        let order = if indexed { sorted(&part.tensor(".g_idx")?, size, groups)? } else { None };
        let weight = Columns {
            shape: features,
            bits,
            codes: part.tensor(".qweight")?.data,
            order: order.clone().map_or(Order::Down, Order::Sorted),
            scales: part.tensor(".scales")?.data,
            kind,
            group: size,
            zeros: Zeros::Stream { words: part.tensor(".qzeros")?.data, add },
        };
        let linear = Linear::new(part.base(), Weight::Packed(Arc::new(weight.check()?)), None);
        match order {
            None => Ok(linear),
            Some(order) => linear.with_transforms(InputTransform::Permutation(order), OutputTransform::None),
        }
    })))
}

/// Whether the configuration says that words run along the outputs.
fn is_awq(settings: Settings) -> bool {
    settings.text("quant_method") == Some("awq") || settings.text("packing_format").is_some_and(|p| p.contains("awq"))
}

/// What is added to stored zero points: 1 in the first version.
fn version(settings: Settings) -> Result<u8> {
    if settings.text("quant_method") == Some("auto-round") {
        return match settings.text("packing_format") {
            Some("auto_round:auto_gptq") => Ok(1),
            other => {
                let expected = "\"auto_round:auto_gptq\" (other packings are not known to this version)";
                Err(settings.wrong("packing_format", expected, &other.unwrap_or("nothing").into()))
            }
        };
    }
    let key = if settings.get("checkpoint_format").is_some() { "checkpoint_format" } else { "format" };
    match settings.get(key) {
        None => Ok(1),
        Some(value) => match value.as_str() {
            Some("gptq") => Ok(1),
            Some("gptq_v2") => Ok(0),
            _ => Err(settings.wrong(key, "\"gptq\" or \"gptq_v2\"", value)),
        },
    }
}

/// Inputs of a group. Modules may differ from the configuration's general rule only if it has exceptions (`dynamic`).
fn size(settings: Settings, part: &Part, bits: u32, cols: usize, groups: usize) -> Result<usize> {
    let exceptions = settings.get("dynamic").is_some();
    if let Some(stated) = settings.get("bits").filter(|b| !exceptions && b.as_u64() != Some(u64::from(bits))) {
        return Err(settings.wrong("bits", format!("{bits}, by the shape of {:?}", part.name(".qweight")), stated));
    }
    match settings.get("group_size") {
        None => group(part, ".scales", cols, groups, None),
        Some(_) => {
            let stated = settings.size("group_size")?.unwrap_or(cols);
            if exceptions && cols.div_ceil(stated) != groups {
                return group(part, ".scales", cols, groups, None);
            }
            group(part, ".scales", cols, groups, Some(stated))
        }
    }
}

/// The inputs in the order of their groups, or `None` if they are in it already. Each group must have `size` inputs, the
/// last perhaps fewer.
pub(super) fn sorted(index: &Tensor, size: usize, groups: usize) -> Result<Option<Arc<[u32]>>> {
    let inputs = index.data.len() / 4;
    let of: Vec<i32> = integers(index).collect();
    if let Some((i, group)) = of.iter().enumerate().find(|(_, g)| usize::try_from(**g).map_or(true, |g| g >= groups)) {
        return Err(wrong(&index.info, format!("expected groups below {groups}, found {group} for input {i}")));
    }
    if of.iter().enumerate().all(|(i, group)| i / size == *group as usize) {
        return Ok(None);
    }
    let mut order: Vec<u32> = (0..inputs as u32).collect();
    order.sort_by_key(|&i| of[i as usize]);
    if let Some((at, _)) = order.iter().enumerate().find(|(at, i)| of[**i as usize] as usize != at / size) {
        let group = at / size;
        let found = of.iter().filter(|g| **g as usize == group).count();
        return Err(wrong(
            &index.info,
            format!("expected {size} inputs in each group, found {found} in group {group}"),
        ));
    }
    Ok(Some(order.into()))
}
