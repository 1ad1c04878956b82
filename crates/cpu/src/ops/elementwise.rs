//! Operations on values one by one.

use crate::buffer::Shared;
use crate::linear::SwiGlu;
use crate::mat::same;
use crate::simd;
use crate::{Cpu, Result};

/// Values that one task takes.
const GRAIN: usize = 16 << 10;

/// `gate = silu(gate) * up`.
pub fn swiglu(cpu: &Cpu, gate: &mut [f32], up: &[f32]) -> Result<()> {
    same("swiglu", "values", gate.len(), up.len())?;
    // The kernel leaves its result where `up` is.
    let n = gate.len();
    let gate = Shared::of(gate);
    cpu.pool.ranges(n, GRAIN, &|r| {
        let mut block = up[r.clone()].to_vec();
        // SAFETY: tasks have disjoint ranges; the level is available.
        unsafe {
            let gate = { gate }.part(r.start, r.len());
            simd::run(cpu.level, SwiGlu { gate: gate.as_mut_ptr(), up: block.as_mut_ptr(), n: r.len() });
            gate.copy_from_slice(&block);
        }
    });
    Ok(())
}

/// `a += b`.
pub fn add(cpu: &Cpu, a: &mut [f32], b: &[f32]) -> Result<()> {
    same("add", "values", a.len(), b.len())?;
    let n = a.len();
    let a = Shared::of(a);
    cpu.pool.ranges(n, GRAIN, &|r| {
        // SAFETY: tasks have disjoint ranges.
        let a = unsafe { { a }.part(r.start, r.len()) };
        a.iter_mut().zip(&b[r]).for_each(|(a, b)| *a += b);
    });
    Ok(())
}

/// Every row of x `[rows, cols]` times the sigmoid of the row's gate.
pub fn sigmoid_gate(cpu: &Cpu, x: &mut [f32], cols: usize, gate: &[f32]) -> Result<()> {
    same("sigmoid gate", "values", gate.len() * cols, x.len())?;
    let x = Shared::of(x);
    cpu.pool.ranges(gate.len(), (GRAIN / cols.max(1)).max(1), &|r| {
        for row in r {
            let factor = sigmoid(gate[row]);
            // SAFETY: every row belongs to one task.
            unsafe { { x }.part(row * cols, cols) }.iter_mut().for_each(|x| *x *= factor);
        }
    });
    Ok(())
}

pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}
