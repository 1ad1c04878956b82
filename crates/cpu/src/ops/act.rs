//! Element by element: SwiGLU, sums, gates.

use super::{GRAIN, rows_of};
use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, Simd, load_some, sigmoid, store_some};
use crate::{Cpu, Result};

#[derive(Clone, Copy)]
enum Op {
    /// `out = silu(a) * b`
    SwiGlu,
    /// `out = out + s * a`
    AddScaled(f32),
    /// `out = out + a`
    Add,
}

struct Map {
    op: Op,
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    n: usize,
}

#[inline(always)]
unsafe fn get<S: Simd>(p: *const f32, n: usize) -> S::F {
    // SAFETY: the caller vouches for n values.
    unsafe { if n == LANES { S::load(p) } else { load_some::<S>(p, n) } }
}

impl Kernel for Map {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: n values behind every pointer that the operation reads or writes.
        unsafe {
            let mut i = 0;
            while i < self.n {
                let some = LANES.min(self.n - i);
                let a = get::<S>(self.a.add(i), some);
                let out = self.out.add(i);
                let y = match self.op {
                    Op::SwiGlu => S::mul(S::mul(a, sigmoid::<S>(a)), get::<S>(self.b.add(i), some)),
                    Op::AddScaled(s) => S::add(get::<S>(out, some), S::mul(S::splat(s), a)),
                    Op::Add => S::add(get::<S>(out, some), a),
                };
                if some == LANES {
                    S::store(out, y)
                } else {
                    store_some::<S>(out, some, y)
                }
                i += some;
            }
        }
    }
}

fn map(cpu: &Cpu, op: Op, a: &[f32], b: &[f32], out: &mut [f32]) {
    let n = out.len();
    let out = Shared::of(out);
    cpu.pool().ranges(n, GRAIN, &|r| {
        // SAFETY: the callers compared the lengths; tasks have disjoint ranges.
        unsafe {
            let b = b.as_ptr().wrapping_add(r.start);
            let kernel = Map { op, a: a.as_ptr().add(r.start), b, out: { out }.0.add(r.start), n: r.len() };
            simd::run(cpu.level(), kernel);
        }
    });
}

/// `out = silu(gate) * up`.
pub fn swiglu(cpu: &Cpu, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<()> {
    same("swiglu", "values of the gate", out.len(), gate.len())?;
    same("swiglu", "values of up", out.len(), up.len())?;
    map(cpu, Op::SwiGlu, gate, up, out);
    Ok(())
}

/// `out += x`.
pub fn add(cpu: &Cpu, x: &[f32], out: &mut [f32]) -> Result<()> {
    same("add", "values", out.len(), x.len())?;
    map(cpu, Op::Add, x, &[], out);
    Ok(())
}

/// `out += s * x`.
pub fn add_scaled(cpu: &Cpu, s: f32, x: &[f32], out: &mut [f32]) -> Result<()> {
    same("scaled add", "values", out.len(), x.len())?;
    map(cpu, Op::AddScaled(s), x, &[], out);
    Ok(())
}

struct Gate(f32);

impl Kernel for Gate {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let mut out = [0.0f32; LANES];
        // SAFETY: the array holds sixteen values.
        unsafe { S::store(out.as_mut_ptr(), sigmoid::<S>(S::splat(self.0))) };
        out[0]
    }
}

/// `out[r] += sigmoid(gate[r]) * x[r]` for rows of `width` values, as a gated shared expert is added.
pub fn add_sigmoid_gated(cpu: &Cpu, gate: &[f32], x: &[f32], width: usize, out: &mut [f32]) -> Result<()> {
    const OP: &str = "gated add";
    same(OP, "values of x", gate.len() * width, x.len())?;
    at_least(OP, "values of the output", gate.len() * width, out.len())?;
    let out = Shared::of(out);
    cpu.pool().ranges(gate.len(), rows_of(width), &|rows| {
        for r in rows {
            // SAFETY: the lengths were compared; each row belongs to one task.
            unsafe {
                let op = Op::AddScaled(simd::run(cpu.level(), Gate(gate[r])));
                let a = x.as_ptr().add(r * width);
                simd::run(cpu.level(), Map { op, a, b: a, out: { out }.0.add(r * width), n: width });
            }
        }
    });
    Ok(())
}
