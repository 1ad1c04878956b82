//! Weights of grouped codes: 2 to 8 bits with factors, zero points and minimums, re-laid once for the registers.
//!
//! Sixteen rows make a *tile*, 256 columns of a tile a *record*: first the factors, then the codes that they belong to.
//! Within a record 32 columns make a *step*: eight vectors of 64 codes, in which lane `r` (four bytes) holds row `r`'s four
//! consecutive columns. Codes of other widths than 4 and 8 are split into planes of 4, 2 and 1 bits.
//!
//! A matrix-vector product walks over four tiles at a time, a step of each in turn: each is a sequential stream, and four
//! streams come faster out of memory than one (33 against 30 GB/s of 35 on a Xeon of 2023).
//!
//! In [`Mode::Fast`](crate::Mode) activations are rounded to signed bytes, 32 of a row at a time with a factor of their
//! own (absmax / 127), and multiplied as integers: `y += s_w s_x (sum of code x - zero sum of x) + minimum s_x sum of x`,
//! with 4-bit floats as the integers that they are twice of. The sums are exact, so the only rounding is that of the
//! activations and of one f32 sum over the groups, in the order of the columns, whatever the tile and the batch.
//!
//! In [`Mode::Exact`](crate::Mode), and for codes that are no small integers (FP8), the values are decoded to f32 and
//! multiplied in f32, column after column.
//!
//! What it costs with VNNI, for a step of 16 x 32 weights: at most 20 operations to unpack the codes into the first
//! cache, and for each row of activations 8 products and 3 operations for the factor, of which 10 go to two of the four
//! pipes: 5 cycles for 512 weights, 80 % of the peak of two products a cycle.

mod acts;
mod float;
#[cfg(target_arch = "x86_64")]
mod halves;
mod integer;
mod layout;
mod planes;
mod relay;
mod scales;
#[cfg(test)]
mod tests;
mod unpack;

pub use acts::{Bytes8, Bytes8Buf, STARTS, Start};
pub use layout::{Layout, Mapping};
pub use relay::GroupedMat;

pub(crate) use float::Float;
pub(crate) use integer::Integer;

/// Scratch bytes that products need, a multiple of 64.
pub(crate) const SCRATCH: usize = if float::SCRATCH > integer::SCRATCH { float::SCRATCH } else { integer::SCRATCH };

/// Rows of a tile.
pub const ROWS: usize = 16;
/// Columns of a record.
pub const SPAN: usize = 256;
/// Columns of a step.
pub const STEP: usize = 32;
