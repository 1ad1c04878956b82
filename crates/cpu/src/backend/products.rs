//! Products with weights, in the combinations that blocks need.

use super::{CpuBackend, CpuExperts, CpuLinear, CpuRouting, Scratch, Tensor, expect, shape};
use crate::Mode;
use crate::buffer::Shared;
use crate::linear::{self, Acts, ActsBuf, Job, Needs, Out, Route};
use crate::ops;
use crate::trellis::{Precision, TrellisActs, TrellisActsBuf, TrellisJob, trellis_linears};
use marlin_backend::{Backend, Error, LinearHandle, Result};
use std::ops::Range;
use std::sync::{MutexGuard, PoisonError};

/// Some rows that pass through one layer.
type Part<'a> = (&'a CpuLinear, Range<usize>);

impl CpuBackend {
    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each linear of `x`; those of a kind share one parallel region.
    pub(super) fn apply(&self, mode: Mode, linears: &[&CpuLinear], x: &Tensor) -> Result<Vec<Tensor>> {
        for w in linears {
            expect("linear", "columns", w.cols(), x.cols)?;
        }
        let parts: Vec<Part<'_>> = linears.iter().map(|w| (*w, 0..x.rows)).collect();
        if linears.iter().all(|w| w.trellis().is_some()) {
            let mut out: Vec<Tensor> = linears.iter().map(|w| self.buffers.tensor(x.rows, w.rows())).collect();
            let to = out
                .iter_mut()
                .map(|y| {
                    let width = y.cols;
                    Out::new(y.values_mut(), width)
                })
                .collect();
            self.trellis(mode, &parts, x, to, false)?;
            return Ok(out);
        }
        let [mut jobs, mut acts]: [Vec<usize>; 2] = Default::default();
        let mut out = Vec::with_capacity(linears.len());
        for (i, part) in parts.iter().enumerate() {
            let w = part.0;
            out.push(match w.weight()? {
                Some(_) => {
                    jobs.push(i);
                    if !w.changes_input() {
                        acts.push(i);
                    }
                    self.buffers.tensor(x.rows, w.padded_rows())
                }
                None if w.trellis().is_some() => {
                    let mut y = self.buffers.tensor(x.rows, w.rows());
                    self.trellis(mode, &parts[i..=i], x, vec![Out::new(y.values_mut(), w.rows())], false)?;
                    y
                }
                None => {
                    let y = w.decoded(self, &self.input(&parts[i..=i], x))?;
                    self.output(&parts[i..=i], y)
                }
            });
        }
        self.products(mode, linears, x, &jobs, &acts, &mut out)?;
        for i in jobs.into_iter().filter(|i| linears[*i].changes_output()) {
            out[i] = self.output(&parts[i..=i], out[i].clone());
        }
        Ok(out)
    }

    /// The products of the linears `jobs`, of which `plain` take `x` as it is, in one region.
    fn products(
        &self,
        mode: Mode,
        linears: &[&CpuLinear],
        x: &Tensor,
        jobs: &[usize],
        plain: &[usize],
        out: &mut [Tensor],
    ) -> Result<()> {
        let needs = |i: usize| Ok::<_, Error>(linears[i].weight()?.map_or(Needs::default(), |w| w.needs()));
        let own: Vec<usize> = jobs.iter().copied().filter(|i| !plain.contains(i)).collect();
        let inputs: Vec<Tensor> = own.iter().map(|i| self.input(&[(linears[*i], 0..x.rows)], x)).collect();
        self.note_floats(linears, x.rows);
        let mut scratch = self.scratch();
        // Those whose input is changed have activations of their own.
        while scratch.acts.len() <= own.len() {
            scratch.acts.push(ActsBuf::default());
        }
        let mut bufs = scratch.acts.iter_mut();
        let shared = bufs.next().ok_or_else(|| Error::shape("linears", 1, 0))?;
        let mut acts: Vec<Option<Acts<'_>>> = vec![None; linears.len()];
        for ((i, x), buf) in own.iter().zip(&inputs).zip(bufs) {
            let all = buf.prepare(&self.cpu, mode, needs(*i)?, x.values(), x.rows, x.cols, x.cols);
            acts[*i] = Some(all.map_err(shape)?);
        }
        if !plain.is_empty() {
            let all = plain.iter().try_fold(Needs::default(), |all, i| Ok::<_, Error>(all.or(needs(*i)?)))?;
            let all = shared.prepare(&self.cpu, mode, all, x.values(), x.rows, x.cols, x.cols).map_err(shape)?;
            plain.iter().for_each(|i| acts[*i] = Some(all));
        }
        let mut all = Vec::with_capacity(jobs.len());
        for ((w, y), acts) in linears.iter().zip(out).zip(&acts) {
            if let (Some(mat), Some(acts)) = (w.weight()?, acts) {
                let bias = if w.changes_output() { None } else { w.bias() };
                all.push(Job::new(*acts, mat, Out::new(y.values_mut(), mat.rows())).bias(bias));
            }
        }
        linear::linears(&self.cpu, &all).map_err(shape)
    }

    /// Rows of `x` through trellis layers, each to its own output (or added to it), in one region. Layers behind the same
    /// rotation, on the same rows, share their activations.
    fn trellis(&self, mode: Mode, parts: &[Part<'_>], x: &Tensor, out: Vec<Out<'_>>, add: bool) -> Result<()> {
        let mut scratch = self.scratch();
        while scratch.trellis.len() < parts.len() {
            scratch.trellis.push(TrellisActsBuf::default());
        }
        let mut acts: Vec<TrellisActs<'_>> = Vec::with_capacity(parts.len());
        let mut bufs = scratch.trellis.iter_mut();
        for (i, (w, rows)) in parts.iter().enumerate() {
            let Some((mat, [before, _])) = w.trellis() else {
                return Err(Error::shape("trellis", "a trellis", w.name()));
            };
            let same = |(j, (other, some)): (usize, &Part<'_>)| {
                let alike = some == rows && other.padded_cols() == w.padded_cols() && other.same_input(w);
                alike.then_some(j)
            };
            if let Some(j) = parts[..i].iter().enumerate().find_map(same) {
                acts.push(acts[j]);
                continue;
            }
            let buf = bufs.next().ok_or_else(|| Error::shape("trellis", parts.len(), i))?;
            let precision = Precision::of(&self.cpu, mode, rows.len());
            let from = &x.values()[rows.start * x.cols..rows.end * x.cols];
            let prepared = buf.prepare(&self.cpu, precision, before, from, rows.len(), x.cols, x.cols, mat.cols());
            acts.push(prepared.map_err(shape)?);
        }
        let mut jobs = Vec::with_capacity(parts.len());
        for (((w, _), acts), out) in parts.iter().zip(&acts).zip(out) {
            if let Some((mat, [_, after])) = w.trellis() {
                let job = TrellisJob::new(*acts, mat, out).rotation(after).width(w.rows()).bias(w.bias()).add(add);
                jobs.push(job);
            }
        }
        trellis_linears(&self.cpu, &jobs).map_err(shape)
    }

    /// The rows padded and transformed for the layers they pass through, all of the same sizes; `x` itself if nothing
    /// changes.
    fn input(&self, parts: &[Part<'_>], x: &Tensor) -> Tensor {
        let Some((first, _)) = parts.iter().find(|(w, _)| w.changes_input()) else { return x.clone() };
        let (from_width, width) = (x.cols, first.padded_cols());
        let mut out = self.buffers.tensor(x.rows, width);
        let to = Shared::of(out.values_mut());
        for (w, rows) in parts {
            self.cpu.pool().ranges(rows.len(), (8 << 10) / width.max(1), &|some| {
                for row in some.map(|i| rows.start + i) {
                    // SAFETY: each row belongs to one task.
                    let to = unsafe { { to }.part(row * width, width) };
                    w.input_row(&x.values()[row * from_width..(row + 1) * from_width], to);
                }
            });
        }
        out
    }

    /// Outputs transformed, cut and with their biases.
    fn output(&self, parts: &[Part<'_>], mut y: Tensor) -> Tensor {
        let Some((first, _)) = parts.first() else { return y };
        let (from_width, width) = (y.cols, first.rows());
        let mut out = self.buffers.tensor(y.rows, width);
        let (from, to) = (Shared::of(y.values_mut()), Shared::of(out.values_mut()));
        for (w, rows) in parts {
            self.cpu.pool().ranges(rows.len(), (8 << 10) / width.max(1), &|some| {
                for row in some.map(|i| rows.start + i) {
                    // SAFETY: each row belongs to one task.
                    let (from, to) =
                        unsafe { ({ from }.part(row * from_width, from_width), { to }.part(row * width, width)) };
                    w.output_row(from, to);
                }
            });
        }
        out
    }

    pub(super) fn one(&self, w: &CpuLinear, x: &Tensor) -> Result<Tensor> {
        self.apply(self.mode, &[w], x)?.pop().ok_or_else(|| Error::shape("linear", 1, 0))
    }

    /// `h + linear(x)`.
    pub(super) fn residual(&self, w: &CpuLinear, x: &Tensor, mut h: Tensor) -> Result<Tensor> {
        expect("linear", "columns", w.cols(), x.cols)?;
        expect("linear", "rows", x.rows, h.rows)?;
        expect("linear", "outputs", w.rows(), h.cols)?;
        if w.trellis().is_some() {
            let out = Out::new(h.values_mut(), w.rows());
            self.trellis(self.mode, &[(w, 0..x.rows)], x, vec![out], true)?;
            return Ok(h);
        }
        let Some(mat) = w.plain()? else { return self.add(h, &self.one(w, x)?) };
        self.note_floats(&[w], x.rows);
        let mut scratch = self.scratch();
        let acts = scratch.first().prepare(&self.cpu, self.mode, mat.needs(), x.values(), x.rows, x.cols, x.cols);
        let out = Out::new(h.values_mut(), mat.rows());
        let job = Job::new(acts.map_err(shape)?, mat, out).bias(w.bias()).add(true);
        linear::linears(&self.cpu, &[job]).map_err(shape)?;
        Ok(h)
    }

    /// `silu(gate x) * up x`.
    pub(super) fn gate_up(&self, gate: &CpuLinear, up: &CpuLinear, x: &Tensor) -> Result<Tensor> {
        let (Some(g), Some(u), None, None) = (gate.plain()?, up.plain()?, gate.bias(), up.bias()) else {
            let mut both = self.apply(self.mode, &[gate, up], x)?;
            let (up, gate) = (both.pop(), both.pop());
            return match (gate, up) {
                (Some(gate), Some(up)) => self.swiglu(gate, &up),
                _ => Err(Error::shape("linears", 2, 0)),
            };
        };
        self.note_floats(&[gate, up], x.rows);
        let mut out = self.buffers.tensor(x.rows, g.rows());
        let mut scratch = self.scratch();
        let needs = g.needs().or(u.needs());
        let acts = scratch.first().prepare(&self.cpu, self.mode, needs, x.values(), x.rows, x.cols, x.cols);
        let job = Job::swiglu(acts.map_err(shape)?, g, u, Out::new(out.values_mut(), g.rows()));
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
        let mut plain = Vec::with_capacity(experts.0.len());
        for [gate, up, down] in &experts.0 {
            let (Some(gate), Some(up), Some(down)) = (gate.plain()?, up.plain()?, down.plain()?) else {
                return self.experts_apart(x, experts, routing, add, h);
            };
            plain.push(linear::Expert { gate, up, down });
        }
        self.note_float_experts(experts, routing, x.rows);
        let route = Route { experts: &routing.experts, weights: &routing.weights, slots: routing.slots };
        let mut scratch = self.scratch();
        let buf = &mut scratch.experts;
        linear::experts(&self.cpu, self.mode, x.values(), x.rows, &plain, route, buf, add, h.values_mut())
            .map_err(shape)?;
        Ok(h)
    }

    /// The same for experts with transforms around their matrices, or without kernels: rows are gathered by expert, and
    /// each of the three products is one region.
    fn experts_apart(
        &self,
        x: &Tensor,
        experts: &CpuExperts,
        routing: &CpuRouting,
        add: bool,
        mut h: Tensor,
    ) -> Result<Tensor> {
        self.note_apart(experts, routing, x.rows);
        let (width, slots) = (x.cols, routing.slots);
        let mut order: Vec<usize> = (0..routing.experts.len()).collect();
        order.sort_by_key(|i| routing.experts[*i]);
        let mut gathered = self.buffers.tensor(order.len(), width);
        for (to, i) in gathered.values_mut().chunks_exact_mut(width.max(1)).zip(&order) {
            to.copy_from_slice(&x.values()[i / slots * width..][..width]);
        }
        let mut used: Vec<(usize, Range<usize>)> = Vec::new();
        for (row, i) in order.iter().enumerate() {
            let e = routing.experts[*i] as usize;
            match used.last_mut() {
                Some((last, rows)) if *last == e => rows.end = row + 1,
                _ => used.push((e, row..row + 1)),
            }
        }
        let chosen = |which: usize| -> Vec<Part<'_>> {
            used.iter().map(|(e, rows)| (&experts.0[*e][which], rows.clone())).collect()
        };
        let gate = self.parts(&chosen(0), &gathered)?;
        let up = self.parts(&chosen(1), &gathered)?;
        let y = self.parts(&chosen(2), &self.swiglu(gate, &up)?)?;
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(row, i)| place[*i] = row);
        for (row, h) in h.values_mut().chunks_exact_mut(width.max(1)).enumerate() {
            if !add {
                h.fill(0.0);
            }
            for i in row * slots..(row + 1) * slots {
                let from = &y.values()[place[i] * width..][..width];
                h.iter_mut().zip(from).for_each(|(h, y)| *h += routing.weights[i] * y);
            }
        }
        Ok(h)
    }

    /// Rows of `x` through the layers they belong to, all of the same features.
    fn parts(&self, parts: &[Part<'_>], x: &Tensor) -> Result<Tensor> {
        let Some((first, _)) = parts.first() else { return Ok(self.buffers.tensor(0, 0)) };
        if parts.iter().all(|(w, _)| w.trellis().is_some()) {
            let width = first.rows();
            let mut out = self.buffers.tensor(x.rows, width);
            let mut rest = out.values_mut();
            let mut each = Vec::with_capacity(parts.len());
            for (_, rows) in parts {
                let (now, later) = rest.split_at_mut(rows.len() * width);
                rest = later;
                each.push(Out::new(now, width));
            }
            self.trellis(self.mode, parts, x, each, false)?;
            return Ok(out);
        }
        let sizes = |w: &CpuLinear| [w.padded_cols(), w.padded_rows()];
        let mut alike = true;
        let mut needs = Needs::default();
        for (w, _) in parts {
            alike &= sizes(w) == sizes(first) && w.weight()?.is_some();
            needs = needs.or(w.weight()?.map_or(needs, |w| w.needs()));
        }
        if !alike {
            let mut out = self.buffers.tensor(x.rows, first.rows());
            let width = first.rows();
            for (w, rows) in parts {
                let mut some = self.buffers.tensor(rows.len(), x.cols);
                some.values_mut().copy_from_slice(&x.values()[rows.start * x.cols..rows.end * x.cols]);
                out.values_mut()[rows.start * width..rows.end * width].copy_from_slice(self.one(w, &some)?.values());
            }
            return Ok(out);
        }
        let x = self.input(parts, x);
        let mut y = self.buffers.tensor(x.rows, first.padded_rows());
        {
            let mut scratch = self.scratch();
            let acts = scratch.first().prepare(&self.cpu, self.mode, needs, x.values(), x.rows, x.cols, x.cols);
            let acts = acts.map_err(shape)?;
            let width = y.cols;
            let mut rest = y.values_mut();
            let mut jobs = Vec::with_capacity(parts.len());
            for (w, rows) in parts {
                let (now, later) = rest.split_at_mut(rows.len() * width);
                rest = later;
                if let Some(mat) = w.weight()? {
                    let acts = acts.slice(rows.start, rows.len()).map_err(shape)?;
                    jobs.push(Job::new(acts, mat, Out::new(now, width)));
                }
            }
            linear::linears(&self.cpu, &jobs).map_err(shape)?;
        }
        Ok(self.output(parts, y))
    }

    /// `h + sigmoid(gate) * x`, row by row.
    pub(super) fn add_gated(&self, x: Tensor, gate: &Tensor, mut h: Tensor) -> Result<Tensor> {
        expect("gated", "columns", 1, gate.cols)?;
        ops::add_sigmoid_gated(&self.cpu, gate.values(), x.values(), x.cols, h.values_mut()).map_err(shape)?;
        Ok(h)
    }
}
