//! A mixture of experts: gate, up, SwiGLU and down over the rows routed to each expert.
//!
//! Rows are gathered by expert, every (expert, block of columns) is a task, and a token's result is the sum over its
//! slots in their order, so it does not depend on what else is in the batch.

use super::{ActsBuf, Job, Needs, Out, W, run};
use crate::buffer::{Buffer, Shared};
use crate::mat::{at_least, same};
use crate::{Cpu, Error, Mode, Result};

/// The weights of one expert: gate and up `[inner, hidden]`, down `[hidden, inner]`.
#[derive(Clone, Copy)]
pub struct Expert<'a> {
    /// `[inner, hidden]`.
    pub gate: W<'a>,
    /// `[inner, hidden]`.
    pub up: W<'a>,
    /// `[hidden, inner]`.
    pub down: W<'a>,
}

/// Which experts each of `m` tokens takes, and with what weight: both `[m, slots]`.
#[derive(Clone, Copy)]
pub struct Route<'a> {
    /// Numbers of experts `[m, slots]`.
    pub experts: &'a [u32],
    /// Their weights `[m, slots]`.
    pub weights: &'a [f32],
    /// Experts of a token.
    pub slots: usize,
}

/// Memory that a mixture needs between its stages, reused from call to call.
pub struct ExpertsBuf {
    x: Buffer,
    inner: Buffer,
    y: Buffer,
    acts: ActsBuf,
    acts_inner: ActsBuf,
}

impl Default for ExpertsBuf {
    fn default() -> ExpertsBuf {
        ExpertsBuf {
            x: Buffer::new(),
            inner: Buffer::new(),
            y: Buffer::new(),
            acts: ActsBuf::default(),
            acts_inner: ActsBuf::default(),
        }
    }
}

fn floats(buffer: &mut Buffer, n: usize) -> &mut [f32] {
    let p = buffer.reserve(n * 4).cast::<f32>();
    // SAFETY: the buffer holds `n` initialised values, aligned, and stays borrowed.
    unsafe { std::slice::from_raw_parts_mut(p, n) }
}

/// `out[t] (+)= sum over slots s, in order, of weight[t, s] * expert[t, s](x[t])`; x and out `[m, hidden]`.
#[allow(clippy::too_many_arguments)]
pub fn experts(
    cpu: &Cpu,
    mode: Mode,
    x: &[f32],
    m: usize,
    experts: &[Expert<'_>],
    route: Route<'_>,
    buf: &mut ExpertsBuf,
    add: bool,
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "experts";
    let Some(one) = experts.first() else { return same(OP, "tokens without experts", 0, m) };
    let (inner, hidden) = (one.gate.rows(), one.gate.cols());
    for e in experts {
        for w in [&e.gate, &e.up] {
            same(OP, "rows of gate and up", inner, w.rows())?;
            same(OP, "columns of gate and up", hidden, w.cols())?;
        }
        same(OP, "rows of down", hidden, e.down.rows())?;
        same(OP, "columns of down", inner, e.down.cols())?;
    }
    let total = m * route.slots;
    same(OP, "chosen experts", total, route.experts.len())?;
    same(OP, "weights of experts", total, route.weights.len())?;
    at_least(OP, "values of the input", m * hidden, x.len())?;
    at_least(OP, "values of the output", m * hidden, out.len())?;

    // A counting sort: the row of each (token, slot), experts one after another.
    let mut starts = vec![0usize; experts.len() + 1];
    for &e in route.experts {
        match starts.get_mut(e as usize + 1) {
            Some(count) => *count += 1,
            None => {
                return Err(Error { op: OP, what: "number of an expert", expected: experts.len(), found: e as usize });
            }
        }
    }
    for e in 0..experts.len() {
        starts[e + 1] += starts[e];
    }
    let mut next = starts.clone();
    let mut place = vec![0usize; total];
    for (i, &e) in route.experts.iter().enumerate() {
        place[i] = next[e as usize];
        next[e as usize] += 1;
    }

    let gathered = floats(&mut buf.x, total * hidden);
    let to = Shared::of(gathered);
    cpu.pool.ranges(total, 8, &|r| {
        for i in r {
            let t = i / route.slots;
            // SAFETY: every (token, slot) has a row of its own.
            let row = unsafe { { to }.part(place[i] * hidden, hidden) };
            row.copy_from_slice(&x[t * hidden..(t + 1) * hidden]);
        }
    });
    let used = || (0..experts.len()).filter(|&e| starts[e + 1] > starts[e]);
    let both = |e: usize| experts[e].gate.needs().or(experts[e].up.needs());
    let rows = |e: usize| starts[e + 1] - starts[e];
    let (fewest, most) = (used().map(rows).min().unwrap_or(0), used().map(rows).max().unwrap_or(0));
    let needs = used().fold(Needs::default(), |all, e| all.or(both(e))).for_rows(cpu, fewest, most);
    let acts = buf.acts.prepare_slices(cpu, mode, needs, gathered, total, hidden, hidden)?;
    let mid = floats(&mut buf.inner, total * inner);
    let mut jobs = Vec::new();
    let mut rest = &mut *mid;
    for e in used() {
        let rows = rows(e);
        let (now, later) = rest.split_at_mut(rows * inner);
        rest = later;
        jobs.push(Job::swiglu(acts.slice(starts[e], rows)?, experts[e].gate, experts[e].up, Out::new(now, inner)));
    }
    run(cpu, &jobs);
    drop(jobs);
    let needs = used().fold(Needs::default(), |all, e| all.or(experts[e].down.needs())).for_rows(cpu, fewest, most);
    let acts = buf.acts_inner.prepare_slices(cpu, mode, needs, mid, total, inner, inner)?;
    let y = floats(&mut buf.y, total * hidden);
    let mut jobs = Vec::new();
    let mut rest = &mut *y;
    for e in used() {
        let rows = rows(e);
        let (now, later) = rest.split_at_mut(rows * hidden);
        rest = later;
        jobs.push(Job::new(acts.slice(starts[e], rows)?, experts[e].down, Out::new(now, hidden)));
    }
    run(cpu, &jobs);
    drop(jobs);
    let y = &*y;
    let to = Shared::of(out);
    cpu.pool.ranges(m, (16 << 10) / (hidden * route.slots).max(1), &|r| {
        for t in r {
            // SAFETY: every token has a row of its own.
            let row = unsafe { { to }.part(t * hidden, hidden) };
            const STEP: usize = 64;
            for c in (0..hidden).step_by(STEP) {
                let n = STEP.min(hidden - c);
                let mut sum = [0.0f32; STEP];
                for s in 0..route.slots {
                    let i = t * route.slots + s;
                    let w = route.weights[i];
                    let from = &y[place[i] * hidden + c..place[i] * hidden + c + n];
                    sum.iter_mut().zip(from).for_each(|(a, v)| *a += w * v);
                }
                let row = &mut row[c..c + n];
                if add {
                    row.iter_mut().zip(&sum).for_each(|(o, s)| *o += s);
                } else {
                    row.copy_from_slice(&sum[..n]);
                }
            }
        }
    });
    Ok(())
}
