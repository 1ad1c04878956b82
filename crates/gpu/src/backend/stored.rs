//! Weights as the kernels take them.

use crate::kernels::{Book, CodeMap, Element, Factor, FactorArgs, WeightArgs, WeightType};
use crate::{Gpu, Result, Slice};
use marlin_backend::Error;
use marlin_backend::fallback::Reason;
use marlin_checkpoint::weight::{Grouped, ScaleTree, ScaleType, Scales, Trellis, ValueMap, Zero};
use marlin_checkpoint::{Bytes, DType, Dense, Weight};

/// What a matrix is, without its bytes: matrices that are equal in this can be stacked and share kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Rows { weight: WeightType, args: WeightArgs },
    Trellis { bits: u32, book: Book, rows: u32, cols: u32 },
}

impl PartialEq for WeightArgs {
    fn eq(&self, other: &Self) -> bool {
        use crate::kernels::Arguments;
        self.bytes() == other.bytes()
    }
}

impl Kind {
    pub fn rows(&self) -> usize {
        match self {
            Self::Rows { args, .. } => args.rows as usize,
            Self::Trellis { rows, .. } => *rows as usize,
        }
    }

    pub fn cols(&self) -> usize {
        match self {
            Self::Rows { args, .. } => args.cols as usize,
            Self::Trellis { cols, .. } => *cols as usize,
        }
    }
}

/// A matrix in the host's memory, in the kernels' layout.
pub(super) struct Packed {
    pub kind: Kind,
    pub words: Bytes,
    pub factors: Vec<u8>,
}

/// A matrix on the device.
#[derive(Clone)]
pub(super) struct Stored {
    pub kind: Kind,
    pub words: Slice<u32>,
    pub factors: Slice<u8>,
}

impl Packed {
    /// The matrix in the kernels' layout, or why no kernel takes it.
    pub fn of(name: &str, weight: &Weight) -> marlin_backend::Result<std::result::Result<Self, Reason>> {
        match weight {
            Weight::Dense(w) => dense(name, w).map(Ok),
            Weight::Trellis(w) => Ok(Ok(trellis(w))),
            Weight::Grouped(w) => grouped(name, w),
            Weight::Packed(w) => {
                let whole = w.unpack(0..w.shape()[0])?;
                w.release();
                grouped(name, &whole)
            }
        }
    }

    pub fn upload(&self, gpu: &Gpu) -> Result<Stored> {
        let words = gpu.adopt(&self.words)?.cast();
        // Kernels are bound to a buffer even where they read none of it.
        let factors = if self.factors.is_empty() { gpu.upload(&[0u8; 16])? } else { gpu.upload(&self.factors)? };
        Ok(Stored { kind: self.kind, words, factors })
    }
}

/// What kernels see of a weight.
pub(crate) fn packed_kind(name: &str, weight: &Weight) -> marlin_backend::Result<std::result::Result<Kind, Reason>> {
    Ok(Packed::of(name, weight)?.map(|packed| packed.kind))
}

fn not_finite(name: &str, index: usize, value: f32) -> Error {
    Error::NotFinite { name: name.to_owned(), index, value }
}

fn dense(name: &str, w: &Dense) -> marlin_backend::Result<Packed> {
    let (element, bad): (_, Option<usize>) = match w.dtype() {
        DType::F32 => {
            let high =
                w.data().as_chunks::<4>().0.iter().position(|b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000);
            (Element::F32, high)
        }
        DType::F16 => (Element::F16, w.data().as_chunks::<2>().0.iter().position(|b| b[1] & 0x7c == 0x7c)),
        _ => {
            let bad = |b: &[u8; 2]| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80;
            (Element::Bf16, w.data().as_chunks::<2>().0.iter().position(bad))
        }
    };
    if let Some(i) = bad {
        let mut row = vec![0.0; w.cols()];
        Weight::Dense(w.clone()).dequantize_row(i / w.cols(), &mut row)?;
        return Err(not_finite(name, i, row[i % w.cols()]));
    }
    let vector = (w.cols() * element.bytes()).is_multiple_of(16);
    let args = WeightArgs { rows: w.rows() as u32, cols: w.cols() as u32, ..WeightArgs::default() };
    let kind = Kind::Rows { weight: WeightType::Dense { element, vector }, args };
    Ok(Packed { kind, words: w.data().clone(), factors: Vec::new() })
}

fn trellis(w: &Trellis) -> Packed {
    let (rows, cols) = (w.rows() as u32, w.cols() as u32);
    let kind = Kind::Trellis { bits: w.bits() as u32, book: Book(w.codebook()), rows, cols };
    Packed { kind, words: w.words().clone(), factors: Vec::new() }
}

/// Factors one after another, each at a multiple of 16 bytes.
#[derive(Default)]
struct Factors(Vec<u8>);

impl Factors {
    /// Appends those of a matrix of `[rows, cols]`; `None` if the kernels cannot find them.
    fn add(&mut self, scales: &Scales, [rows, cols]: [usize; 2]) -> Option<(Factor, FactorArgs)> {
        let shift = |block: usize, size: usize, least: u32| {
            let log = block.trailing_zeros();
            if block >= size { Some(31) } else { (block.is_power_of_two() && log >= least).then_some(log) }
        };
        let factor = match scales.kind() {
            ScaleType::F32 => Factor::F32,
            ScaleType::F16 => Factor::F16,
            ScaleType::BF16 => Factor::Bf16,
            ScaleType::E4M3 => Factor::E4m3,
            ScaleType::E8M0 => Factor::E8m0,
            ScaleType::I8 => Factor::I8,
            ScaleType::U8 => Factor::U8,
            ScaleType::U4 => Factor::U4,
        };
        let (block_rows, block_cols) = scales.block();
        let offset = self.0.len() as u32;
        let stride = (scales.across() * scales.kind().bits()).div_ceil(8) as u32;
        let args = FactorArgs {
            offset,
            stride,
            row_shift: shift(block_rows, rows, 0)?,
            col_shift: shift(block_cols, cols, 4)?,
        };
        self.0.extend_from_slice(scales.data());
        self.0.resize(self.0.len().next_multiple_of(16), 0);
        Some((factor, args))
    }

    fn tree(&mut self, tree: &ScaleTree, shape: [usize; 2]) -> Option<[(Factor, FactorArgs); 2]> {
        let inner = self.add(tree.inner(), shape)?;
        let outer = match tree.outer() {
            Some(outer) => self.add(outer, shape)?,
            None => (Factor::None, FactorArgs::default()),
        };
        Some([inner, outer])
    }
}

/// The first factor of a tree that is not finite.
fn check_factors(name: &str, w: &Grouped, tree: &ScaleTree) -> marlin_backend::Result<()> {
    let (down, across) = tree.inner().block();
    for row in (0..w.rows()).step_by(down) {
        for col in (0..w.cols()).step_by(across) {
            let factor = tree.at(row, col);
            if !factor.is_finite() {
                return Err(not_finite(name, row * w.cols() + col, factor));
            }
        }
    }
    Ok(())
}

fn grouped(name: &str, w: &Grouped) -> marlin_backend::Result<std::result::Result<Packed, Reason>> {
    check_factors(name, w, w.scale())?;
    if let Some(minimum) = w.minimum() {
        check_factors(name, w, minimum)?;
    }
    let bad_code = |bad: fn(u8) -> bool| w.codes().iter().position(|c| bad(*c));
    let bad = match w.map() {
        ValueMap::E4M3 => bad_code(|c| c & 0x7f == 0x7f),
        ValueMap::E5M2 => bad_code(|c| c & 0x7c == 0x7c),
        _ => None,
    };
    if let Some(at) = bad {
        return Err(not_finite(name, at / w.row_stride() * w.cols() + at % w.row_stride(), f32::NAN));
    }
    let shape = [w.rows(), w.cols()];
    let words = w.row_stride() as u32 / 4;
    let mut args = WeightArgs { rows: shape[0] as u32, cols: shape[1] as u32, words, ..WeightArgs::default() };
    let mut factors = Factors::default();
    let none = (Factor::None, FactorArgs::default());
    let Some([(scale, scale_args), (outer, outer_args)]) = factors.tree(w.scale(), shape) else {
        return Ok(Err(Reason::UnsupportedGroup));
    };
    let minimums = match w.minimum() {
        Some(tree) => factors.tree(tree, shape),
        None => Some([none; 2]),
    };
    let Some([(minimum, minimum_args), (minimum_outer, minimum_outer_args)]) = minimums else {
        return Ok(Err(Reason::UnsupportedGroup));
    };
    let mut zero = none;
    let map = match w.map() {
        ValueMap::Integer(Zero::Constant(point)) => {
            args.zero_point = f32::from(*point);
            CodeMap::Integers
        }
        ValueMap::Integer(Zero::Groups(zeros)) => {
            match factors.add(zeros, shape) {
                Some(found) => zero = found,
                None => return Ok(Err(Reason::UnsupportedGroup)),
            }
            CodeMap::Integers
        }
        ValueMap::E2M1 => CodeMap::E2m1,
        ValueMap::E4M3 => CodeMap::E4m3,
        ValueMap::E5M2 => CodeMap::E5m2,
        ValueMap::Table(table) => {
            args.table = **table;
            CodeMap::Table
        }
    };
    (args.scale, args.outer, args.minimum, args.minimum_outer) =
        (scale_args, outer_args, minimum_args, minimum_outer_args);
    args.zero = zero.1;
    let divides = w.scale().divides();
    if w.minimum().is_some_and(ScaleTree::divides) {
        return Ok(Err(Reason::UnsupportedGroup));
    }
    let bits = w.bits();
    let aligned = |n: u32| words.is_multiple_of(n) && bits.is_multiple_of(n);
    let vector = if aligned(4) {
        4
    } else if aligned(2) {
        2
    } else {
        1
    };
    let weight = WeightType::Grouped {
        bits,
        map,
        vector,
        scale,
        outer,
        divide: divides && outer != Factor::None,
        zero: zero.0,
        minimum,
        minimum_outer,
    };
    Ok(Ok(Packed { kind: Kind::Rows { weight, args }, words: w.codes().clone(), factors: factors.0 }))
}
