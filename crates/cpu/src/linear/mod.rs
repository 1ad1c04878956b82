//! Linear layers: `y[m, n] = sum_k x[m, k] * w[n, k]`, alone or several in one parallel region.

mod acts;
mod experts;
#[cfg(target_arch = "x86_64")]
mod halves;
mod heads;
mod kernel;
mod product;
#[cfg(test)]
pub(crate) mod tests;
mod weight;

pub use acts::{Acts, ActsBuf};
pub use experts::{Expert, ExpertsBuf, Route, experts};
pub use heads::{per_head, per_head_tiles, per_head_transposed};
pub(crate) use kernel::{GEMV_ROWS, SwiGlu, load_tail};
pub use product::{Rows, add_products};
pub use weight::{Needs, Tiles, W};

use crate::buffer::{Shared, scratch};
use crate::mat::{at_least, same};
use crate::simd;
use crate::{Cpu, Result};
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
    w: W<'a>,
    up: Option<W<'a>>,
    bias: Option<&'a [f32]>,
    add: bool,
    out: Out<'a>,
}

impl<'a> Job<'a> {
    /// `out = x w^T`: x `[m, k]`, w `[n, k]`, out `[m, n]`.
    pub fn new(x: Acts<'a>, w: impl Into<W<'a>>, out: Out<'a>) -> Job<'a> {
        Job { x, w: w.into(), up: None, bias: None, add: false, out }
    }

    /// `out = silu(x gate^T) * (x up^T)`; both weights `[n, k]`, out `[m, n]`.
    pub fn swiglu(x: Acts<'a>, gate: impl Into<W<'a>>, up: impl Into<W<'a>>, out: Out<'a>) -> Job<'a> {
        Job { x, w: gate.into(), up: Some(up.into()), bias: None, add: false, out }
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

    /// Computes rows `m0..m0 + m`, columns `n0..n0 + n`.
    fn part(&self, cpu: &Cpu, m0: usize, m: usize, n0: usize, n: usize) {
        let direct = !self.add && self.bias.is_none() && self.up.is_none();
        let panel = self.w.scratch(cpu, &self.x, [m, n]).max(self.up.map_or(0, |up| up.scratch(cpu, &self.x, [m, n])));
        let side = if direct { 0 } else { m * n * 4 };
        scratch(panel + 2 * side, |mem| {
            // SAFETY: `check` has compared the shapes; tasks have disjoint ranges of outputs; the scratch holds what
            // the weights need and two blocks; `Cpu` only holds levels that the machine has.
            unsafe {
                let out = self.out.ptr.0.add(m0 * self.out.stride + n0);
                let product = |w: &W<'_>, out: *mut f32, ld: usize| {
                    w.product(cpu, &self.x, [m0, m], [n0, n], out, ld, mem);
                };
                if direct {
                    product(&self.w, out, self.out.stride);
                    return;
                }
                let y = mem.add(panel).cast::<f32>();
                product(&self.w, y, n);
                let mut y = y;
                if let Some(up) = &self.up {
                    let u = mem.add(panel + side).cast::<f32>();
                    product(up, u, n);
                    simd::run(cpu.level, SwiGlu { gate: y, up: u, n: m * n });
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
        let (mut rows, mut cols) = job.w.split(cpu, &job.x, wanted);
        if let Some(up) = &job.up {
            let other = up.split(cpu, &job.x, wanted);
            (rows, cols) =
                (rows.max(other.0), lcm(cols, if matches!(up, W::Grouped(_)) { 2 * crate::grouped::ROWS } else { 1 }));
        }
        let along = job.w.rows().div_ceil(cols);
        plan.push((tasks, rows, cols, along));
        tasks += along * job.x.m.div_ceil(rows.max(1));
    }
    cpu.pool.run(tasks, &|t| {
        let j = plan.partition_point(|p| p.0 <= t) - 1;
        let (first, rows, cols, along) = plan[j];
        let job = &jobs[j];
        let (m0, n0) = ((t - first) / along * rows, (t - first) % along * cols);
        job.part(cpu, m0, rows.min(job.x.m - m0), n0, cols.min(job.w.rows() - n0));
    });
}

fn lcm(a: usize, b: usize) -> usize {
    (a..).step_by(a.max(1)).find(|n| n.is_multiple_of(b)).unwrap_or(a)
}
