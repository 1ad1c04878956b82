//! GGML's blocks as grouped weights, exactly: the same codes, factors and order of rounding.
//!
//! A super-block's factors are pairs of a small integer for each sub-block and an f16 for all of it. Minimums are
//! subtracted in GGML and added here, so their f16 is stored negated.

mod bits;
mod formats;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ops::Range;

use super::HeadOrder;
use crate::weight::{ScaleTree, ScaleType, Scales, ValueMap, Zero};
use crate::{Bytes, DType, Error, Grouped, Packed, Result, Tensor};
use formats::{halves, halves_and_fifth, signed_bytes};

/// The values of IQ4_NL and IQ4_XS.
const IQ4: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// Bits of the codes of a block type, and the weights that share an innermost factor.
pub(super) fn codes_of(dtype: DType) -> Option<(u32, usize)> {
    Some(match dtype {
        DType::Q2K => (2, 16),
        DType::Q3K => (3, 16),
        DType::Q4_0 | DType::Q4_1 | DType::Q4K | DType::Iq4Nl | DType::Iq4Xs | DType::Mxfp4 => (4, 32),
        DType::Q5_0 | DType::Q5_1 | DType::Q5K => (5, 32),
        DType::Q6K => (6, 16),
        DType::Q8_0 => (8, 32),
        _ => return None,
    })
}

thread_local! {
    /// Where rows are read to, again and again.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A matrix of blocks in the file.
#[derive(Debug)]
pub(super) struct Blocks {
    name: String,
    dtype: DType,
    shape: [usize; 2],
    data: Bytes,
    order: HeadOrder,
}

impl Blocks {
    /// The matrix `[rows, cols]` in `tensor`, of a block type, with its rows in the order that `order` undoes.
    pub(super) fn new(tensor: Tensor, shape: [usize; 2], order: HeadOrder) -> Result<Self> {
        let Tensor { info, data } = tensor;
        let (elements, block) = (shape[0].saturating_mul(shape[1]), info.dtype.block());
        if codes_of(info.dtype).is_none() || !shape[1].is_multiple_of(block) || data.len() != info.dtype.bytes(elements)
        {
            let why = format!("{} bytes of {} are no matrix {shape:?} of whole blocks", data.len(), info.dtype);
            return Err(Error::invalid(format!("tensor {:?}", info.name), why));
        }
        Ok(Self { name: info.name, dtype: info.dtype, shape, data, order })
    }

    /// The bytes of each of `rows`, in the order of transformers.
    fn lines<'a>(&'a self, rows: Range<usize>, buffer: &'a mut Vec<u8>) -> Lines<'a> {
        let stride = self.dtype.bytes(self.shape[1]);
        // Order changes within a head only, so the file has these rows in one place, more or less.
        let places = || rows.clone().map(|row| self.order.source(row));
        let (first, last) = (places().min().unwrap_or(0), places().max().unwrap_or(0));
        let bytes = self.data.once(first * stride..(last + 1) * stride, buffer);
        Lines { bytes, first, stride, order: self.order, rows }
    }

    /// Blocks of 32 that begin with a factor of `D` bytes and perhaps a minimum of as many.
    fn flat<const B: usize, const C: usize, const D: usize>(
        lines: Lines<'_>,
        minimum: bool,
        f: impl Fn(&[u8; B], &mut [u8; C]),
    ) -> Flat {
        let count = lines.bytes_in_all() / B;
        let mut out = Flat {
            codes: vec![0; count * C],
            scales: vec![0; count * D],
            minimums: vec![0; if minimum { count * D } else { 0 }],
        };
        let mut to = out.codes.as_chunks_mut::<C>().0.iter_mut().zip(out.scales.as_chunks_mut::<D>().0);
        let mut minimums = out.minimums.as_chunks_mut::<D>().0.iter_mut();
        for line in lines {
            for (block, (codes, scale)) in line.as_chunks::<B>().0.iter().zip(&mut to) {
                f(block, codes);
                scale.copy_from_slice(&block[..D]);
                if minimum && let Some(minimum) = minimums.next() {
                    minimum.copy_from_slice(&block[D..2 * D]);
                }
            }
        }
        out
    }

    /// Super-blocks with `S` bytes of small factors, and as many of small minimums; `d` and `dmin` say where the f16s are.
    fn nested<const B: usize, const C: usize, const S: usize>(
        lines: Lines<'_>,
        [d, dmin]: [usize; 2],
        f: impl Fn(&[u8; B], &mut [u8; C], &mut [u8; S], &mut [u8; S]),
    ) -> Nested {
        let count = lines.bytes_in_all() / B;
        let mut out = Nested {
            codes: vec![0; count * C],
            scales: vec![0; count * S],
            minimums: vec![0; count * S],
            d: vec![0; count * 2],
            dmin: vec![0; count * 2],
        };
        let mut codes = out.codes.as_chunks_mut::<C>().0.iter_mut();
        let mut small = out.scales.as_chunks_mut::<S>().0.iter_mut().zip(out.minimums.as_chunks_mut::<S>().0);
        let mut large = out.d.as_chunks_mut::<2>().0.iter_mut().zip(out.dmin.as_chunks_mut::<2>().0);
        for line in lines {
            let to = (&mut codes).zip((&mut small).zip(&mut large));
            for (block, (codes, ((scales, minimums), (to_d, to_dmin)))) in line.as_chunks::<B>().0.iter().zip(to) {
                f(block, codes, scales, minimums);
                *to_d = [block[d], block[d + 1]];
                *to_dmin = [block[dmin], block[dmin + 1] ^ 0x80];
            }
        }
        out
    }

    /// The matrix of `rows` rows from parts of blocks of 32.
    fn grouped_flat(&self, rows: usize, parts: Flat, map: ValueMap, kind: ScaleType) -> Result<Grouped> {
        let numbers = |data: Vec<u8>| {
            Ok::<_, Error>(ScaleTree::flat(Scales::new(kind, rows, self.shape[1], (1, 32), data.into())?))
        };
        let (bits, _) = codes_of(self.dtype).unwrap_or((0, 0));
        let scale = numbers(parts.scales)?;
        let minimum = if parts.minimums.is_empty() { None } else { Some(numbers(parts.minimums)?) };
        Grouped::new([rows, self.shape[1]], bits, parts.codes.into(), map, scale, minimum)
    }

    /// The matrix of `rows` rows from parts of super-blocks.
    fn grouped_nested(
        &self,
        rows: usize,
        parts: Nested,
        map: ValueMap,
        kind: ScaleType,
        minimum: bool,
    ) -> Result<Grouped> {
        let (bits, group) = codes_of(self.dtype).unwrap_or((0, 1));
        let cols = self.shape[1];
        let tree = |small: Vec<u8>, large: Vec<u8>| {
            let inner = Scales::new(kind, rows, cols, (1, group), small.into())?;
            let outer = Scales::new(ScaleType::F16, rows, cols, (1, 256), large.into())?;
            Ok::<_, Error>(ScaleTree::nested(inner, outer))
        };
        let scale = tree(parts.scales, parts.d)?;
        let minimum = minimum.then(|| tree(parts.minimums, parts.dmin)).transpose()?;
        Grouped::new([rows, cols], bits, parts.codes.into(), map, scale, minimum)
    }
}

/// Rows of blocks, one after another.
struct Lines<'a> {
    bytes: &'a [u8],
    /// The row of the file with which `bytes` begin.
    first: usize,
    stride: usize,
    order: HeadOrder,
    rows: Range<usize>,
}

impl Lines<'_> {
    fn bytes_in_all(&self) -> usize {
        self.rows.len() * self.stride
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let row = self.rows.next()?;
        Some(&self.bytes[(self.order.source(row) - self.first) * self.stride..][..self.stride])
    }
}

struct Flat {
    codes: Vec<u8>,
    scales: Vec<u8>,
    /// Empty where the format has none.
    minimums: Vec<u8>,
}

struct Nested {
    codes: Vec<u8>,
    scales: Vec<u8>,
    minimums: Vec<u8>,
    d: Vec<u8>,
    dmin: Vec<u8>,
}

impl Packed for Blocks {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn bytes(&self) -> usize {
        self.data.len()
    }

    fn unpack(&self, rows: Range<usize>) -> Result<Grouped> {
        if rows.start > rows.end || rows.end > self.shape[0] {
            let why = format!("rows {rows:?} are not within its {}", self.shape[0]);
            return Err(Error::invalid(format!("tensor {:?}", self.name), why));
        }
        BUFFER.with_borrow_mut(|buffer| self.unpack_lines(rows.len(), self.lines(rows, buffer)))
    }

    fn release(&self) {
        self.data.release();
    }
}

impl Blocks {
    fn unpack_lines(&self, n: usize, lines: Lines<'_>) -> Result<Grouped> {
        let integer = |zero| ValueMap::Integer(Zero::Constant(zero));
        let (f16, table) = (ScaleType::F16, || ValueMap::Table(Box::new(IQ4)));
        match self.dtype {
            DType::Q4_0 => {
                let parts = Self::flat::<18, 16, 2>(lines, false, |b, c| halves(&b[2..], c));
                self.grouped_flat(n, parts, integer(8), f16)
            }
            DType::Q4_1 => {
                let parts = Self::flat::<20, 16, 2>(lines, true, |b, c| halves(&b[4..], c));
                self.grouped_flat(n, parts, integer(0), f16)
            }
            DType::Q5_0 => {
                let parts = Self::flat::<22, 20, 2>(lines, false, |b, c| halves_and_fifth(&b[2..6], &b[6..], c));
                self.grouped_flat(n, parts, integer(16), f16)
            }
            DType::Q5_1 => {
                let parts = Self::flat::<24, 20, 2>(lines, true, |b, c| halves_and_fifth(&b[4..8], &b[8..], c));
                self.grouped_flat(n, parts, integer(0), f16)
            }
            DType::Q8_0 => {
                let parts = Self::flat::<34, 32, 2>(lines, false, |b, c| signed_bytes(&b[2..], c));
                self.grouped_flat(n, parts, integer(128), f16)
            }
            DType::Iq4Nl => {
                let parts = Self::flat::<18, 16, 2>(lines, false, |b, c| halves(&b[2..], c));
                self.grouped_flat(n, parts, table(), f16)
            }
            DType::Mxfp4 => {
                let parts = Self::flat::<17, 16, 1>(lines, false, |b, c| halves(&b[1..], c));
                if parts.scales.contains(&255) {
                    let why = "a block's exponent is 255, which is no number; the file is damaged: download or convert it again";
                    return Err(Error::invalid(format!("tensor {:?}", self.name), why));
                }
                self.grouped_flat(n, parts, ValueMap::E2M1, ScaleType::E8M0)
            }
            DType::Q2K => {
                self.grouped_nested(n, Self::nested(lines, [80, 82], formats::q2_k), integer(0), ScaleType::U4, true)
            }
            DType::Q3K => {
                self.grouped_nested(n, Self::nested(lines, [108, 0], formats::q3_k), integer(4), ScaleType::I8, false)
            }
            DType::Q4K => {
                self.grouped_nested(n, Self::nested(lines, [0, 2], formats::q4_k), integer(0), ScaleType::U8, true)
            }
            DType::Q5K => {
                self.grouped_nested(n, Self::nested(lines, [0, 2], formats::q5_k), integer(0), ScaleType::U8, true)
            }
            DType::Q6K => {
                self.grouped_nested(n, Self::nested(lines, [208, 0], formats::q6_k), integer(32), ScaleType::I8, false)
            }
            DType::Iq4Xs => {
                self.grouped_nested(n, Self::nested(lines, [0, 0], formats::iq4_xs), table(), ScaleType::I8, false)
            }
            found => Err(Error::DType { name: self.name.clone(), expected: "a block type", found }),
        }
    }
}
