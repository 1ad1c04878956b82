//! Products with many rows: a panel of two tiles of outputs is decoded once and multiplied with all of them.

use super::acts::{BLOCK8, BLOCK16, TrellisActs};
use super::code;
use super::decode::{Decode, Form};
use super::gemv::{Walk, finish};
use super::lanes::{self, Isa, Lanes, LanesKernel};
use super::layout::TrellisMat;
use crate::Level;
use crate::simd::{self, Kernel, Simd};

/// Inputs of a panel of 16-bit weights, and of exact ones.
const PANEL16: usize = 512;
const PANEL_EXACT: usize = 256;
/// Rows of activations that the product of bytes holds in registers, against 32 outputs.
pub const BYTE_ROWS: usize = 12;

/// `out[m, 32 pairs] = x w^T` for pairs `first..first + pairs` of tiles of outputs, before the output rotation.
pub struct Gemm<'a> {
    pub x: TrellisActs<'a>,
    pub mat: &'a TrellisMat,
    pub first: usize,
    pub pairs: usize,
    pub out: *mut f32,
    pub ld: usize,
    /// Room for [`scratch_bytes`].
    pub side: *mut u8,
}

/// Scratch of a [`Gemm`] with so many rows: a panel, and sums for each row.
pub fn scratch_bytes(m: usize) -> usize {
    PANEL16 * 64 + m * 128
}

impl Gemm<'_> {
    /// The sums, 32 for each row.
    fn sums(&self) -> *mut f32 {
        self.side.wrapping_add(PANEL16 * 64).cast()
    }

    /// 16-bit activations and weights; the same results as [`Gemv`](super::gemv::Gemv).
    ///
    /// # Safety
    /// The fields' promises, and the machine has the features of `isa`.
    pub unsafe fn words(&self, isa: Isa) {
        let (k, steps) = (self.x.k, code::steps(self.mat.codebook()));
        // SAFETY: the caller's promises.
        unsafe {
            for n in 0..self.pairs {
                self.sums().write_bytes(0, self.x.m * 32);
                for k0 in (0..k).step_by(PANEL16) {
                    let tiles = PANEL16.min(k - k0) / 16;
                    let words = self.mat.words(self.first + n, k0 / 16);
                    let to = [self.side, self.side];
                    Decode { form: Form::Words, words, tiles, to, ld: 0 }.run(isa, self.mat);
                    let part = Part { x: self.x, panel: self.side, k0, tiles, sums: self.sums(), steps };
                    lanes::run(isa, MultiplyWords(part));
                }
                for r in 0..self.x.m {
                    finish(self.sums().add(32 * r), steps, *self.x.tail(r).2, self.out.add(r * self.ld + 32 * n));
                }
            }
        }
    }

    /// 8-bit activations and weights.
    ///
    /// # Safety
    /// As above.
    pub unsafe fn bytes(&self, isa: Isa) {
        let (k, steps) = (self.x.k, code::byte_steps(self.mat.codebook()));
        // SAFETY: the caller's promises.
        unsafe {
            for n in 0..self.pairs {
                self.sums().write_bytes(0, self.x.m * 32);
                for k0 in (0..k).step_by(BLOCK8) {
                    let tiles = BLOCK8.min(k - k0) / 16;
                    let words = self.mat.words(self.first + n, k0 / 16);
                    let to = [self.side, self.side.add(64)];
                    Decode { form: Form::Bytes, words, tiles, to, ld: 128 }.run(isa, self.mat);
                    let part = Part { x: self.x, panel: self.side, k0, tiles, sums: self.sums(), steps };
                    lanes::run(isa, MultiplyBytes(part));
                }
                for r in 0..self.x.m {
                    let sums = self.sums().add(32 * r).cast::<[f32; 32]>().read_unaligned();
                    let more = steps.rest * *self.x.tail(r).2;
                    let out = self.out.add(r * self.ld + 32 * n).cast::<[f32; 32]>();
                    out.write_unaligned(sums.map(|v| steps.step * (v + more)));
                }
            }
        }
    }

    /// `f32` activations and exact weights, summed in the order of the inputs.
    ///
    /// # Safety
    /// As above, and the machine has `level`.
    pub unsafe fn exact(&self, level: Level) {
        let k = self.x.k;
        // SAFETY: the caller's promises.
        unsafe {
            for n in 0..self.pairs {
                for k0 in (0..k).step_by(PANEL_EXACT) {
                    let inputs = PANEL_EXACT.min(k - k0);
                    let words = self.mat.words(self.first + n, k0 / 16);
                    let to = [self.side, self.side.add(32)];
                    let decode = Decode { form: Form::Halves, words, tiles: inputs / 16, to, ld: 64 };
                    decode.run(Isa::of(level), self.mat);
                    let out = self.out.add(32 * n);
                    simd::run(level, MultiplyExact { x: self.x, panel: self.side, k0, inputs, out, ld: self.ld });
                }
            }
        }
    }
}

/// A panel against all rows.
#[derive(Clone, Copy)]
struct Part<'a> {
    x: TrellisActs<'a>,
    panel: *const u8,
    k0: usize,
    tiles: usize,
    sums: *mut f32,
    steps: code::Steps,
}

struct MultiplyWords<'a>(Part<'a>);

impl MultiplyWords<'_> {
    #[inline(always)]
    unsafe fn rows<L: Lanes, const M: usize>(&self, row: usize) {
        const TILES: usize = BLOCK16 / 16;
        let Part { x, panel, k0, tiles, sums, steps } = self.0;
        let walk = Walk::<M>::new(&x, row);
        // SAFETY: the fields' promises.
        unsafe {
            let mut t = 0;
            while t < tiles {
                let s = (k0 / 16 + t) / TILES;
                let mut acc = walk.begin::<L>(s, steps);
                let last = tiles.min(t + TILES);
                while t < last {
                    for i in 0..16 {
                        let w = L::load(panel.add(t * 1024 + 64 * i));
                        walk.add::<L>(&mut acc, w, i, k0 / 16 + t);
                    }
                    t += 1;
                }
                walk.end::<L>(acc, s, sums.add(32 * row), 32);
            }
        }
    }
}

impl LanesKernel for MultiplyWords<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut row = 0;
        // SAFETY: the fields' promises.
        unsafe {
            // As many as there are registers for.
            while L::ISA.is_wide() && row + 4 <= self.0.x.m {
                self.rows::<L, 4>(row);
                row += 4;
            }
            while row + 2 <= self.0.x.m {
                self.rows::<L, 2>(row);
                row += 2;
            }
            if row < self.0.x.m {
                self.rows::<L, 1>(row);
            }
        }
    }
}

struct MultiplyBytes<'a>(Part<'a>);

/// The same for some rows, a function of its own.
struct ByteRows<'a, const M: usize>(Part<'a>, usize);

impl<const M: usize> LanesKernel for ByteRows<'_, M> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let ByteRows(Part { x, panel, k0, tiles, sums, steps }, row) = self;
        // SAFETY: the fields' promises.
        unsafe {
            let base = x.data.add(row * x.ld + k0).cast::<i8>();
            let block = k0 / BLOCK8;
            let mut acc = [[L::splat(0); 2]; M];
            for r in 0..M {
                let sum = *x.tail(row + r).1.add(block);
                acc[r] = [L::splat(sum.wrapping_mul(-steps.center)); 2];
            }
            for g in 0..4 * tiles {
                let w = [L::load(panel.add(128 * g)), L::load(panel.add(128 * g + 64))];
                for r in 0..M {
                    let p = base.add(r * x.ld + 4 * g);
                    acc[r] = [L::dot_bytes(acc[r][0], w[0], p), L::dot_bytes(acc[r][1], w[1], p)];
                }
            }
            for r in 0..M {
                let scale = *x.tail(row + r).0.add(block);
                let to = sums.add(32 * (row + r));
                L::flush(acc[r][0], scale, to);
                L::flush(acc[r][1], scale, to.add(16));
            }
        }
    }
}

impl LanesKernel for MultiplyBytes<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (part, m) = (self.0, self.0.x.m);
        let mut row = 0;
        // SAFETY: the fields' promises.
        unsafe {
            while row + BYTE_ROWS <= m {
                lanes::run(L::ISA, ByteRows::<BYTE_ROWS>(part, row));
                row += BYTE_ROWS;
            }
            macro_rules! rest {
                ($($n:literal)+) => {$(
                    if m - row >= $n {
                        lanes::run(L::ISA, ByteRows::<$n>(part, row));
                        row += $n;
                    }
                )+};
            }
            rest!(8 4 2 1);
        }
    }
}

struct MultiplyExact<'a> {
    x: TrellisActs<'a>,
    panel: *const u8,
    k0: usize,
    inputs: usize,
    out: *mut f32,
    ld: usize,
}

impl MultiplyExact<'_> {
    #[inline(always)]
    unsafe fn rows<S: Simd, const M: usize>(&self, row: usize) {
        // SAFETY: the fields' promises.
        unsafe {
            let x: [*const f32; M] =
                std::array::from_fn(|r| self.x.data.add((row + r) * self.x.ld).cast::<f32>().add(self.k0));
            let out = |r: usize, half: usize| self.out.add((row + r) * self.ld + 16 * half);
            let mut acc = [[S::zero(); 2]; M];
            if self.k0 > 0 {
                for r in 0..M {
                    acc[r] = [S::load(out(r, 0)), S::load(out(r, 1))];
                }
            }
            for i in 0..self.inputs {
                let w = [S::load_f16(self.panel.add(64 * i)), S::load_f16(self.panel.add(64 * i + 32))];
                for r in 0..M {
                    let x = S::splat(*x[r].add(i));
                    acc[r] = [S::fma(x, w[0], acc[r][0]), S::fma(x, w[1], acc[r][1])];
                }
            }
            for r in 0..M {
                S::store(out(r, 0), acc[r][0]);
                S::store(out(r, 1), acc[r][1]);
            }
        }
    }
}

impl Kernel for MultiplyExact<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut row = 0;
        // SAFETY: the fields' promises.
        unsafe {
            while S::MR >= 4 && row + 4 <= self.x.m {
                self.rows::<S, 4>(row);
                row += 4;
            }
            while row + 2 <= self.x.m {
                self.rows::<S, 2>(row);
                row += 2;
            }
            while row < self.x.m {
                self.rows::<S, 1>(row);
                row += 1;
            }
        }
    }
}
