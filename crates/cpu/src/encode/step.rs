//! One step of the search: the cheapest way to each new state.
//!
//! Each quarter of a vector belongs to a tile of its own; its lanes are neighbouring states. So values are loaded once for
//! all tiles, and costs as they lie. The sums come out with a vector for each symbol, whose lanes are the states that it
//! follows; interleaving them brings the new states, neighbours by their symbols, into the same order.

use super::table::{Order, Table};
use crate::simd::quarters::{Number, QUARTERS, Quarters};

/// Tiles that are searched side by side.
pub const TILES: usize = QUARTERS;

/// Most vectors of sums of a block.
const MOST: usize = 8;

/// Costs of all states before and after a step, the target of each tile, and what is taken off all costs, if anything.
#[derive(Clone, Copy)]
pub struct Step<N> {
    pub from: *const N,
    pub to: *mut N,
    pub target: [f32; TILES],
    pub less: Option<[N; TILES]>,
}

/// `to[s] = min (from[w >> bits] - less + (value[w] - target)^2)` over the words `w` that end in state `s`.
///
/// # Safety
/// The features of `Q` are enabled, both sides have room for the states of four tiles, and the table is one for `Q`.
#[inline(always)]
pub unsafe fn step<Q: Quarters>(table: &Table<Q::N>, step: Step<Q::N>) {
    // SAFETY: the caller's promises.
    unsafe {
        match table.bits {
            1 => ways::<Q, 1>(table, step),
            2 => ways::<Q, 2>(table, step),
            3 => ways::<Q, 3>(table, step),
            4 => ways::<Q, 4>(table, step),
            5 => ways::<Q, 5>(table, step),
            6 => ways::<Q, 6>(table, step),
            7 => ways::<Q, 7>(table, step),
            _ => ways::<Q, 8>(table, step),
        }
    }
}

#[inline(always)]
unsafe fn ways<Q: Quarters, const K: usize>(table: &Table<Q::N>, step: Step<Q::N>) {
    // SAFETY: the caller's promises.
    unsafe {
        match step.less {
            None => blocks::<Q, K, false>(table, step),
            Some(_) => blocks::<Q, K, true>(table, step),
        }
    }
}

/// A vector with a value in all lanes of each quarter.
///
/// # Safety
/// The features of `Q` are enabled.
#[inline(always)]
unsafe fn splat<Q: Quarters>(values: [Q::N; TILES]) -> Q::V {
    let mut lanes = [Q::N::ENDS[0]; 8 * QUARTERS];
    for lane in 0..Q::SIZE * QUARTERS {
        lanes[lane] = values[lane / Q::SIZE];
    }
    // SAFETY: there are as many lanes; the caller enabled the features.
    unsafe { Q::load(lanes.as_ptr()) }
}

#[inline(always)]
unsafe fn blocks<Q: Quarters, const K: usize, const LESS: bool>(table: &Table<Q::N>, step: Step<Q::N>) {
    let Order { symbols, family, lanes, rivals, chunk } = const { Order::new(K, Q::SIZE) };
    let line = QUARTERS * Q::SIZE;
    // Symbols of a block, those whose sums are in registers at a time, and those that are interleaved.
    let (block, side, woven) = (symbols.min(Q::SIZE.max(Q::SUMS)), symbols.min(Q::SUMS), symbols.min(Q::SIZE));
    // SAFETY: the caller's promises; rooms and table are as long as these loops walk.
    unsafe {
        let target = splat::<Q>(step.target.map(Q::N::of));
        let less = splat::<Q>(step.less.unwrap_or([Q::N::ENDS[0]; TILES]));
        let mut values = table.ordered.as_ptr();
        for first in (0..family).step_by(lanes) {
            for above in (0..symbols).step_by(block) {
                let mut sums = [target; MOST];
                for at in (0..block).step_by(side) {
                    for rival in 0..rivals {
                        let state = rival * (Q::SIZE / lanes) * family + first;
                        let mut cost = Q::load(step.from.add(state * QUARTERS));
                        if LESS {
                            cost = Q::sub(cost, less);
                        }
                        for n in 0..side {
                            let (apart, beside) = (n / chunk, n % chunk);
                            let at_value = ((apart * rivals + rival) * chunk + beside) * Q::SIZE;
                            let value = Q::load_quarters(values.add(at_value));
                            let way = Q::add_square(Q::sub(value, target), cost);
                            sums[at + n] = if rival == 0 { way } else { Q::min(way, sums[at + n]) };
                        }
                    }
                    values = values.add(side * rivals * Q::SIZE);
                }
                for part in (0..block).step_by(woven) {
                    let mut sums = if part == 0 {
                        sums
                    } else {
                        [sums[4], sums[5], sums[6], sums[7], target, target, target, target]
                    };
                    weave::<Q>(&mut sums, woven);
                    if symbols <= Q::SIZE {
                        // All successors of the states, one vector after the other.
                        for i in 0..woven {
                            Q::store(step.to.add((first * symbols / Q::SIZE + i) * line), sums[i]);
                        }
                    } else {
                        for lane in 0..lanes {
                            for rival in (lane + lanes..Q::SIZE).step_by(lanes) {
                                sums[lane] = Q::min(sums[lane], sums[rival]);
                            }
                            let state = (first + lane) * symbols + above + part;
                            Q::store(step.to.add(state * QUARTERS), sums[lane]);
                        }
                    }
                }
            }
        }
    }
}

/// Interleaves `n` vectors, a power of two: as if they were one row of values in each quarter, the index of the vector
/// becomes the lowest part of a value's index.
#[inline(always)]
unsafe fn weave<Q: Quarters>(all: &mut [Q::V; MOST], n: usize) {
    let mut rounds = n;
    while rounds > 1 {
        let old = *all;
        for i in 0..n / 2 {
            // SAFETY: the caller enabled the features.
            (all[2 * i], all[2 * i + 1]) = unsafe { Q::zip(old[i], old[i + n / 2]) };
        }
        rounds /= 2;
    }
}

/// The smallest cost of each tile.
///
/// # Safety
/// The features of `Q` are enabled, and the costs of `states` states of four tiles have been computed.
#[inline(always)]
pub unsafe fn least<Q: Quarters>(costs: *const Q::N, states: usize) -> [Q::N; TILES] {
    let mut lanes = [Q::N::ENDS[1]; 8 * QUARTERS];
    // SAFETY: the caller's promises.
    unsafe {
        let mut all = Q::load(costs);
        for state in (Q::SIZE..states).step_by(Q::SIZE) {
            all = Q::min(all, Q::load(costs.add(state * QUARTERS)));
        }
        Q::store(lanes.as_mut_ptr(), all);
    }
    std::array::from_fn(|tile| {
        let lanes = &lanes[tile * Q::SIZE..][..Q::SIZE];
        lanes[1..].iter().fold(lanes[0], |a, b| if b.single() < a.single() { *b } else { a })
    })
}
