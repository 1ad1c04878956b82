//! Formats that are recognised only to say why they cannot be read.

use super::super::{Found, Part};
use crate::{Config, Result};

/// A tensor that only this format has, another that must be beside it, and why it is refused.
const FORMATS: [(&str, &str, &str); 8] = [
    (
        ".indices",
        ".scales",
        "this project's old Trellis format, a uniform grid without EXL3's codebooks or rotations; it is not EXL3 and no longer read: convert the original checkpoint again",
    ),
    (
        ".weight.indices",
        ".weight.scales",
        "this project's old Trellis format, a uniform grid without EXL3's codebooks or rotations; it is not EXL3 and no longer read: convert the original checkpoint again",
    ),
    (".weight.absmax", ".weight", "bitsandbytes, which is not supported"),
    (".SCB", ".weight", "bitsandbytes (LLM.int8), which is not supported"),
    (".W_q", "", "HQQ, which is not supported"),
    (".codebooks", ".codes", "AQLM, which is not supported"),
    (".Qidxs", "", "QuIP#, which is not supported"),
    (".q_weight", ".q_scale", "EXL2, which is not supported"),
];

pub(super) fn find(part: &Part, _: [usize; 2], _: &Config) -> Result<Option<Found>> {
    match FORMATS.into_iter().find(|(one, other, _)| part.has(one) && (other.is_empty() || part.has(other))) {
        Some((suffix, _, why)) => Err(part.wrong(suffix, why)),
        None => Ok(None),
    }
}
