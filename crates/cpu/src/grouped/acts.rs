//! Activations rounded to signed bytes, once for all weights that share them.

use super::{ROWS, SPAN, STEP};
use crate::buffer::{Buffer, Shared};
use crate::mat::at_least;
use crate::simd::{self, Kernel, LANES, Simd};
use crate::{Cpu, Result};
use std::marker::PhantomData;

/// Steps of a record.
pub(super) const STEPS: usize = SPAN / STEP;
/// Halves of steps of a record.
pub(super) const HALVES: usize = SPAN / ROWS;

/// What the sums of some weights begin with: minus their zero point times the sums of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The code that stands for zero.
    pub zero: u8,
    /// Whether sums are of 16 columns, not of 32.
    pub half: bool,
}

/// Different starts that activations can be prepared for at once.
pub const STARTS: usize = 8;

/// Memory for rounded activations, reused from call to call.
pub struct Bytes8Buf {
    bytes: Buffer,
    scales: Buffer,
    starts: Buffer,
    products: Buffer,
}

impl Default for Bytes8Buf {
    fn default() -> Bytes8Buf {
        Bytes8Buf { bytes: Buffer::new(), scales: Buffer::new(), starts: Buffer::new(), products: Buffer::new() }
    }
}

/// Activations `[m, k]` as signed bytes with a factor for each 32: record after record of 256 columns, and within a
/// record row after row. A plain view, to be copied freely.
#[derive(Clone, Copy)]
pub struct Bytes8<'a> {
    /// `[records, all, 256]` signed bytes, zero beyond `k`.
    pub(super) bytes: *const u8,
    /// `[records, all, 8]` factors.
    pub(super) scales: *const f32,
    /// For each of `kinds`, `[records, all, 16]` (half) or `[records, all, 8]` starts in a place for 16.
    starts: *const i32,
    kinds: [Option<Start>; STARTS],
    /// Rows before this view's first.
    skipped: usize,
    /// Numbers of the starts of a kind.
    kind: usize,
    /// `[records, all, 16]` sums of 16 bytes times the factor.
    pub(super) products: *const f32,
    /// Rows of the whole.
    pub(super) all: usize,
    pub(super) m: usize,
    pub(super) k: usize,
    life: PhantomData<&'a [u8]>,
}

// SAFETY: a view of shared slices.
unsafe impl Send for Bytes8<'_> {}
// SAFETY: as above.
unsafe impl Sync for Bytes8<'_> {}

impl Bytes8Buf {
    /// Rounds `m` rows of `k` values, `stride` values from row to row, for weights with these starts.
    pub fn prepare<'a>(
        &'a mut self,
        cpu: &Cpu,
        kinds: [Option<Start>; STARTS],
        x: &[f32],
        m: usize,
        k: usize,
        stride: usize,
    ) -> Result<Bytes8<'a>> {
        at_least("activations", "values from row to row", k, stride)?;
        at_least("activations", "values", if m == 0 { 0 } else { (m - 1) * stride + k }, x.len())?;
        let records = k.div_ceil(SPAN);
        let cells = records * m;
        let bytes = Shared(self.bytes.reserve(cells * SPAN));
        let scales = Shared(self.scales.reserve(cells * STEPS * 4).cast::<f32>());
        let kind = cells * HALVES;
        let used = kinds.iter().flatten().count();
        let starts = Shared(self.starts.reserve(used * kind * 4).cast::<i32>());
        let products = Shared(self.products.reserve(cells * HALVES * 4).cast::<f32>());
        let least = (16usize << 10).div_ceil(k.max(1));
        cpu.pool().ranges(m, least, &|rows| {
            for row in rows {
                let x = &x[row * stride..row * stride + k];
                for (record, part) in x.chunks(SPAN).enumerate() {
                    let cell = record * m + row;
                    let mut sums = [0i32; HALVES];
                    // SAFETY: every cell belongs to one task and lies within the buffers.
                    unsafe {
                        let round = Round {
                            x: part,
                            bytes: { bytes }.part(cell * SPAN, SPAN),
                            scales: { scales }.part(cell * STEPS, STEPS),
                            sums: &mut sums,
                            products: { products }.part(cell * HALVES, HALVES),
                        };
                        simd::run(cpu.level(), round);
                        for (i, start) in kinds.iter().flatten().enumerate() {
                            let width = if start.half { HALVES } else { STEPS };
                            let to = { starts }.part(i * kind + cell * width, width);
                            let zero = -i32::from(start.zero);
                            match start.half {
                                true => to.iter_mut().zip(&sums).for_each(|(to, sum)| *to = zero * sum),
                                false => to
                                    .iter_mut()
                                    .zip(sums.as_chunks::<2>().0)
                                    .for_each(|(to, [a, b])| *to = zero * (a + b)),
                            }
                        }
                    }
                }
            }
        });
        Ok(Bytes8 {
            bytes: bytes.0,
            scales: scales.0,
            starts: starts.0,
            kinds,
            skipped: 0,
            kind,
            products: products.0,
            all: m,
            m,
            k,
            life: PhantomData,
        })
    }
}

impl Bytes8<'_> {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.m
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.k
    }

    /// What the sums of weights with this start begin with, from the view's first row on, if they were prepared.
    pub(crate) fn start(&self, start: Start) -> Option<*const i32> {
        let i = self.kinds.iter().flatten().position(|kind| *kind == start)?;
        let width = if start.half { HALVES } else { STEPS };
        Some(self.starts.wrapping_add(i * self.kind + self.skipped * width))
    }

    /// Rows `from..from + m`.
    pub fn slice(self, from: usize, m: usize) -> Result<Self> {
        at_least("activations", "rows", from.saturating_add(m), self.m)?;
        Ok(self.rows_from(from, m))
    }

    /// [`Bytes8::slice`] of rows known to be there.
    pub(crate) fn rows_from(self, from: usize, m: usize) -> Self {
        let mut part = self;
        part.m = m;
        part.skipped += from;
        // SAFETY: the range is inside the view.
        unsafe {
            part.bytes = part.bytes.add(from * SPAN);
            part.scales = part.scales.add(from * STEPS);
            part.products = part.products.add(from * HALVES);
        }
        part
    }
}

/// Rounds up to 256 values of a row.
struct Round<'a> {
    x: &'a [f32],
    bytes: &'a mut [u8],
    scales: &'a mut [f32],
    sums: &'a mut [i32; HALVES],
    products: &'a mut [f32],
}

impl Kernel for Round<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut padded = [0.0f32; SPAN];
        padded[..self.x.len()].copy_from_slice(self.x);
        // SAFETY: the level's features are enabled; the loads and stores are within the arrays, whose sizes are asserted.
        unsafe {
            assert!(self.bytes.len() == SPAN && self.scales.len() == STEPS && self.products.len() == HALVES);
            let bytes = self.bytes.as_mut_ptr();
            for step in 0..STEPS {
                let at = padded.as_ptr().add(step * STEP);
                let x = [S::load(at), S::load(at.add(LANES))];
                let size = |v: S::F| S::max(v, S::sub(S::zero(), v));
                // Zero, or not a number if a value is none or infinite: then neither is the factor.
                let none = S::sum(S::fma(x[0], S::zero(), S::mul(x[1], S::zero())));
                let scale = S::largest(S::max(size(x[0]), size(x[1]))) / 127.0 + none;
                // Below this the inverse would overflow; such values round to zero.
                let inverse = if scale > 1e-37 { 1.0 / scale } else { 0.0 };
                self.scales[step] = scale;
                for (half, x) in x.into_iter().enumerate() {
                    let whole = S::round(S::mul(x, S::splat(inverse)));
                    S::store_i8(bytes.add(step * STEP + half * LANES), whole);
                    // Exact: sixteen integers of a byte.
                    let sum = S::sum(whole);
                    self.sums[step * 2 + half] = sum as i32;
                    self.products[step * 2 + half] = sum * scale;
                }
            }
        }
    }
}
