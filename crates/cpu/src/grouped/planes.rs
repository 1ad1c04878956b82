//! Rows of codes, each a stream of bits, to the planes of a step.

use super::relay::Place;
use super::unpack::step_bytes;
use super::{ROWS, SPAN, STEP};
use crate::simd::{Kernel, Simd};

/// The codes of a tile, of which these are the rows.
pub(super) struct Planes<'a> {
    pub(super) place: &'a Place<'a>,
    pub(super) rows: &'a [&'a [u8]],
    pub(super) tile: &'a mut [u8],
}

impl Kernel for Planes<'_> {
    type Out = ();

    /// Nothing but integers, which the compiler puts into vectors of the level's size.
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        match self.place.layout.bits {
            2 => self.lay::<2>(),
            3 => self.lay::<3>(),
            4 => self.lay::<4>(),
            5 => self.lay::<5>(),
            6 => self.lay::<6>(),
            7 => self.lay::<7>(),
            _ => self.lay::<8>(),
        }
    }
}

impl Planes<'_> {
    /// Step after step, so that what is written stays in the first cache.
    #[inline(always)]
    fn lay<const BITS: usize>(self) {
        let layout = self.place.layout;
        // A record's steps are gathered before the first is laid: what has just been stored in small pieces is slow to load whole.
        let mut gathered = [[[0; ROWS]; 4]; SPAN / STEP];
        for record in 0..layout.records() {
            let (first, at) = (record * (SPAN / STEP), self.place.record(record) + layout.numbers);
            let gathered = &mut gathered[..layout.steps(record)];
            for (step, words) in gathered.iter_mut().enumerate().map(|(i, words)| (first + i, words)) {
                if (step + 1) * STEP > layout.cols {
                    last::<BITS>(self.rows, step, layout.cols, words);
                    continue;
                }
                for (r, row) in self.rows.iter().enumerate() {
                    let from = &row[step * 4 * BITS..][..4 * BITS];
                    for (i, words) in words.iter_mut().enumerate() {
                        words[r] = eight::<BITS>(from, i);
                    }
                }
            }
            let to = &mut self.tile[at..at + layout.steps(record) * step_bytes(layout.bits)];
            for (words, to) in gathered.iter().zip(to.chunks_exact_mut(step_bytes(layout.bits))) {
                planes::<BITS>(words, to);
            }
        }
    }
}

/// The step in which rows end: codes behind their ends are zero.
fn last<const BITS: usize>(rows: &[&[u8]], step: usize, cols: usize, words: &mut [[u64; ROWS]; 4]) {
    let left = cols - step * STEP;
    for (r, row) in rows.iter().enumerate() {
        let mut padded = [0; 32];
        let rest = &row[(step * 4 * BITS).min(row.len())..];
        let rest = &rest[..rest.len().min(32)];
        padded[..rest.len()].copy_from_slice(rest);
        for (i, words) in words.iter_mut().enumerate() {
            let bits = BITS * left.saturating_sub(8 * i).min(8);
            let kept = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
            words[r] = eight::<BITS>(&padded[..4 * BITS], i) & kept;
        }
    }
}

/// Codes 8 i to 8 i + 7 of a step in the lowest bits; what lies above is not theirs.
#[inline(always)]
fn eight<const BITS: usize>(from: &[u8], i: usize) -> u64 {
    let at = (i * BITS).min(4 * BITS - 8);
    from[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) >> (8 * (i * BITS - at))
}

/// The planes of a step from the codes of its rows, eight to a word.
#[inline(always)]
fn planes<const BITS: usize>(words: &[[u64; ROWS]; 4], step: &mut [u8]) {
    // Four codes of a row in the bytes of a number.
    let mut fours = [[0u32; ROWS]; 8];
    for (i, words) in words.iter().enumerate() {
        for (r, word) in words.iter().enumerate() {
            let bytes = bytes::<BITS>(*word);
            fours[2 * i][r] = bytes as u32;
            fours[2 * i + 1][r] = (bytes >> 32) as u32;
        }
    }
    let (mut plane, mut below) = (step.as_chunks_mut::<{ 4 * ROWS }>().0.iter_mut(), 0);
    if BITS == 8 {
        for (plane, v) in plane.zip(&fours) {
            write(plane, v);
        }
        return;
    }
    if BITS & 4 != 0 {
        for (v, plane) in fours.as_chunks::<2>().0.iter().zip(&mut plane) {
            let mut out = [0; ROWS];
            for r in 0..ROWS {
                out[r] = v[0][r] & 0x0f0f_0f0f | (v[1][r] & 0x0f0f_0f0f) << 4;
            }
            write(plane, &out);
        }
        below = 4;
    }
    if BITS & 2 != 0 {
        for (v, plane) in fours.as_chunks::<4>().0.iter().zip(&mut plane) {
            let mut out = [0; ROWS];
            for (i, v) in v.iter().enumerate() {
                for r in 0..ROWS {
                    out[r] |= (v[r] >> below & 0x0303_0303) << (2 * i);
                }
            }
            write(plane, &out);
        }
        below += 2;
    }
    if BITS & 1 != 0 {
        let mut out = [0; ROWS];
        for (q, v) in fours.iter().enumerate() {
            for r in 0..ROWS {
                out[r] |= (v[r] >> below & 0x0101_0101) << q;
            }
        }
        for plane in plane {
            write(plane, &out);
        }
    }
}

#[inline(always)]
fn write(plane: &mut [u8; 4 * ROWS], words: &[u32; ROWS]) {
    for (to, word) in plane.as_chunks_mut().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
}

/// Eight codes to a byte each.
#[inline(always)]
const fn bytes<const BITS: usize>(v: u64) -> u64 {
    let v = apart(v, 4 * BITS, 1, 32);
    let v = apart(v, 2 * BITS, 0x0000_0001_0000_0001, 16);
    apart(v, BITS, 0x0001_0001_0001_0001, 8)
}

/// Each field of two numbers becomes two of half its width, with one number each.
#[inline(always)]
const fn apart(v: u64, bits: usize, fields: u64, half: usize) -> u64 {
    let mask = fields * ((1 << bits) - 1);
    (v & mask) | (v >> bits & mask) << half
}
