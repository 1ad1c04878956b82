//! The safetensors header: `u64` length, JSON, then the tensors' bytes without gaps.
//!
//! Nothing in the file is believed before it is checked: the length has a hard limit, offsets must tile the data exactly,
//! and every product is checked for overflow. No alignment is promised for the data.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Malformed;
use crate::{DType, TensorInfo};

/// Longest header that is read.
pub const HEADER_LIMIT: u64 = 100_000_000;

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tensors in the order of their data, with the bytes of the file each takes.
    pub tensors: Vec<(TensorInfo, Range<usize>)>,
    /// Free text stored with the tensors, such as `format: pt`.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads and checks the header of the file whose bytes are `file`.
    pub fn parse(file: &[u8]) -> Result<Self, Malformed> {
        let found = file.len() as u64;
        let (length, rest) = file.split_first_chunk::<8>().ok_or(Malformed::TooShort { found })?;
        let claimed = u64::from_le_bytes(*length);
        if claimed > HEADER_LIMIT {
            return Err(Malformed::HeaderTooLarge { found: claimed, limit: HEADER_LIMIT });
        }
        let split = usize::try_from(claimed).ok().and_then(|n| rest.split_at_checked(n));
        let (header, data) = split.ok_or(Malformed::HeaderTruncated { claimed, found: rest.len() as u64 })?;
        let text = std::str::from_utf8(header).map_err(|e| Malformed::NotUtf8 { at: e.valid_up_to() })?;
        if !text.starts_with('{') {
            return Err(Malformed::NotAnObject);
        }
        let raw: Raw = serde_json::from_str(text).map_err(|e| match e.to_string().strip_prefix(TWICE) {
            Some(rest) => {
                Malformed::DuplicateName(rest.rsplit_once(" at line").map_or(rest, |(name, _)| name).to_owned())
            }
            None => Malformed::Json(e.to_string()),
        })?;
        Self::checked(raw, 8 + header.len(), data.len() as u64)
    }

    /// Checks that the entries tile `available` bytes beginning at `start` of the file.
    fn checked(raw: Raw, start: usize, available: u64) -> Result<Self, Malformed> {
        let mut entries = raw.tensors;
        entries.sort_by_key(|entry| entry.1.data_offsets);
        let mut tensors: Vec<(TensorInfo, Range<usize>)> = Vec::with_capacity(entries.len());
        let mut position = 0;
        for (name, entry) in entries {
            let (begin, end) = entry.data_offsets;
            let info = info(name, entry)?;
            if end > available {
                return Err(Malformed::PastEnd { name: info.name, end, available });
            }
            if begin < position {
                let first = tensors.pop().map(|t| t.0.name).unwrap_or_default();
                return Err(Malformed::Overlap { first, second: info.name, at: begin });
            }
            if begin > position {
                return Err(Malformed::Gap { name: info.name, begin: position, end: begin });
            }
            position = end;
            // Both lie within the file, whose length is a usize.
            tensors.push((info, start + begin as usize..start + end as usize));
        }
        if position < available {
            return Err(Malformed::TrailingBytes { count: available - position });
        }
        Ok(Self { tensors, metadata: raw.metadata })
    }
}

/// One entry on its own: type known, shape representable, offsets agreeing with both.
fn info(name: String, entry: Entry) -> Result<TensorInfo, Malformed> {
    let (begin, end) = entry.data_offsets;
    let Some(dtype) = DType::from_name(&entry.dtype) else {
        return Err(Malformed::UnknownDType { name, dtype: entry.dtype });
    };
    // Zero dimensions are left out of the product, so that no partial product can overflow later either.
    let limit = isize::MAX as u64;
    let product = entry.shape.iter().try_fold(dtype.size() as u64, |n, &d| match d {
        0 => Some(n),
        d => n.checked_mul(d).filter(|n| *n <= limit),
    });
    let shape: Option<Vec<usize>> = entry.shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let (Some(bytes), Some(shape)) = (product, shape) else {
        return Err(Malformed::ShapeOverflow { name, shape: entry.shape });
    };
    let expected = if entry.shape.contains(&0) { 0 } else { bytes };
    let Some(found) = end.checked_sub(begin) else {
        return Err(Malformed::OffsetsReversed { name, begin, end });
    };
    if found != expected {
        return Err(Malformed::SizeMismatch { name, dtype: dtype.name(), shape, expected, found });
    }
    Ok(TensorInfo { name, dtype, shape })
}

/// The JSON as written.
#[derive(Default)]
struct Raw {
    tensors: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Begins the message by which [`Raw`]'s reader reports a repeated name through serde.
const TWICE: &str = "listed twice: ";

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                let mut seen = std::collections::HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format_args!("{TWICE}{name}")));
                    }
                    if name == "__metadata__" {
                        raw.metadata = map.next_value()?;
                    } else {
                        let entry = map.next_value()?;
                        raw.tensors.push((name, entry));
                    }
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
