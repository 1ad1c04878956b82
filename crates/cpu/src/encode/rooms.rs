//! Memory for the costs of all states, and what of them is kept for the way back.

use super::step::TILES;
use super::table::BITS;
use crate::simd::quarters::Number;

/// Weights of a tile.
pub const TILE: usize = 256;

/// Every how many steps the costs of all states are kept, by bits: what lies between is computed again on the way back, for
/// the few states that lead to the one in question. Divisors of [`TILE`].
pub const STRIDE: [usize; 8] = [4, 2, 1, 1, 1, 1, 1, 1];

/// Memory of tiles side by side: two rooms for costs that are used in turn, and those that are kept.
#[derive(Clone, Copy)]
pub struct Rooms<N> {
    at: *mut N,
    size: usize,
    stride: usize,
    lanes: usize,
}

impl<N: Number> Rooms<N> {
    const TURNS: usize = 2;

    /// Values between the costs of one step and those of another: some lines more than the costs, so that the two are not
    /// at the same place of a page.
    fn room(bits: usize) -> usize {
        (TILES << (BITS - bits)) + 5 * 64 / size_of::<N>()
    }

    /// Values that the tiles need.
    pub fn values(bits: usize) -> usize {
        (Rooms::<N>::TURNS + 1 + TILE / STRIDE[bits - 1]) * Rooms::<N>::room(bits)
    }

    /// In memory of [`Rooms::values`] values, for quarters of `lanes` lanes.
    pub fn new(bits: usize, lanes: usize, at: *mut N) -> Rooms<N> {
        Rooms { at, size: Rooms::<N>::room(bits), stride: STRIDE[bits - 1], lanes }
    }

    /// Where the costs after step `i` are, 0 being the start, of a pass that comes to position 0 after `lead` steps.
    ///
    /// # Safety
    /// The memory is there, and the pass goes no farther than around the tile.
    #[inline(always)]
    pub unsafe fn after(self, lead: usize, i: usize) -> *mut N {
        let room = match i.checked_sub(lead) {
            Some(position) if position.is_multiple_of(self.stride) => Rooms::<N>::TURNS + position / self.stride,
            _ => i % Rooms::<N>::TURNS,
        };
        // SAFETY: the caller's promise.
        unsafe { self.at.add(room * self.size) }
    }

    /// The index of a state's cost.
    #[inline(always)]
    pub fn place(self, tile: usize, state: usize) -> usize {
        state / self.lanes * (TILES * self.lanes) + tile * self.lanes + state % self.lanes
    }

    /// The cost of a state at a position.
    ///
    /// # Safety
    /// It has been kept.
    #[inline(always)]
    pub unsafe fn cost(self, tile: usize, position: usize, state: usize) -> f32 {
        // SAFETY: the caller's promise; places are inside a room.
        unsafe {
            let room = self.at.add((Rooms::<N>::TURNS + position / self.stride) * self.size);
            (*room.add(self.place(tile, state))).single()
        }
    }
}
