//! Codes of 2 to 8 bits, a map from codes to values, and a factor (and perhaps a minimum) for each group.
//!
//! FP4, NVFP4, MXFP4, GPTQ, AWQ, MLX, compressed-tensors, fp8 and GGUF's blocks are all this, packed differently on disk.
//!
//! Value of element (r, c): `scale(r, c) * map(code) + minimum(r, c)`, where the map of integers is `code - zero(r, c)`.
//!
//! In memory each row of codes is one bit stream, least significant bit first, padded to whole 32-bit words: what MLX,
//! MXFP4, NVFP4 and compressed-tensors store, so those are used from the mapping without a copy.

use std::ops::Range;

use super::scales::{ScaleTree, ScaleType, Scales};
use super::values::{E2M1, e4m3, e5m2};
use crate::{Bytes, Error, Result};

/// What a code stands for, before scaling.
#[derive(Clone, Debug)]
pub enum ValueMap {
    /// The code minus a zero point.
    Integer(Zero),
    /// FP4: codes of 4 bits.
    E2M1,
    /// FP8 with 3 bits of mantissa: codes of 8 bits.
    E4M3,
    /// FP8 with 2 bits of mantissa: codes of 8 bits.
    E5M2,
    /// A table for codes of 4 bits, such as GGUF's IQ4.
    Table(Box<[f32; 16]>),
}

/// The code that stands for zero.
#[derive(Clone, Debug)]
pub enum Zero {
    /// One for the whole matrix: 0 (with a minimum beside it) or half the range (symmetric formats).
    Constant(u8),
    /// One for each group, of type U8 or U4.
    Groups(Scales),
}

/// A matrix of grouped codes.
#[derive(Clone, Debug)]
pub struct Grouped {
    rows: usize,
    cols: usize,
    bits: u32,
    codes: Bytes,
    map: ValueMap,
    scale: ScaleTree,
    minimum: Option<ScaleTree>,
}

impl Grouped {
    /// A `[rows, cols]` matrix of codes of `bits` bits, rows as [`pack`] writes them.
    pub fn new(
        [rows, cols]: [usize; 2],
        bits: u32,
        codes: Bytes,
        map: ValueMap,
        scale: ScaleTree,
        minimum: Option<ScaleTree>,
    ) -> Result<Self> {
        let refuse = |why: String| Err(Error::invalid("grouped weight", why));
        let widths = match &map {
            ValueMap::Integer(_) => 2..=8,
            ValueMap::E2M1 | ValueMap::Table(_) => 4..=4,
            ValueMap::E4M3 | ValueMap::E5M2 => 8..=8,
        };
        if !widths.contains(&bits) {
            return refuse(format!("expected codes of {widths:?} bits, found {bits}"));
        }
        let expected = rows.saturating_mul(stride(cols, bits));
        if codes.len() != expected {
            return refuse(format!(
                "expected {expected} bytes of codes ([{rows}, {cols}], {bits} bits), found {}",
                codes.len()
            ));
        }
        if !scale.fits(rows, cols) || minimum.as_ref().is_some_and(|m| !m.fits(rows, cols)) {
            return refuse(format!("scales or minimums were made for another shape than [{rows}, {cols}]"));
        }
        match &map {
            ValueMap::Integer(Zero::Constant(zero)) if u32::from(*zero) >= 1 << bits => {
                return refuse(format!("zero point {zero} is no code of {bits} bits"));
            }
            ValueMap::Integer(Zero::Groups(zeros)) => {
                if !matches!(zeros.kind(), ScaleType::U8 | ScaleType::U4) {
                    return refuse(format!("zero points must be U8 or U4, found {:?}", zeros.kind()));
                }
                if !ScaleTree::flat(zeros.clone()).fits(rows, cols) {
                    return refuse(format!("zero points were made for another shape than [{rows}, {cols}]"));
                }
            }
            _ => {}
        }
        Ok(Self { rows, cols, bits, codes, map, scale, minimum })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The packed codes.
    pub fn codes(&self) -> &Bytes {
        &self.codes
    }

    /// Bytes of one row of codes.
    pub fn row_stride(&self) -> usize {
        stride(self.cols, self.bits)
    }

    /// What codes stand for.
    pub fn map(&self) -> &ValueMap {
        &self.map
    }

    /// The factors.
    pub fn scale(&self) -> &ScaleTree {
        &self.scale
    }

    /// What is added after scaling.
    pub fn minimum(&self) -> Option<&ScaleTree> {
        self.minimum.as_ref()
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        let zeros = match &self.map {
            ValueMap::Integer(Zero::Groups(zeros)) => zeros.data().len(),
            _ => 0,
        };
        self.codes.len() + zeros + self.scale.bytes() + self.minimum.as_ref().map_or(0, ScaleTree::bytes)
    }

    /// Rows `rows` as a matrix of their own, sharing the bytes. Where a block of factors covers several rows, `rows` begins
    /// with one or lies within one.
    pub fn slice(&self, rows: Range<usize>) -> Result<Self> {
        let stride = self.row_stride();
        let codes = self.codes.slice(rows.start.saturating_mul(stride)..rows.end.saturating_mul(stride));
        let codes = codes.ok_or_else(|| {
            Error::invalid("grouped weight", format!("rows {rows:?} are not within its {}", self.rows))
        })?;
        let map = match &self.map {
            ValueMap::Integer(Zero::Groups(zeros)) => ValueMap::Integer(Zero::Groups(zeros.rows(&rows)?)),
            map => map.clone(),
        };
        let minimum = self.minimum.as_ref().map(|m| m.rows(&rows)).transpose()?;
        Ok(Self { rows: rows.len(), codes, map, scale: self.scale.rows(&rows)?, minimum, ..*self })
    }

    /// Gives back the memory of the file's pages that the matrix lies in.
    pub fn release(&self) {
        self.codes.release();
        self.scale.release();
        self.minimum.iter().for_each(ScaleTree::release);
        if let ValueMap::Integer(Zero::Groups(zeros)) = &self.map {
            zeros.data().release();
        }
    }

    /// The code at `(row, col)`.
    pub fn code(&self, row: usize, col: usize) -> u8 {
        let line = &self.codes[row * self.row_stride()..][..self.row_stride()];
        let bit = col * self.bits as usize;
        let two = u16::from(line[bit / 8]) | u16::from(line.get(bit / 8 + 1).copied().unwrap_or(0)) << 8;
        (two >> (bit % 8)) as u8 & mask(self.bits)
    }

    pub(super) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        for (col, out) in out.iter_mut().enumerate() {
            let code = self.code(row, col);
            let value = match &self.map {
                ValueMap::Integer(Zero::Constant(zero)) => f32::from(code) - f32::from(*zero),
                ValueMap::Integer(Zero::Groups(zeros)) => f32::from(code) - zeros.at(row, col),
                ValueMap::E2M1 => E2M1[usize::from(code)],
                ValueMap::E4M3 => e4m3(code),
                ValueMap::E5M2 => e5m2(code),
                ValueMap::Table(table) => table[usize::from(code)],
            };
            *out = self.scale.at(row, col) * value;
            if let Some(minimum) = &self.minimum {
                *out += minimum.at(row, col);
            }
        }
    }
}

/// Packs row-major `codes` of a matrix of `cols` columns the way [`Grouped`] keeps them.
pub fn pack(codes: &[u8], cols: usize, bits: u32) -> Vec<u8> {
    let stride = stride(cols, bits);
    let mut packed = vec![0; codes.len().checked_div(cols).unwrap_or(0) * stride];
    if stride == 0 {
        return packed;
    }
    for (row, line) in codes.chunks_exact(cols).zip(packed.chunks_exact_mut(stride)) {
        for (i, code) in row.iter().enumerate() {
            let bit = i * bits as usize;
            let two = u16::from(code & mask(bits)) << (bit % 8);
            line[bit / 8] |= two as u8;
            if two > 0xff {
                line[bit / 8 + 1] |= (two >> 8) as u8;
            }
        }
    }
    packed
}

/// Bytes of a row: whole 32-bit words.
fn stride(cols: usize, bits: u32) -> usize {
    cols.saturating_mul(bits as usize).div_ceil(32).saturating_mul(4)
}

fn mask(bits: u32) -> u8 {
    (0xff_u32 >> (8 - bits.min(8))) as u8
}
