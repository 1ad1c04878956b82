//! Root-mean-square normalisation.

use super::rows_of;
use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, Simd, load_some, store_some};
use crate::{Cpu, Result};

struct RmsNorm {
    x: *const f32,
    w: *const f32,
    out: *mut f32,
    n: usize,
    eps: f32,
}

impl Kernel for RmsNorm {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let whole = self.n - self.n % LANES;
        let rest = self.n - whole;
        // SAFETY: n values in, of weight, and out; the output may be the input.
        unsafe {
            let mut acc = S::zero();
            let mut i = 0;
            while i < whole {
                let v = S::load(self.x.add(i));
                acc = S::fma(v, v, acc);
                i += LANES;
            }
            if rest > 0 {
                let v = load_some::<S>(self.x.add(whole), rest);
                acc = S::fma(v, v, acc);
            }
            let inverse = 1.0 / (S::sum(acc) / self.n as f32 + self.eps).sqrt();
            let s = S::splat(inverse);
            i = 0;
            while i < whole {
                let v = S::mul(S::mul(S::load(self.x.add(i)), s), S::load(self.w.add(i)));
                S::store(self.out.add(i), v);
                i += LANES;
            }
            if rest > 0 {
                let v = S::mul(load_some::<S>(self.x.add(whole), rest), s);
                store_some::<S>(self.out.add(whole), rest, S::mul(v, load_some::<S>(self.w.add(whole), rest)));
            }
        }
    }
}

/// `out[r] = w * x[r] / sqrt(mean(x[r]^2) + eps)` for rows of `w.len()` values: row r of x starts at `r * x_ld`, of out
/// at `r * out_ld`; there are `m` rows.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm(
    cpu: &Cpu,
    x: &[f32],
    x_ld: usize,
    m: usize,
    w: &[f32],
    eps: f32,
    out: &mut [f32],
    out_ld: usize,
) -> Result<()> {
    const OP: &str = "rms_norm";
    let n = w.len();
    at_least(OP, "values from row to row of the input", n, x_ld)?;
    at_least(OP, "values from row to row of the output", n, out_ld)?;
    at_least(OP, "values of the input", if m == 0 { 0 } else { (m - 1) * x_ld + n }, x.len())?;
    at_least(OP, "values of the output", if m == 0 { 0 } else { (m - 1) * out_ld + n }, out.len())?;
    let out = Shared::of(out);
    cpu.pool().ranges(m, rows_of(n), &|rows| {
        for r in rows {
            // SAFETY: the shapes were compared; each row belongs to one task.
            unsafe {
                let kernel =
                    RmsNorm { x: x.as_ptr().add(r * x_ld), w: w.as_ptr(), out: { out }.0.add(r * out_ld), n, eps };
                simd::run(cpu.level(), kernel);
            }
        }
    });
    Ok(())
}

/// [`rms_norm`] of each of `heads` vectors of `w.len()` values at the front of each of `m` rows, `ld` values apart.
pub fn rms_norm_in_place(
    cpu: &Cpu,
    x: &mut [f32],
    ld: usize,
    m: usize,
    heads: usize,
    w: &[f32],
    eps: f32,
) -> Result<()> {
    const OP: &str = "rms_norm of heads";
    let n = w.len();
    at_least(OP, "values from row to row", heads * n, ld)?;
    at_least(OP, "values", if m == 0 { 0 } else { (m - 1) * ld + heads * n }, x.len())?;
    same(OP, "weights of an empty head", usize::from(n > 0), 1)?;
    let x = Shared::of(x);
    cpu.pool().ranges(m, rows_of(heads * n), &|rows| {
        for i in rows.start * heads..rows.end * heads {
            // SAFETY: the shapes were compared; each row belongs to one task.
            unsafe {
                let at = { x }.0.add(i / heads * ld + i % heads * n);
                simd::run(cpu.level(), RmsNorm { x: at, w: w.as_ptr(), out: at, n, eps });
            }
        }
    });
    Ok(())
}
