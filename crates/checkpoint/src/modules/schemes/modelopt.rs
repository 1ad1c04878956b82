//! NVIDIA ModelOpt's NVFP4: `{module}.weight` U8 `[out, in / 2]`, `weight_scale` F8_E4M3 `[out, in / 16]` and `weight_scale_2`
//! F32 `[]`, which multiplies. (Its FP8 is [`super::fp8`].)

use super::super::{Found, Part};
use super::claim::{Claim, FLOATS, number, scales};
use super::compressed::whole;
use crate::weight::{Grouped, ScaleTree, Scales, ValueMap, Weight};
use crate::{Config, DType, Result};

pub(super) fn find(part: &Part, features: [usize; 2], _: &Config) -> Result<Option<Found>> {
    if !part.has(".weight") || !part.has(".weight_scale") || part.info(".weight")?.dtype != DType::U8 {
        return Ok(None);
    }
    let [rows, cols] = features;
    let mut claim = Claim::new(part, "nvfp4", features)?;
    if part.has(".pre_quant_scale") {
        return Err(part.wrong(".pre_quant_scale", "factors of the inputs (AWQ), which this version does not read"));
    }
    whole(part, ".weight", cols, 16)?;
    claim.need(".weight", &[DType::U8], &[rows, cols / 2])?;
    claim.need(".weight_scale", &[DType::F8E4M3], &[rows, cols / 16])?;
    claim.scalar(".weight_scale_2", &FLOATS)?;
    Ok(Some(claim.plain("e2m1 x e4m3 x f32", 4, Some(16), move |part| {
        let outer = Scales::whole(rows, cols, number(&part.tensor(".weight_scale_2")?)?)?;
        let scale = ScaleTree::nested(scales(part.tensor(".weight_scale")?, features, (1, 16))?, outer);
        let codes = part.tensor(".weight")?.data;
        Ok(Weight::Grouped(Box::new(Grouped::new(features, 4, codes, ValueMap::E2M1, scale, None)?)))
    })))
}
