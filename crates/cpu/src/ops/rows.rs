//! Rows of logits: softmax, its logarithm, the largest and the k largest.

use super::rows_of;
use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, Simd, exp};
use crate::{Cpu, Result};
use std::cmp::Ordering;

/// What the logarithm of a softmax needs: `log p[i] = x[i] - max - log_sum`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LogSumExp {
    /// The largest value of the row.
    pub max: f32,
    /// The logarithm of the sum of `exp(x - max)`.
    pub log_sum: f32,
}

/// Loads up to sixteen values, the rest -inf.
#[inline(always)]
unsafe fn get<S: Simd>(x: *const f32, n: usize) -> S::F {
    // SAFETY: the caller vouches for n values.
    unsafe {
        if n >= LANES {
            return S::load(x);
        }
        let mut buf = [f32::NEG_INFINITY; LANES];
        std::ptr::copy_nonoverlapping(x, buf.as_mut_ptr(), n);
        S::load(buf.as_ptr())
    }
}

/// The maximum, and the sum of `exp(x - max)` in `f64` blocks of `f32` lanes; with `out`, the exponentials too.
pub(super) struct Exponentials {
    pub x: *const f32,
    pub n: usize,
    pub out: *mut f32,
}

impl Kernel for Exponentials {
    type Out = (f32, f64);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> (f32, f64) {
        const BLOCK: usize = 64 * LANES;
        // SAFETY: n values in, and out where there is one.
        unsafe {
            let mut top = S::splat(f32::NEG_INFINITY);
            let mut i = 0;
            while i < self.n {
                top = S::max(get::<S>(self.x.add(i), self.n - i), top);
                i += LANES;
            }
            let max = S::largest(top);
            let m = S::splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
            let mut sum = 0.0f64;
            i = 0;
            while i < self.n {
                let end = self.n.min(i + BLOCK);
                let mut acc = S::zero();
                while i < end {
                    let e = exp::<S>(S::sub(get::<S>(self.x.add(i), self.n - i), m));
                    acc = S::add(acc, e);
                    if !self.out.is_null() {
                        let some = LANES.min(self.n - i);
                        if some == LANES {
                            S::store(self.out.add(i), e)
                        } else {
                            simd::store_some::<S>(self.out.add(i), some, e)
                        }
                    }
                    i += LANES;
                }
                i = end;
                sum += f64::from(S::sum(acc));
            }
            (max, sum)
        }
    }
}

/// Softmax of each row of `n` values, in place.
pub fn softmax(cpu: &Cpu, x: &mut [f32], n: usize) -> Result<()> {
    let m = x.len().checked_div(n).unwrap_or(0);
    same("softmax", "values, whole rows", m * n, x.len())?;
    let x = Shared::of(x);
    cpu.pool().ranges(m, rows_of(n), &|rows| {
        for r in rows {
            // SAFETY: whole rows; each belongs to one task.
            let row = unsafe { { x }.part(r * n, n) };
            // SAFETY: the row is read and written in the same places.
            let (_, sum) =
                unsafe { simd::run(cpu.level(), Exponentials { x: row.as_ptr(), n, out: row.as_mut_ptr() }) };
            let inverse = (1.0 / sum) as f32;
            row.iter_mut().for_each(|v| *v *= inverse);
        }
    });
    Ok(())
}

/// Maximum and log-sum of each row of `n` values.
pub fn log_sum_exp(cpu: &Cpu, x: &[f32], n: usize, out: &mut [LogSumExp]) -> Result<()> {
    at_least("log-softmax", "values", out.len() * n, x.len())?;
    let m = out.len();
    let to = Shared::of(out);
    cpu.pool().ranges(m, rows_of(n), &|rows| {
        for r in rows {
            let row = &x[r * n..(r + 1) * n];
            // SAFETY: a row of n values; each result belongs to one task.
            unsafe {
                let kernel = Exponentials { x: row.as_ptr(), n, out: std::ptr::null_mut() };
                let (max, sum) = simd::run(cpu.level(), kernel);
                { to }.part(r, 1)[0] = LogSumExp { max, log_sum: sum.ln() as f32 };
            }
        }
    });
    Ok(())
}

struct Largest {
    x: *const f32,
    n: usize,
}

impl Kernel for Largest {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        // SAFETY: n values.
        unsafe {
            let mut top = [S::splat(f32::NEG_INFINITY); 4];
            let mut i = 0;
            while i + 4 * LANES <= self.n {
                for (j, t) in top.iter_mut().enumerate() {
                    *t = S::max(S::load(self.x.add(i + j * LANES)), *t);
                }
                i += 4 * LANES;
            }
            while i < self.n {
                top[0] = S::max(get::<S>(self.x.add(i), self.n - i), top[0]);
                i += LANES;
            }
            S::largest(S::max(S::max(top[0], top[1]), S::max(top[2], top[3])))
        }
    }
}

/// The index of the largest value of each row of `n`, the lowest among equals; values that are not numbers lose.
pub fn argmax(cpu: &Cpu, x: &[f32], n: usize, out: &mut [u32]) -> Result<()> {
    at_least("argmax", "values", out.len() * n, x.len())?;
    at_least("argmax", "values of a row", 1, n)?;
    let m = out.len();
    let to = Shared::of(out);
    cpu.pool().ranges(m, rows_of(n), &|rows| {
        for r in rows {
            let row = &x[r * n..(r + 1) * n];
            // SAFETY: a row of n values; each result belongs to one task.
            unsafe {
                let top = simd::run(cpu.level(), Largest { x: row.as_ptr(), n });
                { to }.part(r, 1)[0] = row.iter().position(|v| *v == top).unwrap_or(0) as u32;
            }
        }
    });
    Ok(())
}

/// Whether `a` comes before `b`: larger, or equal and lower; numbers before what is none.
fn before(a: (f32, u32), b: (f32, u32)) -> bool {
    match a.0.partial_cmp(&b.0) {
        Some(Ordering::Greater) => true,
        Some(Ordering::Less) => false,
        Some(Ordering::Equal) => a.1 < b.1,
        None => (a.0.is_nan(), a.1) < (b.0.is_nan(), b.1),
    }
}

/// Puts the indices of the `k` largest of `x` into `best`, largest first, lower indices first among equals.
pub(super) fn select(x: &[f32], k: usize, best: &mut Vec<(f32, u32)>) {
    best.clear();
    for (i, &v) in x.iter().enumerate() {
        let item = (v, i as u32);
        if best.len() == k {
            match best.last() {
                Some(&last) if before(item, last) => _ = best.pop(),
                _ => continue,
            }
        }
        let at = best.partition_point(|&b| before(b, item));
        best.insert(at, item);
    }
}

/// The `k` largest of each row of `n` values: indices and values `[m, k]`, largest first, lower indices first among
/// equals.
pub fn top_k(cpu: &Cpu, x: &[f32], n: usize, k: usize, indices: &mut [u32], values: &mut [f32]) -> Result<()> {
    const OP: &str = "top-k";
    at_least(OP, "values of a row", k.max(1), n)?;
    let m = indices.len().checked_div(k).unwrap_or(0);
    same(OP, "indices, whole rows", m * k, indices.len())?;
    same(OP, "values of the result", indices.len(), values.len())?;
    at_least(OP, "values", m * n, x.len())?;
    let (to_i, to_v) = (Shared::of(indices), Shared::of(values));
    cpu.pool().ranges(m, rows_of(n), &|rows| {
        let mut best = Vec::with_capacity(k + 1);
        for r in rows {
            select(&x[r * n..(r + 1) * n], k, &mut best);
            // SAFETY: each row of results belongs to one task.
            let (i, v) = unsafe { ({ to_i }.part(r * k, k), { to_v }.part(r * k, k)) };
            for (j, b) in best.iter().enumerate() {
                (v[j], i[j]) = *b;
            }
        }
    });
    Ok(())
}
