//! MLX: `{module}.weight` U32 `[out, in x bits / 32]`, each row a bit stream, least significant bit first, with `scales` for
//! each group of a row. Mode "affine" has `biases` too: value = scale x code + bias. Modes "mxfp4", "nvfp4" and "mxfp8" have
//! scales of one byte and small floats as codes.

use super::super::{Found, Part};
use super::claim::{Claim, FLOATS, Settings, group, scales};
use crate::weight::{Grouped, ScaleTree, ScaleType, Scales, ValueMap, Weight, Zero};
use crate::{Config, DType, Result};
use serde_json::Value;

pub(super) fn find(part: &Part, features: [usize; 2], config: &Config) -> Result<Option<Found>> {
    let settings = Settings::of(config, ["quantization", "quantization_config"])?;
    if !part.has(".scales") || !part.has(".weight") || part.info(".weight")?.dtype != DType::U32 {
        return Ok(None);
    }
    let small = part.info(".scales")?.dtype == DType::U8;
    if !small && !part.has(".biases") && config.get("quantization").is_none() {
        return Ok(None);
    }
    let [rows, cols] = features;
    let last = |suffix: &str| Ok::<usize, crate::Error>(part.info(suffix)?.shape.last().copied().unwrap_or(0));
    let mut claim = Claim::new(part, "mlx", features)?;
    let words = last(".weight")?;
    let bits = (words.saturating_mul(32) / cols) as u32;
    if !matches!(bits, 2..=6 | 8) || cols * bits as usize != words * 32 {
        let why = format!("expected [{rows}, {cols} x bits / 32] for 2, 3, 4, 5, 6 or 8 bits, found [.., {words}]");
        return Err(part.wrong(".weight", why));
    }
    claim.need(".weight", &[DType::U32], &[rows, words])?;
    if part.has(".global_scale") {
        return Err(part.wrong(".global_scale", "a scale of the whole matrix, which this version does not read"));
    }
    let groups = last(".scales")?;
    let size = group(part, ".scales", cols, groups, None)?;
    let mode = match (small, bits, size) {
        (false, _, 32 | 64 | 128) => "affine",
        (true, 4, 32) => "mxfp4",
        (true, 4, 16) => "nvfp4",
        (true, 8, 32) => "mxfp8",
        _ => {
            let kind = if small { "mxfp4, nvfp4 or mxfp8" } else { "groups of 32, 64 or 128" };
            return Err(part.wrong(".scales", format!("expected {kind}, found {bits} bits in groups of {size}")));
        }
    };
    let dtype = claim.need(".scales", if small { &[DType::U8] } else { &FLOATS }, &[rows, groups])?.dtype;
    if !small {
        claim.need(".biases", &FLOATS, &[rows, groups])?;
    }
    agree(settings, part, mode, bits, size)?;
    let detail = if small { mode.to_owned() } else { format!("affine {}", dtype.name().to_lowercase()) };
    Ok(Some(claim.plain(detail, bits, Some(size), move |part| {
        let codes = part.tensor(".weight")?.data;
        let factors = part.tensor(".scales")?;
        let (map, scale, minimum) = match mode {
            "affine" => {
                let minimum = ScaleTree::flat(scales(part.tensor(".biases")?, features, (1, size))?);
                let scale = ScaleTree::flat(scales(factors, features, (1, size))?);
                (ValueMap::Integer(Zero::Constant(0)), scale, Some(minimum))
            }
            _ => {
                let kind = if mode == "nvfp4" { ScaleType::E4M3 } else { ScaleType::E8M0 };
                let scale = ScaleTree::flat(Scales::new(kind, rows, cols, (1, size), factors.data)?);
                (if mode == "mxfp8" { ValueMap::E4M3 } else { ValueMap::E2M1 }, scale, None)
            }
        };
        Ok(Weight::Grouped(Box::new(Grouped::new(features, bits, codes, map, scale, minimum)?)))
    })))
}

/// Refuses tensors that are not what the configuration says of this module, or of all.
fn agree(settings: Settings, part: &Part, mode: &str, bits: u32, group: usize) -> Result<()> {
    let own = settings.get(part.base()).and_then(Value::as_object);
    for (key, found) in [("bits", bits as usize), ("group_size", group)] {
        let whole = if own.is_some() { own.and_then(|o| o.get(key)) } else { settings.get(key) };
        if let Some(value) = whole.filter(|v| !v.is_null() && v.as_u64() != Some(found as u64)) {
            return Err(settings.wrong(
                key,
                format!("{found}, by the shapes of the tensors of {}", part.base()),
                value,
            ));
        }
    }
    let stated = own.map_or_else(|| settings.get("mode"), |o| o.get("mode"));
    match stated {
        Some(value) if value.as_str() != Some(mode) => {
            Err(settings.wrong("mode", format!("{mode:?}, by the tensors of {}", part.base()), value))
        }
        _ => Ok(()),
    }
}
