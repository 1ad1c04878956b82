//! Types of weights whose rows are stored one after another.

use super::{Element, Template, arguments};

arguments! {
    /// Where factors of groups lie.
    FactorArgs {
        /// Bytes from the beginning of the factors.
        offset: u32,
        /// Bytes of a row of groups.
        stride: u32,
        /// Rows that share a factor, as a power of two; 31 for all.
        row_shift: u32,
        /// Columns that share a factor, likewise; 4 at least.
        col_shift: u32,
    }
}

arguments! {
    /// A weight's shape and factors.
    WeightArgs {
        /// Outputs.
        rows: u32,
        /// Inputs.
        cols: u32,
        /// 32-bit words of a row of codes.
        words: u32,
        /// The code that stands for zero, where groups have none of their own.
        zero_point: f32,
        /// Factors of groups.
        scale: FactorArgs,
        /// Factors of those.
        outer: FactorArgs,
        /// Zero points.
        zero: FactorArgs,
        /// What is added.
        minimum: FactorArgs,
        /// Factors of that.
        minimum_outer: FactorArgs,
        /// What codes of 4 bits stand for, where a table says so.
        table: [f32; 16],
    }
}

/// Types of factors; the numbers are the dialect's.
#[allow(missing_docs)] // each is its own definition
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Factor {
    #[default]
    None,
    F32,
    F16,
    Bf16,
    E4m3,
    E8m0,
    I8,
    U8,
    U4,
}

/// What codes stand for; the numbers are the dialect's.
#[allow(missing_docs)] // each is its own definition
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodeMap {
    Integers,
    E2m1,
    E4m3,
    E5m2,
    Table,
}

/// A type of weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightType {
    /// Floats; `vector` if rows begin at multiples of 16 bytes.
    Dense {
        /// What they are.
        element: Element,
        /// Whether rows begin at multiples of 16 bytes.
        vector: bool,
    },
    /// Grouped codes.
    Grouped {
        /// Bits of a code, 2 to 8.
        bits: u32,
        /// What codes stand for.
        map: CodeMap,
        /// Words read at a time: 1, 2 or 4, as rows are aligned.
        vector: u32,
        /// Scales of groups.
        scale: Factor,
        /// Factors of those.
        outer: Factor,
        /// Whether these divide.
        divide: bool,
        /// Zero points of groups.
        zero: Factor,
        /// What is added.
        minimum: Factor,
        /// Factors of that.
        minimum_outer: Factor,
    },
}

impl WeightType {
    /// Inputs that a lane takes at a time.
    pub fn chunk(&self) -> u32 {
        match self {
            Self::Dense { element, .. } => 16 / element.bytes() as u32,
            Self::Grouped { .. } => 32,
        }
    }
}

impl Template for WeightType {
    fn cxx(&self) -> String {
        match *self {
            Self::Dense { element, vector } => format!("Dense<{}, {vector}>", element.cxx()),
            Self::Grouped { bits, map, vector, scale, outer, divide, zero, minimum, minimum_outer } => {
                let (map, scale, outer) = (map as u32, scale as u32, outer as u32);
                let (zero, minimum, minimum_outer) = (zero as u32, minimum as u32, minimum_outer as u32);
                format!(
                    "Grouped<{bits}, {map}, {vector}, {scale}, {outer}, {divide}, {zero}, {minimum}, {minimum_outer}>"
                )
            }
        }
    }
    fn tag(&self) -> String {
        match *self {
            Self::Dense { element, vector } => format!("{}{}", element.tag(), vector.tag()),
            Self::Grouped { bits, map, vector, scale, outer, divide, zero, minimum, minimum_outer } => {
                let divide = if divide { "d" } else { "" };
                format!(
                    "q{bits}m{}v{vector}s{}{}{divide}z{}m{}{}",
                    map as u32, scale as u32, outer as u32, zero as u32, minimum as u32, minimum_outer as u32
                )
            }
        }
    }
}
