//! AWQ (AutoAWQ), 4 bits. Version "gemm": `{module}.qweight` I32 `[in, out / 8]`, `qzeros` I32 `[groups, out / 8]`, `scales`
//! `[groups, out]`; nibbles of a word hold outputs 0, 2, 4, 6, 1, 3, 5, 7. Version "gemv": `qweight` I32 `[out, in / 8]` in
//! plain order, `qzeros` `[out, w]`, `scales` `[out, 8 w]`, where w is padded. value = scale x (code - zero).

use std::sync::Arc;

use super::super::{Found, Part};
use super::claim::{Claim, FLOATS, Settings, group, scale_type};
use super::columns::{Columns, Order, Zeros};
use crate::weight::{Grouped, ScaleTree, ScaleType, Scales, ValueMap, Weight, Zero};
use crate::{Config, DType, Result};

const ORDER: [u8; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

pub(super) fn find(part: &Part, features: [usize; 2], config: &Config) -> Result<Option<Found>> {
    let settings = Settings::new(config)?;
    let [rows, cols] = features;
    if !part.has(".qweight") || part.info(".qweight")?.dtype != DType::I32 {
        return Ok(None);
    }
    if let Some(bits) = settings.get("bits").filter(|b| b.as_u64() != Some(4)) {
        return Err(settings.wrong("bits", "4 for AWQ", bits));
    }
    let stated = settings.size("group_size")?;
    match settings.text("version").map(str::to_ascii_lowercase).as_deref() {
        None | Some("gemm") => {}
        Some("gemv") => return gemv(part, features, stated.unwrap_or(cols)).map(Some),
        Some(other) => {
            let expected = "\"gemm\" or \"gemv\" (other versions interleave in ways of their own)";
            return Err(settings.wrong("version", expected, &other.into()));
        }
    }
    let mut claim = Claim::new(part, "awq", features)?;
    if !rows.is_multiple_of(8) || !cols.is_multiple_of(8) {
        return Err(part.wrong(".qweight", format!("[{cols}, {rows}] weights are no whole squares of 8 x 8")));
    }
    claim.need(".qweight", &[DType::I32], &[cols, rows / 8])?;
    let [groups, _] = claim.matrix(".scales", &FLOATS)?;
    claim.need(".qzeros", &[DType::I32], &[groups, rows / 8])?;
    let scales = part.info(".scales")?;
    if scales.shape != [groups, rows] {
        return Err(crate::Error::Shape { name: scales.name, expected: vec![groups, rows], found: scales.shape });
    }
    let kind = scale_type(scales.dtype).unwrap_or(ScaleType::F16);
    let stated = if settings.get("group_size").is_some() { Some(stated.unwrap_or(cols)) } else { None };
    let size = group(part, ".scales", cols, groups, stated)?;
    Ok(Some(claim.plain("gemm", 4, Some(size), move |part| {
        let weight = Columns {
            shape: features,
            bits: 4,
            codes: part.tensor(".qweight")?.data,
            order: Order::Across(ORDER),
            scales: part.tensor(".scales")?.data,
            kind,
            group: size,
            zeros: Zeros::Across(part.tensor(".qzeros")?.data),
        };
        Ok(Weight::Packed(Arc::new(weight.check()?)))
    })))
}

fn gemv(part: &Part, features: [usize; 2], size: usize) -> Result<Found> {
    let [rows, cols] = features;
    let mut claim = Claim::new(part, "awq", features)?;
    if !cols.is_multiple_of(size) || !size.is_multiple_of(8) {
        return Err(part.wrong(".qweight", format!("groups of {size} do not divide {cols} inputs into whole words")));
    }
    let groups = cols / size;
    claim.need(".qweight", &[DType::I32], &[rows, cols / 8])?;
    let [_, words] = claim.matrix(".qzeros", &[DType::I32])?;
    let wide = words.saturating_mul(8);
    if part.info(".qzeros")?.shape != [rows, words] || wide < groups {
        let why =
            format!("expected [{rows}, at least {}], found {:?}", groups.div_ceil(8), part.info(".qzeros")?.shape);
        return Err(part.wrong(".qzeros", why));
    }
    let kind = claim.need(".scales", &FLOATS, &[rows, wide])?.dtype;
    let (element, kind) = (kind.size(), scale_type(kind).unwrap_or(ScaleType::F16));
    Ok(claim.plain("gemv", 4, Some(size), move |part| {
        // Factors without the padding at each row's end.
        let cut = |suffix: &str, line: usize, used: usize| -> Result<Vec<u8>> {
            Ok(part.tensor(suffix)?.data.chunks_exact(line).flat_map(|line| &line[..used]).copied().collect())
        };
        let scales = cut(".scales", wide * element, groups * element)?;
        let zeros = cut(".qzeros", words * 4, groups.div_ceil(2))?;
        let block = (1, size);
        let map = ValueMap::Integer(Zero::Groups(Scales::new(ScaleType::U4, rows, cols, block, zeros.into())?));
        let scale = ScaleTree::flat(Scales::new(kind, rows, cols, block, scales.into())?);
        let codes = part.tensor(".qweight")?.data;
        Ok(Weight::Grouped(Box::new(Grouped::new(features, 4, codes, map, scale, None)?)))
    }))
}
