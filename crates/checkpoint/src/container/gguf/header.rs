//! A GGUF file's header: version, metadata, and where each tensor lies.

use std::collections::HashSet;
use std::ops::Range;

use super::cursor::Cursor;
use super::{Malformed, Metadata};
use crate::{Bytes, DType, TensorInfo};

const MAGIC: &[u8; 4] = b"GGUF";
const ALIGNMENT: &str = "general.alignment";

/// A checked header.
#[derive(Clone, Debug)]
pub struct Header {
    /// Keys and values.
    pub metadata: Metadata,
    /// Tensors in the order of the file's list, with the bytes of the file each takes. Shapes are slowest first.
    pub tensors: Vec<(TensorInfo, Range<usize>)>,
}

/// A tensor as listed.
struct Entry {
    info: TensorInfo,
    bytes: u64,
    offset: u64,
}

impl Header {
    /// Reads and checks the header of the file whose bytes are `file`.
    pub fn parse(file: &Bytes) -> Result<Self, Malformed> {
        let mut cursor = Cursor::new(file, 0);
        let magic = cursor.bytes(4, "the header")?;
        if magic != MAGIC {
            return Err(Malformed::Magic { found: magic.escape_ascii().to_string() });
        }
        match cursor.u32("the version")? {
            2 | 3 => {}
            found if (1..=3).contains(&found.swap_bytes()) => return Err(Malformed::ByteSwapped),
            found => return Err(Malformed::Version { found }),
        }
        let tensors = cursor.u64("the number of tensors")?;
        let keys = cursor.u64("the number of keys")?;
        let metadata = Metadata::read(&mut cursor, file, keys)?;
        let alignment = alignment(&metadata)?;
        // An empty name, no dimensions, a type and an offset.
        cursor.room(tensors, 8 + 4 + 4 + 8, format_args!("a list of {tensors} tensors"))?;
        let mut names = HashSet::new();
        let mut entries = Vec::new();
        for i in 0..tensors {
            let entry = entry(&mut cursor, i)?;
            if !names.insert(entry.info.name.clone()) {
                return Err(Malformed::DuplicateTensor(entry.info.name));
            }
            if !entry.offset.is_multiple_of(alignment) {
                return Err(Malformed::Misaligned { name: entry.info.name, offset: entry.offset, alignment });
            }
            entries.push(entry);
        }
        let start = (cursor.at() as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let tensors = place(entries, start, file.len() as u64)?;
        Ok(Self { metadata, tensors })
    }
}

fn alignment(metadata: &Metadata) -> Result<u64, Malformed> {
    match metadata.get(ALIGNMENT) {
        None => Ok(32),
        Some(super::Value::Unsigned(n)) if n.is_power_of_two() => Ok(*n),
        Some(_) => {
            let wrong = metadata.wrong(ALIGNMENT, "");
            let found = if let crate::Error::Config { found, .. } = wrong { found } else { String::new() };
            Err(Malformed::Alignment { found })
        }
    }
}

fn entry(cursor: &mut Cursor, i: u64) -> Result<Entry, Malformed> {
    let name = cursor.text(format_args!("the name of tensor {i}"))?.to_owned();
    let what = format!("the entry of tensor {name:?}");
    let rank = cursor.u32(&what)?;
    if rank > 4 {
        return Err(Malformed::Dimensions { name, found: rank });
    }
    let dims = (0..rank).map(|_| cursor.u64(&what)).collect::<Result<Vec<u64>, _>>()?;
    let id = cursor.u32(&what)?;
    let offset = cursor.u64(&what)?;
    let dtype = match element_type(id) {
        Ok(dtype) => dtype,
        Err(found) => return Err(Malformed::ElementType { name, id, found }),
    };
    let row = dims.first().copied().unwrap_or(1);
    let block = dtype.block() as u64;
    if !row.is_multiple_of(block) {
        return Err(Malformed::PartialBlock { name, dtype, block: dtype.block(), found: row });
    }
    // Zero dimensions are left out of the product, so that no partial product can overflow later either.
    let limit = isize::MAX as u64 / 16;
    let product = dims.iter().try_fold(1u64, |n, &d| match d {
        0 => Some(n),
        d => n.checked_mul(d).filter(|n| *n <= limit),
    });
    let shape: Option<Vec<usize>> = dims.iter().rev().map(|&d| usize::try_from(d).ok()).collect();
    let (Some(elements), Some(shape)) = (product, shape) else {
        return Err(Malformed::ShapeOverflow { name, dims });
    };
    let bytes = if dims.contains(&0) { 0 } else { elements / block * dtype.size() as u64 };
    Ok(Entry { info: TensorInfo { name, dtype, shape }, bytes, offset })
}

/// Where in the file each tensor lies: within the data, and no two in one place.
fn place(entries: Vec<Entry>, start: u64, file: u64) -> Result<Vec<(TensorInfo, Range<usize>)>, Malformed> {
    let available = file.saturating_sub(start);
    for entry in &entries {
        let end = entry.offset.saturating_add(entry.bytes);
        if end > available {
            let (name, begin) = (entry.info.name.clone(), entry.offset);
            return Err(Malformed::PastEnd { name, begin, end, available });
        }
    }
    let mut order: Vec<&Entry> = entries.iter().filter(|entry| entry.bytes > 0).collect();
    order.sort_by_key(|entry| entry.offset);
    for pair in order.windows(2) {
        if pair[1].offset < pair[0].offset + pair[0].bytes {
            let [first, second] = [pair[0], pair[1]].map(|entry| entry.info.name.clone());
            return Err(Malformed::Overlap { first, second, at: pair[1].offset });
        }
    }
    // Both ends lie within the file, whose length is a usize (a tensor without elements may lie at its end).
    let range = |entry: &Entry| {
        let begin = start.min(file) + entry.offset;
        begin as usize..(begin + entry.bytes) as usize
    };
    Ok(entries.into_iter().map(|entry| (range(&entry), entry)).map(|(range, entry)| (entry.info, range)).collect())
}

/// The type with GGML's number `id`, or the name of the type that cannot be read.
fn element_type(id: u32) -> Result<DType, &'static str> {
    Ok(match id {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        6 => DType::Q5_0,
        7 => DType::Q5_1,
        8 => DType::Q8_0,
        10 => DType::Q2K,
        11 => DType::Q3K,
        12 => DType::Q4K,
        13 => DType::Q5K,
        14 => DType::Q6K,
        20 => DType::Iq4Nl,
        23 => DType::Iq4Xs,
        24 => DType::I8,
        25 => DType::I16,
        26 => DType::I32,
        27 => DType::I64,
        28 => DType::F64,
        30 => DType::BF16,
        39 => DType::Mxfp4,
        4 => return Err("Q4_2, which GGML has removed"),
        5 => return Err("Q4_3, which GGML has removed"),
        9 => return Err("Q8_1"),
        15 => return Err("Q8_K"),
        16 => return Err("IQ2_XXS"),
        17 => return Err("IQ2_XS"),
        18 => return Err("IQ3_XXS"),
        19 => return Err("IQ1_S"),
        21 => return Err("IQ3_S"),
        22 => return Err("IQ2_S"),
        29 => return Err("IQ1_M"),
        31..=33 => return Err("Q4_0 interleaved for a processor, which GGML has removed"),
        34 => return Err("TQ1_0"),
        35 => return Err("TQ2_0"),
        36..=38 => return Err("IQ4_NL interleaved for a processor, which GGML has removed"),
        40 => return Err("NVFP4"),
        41 => return Err("Q1_0"),
        42 => return Err("Q2_0"),
        _ => return Err("unknown"),
    })
}
