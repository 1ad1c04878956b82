//! Factors (or zero points, or minimums) that a rectangle of weights shares.

use std::ops::Range;

use half::{bf16, f16};

use super::values::{e4m3, e8m0};
use crate::{Bytes, Error, Result};

/// Element type of [`Scales`].
#[allow(missing_docs)] // each variant is its own definition
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScaleType {
    F32,
    F16,
    BF16,
    E4M3,
    E8M0,
    I8,
    U8,
    /// Two to a byte, the earlier in the low half; each row of groups begins a byte.
    U4,
}

impl ScaleType {
    /// Bits of one element.
    pub fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::E4M3 | Self::E8M0 | Self::I8 | Self::U8 => 8,
            Self::U4 => 4,
        }
    }
}

/// One number for each `block.0 x block.1` rectangle of a matrix; rectangles at the right and lower edge may be partial.
#[derive(Clone, Debug)]
pub struct Scales {
    kind: ScaleType,
    block: (usize, usize),
    /// Rectangles in a row.
    across: usize,
    /// Bytes of a row of rectangles.
    stride: usize,
    data: Bytes,
}

impl Scales {
    /// Numbers for a `[rows, cols]` matrix, row-major, little-endian. A block of `(1, 32)` is a group of 32 along a row,
    /// `(1, cols)` a channel, `(128, 128)` a tile, `(rows, cols)` the whole matrix.
    pub fn new(kind: ScaleType, rows: usize, cols: usize, block: (usize, usize), data: Bytes) -> Result<Self> {
        if block.0 == 0 || block.1 == 0 {
            return Err(Error::invalid("scales", format!("block {block:?} is empty")));
        }
        let across = cols.div_ceil(block.1);
        let stride = across.saturating_mul(kind.bits()).div_ceil(8);
        let expected = rows.div_ceil(block.0).saturating_mul(stride);
        if data.len() != expected {
            let why = format!(
                "expected {expected} bytes ({kind:?}, one for each {} x {} of [{rows}, {cols}]), found {}",
                block.0,
                block.1,
                data.len()
            );
            return Err(Error::invalid("scales", why));
        }
        Ok(Self { kind, block, across, stride, data })
    }

    /// One f32 for the whole `[rows, cols]` matrix.
    pub fn whole(rows: usize, cols: usize, value: f32) -> Result<Self> {
        let data = value.to_le_bytes().to_vec().into();
        Self::new(ScaleType::F32, rows, cols, (rows.max(1), cols.max(1)), data)
    }

    /// Element type.
    pub fn kind(&self) -> ScaleType {
        self.kind
    }

    /// Rows and columns that share one number.
    pub fn block(&self) -> (usize, usize) {
        self.block
    }

    /// Rectangles in a row.
    pub fn across(&self) -> usize {
        self.across
    }

    /// The numbers as stored.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The number for element `(row, col)`.
    pub fn at(&self, row: usize, col: usize) -> f32 {
        let line = &self.data[row / self.block.0 * self.stride..][..self.stride];
        let i = col / self.block.1;
        let two = || [line[2 * i], line[2 * i + 1]];
        match self.kind {
            ScaleType::F32 => f32::from_le_bytes([line[4 * i], line[4 * i + 1], line[4 * i + 2], line[4 * i + 3]]),
            ScaleType::F16 => f16::from_le_bytes(two()).to_f32(),
            ScaleType::BF16 => bf16::from_le_bytes(two()).to_f32(),
            ScaleType::E4M3 => e4m3(line[i]),
            ScaleType::E8M0 => e8m0(line[i]),
            ScaleType::I8 => f32::from(line[i] as i8),
            ScaleType::U8 => f32::from(line[i]),
            ScaleType::U4 => f32::from(line[i / 2] >> (4 * (i % 2)) & 15),
        }
    }

    /// The numbers of the rows `rows` of the matrix, which begin with a block or lie within one.
    pub(super) fn rows(&self, rows: &Range<usize>) -> Result<Self> {
        let (first, end) = (rows.start / self.block.0, rows.end.div_ceil(self.block.0));
        let aligned = rows.start.is_multiple_of(self.block.0);
        let data = self.data.slice(first * self.stride..end * self.stride).filter(|_| aligned || end - first <= 1);
        let data = data.ok_or_else(|| {
            Error::invalid(
                "scales",
                format!("rows {rows:?} are no whole blocks of {} rows within the matrix", self.block.0),
            )
        })?;
        let block = if aligned { self.block } else { (rows.len(), self.block.1) };
        Ok(Self { block, data, ..*self })
    }

    fn fits(&self, rows: usize, cols: usize) -> bool {
        self.across == cols.div_ceil(self.block.1)
            && self.data.len() == rows.div_ceil(self.block.0).saturating_mul(self.stride)
    }
}

/// A factor for each group and, in many formats, another for the groups of a super-block, channel, tile or tensor.
#[derive(Clone, Debug)]
pub struct ScaleTree {
    inner: Scales,
    outer: Option<Scales>,
    divide: bool,
}

impl ScaleTree {
    /// `inner` alone.
    pub fn flat(inner: Scales) -> Self {
        Self { inner, outer: None, divide: false }
    }

    /// `inner x outer`.
    pub fn nested(inner: Scales, outer: Scales) -> Self {
        Self { inner, outer: Some(outer), divide: false }
    }

    /// `inner / outer`, as compressed-tensors' NVFP4 defines it (multiplying by the reciprocal rounds differently).
    pub fn divided(inner: Scales, outer: Scales) -> Self {
        Self { inner, outer: Some(outer), divide: true }
    }

    /// The factors of the groups.
    pub fn inner(&self) -> &Scales {
        &self.inner
    }

    /// The factors of the larger blocks.
    pub fn outer(&self) -> Option<&Scales> {
        self.outer.as_ref()
    }

    /// Whether `outer` divides rather than multiplies.
    pub fn divides(&self) -> bool {
        self.divide
    }

    /// The factor of element `(row, col)`, computed in f32.
    pub fn at(&self, row: usize, col: usize) -> f32 {
        let inner = self.inner.at(row, col);
        match &self.outer {
            None => inner,
            Some(outer) if self.divide => inner / outer.at(row, col),
            Some(outer) => inner * outer.at(row, col),
        }
    }

    /// The factors of the rows `rows`.
    pub(super) fn rows(&self, rows: &Range<usize>) -> Result<Self> {
        let outer = self.outer.as_ref().map(|o| o.rows(rows)).transpose()?;
        Ok(Self { inner: self.inner.rows(rows)?, outer, divide: self.divide })
    }

    pub(super) fn release(&self) {
        self.inner.data.release();
        self.outer.iter().for_each(|o| o.data.release());
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> usize {
        self.inner.data.len() + self.outer.as_ref().map_or(0, |o| o.data.len())
    }

    pub(super) fn fits(&self, rows: usize, cols: usize) -> bool {
        self.inner.fits(rows, cols) && self.outer.as_ref().is_none_or(|o| o.fits(rows, cols))
    }
}
