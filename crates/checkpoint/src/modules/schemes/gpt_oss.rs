//! gpt-oss's MXFP4 experts: `{experts}.gate_up_proj_blocks` U8 `[experts, 2 x intermediate, hidden / 32, 16]`, rows of gate and
//! up alternating, `gate_up_proj_scales` U8 (E8M0) without the last dimension, and the same of `down_proj`.

use std::sync::Arc;

use super::super::{Found, Part};
use super::changed::{Change, Changed};
use super::claim::{Claim, wrong};
use super::compressed::whole;
use crate::weight::{Grouped, ScaleTree, ScaleType, Scales, ValueMap, Weight};
use crate::{DType, Result};

/// One expert's matrix; `experts` is the stack's `{prefix}.experts` at the expert.
pub(in super::super) fn find(experts: &Part, matrix: &str, [rows, cols]: [usize; 2]) -> Result<Option<Found>> {
    let (name, half) = match matrix {
        "gate_proj" => ("gate_up_proj", Some(0)),
        "up_proj" => ("gate_up_proj", Some(1)),
        _ => ("down_proj", None),
    };
    let [blocks, factors, bias] = ["blocks", "scales", "bias"].map(|part| format!(".{name}_{part}"));
    if !experts.has(&blocks) {
        return Ok(None);
    }
    let mut claim = Claim::new(experts, "mxfp4", [rows, cols])?;
    whole(experts, &blocks, cols, 32)?;
    let tall = if half.is_some() { 2 * rows } else { rows };
    claim.need(&blocks, &[DType::U8], &[tall, cols / 32, 16])?;
    claim.need(&factors, &[DType::U8, DType::F8E8M0], &[tall, cols / 32])?;
    if experts.has(&bias) {
        let info = claim.need(&bias, &super::claim::FLOATS, &[tall])?;
        if experts.tensor(&bias)?.to_f32()?.iter().any(|b| *b != 0.0) {
            return Err(wrong(&info, "biases of experts, which this version does not compute with"));
        }
    }
    if half.is_some() {
        claim.halve();
    }
    Ok(Some(claim.plain("e2m1 x e8m0", 4, Some(32), move |part| {
        let shape = [tall, cols];
        let scale = ScaleTree::flat(Scales::new(ScaleType::E8M0, tall, cols, (1, 32), part.tensor(&factors)?.data)?);
        let whole = Grouped::new(shape, 4, part.tensor(&blocks)?.data, ValueMap::E2M1, scale, None)?;
        Ok(match half {
            None => Weight::Grouped(Box::new(whole)),
            Some(first) => Weight::Packed(Arc::new(Changed { whole, change: Change::EveryOther(first) })),
        })
    })))
}
