//! The two passes of the search, and the way back.

use super::layout::Layout;
use super::step::{Step, TILES, step};
use crate::simd::{Kernel, Simd};

/// Weights of a tile.
pub const TILE: usize = 256;

/// Every how many steps the costs of all states are kept, by bits: what lies between is computed again on the way back, for
/// the few states that lead to the one in question.
const STRIDE: [usize; 8] = [6, 3, 2, 1, 1, 1, 1, 1];

/// A number of steps through the circle of a tile.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Position of the first step.
    pub first: usize,
    /// Steps.
    pub steps: usize,
    /// The way back ends after this many steps from the start.
    pub back: usize,
}

impl Pass {
    /// Around position 0: `lead` steps before it and as many from it on.
    pub fn around(lead: usize) -> Pass {
        Pass { first: (TILE - lead) % TILE, steps: 2 * lead, back: lead }
    }

    /// Once around from position 0.
    pub fn whole() -> Pass {
        Pass { first: 0, steps: TILE, back: 0 }
    }
}

/// Memory of tiles side by side: for each, a start, two rooms that are used in turn, and rooms that are kept.
#[derive(Clone, Copy)]
pub struct Rooms {
    at: *mut f32,
    size: usize,
    stride: usize,
    turns: usize,
}

impl Rooms {
    const KEPT: usize = 3;

    /// Values that the tiles need.
    pub fn values(layout: &Layout) -> usize {
        TILES * (Rooms::KEPT + TILE.div_ceil(STRIDE[layout.bits - 1])) * layout.room()
    }

    /// In memory of [`Rooms::values`] values.
    pub fn new(layout: &Layout, at: *mut f32) -> Rooms {
        Rooms { at, size: layout.room(), stride: STRIDE[layout.bits - 1], turns: layout.turns() }
    }

    /// Whether the costs after step `i` of a pass are kept.
    fn is_kept(self, pass: Pass, i: usize) -> bool {
        i + self.stride > pass.back && (i.is_multiple_of(self.stride) || i == pass.steps)
    }

    /// Where the costs after step `i` of a pass are, 0 being its start.
    unsafe fn room(self, pass: Pass, tile: usize, i: usize) -> *mut f32 {
        let room = match i {
            0 => 0,
            _ if self.is_kept(pass, i) => Rooms::KEPT + i.div_ceil(self.stride) - 1,
            _ => 1 + i % 2,
        };
        // SAFETY: the caller's memory has room for all of them.
        unsafe { self.at.add((room * TILES + tile / self.turns * self.turns) * self.size + tile % self.turns) }
    }

    /// The cost of a state after step `i`.
    ///
    /// # Safety
    /// It has been computed.
    unsafe fn cost(self, layout: &Layout, pass: Pass, tile: usize, i: usize, state: usize) -> f32 {
        // SAFETY: the caller's promise; places are inside a room.
        unsafe { *self.room(pass, tile, i).add(self.turns * usize::from(layout.places[state])) }
    }
}

/// The steps of a pass.
pub struct Forward<'a> {
    pub layout: &'a Layout,
    pub rooms: Rooms,
    pub pass: Pass,
    pub targets: [&'a [f32; TILE]; TILES],
    /// The states that the tiles start from; any, without.
    pub start: Option<[usize; TILES]>,
}

impl Kernel for Forward<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Forward { layout, rooms, pass, targets, start } = self;
        // SAFETY: the rooms are as large as `Rooms::values` says.
        unsafe {
            for tile in 0..TILES {
                let costs = rooms.room(pass, tile, 0);
                for place in 0..rooms.size {
                    *costs.add(rooms.turns * place) = if start.is_some() { f32::INFINITY } else { 0.0 };
                }
                if let Some(start) = start {
                    *costs.add(rooms.turns * usize::from(layout.places[start[tile]])) = 0.0;
                }
            }
            let (mut from, mut to, mut target) =
                ([std::ptr::null(); TILES], [std::ptr::null_mut(); TILES], [0.0; TILES]);
            for i in 1..=pass.steps {
                for tile in 0..TILES {
                    from[tile] = rooms.room(pass, tile, i - 1).cast_const();
                    to[tile] = rooms.room(pass, tile, i);
                    target[tile] = targets[tile][(pass.first + i - 1) % TILE];
                }
                step::<S>(layout, Step { from, to, target });
            }
        }
    }
}

/// The cheapest state at the end of a pass; the lowest of equals.
///
/// # Safety
/// The pass has been run.
pub unsafe fn cheapest(layout: &Layout, rooms: Rooms, pass: Pass, tile: usize) -> usize {
    // SAFETY: the caller's promise.
    let cost = |state: usize| unsafe { rooms.cost(layout, pass, tile, pass.steps, state) };
    (1..layout.states()).fold(0, |best, state| if cost(state) < cost(best) { state } else { best })
}

/// Goes back from state `end` after the last step to `pass.back`, and returns the state there. The words of steps are
/// given to `word`, last first, with their positions.
///
/// # Safety
/// The pass has been run.
pub unsafe fn back(
    layout: &Layout,
    rooms: Rooms,
    pass: Pass,
    tile: usize,
    target: &[f32; TILE],
    end: usize,
    mut word: impl FnMut(usize, u16),
) -> usize {
    let (bits, upper) = (layout.bits, 16 - layout.bits);
    let (mut i, mut state) = (pass.steps, end);
    let mut ways = Vec::new();
    while i > pass.back {
        // The last step before this one whose costs are kept, and the costs there of all states that lead here.
        let from = (i - 1) / rooms.stride * rooms.stride;
        let steps = i - from;
        // A state that `n` steps lead from to `state` is `state >> n bits` below `n bits` free ones.
        let free = |n: usize| n * bits;
        let known = |n: usize| state >> free(n);
        let place = |top: usize| top << (upper - free(steps)) | known(steps);
        let mut cost: Vec<f32> =
            // SAFETY: the caller's promise.
            (0..1 << free(steps)).map(|top| unsafe { rooms.cost(layout, pass, tile, from, place(top)) }).collect();
        ways.clear();
        for s in 0..steps {
            let left = steps - s - 1;
            let target = target[(pass.first + from + s) % TILE];
            let mut choice = vec![0u16; 1 << free(left)];
            let mut next = vec![0.0; 1 << free(left)];
            for top in 0..1 << free(left) {
                let to = top << (upper - free(left)) | known(left);
                let mut best = f32::INFINITY;
                for symbol in 0..1 << bits {
                    let error = layout.values[symbol << upper | to] - target;
                    let way = error.mul_add(error, cost[symbol << free(left) | top]);
                    if way < best {
                        (best, choice[top]) = (way, symbol as u16);
                    }
                }
                next[top] = best;
            }
            cost = next;
            ways.push(choice);
        }
        // What is free of the states on the way, from the last to the first.
        let mut top = 0;
        let here = state;
        for s in (0..steps).rev() {
            if from + s < pass.back {
                return state;
            }
            let left = steps - s - 1;
            let symbol = usize::from(ways[s][top]);
            let to = top << (upper - free(left)) | here >> free(left);
            let found = symbol << upper | to;
            word((pass.first + from + s) % TILE, found as u16);
            state = found >> bits;
            top |= symbol << free(left);
        }
        i = from;
    }
    state
}
