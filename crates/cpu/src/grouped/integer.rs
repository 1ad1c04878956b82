//! Products in integers.

use super::acts::{Bytes8, HALVES, STEPS};
use super::layout::Mapping;
use super::relay::GroupedMat;
use super::scales::{Decode, Decoded, GROUPS};
use super::unpack::{codes, step_bytes};
use super::{ROWS, SPAN, STEP};
use crate::simd::{self, Kernel, LANES, Simd};

/// Rows of activations that pass over a pair of tiles before the next pair is unpacked.
const ROW_BLOCK: usize = 48;
/// Bytes of an unpacked step of a pair of tiles.
const PAIR_STEP: usize = 2 * 8 * 64;
/// Bytes ahead of use that are asked for.
const AHEAD: usize = 4096;
/// Pairs of tiles that a matrix-vector product reads side by side: memory answers several streams faster than one.
const STREAMS: usize = 2;

/// Scratch that [`Integer`] needs: unpacked codes and sums.
pub(crate) const SCRATCH: usize = STEPS * PAIR_STEP + ROW_BLOCK * 2 * LANES * 4;

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
    /// Both tiles' numbers.
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

/// One row of activations against one record of some tiles, straight from the codes: for a matrix-vector product, where
/// unpacking into memory would be most of the work. A step of each tile follows one of the tile before, so that memory is
/// read in as many streams.
struct Single<'a, const HALF: bool, const AFFINE: bool> {
    bits: u32,
    table: Option<&'a [u8; 16]>,
    /// The codes of each tile.
    codes: &'a [*const u8],
    /// Bytes of numbers before them.
    numbers: usize,
    /// From here to the same of the next record.
    ahead: usize,
    /// Of the first tiles; more follow.
    cell: Cell,
}

impl<const HALF: bool, const AFFINE: bool> Single<'_, HALF, AFFINE> {
    #[inline(always)]
    unsafe fn each<S: Simd>(&self, bits: u32, table: Option<S::V>) {
        let c = &self.cell;
        let size = step_bytes(bits);
        let pieces = if HALF { 2 } else { 1 };
        // SAFETY: the fields' promises.
        unsafe {
            for codes in self.codes {
                for line in (0..self.numbers).step_by(64) {
                    S::prefetch(codes.wrapping_sub(self.numbers).wrapping_add(self.ahead + line));
                }
            }
            for (half, step) in (0..2).flat_map(|half| (0..c.steps).map(move |step| (half, step))) {
                let scale_x = S::splat(*c.scales.add(step));
                for (t, codes_of) in self.codes.iter().enumerate().skip(half).step_by(2) {
                    let numbers = &*c.numbers.add(t);
                    let from = codes_of.add(step * size);
                    for line in 0..bits as usize {
                        S::prefetch(from.wrapping_add(self.ahead + 64 * line));
                    }
                    let v = codes::<S>(bits, from);
                    let mut y = S::load(c.y.add(t * LANES));
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
                        let factor = S::mul(S::load(numbers.scale.get_unchecked(g).as_ptr()), scale_x);
                        y = S::fma(S::to_f32(S::add_sums(acc[0], acc[1])), factor, y);
                        if AFFINE {
                            let minimum = S::load(numbers.minimum.get_unchecked(g).as_ptr());
                            let at = c.products.add(2 * step + half);
                            let sum = if HALF { *at } else { *at + *at.add(1) };
                            y = S::fma(minimum, S::splat(sum), y);
                        }
                    }
                    S::store(c.y.add(t * LANES), y);
                }
            }
        }
    }
}

impl<const HALF: bool, const AFFINE: bool> Kernel for Single<'_, HALF, AFFINE> {
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
        let single = self.x.m == 1 && !WIDE;
        let (streams, block) = if single { (STREAMS, 1) } else { (1, ROW_BLOCK) };
        let layout = self.w.layout();
        let mut numbers = [const { Decoded::new() }; 2 * STREAMS];
        // Each stream goes through consecutive pairs of tiles, so that what follows in memory is what it wants next.
        let pairs = self.tiles.div_ceil(2);
        let each = pairs.div_ceil(streams);
        // SAFETY: the contract of `run`; the scratch holds the panel and the sums, in this order.
        unsafe {
            let y = self.scratch.add(STEPS * PAIR_STEP).cast::<f32>();
            for m0 in (0..self.x.m).step_by(block) {
                let rows = block.min(self.x.m - m0);
                for first in 0..each {
                    let (mut tiles, mut n) = ([0; 2 * STREAMS], 0);
                    for pair in (first..pairs).step_by(each) {
                        for tile in [2 * pair, 2 * pair + 1].into_iter().filter(|tile| *tile < self.tiles) {
                            tiles[n] = tile;
                            n += 1;
                        }
                    }
                    let tiles = &tiles[..n];
                    y.write_bytes(0, rows * 2 * streams * LANES);
                    for record in 0..layout.records() {
                        self.record::<WIDE, HALF, AFFINE>(level, tiles, &mut numbers, record, [m0, rows], y);
                    }
                    for (t, tile) in tiles.iter().enumerate() {
                        let n = (layout.rows() - (self.first + tile) * ROWS).min(ROWS);
                        for m in 0..rows {
                            let out = self.out.add((m0 + m) * self.ld + tile * ROWS);
                            out.copy_from_nonoverlapping(y.add((2 * m + t) * LANES), n);
                        }
                    }
                }
            }
        }
    }

    /// Adds a record's products with these tiles to `y`: `[rows, 2, LANES]`, or for one row `[tiles, LANES]`.
    #[inline(always)]
    unsafe fn record<const WIDE: bool, const HALF: bool, const AFFINE: bool>(
        &self,
        level: simd::Level,
        tiles: &[usize],
        numbers: &mut [Decoded; 2 * STREAMS],
        record: usize,
        [m0, rows]: [usize; 2],
        y: *mut f32,
    ) {
        let layout = self.w.layout();
        let table = match &layout.mapping {
            Mapping::Table { table, .. } => Some(table),
            _ => None,
        };
        debug_assert!(SPAN / layout.group <= GROUPS);
        let (bits, steps) = (layout.bits, layout.steps(record));
        let row = record * self.x.all + m0;
        // SAFETY: the contract of `run`.
        unsafe {
            let mut codes = [std::ptr::null(); 2 * STREAMS];
            for (t, tile) in tiles.iter().enumerate() {
                let (head, at) = (self.w.head(self.first + tile), self.w.record(self.first + tile, record));
                simd::run(level, Decode { layout, head, record: at, folded: true, out: &mut numbers[t] });
                codes[t] = at.add(layout.numbers);
            }
            let codes = &codes[..tiles.len()];
            let cell = Cell {
                panel: self.scratch,
                steps,
                shift: (layout.group / STEP).max(1).trailing_zeros(),
                x: self.x.bytes.add(row * SPAN),
                scales: self.x.scales.add(row * STEPS),
                starts: self.starts.add(row * if HALF { HALVES } else { STEPS }),
                products: self.x.products.add(row * HALVES),
                numbers: numbers.as_ptr(),
                y,
            };
            if self.x.m == 1 && !WIDE {
                let (numbers, ahead) = (layout.numbers, 2 * layout.record());
                simd::run(level, Single::<HALF, AFFINE> { bits, table, codes, numbers, ahead, cell });
                return;
            }
            for (t, codes) in codes.iter().enumerate() {
                let panel = self.scratch.add(512 * t);
                simd::run(level, Unpack { bits, table, codes: *codes, steps, panel });
            }
            simd::run(level, Block::<WIDE, HALF, AFFINE>(cell, rows));
        }
    }
}
