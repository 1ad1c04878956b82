//! What a weight is to the kernels.

use crate::DType;
use crate::backend::rotation;
use crate::grouped::Layout;
use marlin_backend::fallback::Reason;
use marlin_checkpoint::{Linear, Result, Weight};

/// What a weight is to the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Floats as they lie on disk.
    Dense(DType),
    /// Codes that are multiplied as integers.
    Integers {
        /// Bits of a code.
        bits: u32,
        /// Columns that share their factors.
        group: usize,
        /// The highest integer, unsigned.
        highest: u8,
    },
    /// Codes that are multiplied as floats.
    Floats {
        /// Bits of a code.
        bits: u32,
        /// Columns that share their factors.
        group: usize,
    },
    /// EXL3.
    Trellis {
        /// Bits of a code.
        bits: u32,
    },
    /// No kernel, for this reason.
    Decoded(Reason),
}

/// What the layer's weight is to the kernels. Of packed weights the first rows are looked at.
pub fn kind_of(linear: &Linear) -> Result<Kind> {
    let grouped = |weight: &marlin_checkpoint::Grouped| match Layout::of(weight, weight.rows()) {
        None => Kind::Decoded(Reason::UnsupportedGroup),
        Some(layout) => {
            let (bits, group) = (layout.bits(), layout.group());
            if layout.mapping().is_integer() {
                Kind::Integers { bits, group, highest: layout.highest() }
            } else {
                Kind::Floats { bits, group }
            }
        }
    };
    Ok(match &linear.weight {
        Weight::Dense(dense) => Kind::Dense(match dense.dtype() {
            marlin_checkpoint::DType::BF16 => DType::Bf16,
            marlin_checkpoint::DType::F16 => DType::F16,
            _ => DType::F32,
        }),
        Weight::Grouped(weight) => grouped(weight),
        Weight::Packed(weight) => grouped(&weight.unpack(0..weight.granule().clamp(1, weight.shape()[0].max(1)))?),
        Weight::Trellis(weight) => match rotation(linear.input(), linear.output()) {
            Some(_) => Kind::Trellis { bits: weight.bits() as u32 },
            None => Kind::Decoded(Reason::UnsupportedTransform),
        },
    })
}

impl Kind {
    /// What it is, for people.
    pub fn describe(&self) -> String {
        match self {
            Kind::Dense(dtype) => format!("dense {dtype:?}").to_lowercase(),
            Kind::Integers { bits, group, .. } => format!("{bits}-bit integers, groups of {group}"),
            Kind::Floats { bits, group } => format!("{bits}-bit floats, groups of {group}"),
            Kind::Trellis { bits } => format!("{bits}-bit trellis"),
            Kind::Decoded(reason) => format!("no kernel ({})", reason.code()),
        }
    }
}
