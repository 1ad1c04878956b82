//! Which kernel serves which weights at how many rows, on which chip.
//!
//! [`chips`] is the one table of what chips are and of the numbers at which one kernel takes over from another on them; what
//! `bench kernels --save` has measured on a device ([`saved`]) takes precedence. [`choose`] says what the backend does with a weight.

pub mod chips;
mod choice;
pub mod limits;
mod saved;

pub use chips::Chip;
pub use choice::{Choice, Weight, choose};
pub use limits::Limit;
pub use saved::{file, save, saved};

use crate::device::Info;
use serde::{Deserialize, Serialize};

/// The numbers at which one kernel takes over from another. Nothing but speed depends on them, but for what differs in rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// Rows up to which kernels read a weight for a few rows at a time; beyond, products are made of tiles. 1 to 16.
    pub few_rows: usize,
    /// Pairs of row and expert for each expert, on average, from which on they are sorted and share tiles. At least 1.
    pub sort_pairs: usize,
    /// Threadgroups a core that attention splits the context for. 1 to 64.
    pub attention_groups: usize,
}

impl Thresholds {
    /// What is outside the limits is brought within.
    #[must_use]
    pub fn within_limits(self) -> Self {
        Self {
            few_rows: self.few_rows.clamp(1, 16),
            sort_pairs: self.sort_pairs.clamp(1, 1 << 20),
            attention_groups: self.attention_groups.clamp(1, 64),
        }
    }

    /// Those of a device: measured there, or those of its chip.
    pub fn of(info: &Info) -> Self {
        saved(info).unwrap_or_else(|| Chip::of(info).thresholds).within_limits()
    }
}
