//! Positions whose keys and values lie row by row, by matrix tiles.
//!
//! Rows of keys are the left operand as they lie in memory, queries the right one, laid out once: `[vectors / 32][k_dim /
//! 32][2]` tiles of sixteen pairs of dimensions by sixteen vectors. Scores come out by position with a vector in each lane,
//! and so do maxima and probabilities; these are turned to be the left operand of the values, whose rows are paired.

use super::core::{Queries, RowTile, Source, State, TILE};
use super::tiles::{STEP, VECTORS};
use crate::amx::{Block, Tiles};
use crate::simd::{LANES, Simd, exp};

/// Positions that are taken together.
pub(super) const WIDE: usize = 128;
/// Vectors side by side in a product.
pub(super) const PAIR: usize = 2 * VECTORS;
/// Bytes of the probabilities of a vector.
const P_LD: usize = WIDE * 2;
/// Bytes of the scores of 32 vectors, and of the paired values of 32 dimensions.
const SCORES: usize = WIDE * PAIR * 4;
const PAIRED: usize = WIDE * STEP * 2;

/// Bytes of [`Queries::work`] for so many vectors.
pub(super) fn work(vectors: usize) -> usize {
    SCORES + PAIRED + vectors * P_LD
}

/// Bytes of the source's scratch.
pub(super) fn staged(k_dim: usize, v_dim: usize) -> usize {
    WIDE * (k_dim + v_dim) * 2
}

/// Lays out `room` vectors, a multiple of [`PAIR`], of `k_dim` elements of `bf16`, `ld` bytes apart.
///
/// # Safety
/// `q` has them, and `to` room for them without gaps.
#[inline(always)]
pub(super) unsafe fn lay_queries<S: Simd>(q: *const u8, ld: usize, room: usize, k_dim: usize, to: *mut u8) {
    let mut to = to;
    for r in (0..room).step_by(PAIR) {
        for step in 0..k_dim / STEP {
            for half in 0..2 {
                // SAFETY: sixteen vectors of 32 elements; a tile of room.
                unsafe {
                    S::transpose(q.add((r + half * VECTORS) * ld + step * 2 * STEP), ld / 4, to, VECTORS);
                    to = to.add(VECTORS * 2 * STEP);
                }
            }
        }
    }
}

/// The positions of a step: their tiles, how many there are of them, and the first.
struct Wide {
    rows: [RowTile; WIDE / TILE],
    start: usize,
    len: usize,
}

impl Wide {
    fn tiles(&self) -> usize {
        self.len.div_ceil(TILE)
    }
}

impl Queries<'_> {
    /// Takes positions `from..to` (of one chunk) into the state of all vectors.
    ///
    /// # Safety
    /// As for [`Queries::chunk`]; everything that there is one of for each vector has room for a multiple of [`PAIR`],
    /// dimensions are multiples of [`STEP`], and there is scratch for [`staged`] and [`work`].
    #[inline(always)]
    pub(super) unsafe fn by_rows<S: Simd, T: Source>(
        &self,
        tiles: &Tiles,
        source: &T,
        from: usize,
        to: usize,
        state: State,
    ) {
        let room = self.r.next_multiple_of(PAIR);
        let staged = TILE * (self.k_dim + self.v_pad) * 2;
        // SAFETY: the caller's promises.
        unsafe {
            for start in (from..to).step_by(WIDE) {
                let mut wide = Wide { rows: Default::default(), start, len: WIDE.min(to - start) };
                for t in 0..wide.tiles() {
                    let len = TILE.min(wide.len - t * TILE);
                    wide.rows[t] = source.rows::<S>(start + t * TILE, len, self.scratch.add(t * staged));
                }
                // Vectors are in the order of positions: those before these see nothing of them.
                let first = (0..room).step_by(PAIR).find(|r| *self.pos.add(r + PAIR - 1) >= start).unwrap_or(room);
                for r0 in (first..room).step_by(PAIR) {
                    self.row_scores(tiles, &wide, r0);
                    self.row_probabilities::<S>(&wide, r0, 0, state);
                    self.row_probabilities::<S>(&wide, r0, VECTORS, state);
                }
                self.row_values::<S>(tiles, &wide, first..room, state);
            }
        }
    }

    /// Scores `[positions][32]` of vectors `r0..r0 + 32` at the front of the work room.
    #[inline(always)]
    unsafe fn row_scores(&self, tiles: &Tiles, wide: &Wide, r0: usize) {
        // SAFETY: as for `by_rows`. What rows beyond the last position give is not looked at.
        unsafe {
            for t in 0..wide.tiles() {
                let block = Block {
                    x: wide.rows[t].k,
                    x_ld: wide.rows[t].k_ld,
                    panel: self.panels.add(r0 * self.k_dim * 2),
                    steps: self.k_dim / STEP,
                    sums: self.work.add(t * TILE * PAIR * 4).cast(),
                    sums_ld: PAIR * 4,
                    more: false,
                };
                if wide.len - t * TILE > VECTORS {
                    tiles.two(block);
                } else {
                    tiles.one(block);
                }
            }
        }
    }

    /// From scores to probabilities `[16][positions]` of vectors `r0 + half..`, with the state brought up to date.
    #[inline(always)]
    unsafe fn row_probabilities<S: Simd>(&self, wide: &Wide, r0: usize, half: usize, state: State) {
        let r = r0 + half;
        // SAFETY: as for `by_rows`.
        unsafe {
            let scores = self.work.cast::<f32>().add(half);
            let seen = |lane: usize| (*self.pos.add(r + lane) + 1).saturating_sub(wide.start).min(wide.len);
            let (least, most) = (seen(0), seen(LANES - 1));
            let mut hidden = 0;
            let (nothing, scale) = (S::splat(f32::NEG_INFINITY), S::splat(self.scale));
            let mut top = nothing;
            for p in 0..most {
                let mut s = S::mul(S::load(scores.add(p * PAIR)), scale);
                if p >= least {
                    while seen(hidden) <= p {
                        hidden += 1;
                    }
                    s = S::first(hidden, nothing, s);
                }
                S::store(scores.add(p * PAIR), s);
                top = S::max(top, s);
            }
            let old = S::load(state.m.add(r));
            let m = S::max(old, top);
            S::store(state.m.add(r), m);
            // Nothing seen yet: any finite reference gives probabilities of zero.
            let m = S::select_lt(m, S::splat(f32::MIN), S::zero(), m);
            let mut alpha = [0.0f32; LANES];
            S::store(alpha.as_mut_ptr(), exp::<S>(S::sub(old, m)));

            let probabilities = self.work.add(SCORES + PAIRED + r * P_LD);
            let mut sum = S::zero();
            for t in 0..wide.tiles() {
                let mut turned = [0u8; TILE * LANES * 2];
                for p in (t * TILE..most.min((t + 1) * TILE)).step_by(2) {
                    let mut two = [[0u8; LANES * 2]; 2];
                    for (i, to) in two.iter_mut().enumerate().take(most - p) {
                        S::store_bf16(to.as_mut_ptr(), exp::<S>(S::sub(S::load(scores.add((p + i) * PAIR)), m)));
                        // The sum is of what is multiplied.
                        sum = S::add(sum, S::load_bf16(to.as_ptr()));
                    }
                    S::zip(two[0].as_ptr(), two[1].as_ptr(), turned.as_mut_ptr().add(p % TILE * LANES * 2));
                }
                S::transpose(turned.as_ptr(), LANES, probabilities.add(t * TILE * 2), P_LD / 4);
            }
            let mut sums = [0.0f32; LANES];
            S::store(sums.as_mut_ptr(), sum);
            for (i, (alpha, sum)) in alpha.into_iter().zip(sums).enumerate() {
                let l = state.l.add((r + i) * LANES);
                *l = *l * alpha + sum;
                if alpha == 1.0 {
                    continue;
                }
                let values = state.acc.add((r + i) * self.v_pad);
                for d in (0..self.v_pad).step_by(LANES) {
                    S::store(values.add(d), S::mul(S::load(values.add(d)), S::splat(alpha)));
                }
            }
        }
    }

    /// Adds the weighted values of vectors `range`.
    #[inline(always)]
    unsafe fn row_values<S: Simd>(&self, tiles: &Tiles, wide: &Wide, range: std::ops::Range<usize>, state: State) {
        const NOTHING: [u8; 2 * STEP] = [0; 2 * STEP];
        // SAFETY: as for `by_rows`. Rows beyond the last position may hold anything and are taken as zeros.
        unsafe {
            let paired = self.work.add(SCORES);
            for d in (0..self.v_pad).step_by(STEP) {
                for t in 0..wide.tiles() {
                    let tile = &wide.rows[t];
                    let filled = wide.len - t * TILE;
                    let row = |i: usize| if i < filled { tile.v.add(i * tile.v_ld + d * 2) } else { NOTHING.as_ptr() };
                    for j in 0..TILE / 2 {
                        let (a, b) = (row(2 * j), row(2 * j + 1));
                        let to = paired.add(t * TILE * STEP * 2 + j * 64);
                        S::zip(a, b, to);
                        S::zip(a.add(LANES * 2), b.add(LANES * 2), to.add(TILE * STEP));
                    }
                }
                for r0 in range.clone().step_by(PAIR) {
                    tiles.two(Block {
                        x: self.work.add(SCORES + PAIRED + r0 * P_LD),
                        x_ld: P_LD,
                        panel: paired,
                        steps: wide.tiles(),
                        sums: state.acc.add(r0 * self.v_pad + d),
                        sums_ld: self.v_pad * 4,
                        more: true,
                    });
                }
            }
        }
    }
}
