//! What the backend does with a weight at a number of rows: by the functions that it asks itself.

use super::{Chip, Thresholds};
use crate::backend::{Kind, fits_library, gemv, packed_kind, rows_at_a_time, streamed, trellis_gemv};
use crate::kernels::*;
use crate::source::Entry;
use marlin_backend::fallback::Reason;
use marlin_checkpoint::weight::Codebook;
use serde::Serialize;

/// A matrix as kernels see it, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weight(Kind);

impl Weight {
    /// What kernels see of a weight, or why there is none for it.
    pub fn of(name: &str, weight: &marlin_checkpoint::Weight) -> marlin_backend::Result<Result<Self, Reason>> {
        Ok(packed_kind(name, weight)?.map(Self))
    }

    /// One of each usual way to store a matrix of `[rows, cols]`.
    pub fn examples([rows, cols]: [u32; 2]) -> Vec<Self> {
        let dense = |element| {
            let args = WeightArgs { rows, cols, ..WeightArgs::default() };
            Self(Kind::Rows { weight: WeightType::Dense { element, vector: true }, args })
        };
        let grouped = |bits, map, group: u32, scale, minimum| {
            let none = Factor::None;
            let vector = if bits == 4 || bits == 8 { 4 } else { 1 };
            let weight = WeightType::Grouped {
                bits,
                map,
                vector,
                scale,
                outer: none,
                divide: false,
                zero: none,
                minimum,
                minimum_outer: none,
            };
            let scale = FactorArgs { col_shift: group.trailing_zeros(), ..FactorArgs::default() };
            let args = WeightArgs { rows, cols, words: cols * bits / 32, scale, ..WeightArgs::default() };
            Self(Kind::Rows { weight, args })
        };
        let trellis = |bits| Self(Kind::Trellis { bits, book: Book(Codebook::Mul1), rows, cols });
        vec![
            dense(Element::Bf16),
            grouped(4, CodeMap::Integers, 128, Factor::F16, Factor::None),
            grouped(4, CodeMap::Integers, 64, Factor::F16, Factor::F16),
            grouped(3, CodeMap::Integers, 64, Factor::F16, Factor::F16),
            grouped(8, CodeMap::Integers, 128, Factor::F16, Factor::None),
            grouped(4, CodeMap::E2m1, 64, Factor::F16, Factor::None),
            grouped(8, CodeMap::E4m3, 128, Factor::F32, Factor::None),
            trellis(2),
            trellis(3),
            trellis(4),
        ]
    }

    /// In words.
    pub fn describe(&self) -> String {
        match self.0 {
            Kind::Rows { weight: WeightType::Dense { element, .. }, .. } => {
                format!("dense {}", format!("{element:?}").to_lowercase())
            }
            Kind::Rows { weight: WeightType::Grouped { bits, map, minimum, .. }, args } => {
                let codes = match map {
                    CodeMap::Integers => format!("integers of {bits} bits"),
                    CodeMap::Table => format!("table of {bits} bits"),
                    float => format!("{float:?}").to_lowercase(),
                };
                let group = match args.scale.col_shift {
                    31 => "rows".to_owned(),
                    shift => format!("groups of {}", 1u32 << shift),
                };
                format!("{codes}, {group}{}", if minimum == Factor::None { "" } else { ", minimum" })
            }
            Kind::Trellis { bits, book, .. } => format!("trellis of {bits} bits, {:?}", book.0).to_lowercase(),
        }
    }
}

impl Weight {
    /// The kernel for a few rows that every GPU has.
    pub fn few_rows_entry(&self, rows: usize) -> Entry {
        let m = rows_at_a_time(rows);
        match self.0 {
            Kind::Rows { weight, .. } => gemv(weight, m, false, false).entry(),
            Kind::Trellis { bits, book, .. } => trellis_gemv(bits, book, m, false).entry(),
        }
    }

    /// Bytes of memory for each weight, scales and minimums included.
    pub fn bytes_per_weight(&self) -> f64 {
        match self.0 {
            Kind::Rows { weight: WeightType::Dense { element, .. }, .. } => element.bytes() as f64,
            Kind::Rows { weight: WeightType::Grouped { bits, scale, minimum, .. }, args } => {
                let size = |f: Factor| match f {
                    Factor::None => 0.0,
                    Factor::F32 => 4.0,
                    Factor::F16 | Factor::Bf16 => 2.0,
                    Factor::U4 => 0.5,
                    _ => 1.0,
                };
                f64::from(bits) / 8.0 + (size(scale) + size(minimum)) / f64::from(1u32 << args.scale.col_shift.min(30))
            }
            Kind::Trellis { bits, .. } => f64::from(bits) / 8.0,
        }
    }
}

/// The kernel for a weight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// Its entry point's name.
    pub kernel: String,
    /// What a threadgroup does.
    pub tile: String,
    /// Why it, and not another.
    pub why: String,
}

/// What the backend takes for `rows` rows of a weight on a chip. `exact` keeps tensor cores out; `library` says whether there is one of
/// matrix products.
pub fn choose(chip: &Chip, t: &Thresholds, exact: bool, library: bool, weight: &Weight, rows: usize) -> Choice {
    let few = rows <= t.few_rows;
    let bound = if few { format!("at most {} rows", t.few_rows) } else { format!("more than {} rows", t.few_rows) };
    let tensor = chip.is_nvidia() && !exact;
    let because = |missing: &str| {
        let why = match (chip.is_nvidia(), exact) {
            (false, _) => "no tensor cores with these kernels",
            (true, true) => "--exact multiplies in f32",
            (true, false) => missing,
        };
        format!("{bound}; {why}")
    };
    if few {
        if tensor && let Some(kernel) = streamed(&weight.0, rows) {
            let tile =
                format!("blocks of 128 x 128, shared evenly by as many groups as {} cores run at once", chip.cores);
            return Choice { kernel, tile, why: format!("{bound}, on tensor cores") };
        }
        let m = rows_at_a_time(rows);
        let (kernel, tile) = match weight.0 {
            Kind::Rows { weight, .. } => {
                let k = gemv(weight, m, false, false);
                (k.name(), format!("{} outputs of {m} rows in each of {} simdgroups", k.r, k.simds))
            }
            Kind::Trellis { bits, book, .. } => {
                let k = trellis_gemv(bits, book, m, false);
                (
                    k.name(),
                    format!("{} tiles of 16 outputs, {m} rows, {} simdgroups along the inputs", k.tiles, k.simds),
                )
            }
        };
        return Choice { kernel, tile, why: because("the kernels for tensor cores do not take such weights") };
    }
    if tensor && library && fits_library(&weight.0) {
        let kernel = match weight.0 {
            Kind::Rows { weight, .. } => PanelRows { weight }.name(),
            Kind::Trellis { bits, book, .. } => PanelTrellis { bits, book }.name(),
        };
        let tile = "panels of halves for the library of matrix products".to_owned();
        return Choice { kernel, tile, why: format!("{bound}, with cuBLASLt") };
    }
    let kernel = match weight.0 {
        Kind::Rows { weight, .. } => Gemm { weight, bias: false }.name(),
        Kind::Trellis { bits, book, .. } => TrellisGemm { bits, book }.name(),
    };
    Choice { kernel, tile: "64 x 64 outputs by simdgroup matrices".into(), why: because("cuBLASLt is not installed") }
}
