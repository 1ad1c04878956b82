//! Grouped weights as other formats' files pack them.

use std::fmt::Debug;
use std::ops::Range;

use super::Grouped;
use crate::Result;

/// A [`Grouped`] weight that a file packs in another order than the canonical one. It becomes canonical some rows at a
/// time, so that a device that re-lays weights once more never holds it twice.
pub trait Packed: Debug + Send + Sync {
    /// `[rows, cols]`
    fn shape(&self) -> [usize; 2];

    /// Bytes in the file.
    fn bytes(&self) -> usize;

    /// Ranges given to [`Packed::unpack`] begin at multiples of this many rows.
    fn granule(&self) -> usize {
        1
    }

    /// Rows `rows` as a matrix of their own. Every range of rows gives the same types of codes and factors.
    fn unpack(&self, rows: Range<usize>) -> Result<Grouped>;

    /// Gives back the memory of the file's pages, after the last use.
    fn release(&self);
}
