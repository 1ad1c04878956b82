//! The way back: which words led to a state.

use super::rooms::{Rooms, STRIDE, TILE};
use super::step::TILES;
use super::table::{BITS, Table};
use crate::simd::quarters::Number;

/// States that lead to one in a stride, at most.
const MOST: usize = 256;

/// Goes back from the states `ends` at the end of a tile to position 0 and returns the states there, for those tiles that
/// are not `done`. The words on the way are left in `words`. Of equally cheap ways it is the one from the lowest state.
///
/// # Safety
/// The costs of the whole tile have been kept.
#[inline(always)]
pub unsafe fn back<N: Number>(
    table: &Table<N>,
    rooms: Rooms<N>,
    targets: [&[f32; TILE]; TILES],
    done: &[bool; TILES],
    ends: &[usize; TILES],
    words: &mut [[u16; TILE]; TILES],
) -> [usize; TILES] {
    let mut states = *ends;
    let stride = STRIDE[table.bits - 1];
    let mut costs = [[0.0; MOST]; TILES];
    for from in (0..TILE).step_by(stride).rev() {
        // The costs of all states that lead here: of all tiles first, as they come from far.
        for tile in (0..TILES).filter(|tile| !done[*tile]) {
            // SAFETY: the caller's promise.
            unsafe { gather(rooms, table.bits, stride, tile, from, states[tile], &mut costs[tile]) };
        }
        for tile in (0..TILES).filter(|tile| !done[*tile]) {
            let targets = &targets[tile][from..from + stride];
            let words = &mut words[tile][from..from + stride];
            states[tile] = stretch(table, targets, &mut costs[tile], states[tile], words);
        }
    }
    states
}

/// The costs at position `from` of the states that `steps` steps lead from to `state`, by their upper bits; the others are
/// those of `state >> steps * bits`.
///
/// # Safety
/// They have been kept.
#[inline(always)]
unsafe fn gather<N: Number>(
    rooms: Rooms<N>,
    bits: usize,
    steps: usize,
    tile: usize,
    from: usize,
    state: usize,
    costs: &mut [f32; MOST],
) {
    let free = steps * bits;
    for (top, cost) in costs[..1 << free].iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *cost = unsafe { rooms.cost(tile, from, top << (BITS - bits - free) | state >> free) };
    }
}

/// The cheapest way of a few steps to `state`, from the costs of all states that lead there: its words, and where it starts.
#[inline(always)]
fn stretch<N: Number>(
    table: &Table<N>,
    targets: &[f32],
    costs: &mut [f32; MOST],
    state: usize,
    words: &mut [u16],
) -> usize {
    let (bits, upper) = (table.bits, BITS - table.bits);
    let steps = targets.len();
    // After a step, states on a way to `state` are `state >> n bits` below `n bits` free ones, with `n` steps left.
    let state_with = |top: usize, left: usize| top << (upper - left * bits) | state >> (left * bits);
    let mut choices = [[0u8; MOST]; 4];
    for s in 0..steps {
        let left = steps - s - 1;
        for top in 0..1 << (left * bits) {
            let to = state_with(top, left);
            let (mut best, mut choice) = (f32::INFINITY, 0);
            for symbol in 0..1 << bits {
                let error = table.values[symbol << upper | to] - targets[s];
                let way = error.mul_add(error, costs[symbol << (left * bits) | top]);
                if way < best {
                    (best, choice) = (way, symbol as u8);
                }
            }
            // What is still to be read has higher places.
            (costs[top], choices[s][top]) = (best, choice);
        }
    }
    let (mut top, mut start) = (0, state);
    for s in (0..steps).rev() {
        let left = steps - s - 1;
        let symbol = usize::from(choices[s][top]);
        let word = symbol << upper | state_with(top, left);
        words[s] = word as u16;
        start = word >> bits;
        top |= symbol << (left * bits);
    }
    start
}
