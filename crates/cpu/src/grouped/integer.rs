//! Products in integers.

use super::acts::{Bytes8, HALVES, STEPS};
use super::layout::Mapping;
use super::relay::GroupedMat;
use super::scales::{Decode, Decoded, GROUPS};
use super::unpack::{codes, step_bytes};
use super::{ROWS, SPAN, STEP};
use crate::simd::{self, Kernel, LANES, Simd};
use std::ops::Range;

/// Rows of activations that pass over a pair of tiles before the next pair is unpacked.
const ROW_BLOCK: usize = 48;
/// Bytes of an unpacked step of a pair of tiles.
const PAIR_STEP: usize = 2 * 8 * 64;
/// Bytes ahead of use that are asked for where codes are unpacked.
const AHEAD: usize = 4096;
/// Tiles that a matrix-vector product reads side by side: memory answers several streams faster than one.
const STREAMS: usize = 4;

/// Bytes of the numbers of as many tiles.
const NUMBERS: usize = STREAMS * size_of::<Decoded>();
/// Scratch that [`Integer`] needs: numbers, unpacked codes and sums, in this order.
pub(crate) const SCRATCH: usize = NUMBERS + STEPS * PAIR_STEP + ROW_BLOCK * 2 * LANES * 4;

/// `out[m, n] = sum_k x[m, k] * w[n, k]` for `m` rows and `tiles` tiles from `first` on, padding not written.
pub(crate) struct Integer<'a> {
    pub w: &'a GroupedMat,
    pub first: usize,
    pub tiles: usize,
    pub x: Bytes8<'a>,
    /// What the sums begin with: [`Bytes8::start`] of the weight's own.
    pub starts: *const i32,
    pub out: *mut f32,
    /// Values from row to row of `out`.
    pub ld: usize,
    /// Room for [`SCRATCH`], aligned to 64.
    pub scratch: *mut u8,
}

/// `self.each(bits, table)` with a constant number of bits in each arm, so that each is code of its own.
macro_rules! each_width {
    ($kernel:ident, $simd:ident) => {
        match ($kernel.bits, $kernel.table) {
            (4, Some(table)) => $kernel.each::<$simd>(4, Some($simd::table(table.as_ptr()))),
            (2, _) => $kernel.each::<$simd>(2, None),
            (3, _) => $kernel.each::<$simd>(3, None),
            (4, _) => $kernel.each::<$simd>(4, None),
            (5, _) => $kernel.each::<$simd>(5, None),
            (6, _) => $kernel.each::<$simd>(6, None),
            (7, _) => $kernel.each::<$simd>(7, None),
            _ => $kernel.each::<$simd>(8, None),
        }
    };
}

/// What a block of rows, up to `MR`, needs of one record.
#[derive(Clone, Copy)]
struct Cell {
    panel: *const u8,
    steps: usize,
    /// Steps that share a factor, as a shift.
    shift: u32,
    x: *const u8,
    scales: *const f32,
    /// What each sum begins with: for each row, one for each step or half of one.
    starts: *const i32,
    products: *const f32,
    /// The tiles' numbers.
    numbers: *const Decoded,
    /// `[m, 2, LANES]` sums over the records so far.
    y: *mut f32,
}

impl Cell {
    /// What the sum of row `m`'s piece `i` begins with.
    #[inline(always)]
    unsafe fn start<S: Simd, const HALF: bool>(&self, m: usize, i: usize) -> S::I {
        // SAFETY: the fields' promises.
        unsafe { S::splat_i32(self.starts.add(m * if HALF { HALVES } else { STEPS } + i)) }
    }
}

/// `MR` rows of activations against one record of two tiles.
#[inline(always)]
unsafe fn cell<S: Simd, const MR: usize, const WIDE: bool, const HALF: bool, const AFFINE: bool>(c: Cell) {
    // SAFETY: the caller vouches for the pointers.
    unsafe {
        let mut y = [[S::zero(); 2]; MR];
        for m in 0..MR {
            for t in 0..2 {
                y[m][t] = S::load(c.y.add((m * 2 + t) * LANES));
            }
        }
        let pieces = if HALF { 2 } else { 1 };
        for piece in 0..c.steps * pieces {
            // A piece is half a step, or a whole one.
            let (step, first) = if HALF { (piece / 2, 4 * (piece % 2)) } else { (piece, 0) };
            let mut acc = [[c.start::<S, HALF>(0, piece); 2]; MR];
            for m in 1..MR {
                acc[m] = [c.start::<S, HALF>(m, piece); 2];
            }
            let (panel, x) = (c.panel.add(step * PAIR_STEP), c.x.add(step * STEP));
            for q in first..first + 8 / pieces {
                let (w0, w1) = (S::bytes(panel.add(64 * q)), S::bytes(panel.add(512 + 64 * q)));
                for m in 0..MR {
                    let x = x.add(m * SPAN + 4 * q);
                    acc[m][0] = S::dot_bytes::<WIDE>(acc[m][0], w0, x);
                    acc[m][1] = S::dot_bytes::<WIDE>(acc[m][1], w1, x);
                }
            }
            let g = if HALF { piece } else { piece >> c.shift };
            for t in 0..2 {
                let scale = S::load((*c.numbers.add(t)).scale.get_unchecked(g).as_ptr());
                for m in 0..MR {
                    let factor = S::mul(scale, S::splat(*c.scales.add(m * STEPS + step)));
                    y[m][t] = S::fma(S::to_f32(acc[m][t]), factor, y[m][t]);
                }
                if AFFINE {
                    let minimum = S::load((*c.numbers.add(t)).minimum.get_unchecked(g).as_ptr());
                    for m in 0..MR {
                        let at = c.products.add(m * HALVES + if HALF { piece } else { 2 * piece });
                        let sum = if HALF { *at } else { *at + *at.add(1) };
                        y[m][t] = S::fma(minimum, S::splat(sum), y[m][t]);
                    }
                }
            }
        }
        for m in 0..MR {
            for t in 0..2 {
                S::store(c.y.add((m * 2 + t) * LANES), y[m][t]);
            }
        }
    }
}

/// One row of activations against one record of `N` tiles, straight from the codes: for a matrix-vector product, where
/// unpacking into memory would be most of the work. A step of each tile follows one of the tile before, so that memory is
/// read in as many streams.
struct Single<'a, const N: usize, const HALF: bool, const AFFINE: bool> {
    bits: u32,
    table: Option<&'a [u8; 16]>,
    /// The codes of each tile.
    codes: [*const u8; N],
    /// Bytes of numbers before them.
    numbers: usize,
    /// With `N` tiles' numbers and `[N, LANES]` sums.
    cell: Cell,
}

impl<const N: usize, const HALF: bool, const AFFINE: bool> Single<'_, N, HALF, AFFINE> {
    #[inline(always)]
    unsafe fn each<S: Simd>(&self, bits: u32, table: Option<S::V>) {
        let c = &self.cell;
        let size = step_bytes(bits);
        // Half a record.
        let ahead = (self.numbers + SPAN / STEP * size) / 128 * 64;
        let pieces = if HALF { 2 } else { 1 };
        // SAFETY: the fields' promises.
        unsafe {
            let mut y = [S::zero(); N];
            for t in 0..N {
                y[t] = S::load(c.y.add(t * LANES));
                for line in (0..self.numbers).step_by(64) {
                    S::prefetch(self.codes[t].wrapping_add(ahead - self.numbers + line));
                }
            }
            for step in 0..c.steps {
                let scale_x = S::splat(*c.scales.add(step));
                for t in 0..N {
                    let from = self.codes[t].add(step * size);
                    for line in 0..bits as usize {
                        S::prefetch(from.wrapping_add(ahead + 64 * line));
                    }
                    let v = codes::<S>(bits, from);
                    for half in 0..pieces {
                        let piece = pieces * step + half;
                        // Two sums, so that products wait less for each other; integers add up in any order.
                        let mut acc = [c.start::<S, HALF>(0, piece), S::no_sums()];
                        for i in 0..8 / pieces {
                            let q = half * 4 + i;
                            let v = match table {
                                Some(table) => S::look_up(table, v[q]),
                                None => v[q],
                            };
                            acc[i % 2] = S::dot_bytes::<false>(acc[i % 2], v, c.x.add(step * STEP + 4 * q));
                        }
                        let g = if HALF { piece } else { step >> c.shift };
                        let numbers = &*c.numbers.add(t);
                        let factor = S::mul(S::load(numbers.scale.get_unchecked(g).as_ptr()), scale_x);
                        y[t] = S::fma(S::to_f32(S::add_sums(acc[0], acc[1])), factor, y[t]);
                        if AFFINE {
                            let minimum = S::load(numbers.minimum.get_unchecked(g).as_ptr());
                            let at = c.products.add(2 * step + half);
                            let sum = if HALF { *at } else { *at + *at.add(1) };
                            y[t] = S::fma(minimum, S::splat(sum), y[t]);
                        }
                    }
                }
            }
            for t in 0..N {
                S::store(c.y.add(t * LANES), y[t]);
            }
        }
    }
}

impl<const N: usize, const HALF: bool, const AFFINE: bool> Kernel for Single<'_, N, HALF, AFFINE> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields' promises.
        unsafe { each_width!(self, S) }
    }
}

/// A record against a block of rows, as a function of its own: one with all variants inlined takes minutes to compile.
struct Block<const WIDE: bool, const HALF: bool, const AFFINE: bool>(Cell, usize);

impl<const WIDE: bool, const HALF: bool, const AFFINE: bool> Kernel for Block<WIDE, HALF, AFFINE> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Block(mut c, mut rows) = self;
        // SAFETY: the fields' promises.
        unsafe {
            while rows > 0 {
                let m = match rows {
                    6.. if S::BYTE_ROWS == 6 => {
                        cell::<S, 6, WIDE, HALF, AFFINE>(c);
                        6
                    }
                    3.. if S::BYTE_ROWS == 6 => {
                        cell::<S, 3, WIDE, HALF, AFFINE>(c);
                        3
                    }
                    2.. if S::BYTE_ROWS >= 2 => {
                        cell::<S, 2, WIDE, HALF, AFFINE>(c);
                        2
                    }
                    _ => {
                        cell::<S, 1, WIDE, HALF, AFFINE>(c);
                        1
                    }
                };
                c.x = c.x.add(m * SPAN);
                c.scales = c.scales.add(m * STEPS);
                c.starts = c.starts.add(m * if HALF { HALVES } else { STEPS });
                c.products = c.products.add(m * HALVES);
                c.y = c.y.add(m * 2 * LANES);
                rows -= m;
            }
        }
    }
}

/// Unpacks a record of one tile into its half of the panel.
struct Unpack<'a> {
    bits: u32,
    table: Option<&'a [u8; 16]>,
    codes: *const u8,
    steps: usize,
    panel: *mut u8,
}

impl Kernel for Unpack<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields' promises.
        unsafe { each_width!(self, S) }
    }
}

impl Unpack<'_> {
    #[inline(always)]
    unsafe fn each<S: Simd>(&self, bits: u32, table: Option<S::V>) {
        let size = step_bytes(bits);
        // SAFETY: the fields' promises.
        unsafe {
            for step in 0..self.steps {
                let from = self.codes.add(step * size);
                for line in 0..bits as usize {
                    S::prefetch(from.wrapping_add(AHEAD + 64 * line));
                }
                let v = codes::<S>(bits, from);
                let to = self.panel.add(step * PAIR_STEP);
                for i in 0..8 {
                    let v = match table {
                        Some(table) => S::look_up(table, v[i]),
                        None => v[i],
                    };
                    S::store_bytes(to.add(64 * i), v);
                }
            }
        }
    }
}

impl Integer<'_> {
    /// Computes the outputs.
    ///
    /// # Safety
    /// The tiles lie within the matrix, the activations are as wide as it, `out` has room for `x.m` rows of the tiles'
    /// outputs, and the level of `S` is available.
    pub unsafe fn run(&self, level: simd::Level) {
        let layout = self.w.layout();
        let full = level.has_unsigned_bytes();
        let wide = layout.highest() > 127 && !full;
        let half = layout.group == 16;
        // SAFETY: this function's contract.
        unsafe {
            match (wide, half, layout.is_affine()) {
                (false, false, false) => self.all::<false, false, false>(level),
                (false, false, true) => self.all::<false, false, true>(level),
                (false, true, false) => self.all::<false, true, false>(level),
                (false, true, true) => self.all::<false, true, true>(level),
                (true, false, false) => self.all::<true, false, false>(level),
                (true, false, true) => self.all::<true, false, true>(level),
                (true, true, false) => self.all::<true, true, false>(level),
                (true, true, true) => self.all::<true, true, true>(level),
            }
        }
    }

    unsafe fn all<const WIDE: bool, const HALF: bool, const AFFINE: bool>(&self, level: simd::Level) {
        // SAFETY: the contract of `run`.
        unsafe {
            if self.x.m == 1 && !WIDE {
                // Each stream goes through consecutive tiles, so that what follows in memory is what it wants next.
                let each = self.tiles / STREAMS;
                for i in 0..each {
                    let tiles = std::array::from_fn(|s| s * each + i);
                    self.row::<STREAMS, HALF, AFFINE>(level, tiles);
                }
                for tile in STREAMS * each..self.tiles {
                    self.row::<1, HALF, AFFINE>(level, [tile]);
                }
                return;
            }
            for m0 in (0..self.x.m).step_by(ROW_BLOCK) {
                for first in (0..self.tiles).step_by(2) {
                    let tiles = &[first, first + 1][..(self.tiles - first).min(2)];
                    self.rows::<WIDE, HALF, AFFINE>(level, tiles, m0..self.x.m.min(m0 + ROW_BLOCK));
                }
            }
        }
    }

    /// The table of the codes, if they have one.
    fn table(&self) -> Option<&[u8; 16]> {
        match &self.w.layout().mapping {
            Mapping::Table { table, .. } => Some(table),
            _ => None,
        }
    }

    /// Decodes the numbers of a record of a tile, and says where its codes begin.
    unsafe fn decode(&self, level: simd::Level, tile: usize, record: usize, out: *mut Decoded) -> *const u8 {
        let layout = self.w.layout();
        debug_assert!(SPAN / layout.group <= GROUPS);
        let (head, record) = (self.w.head(self.first + tile), self.w.record(self.first + tile, record));
        // SAFETY: the contract of `run`.
        unsafe {
            // The scratch's bytes are floats of some value.
            simd::run(level, Decode { layout, head, record, folded: true, out: &mut *out });
            record.add(layout.numbers)
        }
    }

    /// What rows `m0..` need of a record.
    unsafe fn cell(&self, record: usize, m0: usize, y: *mut f32) -> Cell {
        let layout = self.w.layout();
        let row = record * self.x.all + m0;
        // SAFETY: the contract of `run`.
        unsafe {
            Cell {
                panel: self.scratch.add(NUMBERS),
                steps: layout.steps(record),
                shift: (layout.group / STEP).max(1).trailing_zeros(),
                x: self.x.bytes.add(row * SPAN),
                scales: self.x.scales.add(row * STEPS),
                starts: self.starts.add(row * if layout.group < STEP { HALVES } else { STEPS }),
                products: self.x.products.add(row * HALVES),
                numbers: self.scratch.cast(),
                y,
            }
        }
    }

    /// Writes a tile's outputs of row `m`.
    unsafe fn write(&self, m: usize, tile: usize, y: *const f32) {
        let n = (self.w.layout().rows() - (self.first + tile) * ROWS).min(ROWS);
        // SAFETY: the contract of `run`.
        unsafe { self.out.add(m * self.ld + tile * ROWS).copy_from_nonoverlapping(y, n) }
    }

    /// The only row of activations with these tiles.
    #[inline(always)]
    unsafe fn row<const N: usize, const HALF: bool, const AFFINE: bool>(&self, level: simd::Level, tiles: [usize; N]) {
        let layout = self.w.layout();
        let mut y = [[0.0f32; LANES]; N];
        // SAFETY: the contract of `run`.
        unsafe {
            for record in 0..layout.records() {
                let mut codes = [std::ptr::null(); N];
                for t in 0..N {
                    codes[t] = self.decode(level, tiles[t], record, self.scratch.cast::<Decoded>().add(t));
                }
                let single = Single::<N, HALF, AFFINE> {
                    bits: layout.bits,
                    table: self.table(),
                    codes,
                    numbers: layout.numbers,
                    cell: self.cell(record, 0, y.as_mut_ptr().cast()),
                };
                simd::run(level, single);
            }
            for (tile, y) in tiles.into_iter().zip(&y) {
                self.write(0, tile, y.as_ptr());
            }
        }
    }

    /// Some rows of activations, [`ROW_BLOCK`] at most, with a tile or two.
    #[inline(always)]
    unsafe fn rows<const WIDE: bool, const HALF: bool, const AFFINE: bool>(
        &self,
        level: simd::Level,
        tiles: &[usize],
        rows: Range<usize>,
    ) {
        let layout = self.w.layout();
        let (bits, table) = (layout.bits, self.table());
        // SAFETY: the contract of `run`.
        unsafe {
            let y = self.scratch.add(NUMBERS + STEPS * PAIR_STEP).cast::<f32>();
            y.write_bytes(0, rows.len() * 2 * LANES);
            for record in 0..layout.records() {
                let cell = self.cell(record, rows.start, y);
                for (t, tile) in tiles.iter().enumerate() {
                    let codes = self.decode(level, *tile, record, self.scratch.cast::<Decoded>().add(t));
                    let (steps, panel) = (cell.steps, cell.panel.cast_mut().add(512 * t));
                    simd::run(level, Unpack { bits, table, codes, steps, panel });
                }
                simd::run(level, Block::<WIDE, HALF, AFFINE>(cell, rows.len()));
            }
            for (m, row) in rows.enumerate() {
                for (t, tile) in tiles.iter().enumerate() {
                    self.write(row, *tile, y.add((2 * m + t) * LANES));
                }
            }
        }
    }
}
