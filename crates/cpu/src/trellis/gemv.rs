//! Products with few rows: decoding fused with the dot product.
//!
//! For each 32 weights with MUL1: one funnel shift to get the states, three multiplications and an addition for the
//! 32-bit products, two multiply-adds and an addition for the sums of their bytes, and a dot product for each row of
//! activations: 9 vector operations for one row, 6 of them on the multipliers. With two pipes for everything (Intel) that
//! is 4.5 cycles for 32 weights (measured on Emerald Rapids, from the cache: 4.8), and half a cycle for each further row;
//! with four, two of which multiply, it would be 3. Loads are `bits / 16` for the words and one broadcast for each row.
//! MCG and 3INST turn two halves into fixed point, 6 operations each, and add them, in place of the three for the sum: 19
//! operations, and 23 with 3INST's addend and its carry.

use super::acts::{BLOCK16, TrellisActs, pair};
use super::code::{Code, Steps, Words, dispatch, place, sixteen};
use super::lanes::{self, Lanes, LanesKernel};
use marlin_checkpoint::weight::Codebook;
use std::marker::PhantomData;

/// Tiles of inputs that share a scale.
const TILES: usize = BLOCK16 / 16;
/// Bytes that the walk over the words asks for ahead of use.
const AHEAD: usize = 4096;

/// `out[m, 32 pairs] = x w^T` before the output rotation.
#[derive(Clone, Copy)]
pub struct Gemv<'a> {
    /// 1 to 4 rows in 16 bits.
    pub x: TrellisActs<'a>,
    /// Words of `pairs` pairs of tiles of outputs, one after another.
    pub words: *const u8,
    pub pairs: usize,
    /// Rows of `ld` values.
    pub out: *mut f32,
    pub ld: usize,
}

/// The same for a codebook, a number of bits, and room for `M` rows; a function of its own.
struct Rows<'a, C, const BITS: usize, const M: usize>(Gemv<'a>, PhantomData<C>);

impl Gemv<'_> {
    /// Runs it for a codebook and a number of bits.
    ///
    /// # Safety
    /// The fields' promises, and the machine's implementation of lanes [is wide](lanes::Isa::is_wide).
    pub unsafe fn run(self, codebook: Codebook, bits: usize) {
        // SAFETY: the caller's promises.
        unsafe {
            match self.x.m {
                1 => dispatch!(codebook, bits, C, BITS, lanes::run_wide(Rows::<C, BITS, 1>(self, PhantomData))),
                2 => dispatch!(codebook, bits, C, BITS, lanes::run_wide(Rows::<C, BITS, 2>(self, PhantomData))),
                _ => dispatch!(codebook, bits, C, BITS, lanes::run_wide(Rows::<C, BITS, 4>(self, PhantomData))),
            }
        }
    }
}

/// The rows of activations that a kernel walks along.
#[derive(Clone, Copy)]
pub struct Walk<const M: usize> {
    values: [*const i16; M],
    scales: [*const f32; M],
    sums: [*const i32; M],
}

impl<const M: usize> Walk<M> {
    /// At rows `row..row + M`; the last one stands in for rows that are not there.
    pub fn new(x: &TrellisActs<'_>, row: usize) -> Walk<M> {
        let row = |r: usize| (row + r).min(x.m - 1);
        let tail: [_; M] = std::array::from_fn(|r| x.tail(row(r)));
        Walk {
            values: std::array::from_fn(|r| x.data.wrapping_add(row(r) * x.ld).cast()),
            scales: tail.map(|t| t.0),
            sums: tail.map(|t| t.1),
        }
    }

    /// Accumulators for block `s`, less the center of the weights.
    #[inline(always)]
    pub unsafe fn begin<L: Lanes>(&self, s: usize, steps: Steps) -> [[L::A; 2]; M] {
        // SAFETY: the block is one of the rows'.
        unsafe {
            let mut acc = [[L::splat(0); 2]; M];
            if steps.center != 0 {
                for r in 0..M {
                    acc[r] = [L::splat((*self.sums[r].add(s)).wrapping_mul(-steps.center)); 2];
                }
            }
            acc
        }
    }

    /// Adds the products of the weights of code `i` of tile of inputs `tile`.
    #[inline(always)]
    pub unsafe fn add<L: Lanes>(&self, acc: &mut [[L::A; 2]; M], w: L::V, i: usize, tile: usize) {
        let (input, output) = place(i);
        for r in 0..M {
            // SAFETY: the tile is one of the rows'.
            unsafe {
                let x = self.values[r].add(tile * 16 + 2 * pair(input));
                acc[r][output / 8] = L::dot(acc[r][output / 8], w, x);
            }
        }
    }

    /// Adds the accumulators of block `s` to sums `[2, 16]` for each row, `ld` apart.
    #[inline(always)]
    pub unsafe fn end<L: Lanes>(&self, acc: [[L::A; 2]; M], s: usize, sums: *mut f32, ld: usize) {
        for r in 0..M {
            // SAFETY: the caller gives room; the block is one of the rows'.
            unsafe {
                let (scale, to) = (*self.scales[r].add(s), sums.add(r * ld));
                L::flush(acc[r][0], scale, to);
                L::flush(acc[r][1], scale, to.add(16));
            }
        }
    }
}

/// Writes 32 outputs from sums in the order of the accumulators: (upper half of the tile, tile, output).
///
/// # Safety
/// 32 values on both sides.
#[inline(always)]
pub unsafe fn finish(sums: *const f32, steps: Steps, total: f32, out: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let sums = sums.cast::<[[[f32; 8]; 2]; 2]>().read_unaligned();
        let more = steps.rest * total;
        for tile in 0..2 {
            for upper in 0..2 {
                let y = sums[upper][tile].map(|v| steps.step * (v + more));
                out.add(16 * tile + 8 * upper).cast::<[f32; 8]>().write_unaligned(y);
            }
        }
    }
}

impl<C: Code, const BITS: usize, const M: usize> LanesKernel for Rows<'_, C, BITS, M> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Gemv { x, words, pairs, out, ld } = self.0;
        let walk = Walk::<M>::new(&x, 0);
        let tiles = x.k / 16;
        let mut p = words;
        // SAFETY: the fields' promises.
        unsafe {
            for n in 0..pairs {
                let mut sums = [[0.0f32; 32]; M];
                let mut tile = 0;
                while tile < tiles {
                    let mut acc = walk.begin::<L>(tile / TILES, C::STEPS);
                    let s = tile / TILES;
                    let last = tiles.min(tile + TILES);
                    while tile < last {
                        for i in 0..BITS {
                            L::prefetch(p.wrapping_add(AHEAD + 64 * i));
                        }
                        let w = Words::<L, BITS>::load(p);
                        macro_rules! code {
                            ($i:literal) => {
                                walk.add::<L>(&mut acc, C::weights::<L>(w.states($i)), $i, tile)
                            };
                        }
                        sixteen!(code);
                        p = p.add(64 * BITS);
                        tile += 1;
                    }
                    walk.end::<L>(acc, s, sums.as_mut_ptr().cast(), 32);
                }
                for (r, sums) in sums.iter().enumerate().take(x.m) {
                    finish(sums.as_ptr(), C::STEPS, *x.tail(r).2, out.add(r * ld + 32 * n));
                }
            }
        }
    }
}
