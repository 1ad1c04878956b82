//! The activations of linear layers, rounded to `bf16` once for all layers that share them.

use super::weight::{Needs, rounds};
use crate::buffer::{Buffer, Shared};
use crate::grouped::{Bytes8, Bytes8Buf};
use crate::mat::at_least;
use crate::ops::convert::{ToBf16, row_bytes};
use crate::simd;
use crate::{Cpu, Mode, Result};
use std::marker::PhantomData;

/// Memory for rounded activations, reused from call to call.
pub struct ActsBuf {
    bf16: Buffer,
    bytes: Bytes8Buf,
}

impl Default for ActsBuf {
    fn default() -> ActsBuf {
        ActsBuf { bf16: Buffer::new(), bytes: Bytes8Buf::default() }
    }
}

/// Activations `[m, k]`: `f32`, and in fast mode `bf16` or bytes besides. A plain view, to be copied freely.
#[derive(Clone, Copy)]
pub struct Acts<'a> {
    pub(crate) x: *const f32,
    pub(crate) x_ld: usize,
    pub(crate) x16: *const u8,
    pub(crate) x16_ld: usize,
    pub(crate) bytes: Option<Bytes8<'a>>,
    pub(crate) m: usize,
    pub(crate) k: usize,
    life: PhantomData<&'a [f32]>,
}

// SAFETY: a view of shared slices.
unsafe impl Send for Acts<'_> {}
// SAFETY: as above.
unsafe impl Sync for Acts<'_> {}

impl ActsBuf {
    /// Prepares `m` rows of `k` values, `stride` values from row to row, for weights with these needs.
    #[allow(clippy::too_many_arguments)]
    pub fn prepare<'a>(
        &'a mut self,
        cpu: &Cpu,
        mode: Mode,
        needs: Needs,
        x: &'a [f32],
        m: usize,
        k: usize,
        stride: usize,
    ) -> Result<Acts<'a>> {
        self.prepare_slices(cpu, mode, needs.for_rows(cpu, m, m), x, m, k, stride)
    }

    /// [`ActsBuf::prepare`] for products with slices of the rows: the needs are those of [`Needs::for_rows`].
    #[allow(clippy::too_many_arguments)]
    pub(super) fn prepare_slices<'a>(
        &'a mut self,
        cpu: &Cpu,
        mode: Mode,
        needs: Needs,
        x: &'a [f32],
        m: usize,
        k: usize,
        stride: usize,
    ) -> Result<Acts<'a>> {
        at_least("activations", "values from row to row", k, stride)?;
        at_least("activations", "values", if m == 0 { 0 } else { (m - 1) * stride + k }, x.len())?;
        let mut acts = Acts {
            x: x.as_ptr(),
            x_ld: stride,
            x16: std::ptr::null(),
            x16_ld: row_bytes(k),
            bytes: None,
            m,
            k,
            life: PhantomData,
        };
        if rounds(mode) && needs.bytes[0].is_some() {
            acts.bytes = Some(self.bytes.prepare(cpu, needs.bytes, x, m, k, stride)?);
        }
        if rounds(mode) && needs.bf16 && cpu.level.has_bf16() {
            // Matrix tiles read whole ones, beyond the last row.
            let out = Shared(self.bf16.reserve((m + 16) * acts.x16_ld));
            let rows = 1.max((32 << 10) / k.max(1));
            cpu.pool.ranges(m, rows, &|r| {
                let acts = acts;
                // SAFETY: the rows are inside `x` and the buffer, and each belongs to one task.
                unsafe {
                    let kernel = ToBf16 {
                        x: acts.x.add(r.start * stride),
                        x_ld: stride,
                        out: { out }.0.add(r.start * acts.x16_ld),
                        out_ld: acts.x16_ld,
                        m: r.len(),
                        k,
                    };
                    simd::run(cpu.level, kernel);
                }
            });
            acts.x16 = self.bf16.ptr();
        }
        Ok(acts)
    }
}

impl Acts<'_> {
    /// Rows.
    pub fn rows(&self) -> usize {
        self.m
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.k
    }

    /// Rows `from..from + m`.
    pub fn slice(self, from: usize, m: usize) -> Result<Self> {
        at_least("activations", "rows", from.saturating_add(m), self.m)?;
        let mut part = self;
        part.m = m;
        part.bytes = part.bytes.map(|bytes| bytes.rows_from(from, m));
        // SAFETY: the range is inside the view.
        unsafe {
            part.x = part.x.add(from * part.x_ld);
            if !part.x16.is_null() {
                part.x16 = part.x16.add(from * part.x16_ld);
            }
        }
        Ok(part)
    }
}
