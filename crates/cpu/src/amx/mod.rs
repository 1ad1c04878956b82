//! Products with many rows by Intel's matrix tiles (AMX): 512 products of `bf16` a cycle, sums in f32.
//!
//! Weights of every kind are decoded to `bf16` a panel at a time, 256 columns of 32 outputs, which stays in the first
//! cache while all rows of activations, rounded to `bf16` too, pass over it. A decoded weight costs about a sixth of a
//! cycle and each row that uses it a five hundredth, so the tiles pay from a dozen rows on. Values are rounded to eight
//! bits of mantissa, finer than the bytes that other levels multiply; an output's sum has one order, whatever the batch.

mod gemm;
mod tiles;

pub(crate) use gemm::{BLOCK, Panels, Part, STEP, TILE, TileGemm, scratch_bytes};
pub(crate) use tiles::{Block, Strip, Tiles, available};
