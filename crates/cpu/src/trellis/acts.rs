//! Activations of trellis layers: rotated, and rounded to what the products take.

use super::lanes::{Isa, Lanes, LanesKernel};
use super::{code, lanes};
use crate::buffer::{Buffer, Shared, scratch};
use crate::mat::at_least;
use crate::ops::convert::ToBf16;
use crate::ops::hadamard::{Rotation, rotate_row};
use crate::simd;
use crate::{Cpu, Level, Mode, Result};
use std::marker::PhantomData;

/// Inputs that share a scale in 16 bits: so few that 32-bit sums cannot overflow.
pub(super) const BLOCK16: usize = 64;
/// Inputs that share a scale in 8 bits, and a panel of the matrix product.
pub(super) const BLOCK8: usize = 512;
/// The largest sum of magnitudes in a block of 16-bit activations: times the largest weight (32752) below 2^31.
const MOST16: f32 = 65_500.0;
/// The most rows that decoding is fused with the product for.
pub const GEMV_ROWS: usize = 4;

/// How activations are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Not at all: products are sums of `f32` in the order of the inputs, the same bits on every level.
    Exact,
    /// To 16 bits, a scale for each 64: within 1e-3 of the exact product, and sums exact until a block ends.
    Int16,
    /// To 8 bits, a scale for each 512, and weights to 8 bits as well: about 1 % of noise, for many rows. Where the
    /// machine has no fast products of bytes this is [`Precision::Int16`].
    Int8,
    /// To `bf16`, and weights as well, for many rows. Where the machine has no matrix tiles this is
    /// [`Precision::Int8`].
    Bf16,
}

impl Precision {
    /// The fastest for so many rows in this mode.
    pub fn of(cpu: &Cpu, mode: Mode, rows: usize) -> Precision {
        match mode {
            Mode::Exact => Precision::Exact,
            Mode::Fast if rows <= cpu.thresholds.trellis_fine_rows => Precision::Int16,
            Mode::Fast if cpu.tiled(rows) => Precision::Bf16,
            Mode::Fast => Precision::Int8.on(cpu),
        }
    }

    fn on(self, cpu: &Cpu) -> Precision {
        match self {
            Precision::Bf16 if cpu.level != Level::Amx => Precision::Int8.on(cpu),
            Precision::Int8 if !Isa::of(cpu.level).has_bytes() => Precision::Int16,
            _ => self,
        }
    }

    /// Bytes of a value, and values that share a scale (none in `f32`).
    fn shape(self) -> (usize, Option<usize>) {
        match self {
            Precision::Exact => (4, None),
            Precision::Bf16 => (2, None),
            Precision::Int16 => (2, Some(BLOCK16)),
            Precision::Int8 => (1, Some(BLOCK8)),
        }
    }
}

/// Memory for prepared activations, reused from call to call.
pub struct TrellisActsBuf(Buffer);

impl Default for TrellisActsBuf {
    fn default() -> TrellisActsBuf {
        TrellisActsBuf(Buffer::new())
    }
}

/// Prepared activations `[m, k]`, for all weights behind the same rotation. A plain view, to be copied freely.
///
/// A row is its values (16-bit ones in the order of `pair`), then a scale for each block, the sum of each block's
/// integers, and the sum of all blocks' sums times their scales.
#[derive(Clone, Copy)]
pub struct TrellisActs<'a> {
    pub(super) data: *const u8,
    /// Bytes from row to row.
    pub(super) ld: usize,
    pub(super) precision: Precision,
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) life: PhantomData<&'a [u8]>,
}

// SAFETY: a view of memory that nobody writes while it is borrowed.
unsafe impl Send for TrellisActs<'_> {}
// SAFETY: as above.
unsafe impl Sync for TrellisActs<'_> {}

impl TrellisActsBuf {
    /// Prepares `m` rows of `width` values, `stride` values from row to row: extended with zeros to `k` (the columns of
    /// the weights, a multiple of 16), rotated, rounded.
    #[allow(clippy::too_many_arguments)]
    pub fn prepare<'a>(
        &'a mut self,
        cpu: &Cpu,
        precision: Precision,
        rotation: Option<Rotation<'_>>,
        x: &[f32],
        m: usize,
        width: usize,
        stride: usize,
        k: usize,
    ) -> Result<TrellisActs<'a>> {
        const OP: &str = "activations of a trellis";
        at_least(OP, "padded values of a row", width, k)?;
        at_least(OP, "values from row to row", width, stride)?;
        at_least(OP, "values", if m == 0 { 0 } else { (m - 1) * stride + width }, x.len())?;
        if let Some(rotation) = &rotation {
            rotation.check(k)?;
        }
        let isa = Isa::of(cpu.level);
        let precision = precision.on(cpu);
        let mut acts = TrellisActs { data: std::ptr::null(), ld: 0, precision, m, k, life: PhantomData };
        acts.ld = acts.row_bytes();
        // Matrix tiles read whole ones, beyond the last row.
        let to = Shared(self.0.reserve((m + 16) * acts.ld));
        acts.data = to.0;
        cpu.pool.ranges(m, (8 << 10) / k.max(1), &|range| {
            scratch(k * 4, |side| {
                for r in range {
                    // SAFETY: the shapes were compared; each row belongs to one task; the scratch holds a row.
                    unsafe {
                        let (from, to) = (x.as_ptr().add(r * stride), { to }.0.add(r * acts.ld));
                        let exact = precision == Precision::Exact;
                        let row: *mut f32 = if exact { to.cast() } else { side.cast() };
                        match rotation {
                            Some(rotation) => rotate_row(cpu, rotation, from, width, row, k),
                            None => {
                                row.copy_from_nonoverlapping(from, width);
                                row.add(width).write_bytes(0, k - width);
                            }
                        }
                        if precision == Precision::Bf16 {
                            let ld = acts.ld;
                            simd::run(cpu.level, ToBf16 { x: row, x_ld: k, out: to, out_ld: ld, m: 1, k });
                        } else if !exact {
                            lanes::run(isa, Round { row, to, acts });
                        }
                    }
                }
            });
        });
        Ok(acts)
    }
}

impl TrellisActs<'_> {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.m
    }

    /// Values of a row, padding included.
    pub fn cols(&self) -> usize {
        self.k
    }

    /// How they were rounded.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Rows `from..from + m`.
    pub fn slice(self, from: usize, m: usize) -> Result<Self> {
        at_least("activations of a trellis", "rows", from.saturating_add(m), self.m)?;
        Ok(TrellisActs { data: self.data.wrapping_add(from * self.ld), m, ..self })
    }

    /// Blocks that have a scale.
    fn blocks(&self) -> usize {
        self.precision.shape().1.map_or(0, |block| self.k.div_ceil(block))
    }

    /// Bytes of the values of a row, padded to whole blocks.
    fn value_bytes(&self) -> usize {
        let (size, block) = self.precision.shape();
        self.k.next_multiple_of(block.unwrap_or(1)) * size
    }

    fn row_bytes(&self) -> usize {
        let bytes = (self.value_bytes() + self.blocks() * 8 + 4).next_multiple_of(64);
        // Not a multiple of a page's part, so that rows do not compete for the same sets of the cache.
        if bytes.is_multiple_of(1024) { bytes + 64 } else { bytes }
    }

    /// The scales, sums and weighted sum of a row.
    pub(super) fn tail(&self, row: usize) -> (*const f32, *const i32, *const f32) {
        let scales = self.data.wrapping_add(row * self.ld + self.value_bytes());
        let sums = scales.wrapping_add(self.blocks() * 4);
        (scales.cast(), sums.cast(), sums.wrapping_add(self.blocks() * 4).cast())
    }
}

/// Where in a tile of sixteen 16-bit activations the pair of inputs (`input`, `input + 4`) stands, in pairs: those are
/// the inputs of neighbouring lanes (see [`code::place`]).
pub(super) const fn pair(input: usize) -> usize {
    (input & 3) | (input >> 3 << 2)
}

/// Rounds one row.
struct Round<'a> {
    row: *const f32,
    to: *mut u8,
    acts: TrellisActs<'a>,
}

/// To the nearest integer, ties to even, for magnitudes below 2^22.
#[inline(always)]
pub(super) fn nearest(v: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    ((v + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32)
}

/// The scale of a block and its inverse: zeros give zero, and what is not finite gives no number.
#[inline(always)]
unsafe fn scale_of<L: Lanes>(x: &[f32], most: f32, most_sum: f32) -> (f32, f32) {
    // SAFETY: the caller enabled the features.
    let (largest, sum) = unsafe { L::measure(x) };
    let scale = (largest / most).max(sum / most_sum);
    if !sum.is_finite() {
        (f32::NAN, 0.0)
    } else if scale < 1e-30 {
        (0.0, 0.0)
    } else {
        (scale, 1.0 / scale)
    }
}

impl LanesKernel for Round<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (_, Some(block)) = self.acts.precision.shape() else { return };
        let (scales, sums, total) = self.acts.tail(0);
        // SAFETY: the row holds k values and the output a prepared row; the tail's offsets are those of a row.
        unsafe {
            let to_row = |p: *const u8| self.to.offset(p.offset_from(self.acts.data));
            let (scales, sums) = (to_row(scales.cast()).cast::<f32>(), to_row(sums.cast()).cast::<i32>());
            let mut weighted = 0.0f32;
            for b in 0..self.acts.blocks() {
                let some = block.min(self.acts.k - b * block);
                let x = std::slice::from_raw_parts(self.row.add(b * block), some);
                let (scale, sum);
                if block == BLOCK16 {
                    let inverse;
                    (scale, inverse) = scale_of::<L>(x, 32_767.0, MOST16);
                    sum = L::round16(x, inverse, self.to.add(b * BLOCK16 * 2));
                } else {
                    let inverse;
                    (scale, inverse) = scale_of::<L>(x, 127.0, f32::INFINITY);
                    sum = L::round8(x, inverse, self.to.add(b * BLOCK8));
                }
                *scales.add(b) = scale;
                *sums.add(b) = sum;
                weighted += scale * sum as f32;
            }
            *to_row(total.cast()).cast::<f32>() = weighted;
        }
    }
}

const _: () = {
    // The pairs are those that the codes' places ask for, in order.
    let mut i = 0;
    while i < 16 {
        assert!(pair(code::place(i).0) < 8);
        i += 1;
    }
};
