//! Tokens drawn at a temperature, with top-k, top-p and min-p.
//!
//! A row's settings are eight words: flags ([`DRAWN`] and its kin), the inverse temperature, top-k, top-p in units of 2^-32, the logarithm
//! of min-p, the low and the high word of where the row's noise begins, and the temperature.

use super::{GreedyArgs, kernel};

/// A flag of a row: it is drawn; without, the most probable token is taken.
pub const DRAWN: u32 = 1;
/// It has top-k or top-p.
pub const SELECTS: u32 = 2;
/// It has top-p.
pub const NUCLEUS: u32 = 4;

/// Tokens of a row at most, so that sums of weights fit 64 bits.
pub const MOST_TOKENS: usize = 1 << 19;

kernel! {
    /// Of each part of each row with top-k or top-p: tokens and weights above eight levels, in 32 words. Grid `[parts, rows]`.
    DrawCount = "draw_count" in "draw.h" {}
    threads |_| 256;
    shared |_| vec![("uint", 256)];
    buffers { logits: read f32, rows: read u32, found: read u32, levels: write u32 }
    arguments GreedyArgs
}

kernel! {
    /// The candidates of each row with top-k or top-p (`count` words a row) and what is known of it (8 words); of others the best
    /// noisy logit of each part (4 words). Grid `[parts, rows]`.
    DrawGather = "draw_gather" in "draw.h" {}
    threads |_| 256;
    shared |_| vec![("uint", 40)];
    buffers { logits: read f32, rows: read u32, found: read u32, levels: read u32, tokens: write u32, drawn: write u32, known: write u32 }
    arguments GreedyArgs
}

kernel! {
    /// The token of each row: token, how much less than the best its logit is, the margin, the sum of exponentials. Grid `[rows]`.
    DrawChoose = "draw_choose" in "draw.h" {
        /// Simdgroups of a threadgroup, at most 32.
        simds: u32,
    }
    threads |k| 32 * k.simds;
    shared |_| vec![("uint", 128)];
    buffers { logits: read f32, rows: read u32, found: read u32, tokens: read u32, drawn: read u32, known: read u32, chosen: write u32 }
    arguments GreedyArgs
}
