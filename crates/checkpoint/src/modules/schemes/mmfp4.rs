//! This project's own FP4: codes of E2M1 in U32 words, eight to a word, the first in the lowest bits, and an F16 factor for each
//! group of 128 (or what `group_size` says) inputs.
//!
//! A checkpoint's tensor `{name}` (`{module}.weight`) is U32 `[out, in / 8]`, with `{name}.scales` `[out, groups]` (or
//! `[groups, out]`), `{name}.group_size` I32 `[1]` and, if inputs are rotated, `{name}.hadamard_block_size` I32 `[1]`. Stacked
//! experts have one dimension more. Matrices packed alone are U32 `[in / 8, out]` with scales `[groups, out]`, or, by another
//! of the old packers, `[in, out / 8]`; those are read where their shapes tell them apart.

use std::sync::Arc;

use super::super::{Found, Part};
use super::claim::{Claim, FLOATS, group, integers, scale_type, scales, wrong};
use super::columns::{Columns, Order, Zeros};
use crate::weight::{Grouped, InputTransform, OutputTransform, ScaleTree, ScaleType, ValueMap, Weight};
use crate::{Config, DType, Linear, Result, Tensor};

/// Suffixes of codes and of factors that writers and readers have used.
const CODES: [&str; 3] = [".weight", ".qweight", ".packed_weight"];
const SCALES: [&str; 3] = [".scales", ".weight_scale", ".scales_fp4"];

/// How codes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// `[out, in / 8]`, scales `[out, groups]`.
    Rows,
    /// `[out, in / 8]`, scales `[groups, out]`.
    RowsTurned,
    /// `[in / 8, out]`
    Down,
    /// `[in, out / 8]`
    Across,
}

pub(super) fn find(part: &Part, features: [usize; 2], _: &Config) -> Result<Option<Found>> {
    for codes in CODES {
        if part.has(codes) && part.info(codes)?.dtype == DType::U32 {
            return find_codes(part, codes, features, None);
        }
    }
    Ok(None)
}

/// One of stacked experts: codes called `suffix`, of which the module is all, or one `half` of the rows.
pub(in super::super) fn stacked(
    part: &Part,
    suffix: &str,
    features: [usize; 2],
    half: Option<usize>,
) -> Result<Option<Found>> {
    find_codes(part, suffix, features, half)
}

fn find_codes(part: &Part, codes: &str, features: [usize; 2], half: Option<usize>) -> Result<Option<Found>> {
    let named = |tail: &str| format!("{codes}{tail}");
    let own = SCALES.map(named);
    let factors = own.into_iter().chain(SCALES.map(str::to_owned)).find(|suffix| part.has(suffix));
    let Some(factors) = factors else {
        let why = format!("expected factors {:?} beside it, found none", part.name(&named(".scales")));
        return Err(part.wrong(codes, why));
    };
    let [rows, cols] = [if half.is_some() { 2 * features[0] } else { features[0] }, features[1]];
    let mut claim = Claim::new(part, "fp4", features)?;
    if !cols.is_multiple_of(8) {
        return Err(part.wrong(codes, format!("{cols} inputs are no whole words of eight codes")));
    }
    let shape = claim.matrix(codes, &[DType::U32])?;
    let scale_shape = claim.matrix(&factors, &FLOATS)?;
    // Settings of one number belong to the whole stack.
    let setting = |claim: &mut Claim, tail: &str| -> Result<Option<usize>> {
        let suffix = named(tail);
        if !part.has(&suffix) {
            return Ok(None);
        }
        let tensor = part.whole(&suffix)?;
        let found = if tensor.info.dtype == DType::I32 { integers(&tensor).next() } else { None };
        let found = found.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0 && tensor.info.elements() == 1);
        claim.add(&suffix);
        found.map(Some).ok_or_else(|| wrong(&tensor.info, "expected one I32 above 0, found something else"))
    };
    let stated = setting(&mut claim, ".group_size")?;
    let block = setting(&mut claim, ".hadamard_block_size")?;
    if let Some(block) = block.filter(|b| !b.is_power_of_two() || !cols.is_multiple_of(*b)) {
        let why = format!("expected a power of two that divides {cols} inputs, found {block}");
        return Err(part.wrong(&named(".hadamard_block_size"), why));
    }
    let layout = layout(part, codes, &factors, [rows, cols], shape, scale_shape, stated)?;
    if half.is_some() {
        if !matches!(layout, Layout::Rows | Layout::RowsTurned) {
            return Err(part.wrong(codes, format!("stacked experts must be packed in rows, found {layout:?}")));
        }
        claim.halve();
    }
    let groups = if layout == Layout::Rows { scale_shape[1] } else { scale_shape[0] };
    let size = group(part, &factors, cols, groups, stated)?;
    let kind = part.info(&factors)?.dtype;
    let detail = format!("e2m1 x {}", kind.name().to_lowercase());
    let codes = codes.to_owned();
    Ok(Some(claim.found(detail, 4, Some(size), move |part| {
        let (codes, mut factors) = (part.tensor(&codes)?.data, part.tensor(&factors)?);
        let weight = match layout {
            Layout::Rows | Layout::RowsTurned => {
                if layout == Layout::RowsTurned {
                    factors = turned(factors, groups, rows);
                }
                let scale = ScaleTree::flat(scales(factors, [rows, cols], (1, size))?);
                let whole = Grouped::new([rows, cols], 4, codes, ValueMap::E2M1, scale, None)?;
                let part = match half {
                    None => whole,
                    Some(half) => whole.slice(half * features[0]..(half + 1) * features[0])?,
                };
                Weight::Grouped(Box::new(part))
            }
            Layout::Down | Layout::Across => {
                let order = if layout == Layout::Down { Order::Down } else { Order::Across([0, 1, 2, 3, 4, 5, 6, 7]) };
                let kind = scale_type(kind).unwrap_or(ScaleType::F16);
                let (scales, zeros) = (factors.data, Zeros::None(ValueMap::E2M1));
                let weight = Columns { shape: [rows, cols], bits: 4, codes, order, scales, kind, group: size, zeros };
                Weight::Packed(Arc::new(weight.check()?))
            }
        };
        let input = match block {
            None => InputTransform::None,
            Some(block) => InputTransform::Hadamard { scale: None, block },
        };
        Linear::new(part.base(), weight, None).with_transforms(input, OutputTransform::None)
    })))
}

/// The layout that the shapes speak of, refused if they speak of several. The tensor `group_size` marks a checkpoint, whose
/// codes are in rows and whose scales, if both readings fit, are too.
fn layout(
    part: &Part,
    codes: &str,
    factors: &str,
    [rows, cols]: [usize; 2],
    shape: [usize; 2],
    scales: [usize; 2],
    stated: Option<usize>,
) -> Result<Layout> {
    let groups_fit = |groups: usize| match stated {
        Some(size) => groups == cols.div_ceil(size),
        None => groups > 0 && groups <= cols / 8 && cols.is_multiple_of(groups),
    };
    let in_rows = shape == [rows, cols / 8];
    let straight = scales[0] == rows && groups_fit(scales[1]);
    let turned = scales[1] == rows && groups_fit(scales[0]);
    let fits: Vec<Layout> = [
        (Layout::Rows, in_rows && straight),
        (Layout::RowsTurned, in_rows && turned),
        (Layout::Down, shape == [cols / 8, rows] && turned),
        (Layout::Across, rows.is_multiple_of(8) && shape == [cols, rows / 8] && turned),
    ]
    .into_iter()
    .filter_map(|(layout, fits)| fits.then_some(layout))
    .collect();
    match fits.as_slice() {
        [only] => Ok(*only),
        [first @ (Layout::Rows | Layout::RowsTurned), ..] if stated.is_some() => Ok(*first),
        [] if in_rows || shape == [cols / 8, rows] || (rows.is_multiple_of(8) && shape == [cols, rows / 8]) => {
            let why = format!("expected [{rows}, groups] or [groups, {rows}] for {cols} inputs, found {scales:?}");
            Err(part.wrong(factors, why))
        }
        [] => {
            let why = format!("expected [{rows}, {}] words for [{rows}, {cols}] weights, found {shape:?}", cols / 8);
            Err(part.wrong(codes, why))
        }
        _ => {
            let why = format!(
                "shape {shape:?} with scales {scales:?} fits several of the ways in which [{rows}, {cols}] weights were packed; convert the original checkpoint again"
            );
            Err(part.wrong(codes, why))
        }
    }
}

/// `[down, across]` as `[across, down]`.
fn turned(tensor: Tensor, down: usize, across: usize) -> Tensor {
    let size = tensor.info.dtype.size();
    let mut data = Vec::with_capacity(tensor.data.len());
    for column in 0..across {
        for row in 0..down {
            data.extend_from_slice(&tensor.data[(row * across + column) * size..][..size]);
        }
    }
    Tensor { info: tensor.info, data: data.into() }
}
