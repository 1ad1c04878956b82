//! RMS norm of rows, or of each head within a row.

use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, Simd, load_some, store_some};
use crate::{Cpu, Result};

/// `out = w * x / sqrt(mean(x^2) + eps)` for every group of `w.len()` values of x.
pub fn rms_norm(cpu: &Cpu, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) -> Result<()> {
    const OP: &str = "rms_norm";
    at_least(OP, "values of the weight", 1, w.len())?;
    let groups = x.len() / w.len();
    same(OP, "values, a multiple of the weight's", groups * w.len(), x.len())?;
    same(OP, "values of the output", x.len(), out.len())?;
    let (k, out) = (w.len(), Shared::of(out));
    cpu.pool.ranges(groups, ((16 << 10) / k).max(1), &|r| {
        // SAFETY: the lengths were compared; tasks have disjoint groups; the level is available.
        unsafe {
            let kernel = Norm {
                x: x.as_ptr().add(r.start * k),
                w: w.as_ptr(),
                out: { out }.0.add(r.start * k),
                groups: r.len(),
                k,
                eps,
            };
            simd::run(cpu.level, kernel);
        }
    });
    Ok(())
}

struct Norm {
    x: *const f32,
    w: *const f32,
    out: *mut f32,
    groups: usize,
    k: usize,
    eps: f32,
}

impl Kernel for Norm {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields promise `groups` groups of `k` values and `k` weights.
        unsafe {
            let (k, whole) = (self.k, self.k / LANES * LANES);
            for g in 0..self.groups {
                let (x, out) = (self.x.add(g * k), self.out.add(g * k));
                let mut sum = S::zero();
                for i in (0..whole).step_by(LANES) {
                    let v = S::load(x.add(i));
                    sum = S::fma(v, v, sum);
                }
                if whole < k {
                    let v = load_some::<S>(x.add(whole), k - whole);
                    sum = S::fma(v, v, sum);
                }
                let factor = S::splat(1.0 / (S::sum(sum) / k as f32 + self.eps).sqrt());
                for i in (0..whole).step_by(LANES) {
                    let v = S::mul(S::load(x.add(i)), factor);
                    S::store(out.add(i), S::mul(v, S::load(self.w.add(i))));
                }
                if whole < k {
                    let v = S::mul(load_some::<S>(x.add(whole), k - whole), factor);
                    let w = load_some::<S>(self.w.add(whole), k - whole);
                    store_some::<S>(out.add(whole), k - whole, S::mul(v, w));
                }
            }
        }
    }
}
