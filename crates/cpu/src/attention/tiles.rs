//! A tile of positions by matrix tiles: the layout of [`Tile`] is that of their right operand.

use super::core::{Kv, Queries, State, TILE, Tile};
use crate::amx::{Strip, Tiles};
use crate::simd::{LANES, Simd};

/// Rows of a matrix tile.
pub(super) const VECTORS: usize = 16;
/// Elements of keys, and of values, that a step takes.
pub(super) const STEP: usize = 32;

impl Queries<'_> {
    /// Takes one tile of positions into the state of all vectors.
    ///
    /// # Safety
    /// As for [`Queries::chunk`]; keys and values are `bf16` in pairs, their dimensions multiples of [`STEP`], and the tile
    /// holds finite values only.
    #[inline(always)]
    pub(super) unsafe fn by_tiles<S: Simd, K: Kv>(
        &self,
        tiles: &Tiles,
        start: usize,
        len: usize,
        t: Tile,
        state: State,
    ) {
        // SAFETY: the caller's promise; `work` holds sixteen rows of scores, or of probabilities.
        unsafe {
            let line = TILE * 4;
            for r0 in (0..self.r).step_by(VECTORS) {
                // Vectors are in the order of positions: those before this tile see nothing of it.
                if *self.pos.add(r0 + VECTORS - 1) < start {
                    continue;
                }
                tiles.strip(Strip {
                    a: self.q.add(r0 * self.q_ld),
                    a_ld: self.q_ld,
                    b: t.k,
                    b_ld: t.k_ld,
                    steps: self.k_dim / STEP,
                    sums: self.work.cast(),
                    sums_ld: line,
                });
                let mut s = [[S::zero(); 2]; VECTORS];
                for (r, s) in s.iter_mut().enumerate() {
                    let from = self.work.add(r * line).cast::<f32>();
                    *s = [S::load(from), S::load(from.add(LANES))];
                }
                let (alpha, _) = self.probabilities::<S, K, VECTORS>(r0, start, len, t, s, state);
                let values = state.acc.add(r0 * self.v_pad);
                for (r, alpha) in alpha.into_iter().enumerate().filter(|(_, alpha)| *alpha != 1.0) {
                    let alpha = S::splat(alpha);
                    for d in (0..self.v_pad).step_by(LANES) {
                        let v = values.add(r * self.v_pad + d);
                        S::store(v, S::mul(S::load(v), alpha));
                    }
                }
                tiles.add_strips(Strip {
                    a: self.work,
                    a_ld: TILE * 2,
                    b: t.v,
                    b_ld: t.v_ld,
                    steps: self.v_pad / STEP,
                    sums: values,
                    sums_ld: self.v_pad * 4,
                });
            }
        }
    }
}
