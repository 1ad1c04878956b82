//! Products with weights, in the combinations that blocks need.

use super::{CpuBackend, CpuExperts, CpuLinear, CpuRouting, Scratch, Tensor, expect, shape};
use crate::Mode;
use crate::linear::{self, Job, Out, Route};
use crate::ops;
use marlin_backend::{Backend, Error, LinearHandle, Result};
use std::sync::{MutexGuard, PoisonError};

impl CpuBackend {
    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each linear of `x`; dense ones share one parallel region.
    pub(super) fn apply(&self, mode: Mode, linears: &[&CpuLinear], x: &Tensor) -> Result<Vec<Tensor>> {
        let mut out = Vec::with_capacity(linears.len());
        for w in linears {
            expect("linear", "columns", w.cols(), x.cols)?;
            out.push(match w.dense()? {
                Some(mat) => self.buffers.tensor(x.rows, mat.rows()),
                None => w.decoded(self, x)?,
            });
        }
        let mut scratch = self.scratch();
        let acts = scratch.acts.prepare(&self.cpu, mode, x.values(), x.rows, x.cols, x.cols).map_err(shape)?;
        let mut jobs = Vec::with_capacity(linears.len());
        for (w, y) in linears.iter().zip(&mut out) {
            if let Some(mat) = w.dense()? {
                jobs.push(Job::new(acts, mat, Out::new(y.values_mut(), mat.rows())).bias(w.bias()));
            }
        }
        linear::linears(&self.cpu, &jobs).map_err(shape)?;
        drop(jobs);
        Ok(out)
    }

    pub(super) fn one(&self, w: &CpuLinear, x: &Tensor) -> Result<Tensor> {
        self.apply(self.mode, &[w], x)?.pop().ok_or_else(|| Error::shape("linear", 1, 0))
    }

    /// `h + linear(x)`.
    pub(super) fn residual(&self, w: &CpuLinear, x: &Tensor, mut h: Tensor) -> Result<Tensor> {
        let Some(mat) = w.dense()? else { return self.add(h, &self.one(w, x)?) };
        expect("linear", "columns", mat.cols(), x.cols)?;
        expect("linear", "rows", x.rows, h.rows)?;
        expect("linear", "outputs", mat.rows(), h.cols)?;
        let mut scratch = self.scratch();
        let acts = scratch.acts.prepare(&self.cpu, self.mode, x.values(), x.rows, x.cols, x.cols).map_err(shape)?;
        let out = Out::new(h.values_mut(), mat.rows());
        linear::linears(&self.cpu, &[Job::new(acts, mat, out).bias(w.bias()).add(true)]).map_err(shape)?;
        Ok(h)
    }

    /// `silu(gate x) * up x`.
    pub(super) fn gate_up(&self, gate: &CpuLinear, up: &CpuLinear, x: &Tensor) -> Result<Tensor> {
        let (Some(g), Some(u), None, None) = (gate.dense()?, up.dense()?, gate.bias(), up.bias()) else {
            let mut both = self.apply(self.mode, &[gate, up], x)?;
            let (up, gate) = (both.pop(), both.pop());
            return match (gate, up) {
                (Some(gate), Some(up)) => self.swiglu(gate, &up),
                _ => Err(Error::shape("linears", 2, 0)),
            };
        };
        let mut out = self.buffers.tensor(x.rows, g.rows());
        let mut scratch = self.scratch();
        let acts = scratch.acts.prepare(&self.cpu, self.mode, x.values(), x.rows, x.cols, x.cols).map_err(shape)?;
        let job = Job::swiglu(acts, g, u, Out::new(out.values_mut(), g.rows()));
        linear::linears(&self.cpu, &[job]).map_err(shape)?;
        Ok(out)
    }

    /// `h + experts(x)`, or `experts(x)` into `h` if not `add`.
    pub(super) fn experts_into(
        &self,
        x: &Tensor,
        experts: &CpuExperts,
        routing: &CpuRouting,
        add: bool,
        mut h: Tensor,
    ) -> Result<Tensor> {
        let mut dense = Vec::with_capacity(experts.0.len());
        for [gate, up, down] in &experts.0 {
            let (Some(gate), Some(up), Some(down)) = (gate.dense()?, up.dense()?, down.dense()?) else {
                return self.decoded_experts(x, experts, routing, add, h);
            };
            dense.push(linear::Expert { gate, up, down });
        }
        let route = Route { experts: &routing.experts, weights: &routing.weights, slots: routing.slots };
        let mut scratch = self.scratch();
        let buf = &mut scratch.experts;
        linear::experts(&self.cpu, self.mode, x.values(), x.rows, &dense, route, buf, add, h.values_mut())
            .map_err(shape)?;
        Ok(h)
    }

    /// The same for experts that are not all dense: one after another, each on the rows routed to it.
    fn decoded_experts(
        &self,
        x: &Tensor,
        experts: &CpuExperts,
        routing: &CpuRouting,
        add: bool,
        mut h: Tensor,
    ) -> Result<Tensor> {
        let (width, slots) = (x.cols, routing.slots);
        let mut all = self.buffers.tensor(x.rows * slots, width);
        for (e, [gate, up, down]) in experts.0.iter().enumerate() {
            let chosen: Vec<usize> = (0..routing.experts.len()).filter(|i| routing.experts[*i] as usize == e).collect();
            if chosen.is_empty() {
                continue;
            }
            let mut input = self.buffers.tensor(chosen.len(), width);
            for (to, i) in input.values_mut().chunks_exact_mut(width).zip(&chosen) {
                to.copy_from_slice(&x.values()[i / slots * width..][..width]);
            }
            let y = self.one(down, &self.gate_up(gate, up, &input)?)?;
            for (from, i) in y.values().chunks_exact(width).zip(&chosen) {
                all.values_mut()[i * width..][..width].copy_from_slice(from);
            }
        }
        for (row, h) in h.values_mut().chunks_exact_mut(width).enumerate() {
            if !add {
                h.fill(0.0);
            }
            for i in row * slots..(row + 1) * slots {
                let from = &all.values()[i * width..][..width];
                h.iter_mut().zip(from).for_each(|(h, y)| *h += routing.weights[i] * y);
            }
        }
        Ok(h)
    }

    /// `h + sigmoid(gate) * x`, row by row.
    pub(super) fn add_gated(&self, x: Tensor, gate: &Tensor, mut h: Tensor) -> Result<Tensor> {
        expect("gated", "columns", 1, gate.cols)?;
        ops::add_sigmoid_gated(&self.cpu, gate.values(), x.values(), x.cols, h.values_mut()).map_err(shape)?;
        Ok(h)
    }
}
