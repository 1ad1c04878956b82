//! FP8: `{module}.weight` F8_E4M3 or F8_E5M2 `[out, in]` with factors that multiply.
//!
//! * `weight_scale_inv` `[ceil(out / 128), ceil(in / 128)]` F32 or E8M0 (DeepSeek, transformers; it multiplies despite its name);
//! * `weight_scale`: one number, one for each output, or for blocks or groups (ModelOpt, compressed-tensors "float-quantized").

use super::super::{Found, Part};
use super::claim::{Claim, Settings, scale_type, wrong};
use super::compressed::whole;
use crate::weight::{Grouped, ScaleTree, ScaleType, Scales, ValueMap, Weight};
use crate::{Config, DType, Result};

/// Types of factors.
const FACTORS: [DType; 5] = [DType::F32, DType::BF16, DType::F16, DType::F8E8M0, DType::U8];

pub(super) fn find(part: &Part, features: [usize; 2], config: &Config) -> Result<Option<Found>> {
    if !part.has(".weight") || !matches!(part.info(".weight")?.dtype, DType::F8E4M3 | DType::F8E5M2) {
        return Ok(None);
    }
    let [rows, cols] = features;
    let mut claim = Claim::new(part, "fp8", features)?;
    let dtype = claim.need(".weight", &[DType::F8E4M3, DType::F8E5M2], &[rows, cols])?.dtype;
    // Rows of canonical codes are whole words.
    whole(part, ".weight", cols, 4)?;
    let suffix = if part.has(".weight_scale_inv") { ".weight_scale_inv" } else { ".weight_scale" };
    if part.has(".pre_quant_scale") {
        return Err(part.wrong(".pre_quant_scale", "factors of the inputs, which this version does not read"));
    }
    let info = claim.info(suffix, &FACTORS)?;
    let block = match info.shape.as_slice() {
        [] | [1] | [1, 1] => (rows, cols),
        &[n] | &[n, 1] if n == rows => (1, cols),
        &[down, across] => {
            let block = block(config)?;
            // Without a word of the configuration: tiles of 128, or MXFP8's groups of 32.
            let guesses = [(128, 128), (1, 32), (1, 128)];
            let fits = |b: &(usize, usize)| [rows.div_ceil(b.0), cols.div_ceil(b.1)] == [down, across];
            let fit = block
                .as_slice()
                .iter()
                .chain(if block.is_some() { &[][..] } else { &guesses })
                .copied()
                .find(|b| fits(b));
            let wanted = block.map_or_else(|| "128 x 128 or 1 x 32".to_owned(), |b| format!("{} x {}", b.0, b.1));
            fit.ok_or_else(|| {
                wrong(
                    &info,
                    format!("expected factors of blocks of {wanted} of [{rows}, {cols}], found [{down}, {across}]"),
                )
            })?
        }
        found => return Err(wrong(&info, format!("expected factors of [{rows}, {cols}], found shape {found:?}"))),
    };
    let kind = scale_type(info.dtype).unwrap_or(ScaleType::E8M0);
    let map = if dtype == DType::F8E4M3 { ValueMap::E4M3 } else { ValueMap::E5M2 };
    let name = if dtype == DType::F8E4M3 { "e4m3" } else { "e5m2" };
    let group = (block.1 < cols).then_some(block.1);
    Ok(Some(claim.plain(format!("{name} x {}", info.dtype.name().to_lowercase()), 8, group, move |part| {
        let scale = ScaleTree::flat(Scales::new(kind, rows, cols, block, part.tensor(suffix)?.data)?);
        let codes = part.tensor(".weight")?.data;
        Ok(Weight::Grouped(Box::new(Grouped::new(features, 8, codes, map.clone(), scale, None)?)))
    })))
}

/// `weight_block_size`, or compressed-tensors' `block_structure`.
fn block(config: &Config) -> Result<Option<(usize, usize)>> {
    let settings = Settings::new(config)?;
    let weights = |key: &str| {
        settings.get("config_groups")?.as_object()?.values().next()?.get("weights")?.get(key).filter(|v| !v.is_null())
    };
    let found = settings.get("weight_block_size").or_else(|| weights("block_structure"));
    let Some(value) = found else { return Ok(None) };
    // Early versions wrote "128x128".
    let written = value.as_str().and_then(|text| text.split_once('x'));
    if let Some((Ok(rows @ 1..), Ok(cols @ 1..))) = written.map(|(r, c)| (r.parse::<usize>(), c.parse::<usize>())) {
        return Ok(Some((rows, cols)));
    }
    let size = |i: usize| value.get(i)?.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
    match (size(0), size(1), value.as_array().map(Vec::len)) {
        (Some(rows), Some(cols), Some(2)) => Ok(Some((rows, cols))),
        _ => Err(settings.wrong("weight_block_size", "two sizes above 0", value)),
    }
}
