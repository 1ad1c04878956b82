//! What instructions and memory allow: how fast one token can be at most with the kernels that Metal runs.
//!
//! Instructions of a weight are counted in the inner loop of the text that Metal gets, as clang compiles it (`tests/limits.rs`, which
//! fails where these numbers are no longer those of the kernels). A clock is what a lane needs for most instructions; products of
//! integers and conversions to floats take 4 (measured on M1 and M2 by github.com/philipturner/metal-benchmarks). What Apple's own compiler makes of
//! it, and how often lanes wait for memory, nobody here has measured: these are limits, not predictions.

use super::{Chip, Weight};
use serde::Serialize;

/// What the kernel for one row takes for each weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted {
    /// The weights, as [`Weight::describe`] says.
    pub weights: &'static str,
    /// Instructions.
    pub instructions: f64,
    /// Clocks of a lane.
    pub clocks: f64,
}

const fn counted(weights: &'static str, instructions: f64, clocks: f64) -> Counted {
    Counted { weights, instructions, clocks }
}

/// The usual ways to store weights.
pub const COUNTED: &[Counted] = &[
    counted("dense bf16", 3.16, 3.35),
    counted("integers of 4 bits, groups of 128", 12.30, 13.69),
    counted("integers of 4 bits, groups of 64, minimum", 14.31, 15.95),
    counted("integers of 3 bits, groups of 64, minimum", 15.47, 16.97),
    counted("integers of 8 bits, groups of 128", 13.38, 14.76),
    counted("e2m1, groups of 64", 15.49, 16.88),
    counted("e4m3, groups of 128", 16.25, 17.63),
    counted("trellis of 2 bits, mul1", 13.58, 16.67),
    counted("trellis of 3 bits, mul1", 13.70, 16.89),
    counted("trellis of 4 bits, mul1", 13.52, 16.61),
];

/// The limits of one row on a chip, for a model of so many weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Limit {
    /// What the weights are.
    pub weights: String,
    /// Instructions for each.
    pub instructions: f64,
    /// Clocks of a lane for each.
    pub clocks: f64,
    /// Bytes of memory for each.
    pub bytes: f64,
    /// Tokens a second that the lanes allow.
    pub by_instructions: f64,
    /// Tokens a second that the memory allows.
    pub by_memory: f64,
}

impl Limit {
    /// For a token that takes every one of `weights` weights once; `None` for weights that nobody has counted for.
    pub fn of(chip: &Chip, weight: &Weight, weights: f64) -> Option<Self> {
        let described = weight.describe();
        let Counted { instructions, clocks, .. } = *COUNTED.iter().find(|c| c.weights == described)?;
        let bytes = weight.bytes_per_weight();
        Some(Self {
            weights: described,
            instructions,
            clocks,
            bytes,
            by_instructions: chip.lane_clocks() / (clocks * weights),
            by_memory: chip.bandwidth * 1e9 / (bytes * weights),
        })
    }
}
