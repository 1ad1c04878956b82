//! Layers as jobs of a parallel region.

use super::acts::{GEMV_ROWS, Precision, TrellisActs};
use super::gemm::{BYTE_ROWS, Gemm, scratch_bytes};
use super::gemv::Gemv;
use super::lanes::Isa;
use super::layout::TrellisMat;
#[cfg(target_arch = "x86_64")]
use crate::amx::TileGemm;
use crate::buffer::scratch;
use crate::linear::Out;
use crate::mat::{at_least, same};
use crate::ops::hadamard::{Rotation, rotate};
use crate::{Cpu, Result};
use std::ops::Range;

/// Outputs that are computed and rotated together, where the rotation is no larger.
const SPAN: usize = 128;

/// One layer of a parallel region: `out (+)= rotation(x w^T) + bias`.
pub struct TrellisJob<'a> {
    x: TrellisActs<'a>,
    w: &'a TrellisMat,
    width: usize,
    rotation: Option<Rotation<'a>>,
    bias: Option<&'a [f32]>,
    add: bool,
    out: Out<'a>,
}

impl<'a> TrellisJob<'a> {
    /// `out = x w^T`: x `[m, cols]`, out `[m, rows]`.
    pub fn new(x: TrellisActs<'a>, w: &'a TrellisMat, out: Out<'a>) -> TrellisJob<'a> {
        TrellisJob { x, w, width: w.rows(), rotation: None, bias: None, add: false, out }
    }

    /// Rotates the outputs, then multiplies each with its scale.
    pub fn rotation(mut self, rotation: Option<Rotation<'a>>) -> TrellisJob<'a> {
        self.rotation = rotation;
        self
    }

    /// Writes the first `width` outputs of a row only; the rest is padding.
    pub fn width(mut self, width: usize) -> TrellisJob<'a> {
        self.width = width;
        self
    }

    /// Adds a bias `[width]` to each row.
    pub fn bias(mut self, bias: Option<&'a [f32]>) -> TrellisJob<'a> {
        self.bias = bias;
        self
    }

    /// Adds to what `out` holds, as a residual connection does, in place of overwriting it.
    #[allow(clippy::should_implement_trait)]
    pub fn add(mut self, add: bool) -> TrellisJob<'a> {
        self.add = add;
        self
    }

    /// Compares the shapes: what [`trellis_linears`] does first, for callers with a region of their own.
    pub fn check(&self) -> Result<()> {
        const OP: &str = "trellis";
        same(OP, "columns of the weight", self.x.k, self.w.cols())?;
        at_least(OP, "rows of the weight", self.width, self.w.rows())?;
        if let Some(rotation) = &self.rotation {
            rotation.check(self.w.rows())?;
        }
        if let Some(bias) = self.bias {
            same(OP, "values of the bias", self.width, bias.len())?;
        }
        at_least(OP, "values from row to row of the output", self.width, self.out.stride)?;
        let needed = self.x.m.saturating_sub(1) * self.out.stride + if self.x.m > 0 { self.width } else { 0 };
        at_least(OP, "values of the output", needed, self.out.len)
    }

    /// Outputs of a span.
    fn span(&self) -> usize {
        self.rotation.map_or(SPAN, |r| r.block.max(SPAN))
    }

    /// Spans of outputs: what a range given to [`TrellisJob::compute`] counts.
    pub fn spans(&self) -> usize {
        if self.x.m == 0 { 0 } else { self.width.div_ceil(self.span()) }
    }

    /// Computes spans `spans` (of 128 outputs, or of the rotation's block where that is larger) of rows `rows`: from
    /// inside a parallel region, in which no two calls may share a span and a row.
    ///
    /// # Safety
    /// [`TrellisJob::check`] has succeeded, and no other thread touches the same outputs.
    pub unsafe fn compute(&self, cpu: &Cpu, rows: Range<usize>, spans: Range<usize>) {
        let m = rows.end.min(self.x.m).saturating_sub(rows.start);
        let span = self.span();
        if m == 0 {
            return;
        }
        let x = TrellisActs { data: self.x.data.wrapping_add(rows.start * self.x.ld), m, ..self.x };
        let side = scratch_bytes(m).next_multiple_of(64);
        #[cfg(target_arch = "x86_64")]
        let side = side.max(crate::amx::scratch_bytes(m, span));
        scratch(side + m * span * 4, |mem| {
            for s in spans.start..spans.end.min(self.spans()) {
                // SAFETY: the scratch holds both parts; the span is inside the matrix; the caller's promises.
                unsafe {
                    let y = mem.add(side).cast::<f32>();
                    let first = s * span / 32;
                    let pairs = (span / 32).min(self.w.pairs() - first);
                    self.multiply(cpu, x, first, pairs, y, mem);
                    self.finish(cpu, y, rows.start, m, s * span);
                }
            }
        });
    }

    unsafe fn multiply(&self, cpu: &Cpu, x: TrellisActs<'_>, first: usize, pairs: usize, out: *mut f32, side: *mut u8) {
        let (isa, ld) = (Isa::of(cpu.level), self.span());
        let gemm = Gemm { x, mat: self.w, first, pairs, out, ld, side };
        // SAFETY: the caller's promises.
        unsafe {
            match x.precision {
                Precision::Exact => gemm.exact(cpu.level),
                Precision::Int16 if x.m <= GEMV_ROWS && isa.is_wide() => {
                    let gemv = Gemv { x, words: self.w.words(first, 0), pairs, out, ld };
                    gemv.run(self.w.codebook(), self.w.bits())
                }
                Precision::Int16 => gemm.words(isa),
                Precision::Int8 => gemm.bytes(isa),
                #[cfg(target_arch = "x86_64")]
                Precision::Bf16 => TileGemm {
                    x: x.data,
                    x_ld: x.ld,
                    m: x.m,
                    k: x.k,
                    w: self.w,
                    first: 2 * first,
                    outputs: 32 * pairs,
                    out,
                    ld,
                    scratch: side,
                }
                .run(),
                // Never prepared where there are no matrix tiles.
                #[cfg(not(target_arch = "x86_64"))]
                Precision::Bf16 => {}
            }
        }
    }

    /// Rotates the outputs from `n0` on of a span, and writes them where they belong.
    unsafe fn finish(&self, cpu: &Cpu, y: *mut f32, row: usize, m: usize, n0: usize) {
        let span = self.span();
        let whole = span.min(self.w.rows() - n0);
        let n = span.min(self.width - n0);
        // SAFETY: the caller's promises: `span` values in each of m rows, and outputs of our own.
        unsafe {
            for r in 0..m {
                let y = y.add(r * span);
                if let Some(rotation) = &self.rotation {
                    let after = rotation.scale.map_or(std::ptr::null(), |s| s.as_ptr().add(n0));
                    rotate(cpu, y, whole, rotation.block, std::ptr::null(), after);
                }
                let y = std::slice::from_raw_parts_mut(y, n);
                if let Some(bias) = self.bias {
                    y.iter_mut().zip(&bias[n0..n0 + n]).for_each(|(y, b)| *y += b);
                }
                let out = self.out.ptr.part((row + r) * self.out.stride + n0, n);
                if self.add {
                    out.iter_mut().zip(y).for_each(|(o, y)| *o += *y);
                } else {
                    out.copy_from_slice(y);
                }
            }
        }
    }
}

/// Runs layers in one parallel region: those that share an input, or experts.
pub fn trellis_linears(cpu: &Cpu, jobs: &[TrellisJob<'_>]) -> Result<()> {
    jobs.iter().try_for_each(TrellisJob::check)?;
    let wanted = if cpu.pool.threads() == 1 { 1 } else { cpu.pool.threads() * 8 };
    let spans = jobs.iter().map(TrellisJob::spans).sum::<usize>().max(1);
    // For each job: its first task and the rows of a task, fewer than all where there are not spans enough.
    let mut plan = Vec::with_capacity(jobs.len());
    let mut tasks = 0;
    for job in jobs {
        let pieces = (wanted / spans).clamp(1, job.x.m.div_ceil(8 * BYTE_ROWS).max(1));
        let rows = job.x.m.div_ceil(pieces).next_multiple_of(BYTE_ROWS);
        plan.push((tasks, rows));
        tasks += job.spans() * job.x.m.div_ceil(rows.max(1));
    }
    cpu.pool.run(tasks, &|t| {
        let j = plan.partition_point(|p| p.0 <= t) - 1;
        let (first, rows) = plan[j];
        let spans = jobs[j].spans();
        let (row, span) = ((t - first) / spans * rows, (t - first) % spans);
        // SAFETY: checked above; each task has rows and a span of its own.
        unsafe { jobs[j].compute(cpu, row..row + rows, span..span + 1) };
    });
    Ok(())
}
