//! Everything that is not a product of matrices: row by row, each row on its own.

mod act;
pub mod convert;
mod gram;
pub mod hadamard;
mod norm;
mod rope;
mod route;
mod rows;
mod scan;
#[cfg(test)]
mod tests;

pub use act::{add, add_scaled, add_sigmoid_gated, swiglu};
pub use convert::{embed, from_f32, to_f32};
pub use gram::gram;
pub use norm::{rms_norm, rms_norm_in_place};
pub use rope::{Angles, RopeStyle, rope};
pub use route::{Router, Score, route};
pub use rows::{LogSumExp, argmax, log_sum_exp, softmax, top_k};
pub use scan::first_not_finite;

/// Values of work below which a kernel stays on the calling thread.
const GRAIN: usize = 16 << 10;

/// Rows of this many values that make a task worth its while.
fn rows_of(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}
