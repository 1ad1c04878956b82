//! Dense layers: `y[m, n] = sum_k x[m, k] * w[n, k]`, alone or several in one parallel region.

mod acts;
mod experts;
mod heads;
mod kernel;
#[cfg(test)]
pub(crate) mod tests;

pub use acts::{Acts, ActsBuf};
pub use experts::{Expert, ExpertsBuf, Route, experts};
pub use heads::{per_head, per_head_transposed};
pub(crate) use kernel::{Bf16, Elem, F16, F32, SwiGlu, load_tail};

use crate::buffer::{Shared, scratch};
use crate::mat::{at_least, same};
use crate::simd::{self, Level};
use crate::{Cpu, Mat, Result};
use kernel::{Block, scratch_bytes};
use std::marker::PhantomData;

/// Where a layer's outputs go: rows of at least `n` values, `stride` values from row to row.
pub struct Out<'a> {
    pub(crate) ptr: Shared<f32>,
    pub(crate) len: usize,
    pub(crate) stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> Out<'a> {
    /// Rows of `stride` values.
    pub fn new(data: &'a mut [f32], stride: usize) -> Out<'a> {
        Out { len: data.len(), ptr: Shared::of(data), stride, life: PhantomData }
    }

    /// The columns from `from` (at most `len`) on of the `len` values at `data`: views that layers of one region hold
    /// side by side, each writing columns of its own.
    fn columns_from(data: Shared<f32>, len: usize, from: usize, stride: usize) -> Out<'a> {
        Out { len: len - from, ptr: Shared(data.0.wrapping_add(from)), stride, life: PhantomData }
    }
}

/// One layer of a parallel region: `out (+)= f(x w^T + bias)`.
pub struct Job<'a> {
    x: Acts<'a>,
    w: Mat<'a>,
    up: Option<Mat<'a>>,
    bias: Option<&'a [f32]>,
    add: bool,
    out: Out<'a>,
}

impl<'a> Job<'a> {
    /// `out = x w^T`: x `[m, k]`, w `[n, k]`, out `[m, n]`.
    pub fn new(x: Acts<'a>, w: Mat<'a>, out: Out<'a>) -> Job<'a> {
        Job { x, w, up: None, bias: None, add: false, out }
    }

    /// `out = silu(x gate^T) * (x up^T)`; both weights `[n, k]`, out `[m, n]`.
    pub fn swiglu(x: Acts<'a>, gate: Mat<'a>, up: Mat<'a>, out: Out<'a>) -> Job<'a> {
        Job { x, w: gate, up: Some(up), bias: None, add: false, out }
    }

    /// Adds a bias `[n]` to each row.
    pub fn bias(mut self, bias: Option<&'a [f32]>) -> Job<'a> {
        self.bias = bias;
        self
    }

    /// Adds to what `out` holds, as a residual connection does, in place of overwriting it.
    #[allow(clippy::should_implement_trait)]
    pub fn add(mut self, add: bool) -> Job<'a> {
        self.add = add;
        self
    }

    fn check(&self) -> Result<()> {
        const OP: &str = "linear";
        same(OP, "columns of the weight", self.x.k, self.w.cols())?;
        if let Some(up) = &self.up {
            same(OP, "rows of the up weight", self.w.rows(), up.rows())?;
            same(OP, "columns of the up weight", self.w.cols(), up.cols())?;
            same(OP, "biases of a gated layer", 0, self.bias.map_or(0, <[f32]>::len))?;
        }
        if let Some(bias) = self.bias {
            same(OP, "values of the bias", self.w.rows(), bias.len())?;
        }
        at_least(OP, "values from row to row of the output", self.w.rows(), self.out.stride)?;
        let needed = self.x.m.saturating_sub(1) * self.out.stride + if self.x.m > 0 { self.w.rows() } else { 0 };
        at_least(OP, "values of the output", needed, self.out.len)
    }

    fn work(&self) -> usize {
        // Below this many rows the time goes into reading the weights.
        let rows = self.x.m.max(24);
        let weights = self.w.rows() * self.w.cols() * if self.up.is_some() { 2 } else { 1 };
        if self.x.m == 0 { 0 } else { weights * rows }
    }

    /// Rows and columns of the outputs that one task computes, given how many tasks are wanted.
    fn split(&self, wanted: usize) -> (usize, usize) {
        const STEP: usize = 12;
        let n = self.w.rows();
        let row = self.w.stride().max(1);
        if self.x.m <= 8 {
            let least = (16 << 10) / row;
            return (self.x.m, n.div_ceil(wanted).max(least).next_multiple_of(6));
        }
        let most = ((384 << 10) / row).clamp(STEP, 240) / STEP * STEP;
        let cols = n.div_ceil(wanted).next_multiple_of(STEP).clamp(2 * STEP, most.max(2 * STEP));
        let pieces = wanted / n.div_ceil(cols).max(1);
        let rows = if pieces > 1 { self.x.m.div_ceil(pieces).next_multiple_of(32).max(64) } else { self.x.m };
        (rows, cols)
    }

    /// Computes rows `m0..m0 + m`, columns `n0..n0 + n`.
    fn part(&self, level: Level, m0: usize, m: usize, n0: usize, n: usize) {
        let k = self.x.k;
        let direct = !self.add && self.bias.is_none() && self.up.is_none();
        let panel = scratch_bytes(k).next_multiple_of(64);
        let side = if direct { 0 } else { m * n * 4 };
        scratch(panel + 2 * side, |mem| {
            // SAFETY: `check` has compared the shapes; tasks have disjoint ranges of outputs; the scratch holds a
            // panel and two blocks; `Cpu` only holds levels that the machine has.
            unsafe {
                let out = self.out.ptr.0.add(m0 * self.out.stride + n0);
                let block = |w: &Mat<'_>, out: *mut f32, ld: usize| Block {
                    x: self.x.x.add(m0 * self.x.x_ld),
                    x_ld: self.x.x_ld,
                    x16: if self.x.x16.is_null() { self.x.x16 } else { self.x.x16.add(m0 * self.x.x16_ld) },
                    x16_ld: self.x.x16_ld,
                    w: w.data().as_ptr().add(n0 * w.stride()),
                    w_ld: w.stride(),
                    dtype: w.dtype(),
                    k,
                    m,
                    n,
                    out,
                    ld,
                    scratch: mem,
                };
                if direct {
                    simd::run(level, block(&self.w, out, self.out.stride));
                    return;
                }
                let y = mem.add(panel).cast::<f32>();
                simd::run(level, block(&self.w, y, n));
                let mut y = y;
                if let Some(up) = &self.up {
                    let u = mem.add(panel + side).cast::<f32>();
                    simd::run(level, block(up, u, n));
                    simd::run(level, SwiGlu { gate: y, up: u, n: m * n });
                    y = u;
                }
                for r in 0..m {
                    let y = std::slice::from_raw_parts_mut(y.add(r * n), n);
                    let out = std::slice::from_raw_parts_mut(out.add(r * self.out.stride), n);
                    if let Some(bias) = self.bias {
                        y.iter_mut().zip(&bias[n0..n0 + n]).for_each(|(y, b)| *y += b);
                    }
                    if self.add {
                        out.iter_mut().zip(y).for_each(|(o, y)| *o += *y);
                    } else {
                        out.copy_from_slice(y);
                    }
                }
            }
        });
    }
}

/// Runs layers in one parallel region: those that share an input, or experts.
pub fn linears(cpu: &Cpu, jobs: &[Job<'_>]) -> Result<()> {
    jobs.iter().try_for_each(Job::check)?;
    run(cpu, jobs);
    Ok(())
}

/// [`linears`] after the checks.
pub(crate) fn run(cpu: &Cpu, jobs: &[Job<'_>]) {
    let total = jobs.iter().map(Job::work).sum::<usize>().max(1);
    let target = if cpu.pool.threads() == 1 { 1 } else { cpu.pool.threads() * 16 };
    // For each job: its first task, rows and columns of a task, tasks along N.
    let mut plan = Vec::with_capacity(jobs.len());
    let mut tasks = 0;
    for job in jobs {
        let wanted = ((target as u128 * job.work() as u128).div_ceil(total as u128) as usize).max(1);
        let (rows, cols) = job.split(wanted);
        let along = job.w.rows().div_ceil(cols);
        plan.push((tasks, rows, cols, along));
        tasks += along * job.x.m.div_ceil(rows.max(1));
    }
    cpu.pool.run(tasks, &|t| {
        let j = plan.partition_point(|p| p.0 <= t) - 1;
        let (first, rows, cols, along) = plan[j];
        let job = &jobs[j];
        let (m0, n0) = ((t - first) / along * rows, (t - first) % along * cols);
        job.part(cpu.level, m0, rows.min(job.x.m - m0), n0, cols.min(job.w.rows() - n0));
    });
}
