//! Linear layers over EXL3 weights: windows into bit streams, decoded on the way to the multipliers.
//!
//! `y = blockH(blockH(x * suh) W) * svh + bias`: [`TrellisActsBuf::prepare`] rotates and rounds the input,
//! [`TrellisJob`] multiplies a range of outputs and rotates it back, [`trellis_linears`] runs several jobs in one parallel
//! region. [`TrellisMat`] is the weight, re-laid for vectors (`layout`).
//!
//! * Few rows (`gemv`): 16-bit activations against weights decoded in registers.
//! * Many rows (`gemm`): panels decoded once; 8-bit weights and activations where the machine has fast products of
//!   bytes, 16-bit ones elsewhere.
//! * Exact: `f16` values as the format defines them, `f32` activations and sums, the same bits on every level.
//!
//! **Invariance.** In each [`Precision`] a value depends on its own row alone. [`Precision::of`] chooses by the number of
//! rows, so in fast mode a row of a large batch is rounded more coarsely than the same row alone.

mod acts;
mod code;
mod decode;
mod gemm;
mod gemv;
#[cfg(target_arch = "x86_64")]
mod halves;
mod job;
mod lanes;
mod layout;
#[cfg(test)]
mod tests;

pub use acts::{GEMV_ROWS, Precision, TrellisActs, TrellisActsBuf};
pub use decode::ByteScale;
pub use job::{TrellisJob, trellis_linears};
pub use layout::TrellisMat;

/// What a level's products of trellises can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Decoding is fused with the product for few rows (registers enough, funnel shifts).
    pub fused: bool,
    /// Bytes are multiplied at full speed.
    pub bytes: bool,
}

impl Features {
    /// Of a level on this machine.
    pub fn of(level: crate::Level) -> Features {
        let isa = lanes::Isa::of(level);
        Features { fused: isa.is_wide(), bytes: isa.has_bytes() }
    }
}
