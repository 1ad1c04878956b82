//! Which kernel serves which weight: a table to print, and the thresholds that the kernels themselves read.

mod kind;
mod saved;
mod table;

pub use kind::{Kind, kind_of};
pub use saved::{file, folder, processor, save, saved};
pub use table::{Batch, Entry, TABLE, choose};

use crate::Level;
use serde::{Deserialize, Serialize};

/// Numbers of rows of activations at which one kernel takes over from another.
///
/// The first two change nothing but the speed. The others choose between kernels that round differently, so a change of
/// theirs changes results in fast mode within what the fast mode allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// Dense: up to this many rows each row of weights is read once, in order (at most 2).
    pub dense_gemv_rows: usize,
    /// Dense, f32 arithmetic: up to this many rows weights are widened for each tile, beyond once for a panel.
    pub dense_widen_rows: usize,
    /// Where the machine has matrix tiles: from this many rows on they multiply.
    pub tile_rows: usize,
    /// Trellis: up to this many rows activations are rounded to 16 bits, beyond to 8 where bytes are fast (at most 4).
    pub trellis_fine_rows: usize,
    /// Latent attention: fewer queries than this are never computed against expanded keys and values.
    pub latent_expand_rows: usize,
    /// Latent attention: beyond this many positions nothing is expanded, for that would take too much memory.
    pub latent_expand_positions: usize,
}

impl Thresholds {
    /// The defaults of a level; so far they are the same for all.
    pub const fn of(_: Level) -> Thresholds {
        Thresholds {
            dense_gemv_rows: 2,
            dense_widen_rows: 8,
            tile_rows: 12,
            trellis_fine_rows: 4,
            latent_expand_rows: 384,
            latent_expand_positions: 4096,
        }
    }

    /// The same, no larger than the kernels allow.
    pub fn within_limits(self) -> Thresholds {
        Thresholds {
            dense_gemv_rows: self.dense_gemv_rows.min(crate::linear::GEMV_ROWS),
            trellis_fine_rows: self.trellis_fine_rows.min(crate::trellis::GEMV_ROWS),
            tile_rows: self.tile_rows.max(2),
            ..self
        }
    }
}
