//! One step of the search: the cheapest way to each new state.

use super::layout::{GROUP, Layout};
use crate::simd::Simd;

/// Tiles that are searched side by side, so that the codebook is read for several.
pub const TILES: usize = 2;

/// Costs of all states before and after a step, for each tile, and the target that the step's word is to meet. Of tiles
/// whose costs lie by turns, those of the first come first.
#[derive(Clone, Copy)]
pub struct Step {
    pub from: [*const f32; TILES],
    pub to: [*mut f32; TILES],
    pub target: [f32; TILES],
}

/// `to[s] = min (from[w >> bits] + (value[w] - target)^2)` over the words `w` that end in state `s`.
///
/// # Safety
/// The features of `S` are enabled, and both sides have room for the layout's states.
#[inline(always)]
pub unsafe fn step<S: Simd>(layout: &Layout, step: Step) {
    // Registers for so many sums: on narrow levels one tile after the other, half as many at a time.
    let wide = S::MR >= 4;
    let Step { from, to, target } = step;
    // SAFETY: the caller's promises.
    unsafe {
        if layout.bits == 3 {
            if wide {
                by_turns::<S, 8>(layout, from[0], to[0], target);
            } else {
                by_turns::<S, 4>(layout, from[0], to[0], target);
            }
        } else if wide {
            some::<S, 2, 8>(layout, from, to, target);
        } else {
            for i in 0..TILES {
                some::<S, 1, 4>(layout, [from[i]], [to[i]], [target[i]]);
            }
        }
    }
}

#[inline(always)]
unsafe fn some<S: Simd, const T: usize, const N: usize>(
    layout: &Layout,
    from: [*const f32; T],
    to: [*mut f32; T],
    target: [f32; T],
) {
    // SAFETY: the caller's promises.
    unsafe {
        match layout.bits {
            1 => transposed::<S, 1, T, 2>(layout, from, to, target),
            2 => transposed::<S, 2, T, 4>(layout, from, to, target),
            4 => plain::<S, 4, T, N>(layout, from, to, target),
            5 => plain::<S, 5, T, N>(layout, from, to, target),
            6 => plain::<S, 6, T, N>(layout, from, to, target),
            7 => plain::<S, 7, T, N>(layout, from, to, target),
            _ => plain::<S, 8, T, N>(layout, from, to, target),
        }
    }
}

#[inline(always)]
unsafe fn splats<S: Simd, const T: usize>(values: [f32; T]) -> [S::F; T] {
    // SAFETY: the caller enabled the features.
    unsafe {
        let mut all = [S::zero(); T];
        for i in 0..T {
            all[i] = S::splat(values[i]);
        }
        all
    }
}

/// The cost of a way: what it cost to get to `cost`'s states, and the square of the error.
#[inline(always)]
unsafe fn way<S: Simd>(value: S::F, target: S::F, cost: S::F) -> S::F {
    // SAFETY: the caller enabled the features.
    unsafe {
        let error = S::sub(value, target);
        S::fma(error, error, cost)
    }
}

/// Below 3 bits.
#[inline(always)]
unsafe fn transposed<S: Simd, const K: usize, const T: usize, const N: usize>(
    layout: &Layout,
    from: [*const f32; T],
    to: [*mut f32; T],
    target: [f32; T],
) {
    let symbols = 1 << K;
    let mut sums = [[0.0f32; 256]; T];
    let (mut table, mut offset) = (layout.halves.as_ptr(), layout.offsets.as_ptr());
    // SAFETY: the caller's promises; the table and the offsets are as long as these loops walk.
    unsafe {
        let target = splats::<S, T>(target);
        for block in 0..layout.states() >> 8 {
            for part in 0..1 << (4 - K) {
                for first in (0..symbols).step_by(N) {
                    let mut best = [[S::zero(); N]; T];
                    for upper in 0..symbols {
                        let at = *offset.add(upper) as usize;
                        let mut cost = [S::zero(); T];
                        for i in 0..T {
                            cost[i] = S::load(from[i].add(at));
                        }
                        for n in 0..N {
                            let value = S::load_f16(table.add(16 * (upper * symbols + first + n)).cast());
                            for i in 0..T {
                                let way = way::<S>(value, target[i], cost[i]);
                                best[i][n] = if upper == 0 { way } else { S::min(way, best[i][n]) };
                            }
                        }
                    }
                    for i in 0..T {
                        for n in 0..N {
                            S::store(sums[i].as_mut_ptr().add(16 * (part * symbols + first + n)), best[i][n]);
                        }
                    }
                }
                table = table.add(16 * symbols * symbols);
                offset = offset.add(symbols);
            }
            for i in 0..T {
                S::transpose(sums[i].as_ptr().cast(), 16, to[i].add(layout.place(256 * block)).cast(), 16);
            }
        }
    }
}

/// With 3 bits, two tiles by turns.
#[inline(always)]
unsafe fn by_turns<S: Simd, const N: usize>(layout: &Layout, from: *const f32, to: *mut f32, target: [f32; TILES]) {
    const SYMBOLS: usize = 8;
    let mut table = layout.table.as_ptr();
    // SAFETY: the caller's promises; the table is as long as these loops walk.
    unsafe {
        let target = S::splat_two(target.as_ptr());
        for group in (0..layout.states() / SYMBOLS).step_by(GROUP) {
            for first in (0..GROUP).step_by(N) {
                let mut best = [S::zero(); N];
                for upper in 0..SYMBOLS {
                    for n in 0..N {
                        let at = upper << 10 | (group + first + n);
                        let line = table.add((upper * GROUP + first + n) / 2 * 16);
                        let value = if n % 2 == 0 { S::load_evens(line) } else { S::load_odds(line) };
                        let way = way::<S>(value, target, S::splat_two(from.add(TILES * at)));
                        best[n] = if upper == 0 { way } else { S::min(way, best[n]) };
                    }
                }
                for n in 0..N {
                    S::store(to.add(16 * (group + first + n)), best[n]);
                }
            }
            table = table.add(16 * GROUP / 2 * SYMBOLS);
        }
    }
}

/// From 4 bits on.
#[inline(always)]
unsafe fn plain<S: Simd, const K: usize, const T: usize, const N: usize>(
    layout: &Layout,
    from: [*const f32; T],
    to: [*mut f32; T],
    target: [f32; T],
) {
    let mut table = layout.table.as_ptr();
    // SAFETY: the caller's promises; the table is as long as these loops walk.
    unsafe {
        let target = splats::<S, T>(target);
        for group in (0..layout.states() / 16).step_by(GROUP) {
            for first in (0..GROUP).step_by(N) {
                let mut best = [[S::zero(); N]; T];
                for upper in 0..1 << K {
                    for n in 0..N {
                        let at = upper << (16 - 2 * K) | ((group + first + n) * 16) >> K;
                        let value = S::load(table.add(16 * (upper * GROUP + first + n)));
                        for i in 0..T {
                            let way = way::<S>(value, target[i], S::splat(*from[i].add(at)));
                            best[i][n] = if upper == 0 { way } else { S::min(way, best[i][n]) };
                        }
                    }
                }
                for i in 0..T {
                    for n in 0..N {
                        S::store(to[i].add(16 * (group + first + n)), best[i][n]);
                    }
                }
            }
            table = table.add((16 * GROUP) << K);
        }
    }
}
