//! The search for closed walks: forward through all states, and back along the cheapest ways.

use super::back::back;
use super::rooms::{Rooms, TILE};
use super::step::{Step, TILES, least, step};
use super::table::Table;
use crate::simd::quarters::{HalfKernel, Number, Quarters, Single};
use crate::simd::{Kernel, Simd};
use half::f16;

/// Steps before position 0. Ways part late: with half as many the squared error grows by 0.3 % at 3 bits.
pub const LEAD: usize = TILE / 2;
/// How many ways back are tried.
pub const TRIES: usize = 4;
/// Every how many steps the smallest cost is taken off all costs where they are `f16`.
const LEVEL: usize = 16;

/// A search of tiles side by side.
pub struct Search<'a, N> {
    pub table: &'a Table<N>,
    pub rooms: Rooms<N>,
    pub targets: [&'a [f32; TILE]; TILES],
    /// The states at position 0; any, without.
    pub start: Option<[usize; TILES]>,
}

/// What was found.
pub struct Walks {
    /// The words of the walks.
    pub words: [[u16; TILE]; TILES],
    /// Which walks are closed.
    pub closed: [bool; TILES],
    /// The states at position 0.
    pub start: [usize; TILES],
}

impl<N: Number> Search<'_, N> {
    /// # Safety
    /// The features of `Q` are enabled, and the rooms are as large as `Rooms::values` says.
    #[inline(always)]
    unsafe fn walks<Q: Quarters<N = N>>(self) -> Walks {
        let start = self.start.unwrap_or_default();
        let mut found = Walks { words: [[0; TILE]; TILES], closed: [false; TILES], start };
        // SAFETY: the caller's promises.
        unsafe {
            self.forward::<Q>();
            for _ in 0..TRIES {
                let before = back(self.table, self.rooms, self.targets, &found.closed, &found.start, &mut found.words);
                for tile in 0..TILES {
                    if !found.closed[tile] {
                        found.closed[tile] = before[tile] == found.start[tile];
                        found.start[tile] = before[tile];
                    }
                }
                if found.closed == [true; TILES] {
                    break;
                }
            }
        }
        found
    }

    /// Computes the costs of all states: from the given ones once around, or from anywhere with a lead.
    ///
    /// # Safety
    /// As above.
    #[inline(always)]
    unsafe fn forward<Q: Quarters<N = N>>(&self) {
        let Search { table, rooms, targets, start } = *self;
        let lead = if start.is_some() { 0 } else { LEAD };
        let [nothing, never] = N::ENDS;
        // SAFETY: the caller's promises.
        unsafe {
            let costs = rooms.after(lead, 0);
            for place in 0..TILES * table.states() {
                *costs.add(place) = if start.is_some() { never } else { nothing };
            }
            if let Some(start) = start {
                for (tile, start) in start.into_iter().enumerate() {
                    *costs.add(rooms.place(tile, start)) = nothing;
                }
            }
            for i in 0..lead + TILE {
                let (from, to) = (rooms.after(lead, i).cast_const(), rooms.after(lead, i + 1));
                let position = (i + TILE - lead) % TILE;
                let mut target = [0.0; TILES];
                for tile in 0..TILES {
                    target[tile] = targets[tile][position];
                }
                let levels = size_of::<N>() < size_of::<f32>() && i % LEVEL == LEVEL - 1;
                let less = if levels { Some(least::<Q>(from, table.states())) } else { None };
                step::<Q>(table, Step { from, to, target, less });
            }
        }
    }
}

impl Kernel for Search<'_, f32> {
    type Out = Walks;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Walks {
        // SAFETY: the caller's promises.
        unsafe { self.walks::<Single<S>>() }
    }
}

impl HalfKernel for Search<'_, f16> {
    type Out = Walks;

    #[inline(always)]
    unsafe fn run<Q: Quarters<N = f16>>(self) -> Walks {
        // SAFETY: the caller's promises.
        unsafe { self.walks::<Q>() }
    }
}
