//! Codes in words that run along the inputs (`[in x bits / 32, out]`: GPTQ, Marlin FP4) or along the outputs (`[in, out / 8]`:
//! AWQ), with factors `[groups, out]`: everything is the canonical matrix transposed, so that the file's rows are its columns.

use std::ops::Range;
use std::sync::Arc;

use crate::weight::{Grouped, Packed, ScaleTree, ScaleType, Scales, ValueMap, Zero};
use crate::{Bytes, Error, Result};

/// The order of codes in the words.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Words `[in x bits / 32, out]`, each the next bits of an output's stream.
    Down,
    /// The same, the inputs being taken in this order.
    Sorted(Arc<[u32]>),
    /// Words `[in, out / 8]` of 4-bit codes; code `i` of a word belongs to output `8 x word + order[i]`.
    Across([u8; 8]),
}

/// The zero points.
#[derive(Clone, Debug)]
pub(super) enum Zeros {
    /// There are none: the map does without, or has a constant.
    None(ValueMap),
    /// Words `[groups, out x bits / 32]`, a stream of codes along the outputs; `add` is added modulo 2^bits.
    Stream { words: Bytes, add: u8 },
    /// Words `[groups, out / 8]`, in the order of the codes.
    Across(Bytes),
}

/// A transposed matrix.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    /// `[out, in]`
    pub shape: [usize; 2],
    pub bits: u32,
    pub codes: Bytes,
    pub order: Order,
    /// `[groups, out]`
    pub scales: Bytes,
    pub kind: ScaleType,
    /// Inputs of a group.
    pub group: usize,
    pub zeros: Zeros,
}

/// Rows transposed at a time.
const TILE: usize = 64;

impl Columns {
    /// The matrix, if the parts have the sizes that its shape asks for.
    pub fn check(self) -> Result<Self> {
        let [rows, cols] = self.shape;
        let whole = |n: usize| n.is_multiple_of(32).then_some(n / 8);
        let bits = self.bits as usize;
        let groups = cols.div_ceil(self.group.max(1));
        let codes = match self.order {
            Order::Across(_) => rows.is_multiple_of(8).then_some(rows / 2 * cols).filter(|_| cols.is_multiple_of(8)),
            _ => whole(cols * bits).map(|bytes| bytes * rows),
        };
        let zeros = match &self.zeros {
            Zeros::None(_) => Some(true),
            Zeros::Stream { words, .. } => whole(rows * bits).map(|bytes| bytes * groups == words.len()),
            Zeros::Across(words) => Some(rows / 2 * groups == words.len()),
        };
        let scales = groups * rows * self.kind.bits() / 8;
        if codes != Some(self.codes.len()) || zeros != Some(true) || scales != self.scales.len() {
            let why = format!(
                "{} bytes of codes and {} of scales are no [{rows}, {cols}] of {bits} bits in groups of {}",
                self.codes.len(),
                self.scales.len(),
                self.group
            );
            return Err(Error::invalid("transposed weight", why));
        }
        Ok(self)
    }

    /// Canonical codes of the rows.
    fn codes(&self, rows: &Range<usize>) -> Vec<u8> {
        let [_, cols] = self.shape;
        let stride = (cols * self.bits as usize).div_ceil(32) * 4;
        let mut out = vec![0; rows.len() * stride];
        match &self.order {
            Order::Down => transpose::<4>(&self.codes, self.shape[0], rows, &mut out),
            Order::Sorted(order) => self.sorted(order, rows, &mut out, stride),
            Order::Across(order) => self.across(order, rows, &mut out, stride),
        }
        out
    }

    /// Codes of 32 inputs at a time, gathered from wherever they are, for some rows at once.
    fn sorted(&self, order: &[u32], rows: &Range<usize>, out: &mut [u8], stride: usize) {
        let (words, bits) = (self.codes.as_chunks::<4>().0, self.bits as usize);
        let mask = (1u32 << bits) - 1;
        let line = |word: usize, from: usize, n: usize| &words[word * self.shape[0] + from..][..n];
        for from in rows.clone().step_by(TILE) {
            let n = TILE.min(rows.end - from);
            let out = &mut out[(from - rows.start) * stride..][..n * stride];
            for (block, inputs) in order.chunks(32).enumerate() {
                let mut gathered = [[0u32; TILE]; 8];
                for (i, &input) in inputs.iter().enumerate() {
                    let (word, shift) = (input as usize * bits / 32, input as usize * bits % 32);
                    let (to, up) = (i * bits / 32, i * bits % 32);
                    let mut codes = [0u32; TILE];
                    for (code, word) in codes.iter_mut().zip(line(word, from, n)) {
                        *code = u32::from_le_bytes(*word) >> shift;
                    }
                    if shift + bits > 32 {
                        for (code, word) in codes.iter_mut().zip(line(word + 1, from, n)) {
                            *code |= u32::from_le_bytes(*word) << (32 - shift);
                        }
                    }
                    for (to, code) in gathered[to].iter_mut().zip(&codes) {
                        *to |= (code & mask) << up;
                    }
                    if up + bits > 32 {
                        for (to, code) in gathered[to + 1].iter_mut().zip(&codes) {
                            *to |= (code & mask) >> (32 - up);
                        }
                    }
                }
                let bytes = (inputs.len() * bits).div_ceil(32) * 4;
                for (row, out) in out.chunks_exact_mut(stride).enumerate() {
                    for (to, word) in out[block * 4 * bits..][..bytes].as_chunks_mut::<4>().0.iter_mut().zip(&gathered)
                    {
                        *to = word[row].to_le_bytes();
                    }
                }
            }
        }
    }

    /// Squares of 8 x 8 codes, transposed by exchanging halves of words, for some words of a line at once.
    fn across(&self, order: &[u8; 8], rows: &Range<usize>, out: &mut [u8], stride: usize) {
        const WORDS: usize = TILE / 8;
        const DEEP: usize = 16;
        let (width, cols) = (self.shape[0] / 8, self.shape[1]);
        let words = self.codes.as_chunks::<4>().0;
        let mut lines = [[0u32; DEEP]; TILE];
        for first in (rows.start / 8..rows.end.div_ceil(8)).step_by(WORDS) {
            let n = WORDS.min(rows.end.div_ceil(8) - first);
            for from in (0..cols / 8).step_by(DEEP) {
                let deep = DEEP.min(cols / 8 - from);
                for k in 0..deep {
                    let mut square = [[0u32; WORDS]; 8];
                    for (i, square) in square.iter_mut().enumerate() {
                        let line = &words[(8 * (from + k) + i) * width + first..][..n];
                        square.iter_mut().zip(line).for_each(|(to, word)| *to = u32::from_le_bytes(*word));
                    }
                    exchange(&mut square);
                    for (square, column) in square.iter().zip(order) {
                        for (word, value) in square[..n].iter().enumerate() {
                            lines[8 * word + usize::from(*column)][k] = *value;
                        }
                    }
                }
                for (i, line) in lines[..8 * n].iter().enumerate() {
                    let row = 8 * first + i;
                    if !rows.contains(&row) {
                        continue;
                    }
                    let out = &mut out[(row - rows.start) * stride + 4 * from..][..4 * deep];
                    out.as_chunks_mut::<4>().0.iter_mut().zip(line).for_each(|(to, word)| *to = word.to_le_bytes());
                }
            }
        }
    }

    /// The zero points of the rows.
    fn zeros(&self, rows: &Range<usize>) -> Result<ValueMap> {
        let [out, cols] = self.shape;
        let groups = cols.div_ceil(self.group);
        let bits = self.bits as usize;
        let wide = self.bits > 4;
        let stride = if wide { groups } else { groups.div_ceil(2) };
        let mut data = vec![0u8; rows.len() * stride];
        let mut put = |row: usize, group: usize, zero: u8| match wide {
            true => data[row * stride + group] = zero,
            false => data[row * stride + group / 2] |= zero << (4 * (group % 2)),
        };
        match (&self.zeros, &self.order) {
            (Zeros::None(map), _) => return Ok(map.clone()),
            (Zeros::Stream { words, add }, _) => {
                let line = out * bits / 8;
                let mask = ((1u32 << bits) - 1) as u8;
                for group in 0..groups {
                    let line = &words[group * line..][..line];
                    for row in rows.clone() {
                        let bit = row * bits;
                        let two =
                            u16::from(line[bit / 8]) | u16::from(line.get(bit / 8 + 1).copied().unwrap_or(0)) << 8;
                        put(row - rows.start, group, ((two >> (bit % 8)) as u8).wrapping_add(*add) & mask);
                    }
                }
            }
            (Zeros::Across(words), order) => {
                let mut place = [0; 8];
                if let Order::Across(order) = order {
                    order.iter().enumerate().for_each(|(i, column)| place[usize::from(*column)] = i);
                }
                for group in 0..groups {
                    for row in rows.clone() {
                        let nibble = (group * out / 8 + row / 8) * 8 + place[row % 8];
                        put(row - rows.start, group, words[nibble / 2] >> (4 * (nibble % 2)) & 15);
                    }
                }
            }
        }
        let kind = if wide { ScaleType::U8 } else { ScaleType::U4 };
        let zeros = Scales::new(kind, rows.len(), cols, (1, self.group), data.into())?;
        Ok(ValueMap::Integer(Zero::Groups(zeros)))
    }
}

impl Packed for Columns {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn bytes(&self) -> usize {
        let zeros = match &self.zeros {
            Zeros::None(_) => 0,
            Zeros::Stream { words, .. } | Zeros::Across(words) => words.len(),
        };
        self.codes.len() + self.scales.len() + zeros
    }

    fn granule(&self) -> usize {
        if matches!(self.order, Order::Across(_)) { 8 } else { 1 }
    }

    fn unpack(&self, rows: Range<usize>) -> Result<Grouped> {
        let [out, cols] = self.shape;
        if rows.start > rows.end || rows.end > out {
            return Err(Error::invalid("transposed weight", format!("rows {rows:?} are not within its {out}")));
        }
        let groups = cols.div_ceil(self.group);
        let size = self.kind.bits() / 8;
        let mut scales = vec![0; rows.len() * groups * size];
        match size {
            1 => transpose::<1>(&self.scales, out, &rows, &mut scales),
            2 => transpose::<2>(&self.scales, out, &rows, &mut scales),
            _ => transpose::<4>(&self.scales, out, &rows, &mut scales),
        }
        let scales = Scales::new(self.kind, rows.len(), cols, (1, self.group), scales.into())?;
        let codes = self.codes(&rows).into();
        Grouped::new([rows.len(), cols], self.bits, codes, self.zeros(&rows)?, ScaleTree::flat(scales), None)
    }

    fn release(&self) {
        self.codes.release();
        self.scales.release();
        if let Zeros::Stream { words, .. } | Zeros::Across(words) = &self.zeros {
            words.release();
        }
    }
}

/// Columns `columns` of a matrix of elements of `N` bytes, `width` in a row, as rows.
fn transpose<const N: usize>(from: &[u8], width: usize, columns: &Range<usize>, to: &mut [u8]) {
    const SIDE: usize = 16;
    let (from, to) = (from.as_chunks::<N>().0, to.as_chunks_mut::<N>().0);
    let height = from.len() / width.max(1);
    for column in columns.clone().step_by(SIDE) {
        let n = SIDE.min(columns.end - column);
        for row in (0..height).step_by(SIDE) {
            let deep = SIDE.min(height - row);
            let mut square = [[[0u8; N]; SIDE]; SIDE];
            for (i, square) in square[..deep].iter_mut().enumerate() {
                square[..n].copy_from_slice(&from[(row + i) * width + column..][..n]);
            }
            for c in 0..n {
                let line = &mut to[(column - columns.start + c) * height + row..][..deep];
                line.iter_mut().zip(&square).for_each(|(to, square)| *to = square[c]);
            }
        }
    }
}

/// Transposes squares of 8 words of 8 nibbles: nibble i of word k becomes nibble k of word i.
fn exchange<const N: usize>(square: &mut [[u32; N]; 8]) {
    for (apart, shift, mask) in [(4, 16, 0x0000_ffff), (2, 8, 0x00ff_00ff), (1, 4, 0x0f0f_0f0f_u32)] {
        for first in (0..8).filter(|i| i & apart == 0) {
            let (low, high) = square.split_at_mut(first + apart);
            for (a, b) in low[first].iter_mut().zip(&mut high[0]) {
                let both = ((*a >> shift) ^ *b) & mask;
                *b ^= both;
                *a ^= both << shift;
            }
        }
    }
}
