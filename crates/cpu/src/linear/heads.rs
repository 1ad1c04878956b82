//! Products with one matrix per head, as latent attention needs them: `kv_b_proj` is used as it lies on disk.

use super::kernel::load_tail;
use super::{Acts, ActsBuf, Job, Out, Tiles, W, run};
use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, Simd, load_some, store_some};
use crate::simd::{Bf16, Elem, F16, F32};
use crate::{Cpu, DType, Mat, Mode, Result};

/// `out[r, h, :] = w[h * per + from .. + n] x[r, h, :]`: x `[rows, heads]` vectors of `k` values, `x_ld` values apart, w `[heads * per, k]`, out
/// `[rows, heads, n]`. With `from` = nope and `n` = v this is `o = W_UV o_lat`.
#[allow(clippy::too_many_arguments)]
pub fn per_head(
    cpu: &Cpu,
    mode: Mode,
    x: &[f32],
    x_ld: usize,
    rows: usize,
    heads: usize,
    w: Mat<'_>,
    from: usize,
    n: usize,
    buf: &mut ActsBuf,
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "per-head product";
    let per = w.rows() / heads.max(1);
    same(OP, "rows of the weight, a multiple of the heads", per * heads, w.rows())?;
    at_least(OP, "rows of a head", from + n, per)?;
    at_least(OP, "values of the output", rows * heads * n, out.len())?;
    let k = w.cols();
    let all = buf.prepare(cpu, mode, W::Dense(w).needs(), x, rows * heads, k, x_ld)?;
    let len = out.len();
    let out = Shared::of(out);
    let mut jobs = Vec::with_capacity(heads);
    for h in 0..heads {
        if rows == 0 || n == 0 {
            break;
        }
        let mut acts: Acts<'_> = all.slice(h, 1)?;
        acts.m = rows;
        acts.x_ld *= heads;
        acts.x16_ld *= heads;
        let to = Out::columns_from(out, len, h * n, heads * n);
        jobs.push(Job::new(acts, w.slice(h * per + from, n)?, to));
    }
    run(cpu, &jobs);
    Ok(())
}

/// `out[r, h, :] = w[h * n .. (h + 1) * n] x[r, h, :]` as [`per_head`], for tiles of grouped codes; `n` is whole tiles.
#[allow(clippy::too_many_arguments)]
pub fn per_head_tiles(
    cpu: &Cpu,
    mode: Mode,
    x: &[f32],
    x_ld: usize,
    rows: usize,
    heads: usize,
    w: Tiles<'_>,
    n: usize,
    buf: &mut ActsBuf,
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "per-head product";
    let w = W::Grouped(w);
    let k = w.cols();
    same(OP, "rows of the weight", heads * n, w.rows())?;
    at_least(OP, "values from vector to vector", k, x_ld)?;
    let vectors = rows * heads;
    at_least(OP, "values of the input", if vectors == 0 { 0 } else { (vectors - 1) * x_ld + k }, x.len())?;
    at_least(OP, "values of the output", vectors * n, out.len())?;
    // Head after head, so that each has its rows together.
    let mut by_head = vec![0.0; vectors * k];
    for (i, to) in by_head.chunks_exact_mut(k.max(1)).enumerate() {
        let (h, r) = (i / rows, i % rows);
        to.copy_from_slice(&x[(r * heads + h) * x_ld..][..k]);
    }
    let all = buf.prepare_slices(cpu, mode, w.needs().for_rows(cpu, rows, rows), &by_head, vectors, k, k)?;
    let len = out.len();
    let out = Shared::of(out);
    let mut jobs = Vec::with_capacity(heads);
    for h in 0..heads {
        if rows > 0 && n > 0 {
            let to = Out::columns_from(out, len, h * n, heads * n);
            jobs.push(Job::new(all.slice(h * rows, rows)?, w.slice(h * n, n)?, to));
        }
    }
    run(cpu, &jobs);
    Ok(())
}

/// `out[r, h, :] = sum over i < n of x[r, h, i] * w[h * per + from + i, :]`: x `[rows, heads]` vectors of `n` values,
/// `x_ld` values apart, w `[heads * per, k]`, out `[rows, heads, k]`. With `from` = 0 and `n` = nope this is
/// `q_lat = W_UK^T q_nope`. Always in `f32`.
#[allow(clippy::too_many_arguments)]
pub fn per_head_transposed(
    cpu: &Cpu,
    x: &[f32],
    x_ld: usize,
    rows: usize,
    heads: usize,
    w: Mat<'_>,
    from: usize,
    n: usize,
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "transposed per-head product";
    let per = w.rows() / heads.max(1);
    same(OP, "rows of the weight, a multiple of the heads", per * heads, w.rows())?;
    at_least(OP, "rows of a head", from + n, per)?;
    at_least(OP, "values from vector to vector", n, x_ld)?;
    let vectors = rows * heads;
    at_least(OP, "values of the input", if vectors == 0 { 0 } else { (vectors - 1) * x_ld + n }, x.len())?;
    let k = w.cols();
    at_least(OP, "values of the output", vectors * k, out.len())?;
    let (x, out) = (Shared(x.as_ptr().cast_mut()), Shared::of(out));
    const ROWS: usize = 32;
    let pieces = rows.div_ceil(ROWS);
    cpu.pool.run(heads * pieces, &|t| {
        let (h, r0) = (t / pieces, t % pieces * ROWS);
        // SAFETY: the shapes were compared above; each task has its own rows and head of `out`.
        unsafe {
            let kernel = Transposed {
                x: { x }.0.add((r0 * heads + h) * x_ld),
                x_ld: heads * x_ld,
                w: w.data().as_ptr().add((h * per + from) * w.stride()),
                dtype: w.dtype(),
                rows: ROWS.min(rows - r0),
                n,
                k,
                out: { out }.0.add((r0 * heads + h) * k),
                out_ld: heads * k,
            };
            simd::run(cpu.level, kernel);
        }
    });
    Ok(())
}

struct Transposed {
    x: *const f32,
    x_ld: usize,
    w: *const u8,
    dtype: DType,
    rows: usize,
    n: usize,
    k: usize,
    out: *mut f32,
    out_ld: usize,
}

impl Transposed {
    /// Adds weights `i0..i0 + J` times their values to `R` rows, in order.
    #[inline(always)]
    unsafe fn add<S: Simd, E: Elem, const R: usize, const J: usize>(&self, r0: usize, i0: usize) {
        // SAFETY: the fields' promises.
        unsafe {
            let mut s = [[S::zero(); J]; R];
            for r in 0..R {
                for j in 0..J {
                    s[r][j] = S::splat(*self.x.add((r0 + r) * self.x_ld + i0 + j));
                }
            }
            let row = self.k * E::SIZE;
            let w = self.w.add(i0 * row);
            let mut c = 0;
            while c < self.k {
                let some = LANES.min(self.k - c);
                let mut b = [S::zero(); J];
                for j in 0..J {
                    let p = w.add(j * row + c * E::SIZE);
                    b[j] = if some == LANES { E::load::<S>(p) } else { load_tail::<S, E>(p, some) };
                }
                for r in 0..R {
                    let o = self.out.add((r0 + r) * self.out_ld + c);
                    let mut a = if some == LANES { S::load(o) } else { load_some::<S>(o, some) };
                    for j in 0..J {
                        a = S::fma(s[r][j], b[j], a);
                    }
                    if some == LANES { S::store(o, a) } else { store_some::<S>(o, some, a) }
                }
                c += some;
            }
        }
    }

    #[inline(always)]
    unsafe fn go<S: Simd, E: Elem>(&self) {
        // SAFETY: the fields' promises.
        unsafe {
            for r in 0..self.rows {
                self.out.add(r * self.out_ld).write_bytes(0, self.k);
            }
            let mut i = 0;
            while i < self.n {
                let four = self.n - i >= 4;
                let mut r = 0;
                while r < self.rows {
                    let two = self.rows - r >= 2;
                    match (two, four) {
                        (true, true) => self.add::<S, E, 2, 4>(r, i),
                        (true, false) => self.add::<S, E, 2, 1>(r, i),
                        (false, true) => self.add::<S, E, 1, 4>(r, i),
                        (false, false) => self.add::<S, E, 1, 1>(r, i),
                    }
                    r += if two { 2 } else { 1 };
                }
                i += if four { 4 } else { 1 };
            }
        }
    }
}

impl Kernel for Transposed {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields' promises.
        unsafe {
            match self.dtype {
                DType::F32 => self.go::<S, F32>(),
                DType::F16 => self.go::<S, F16>(),
                DType::Bf16 => self.go::<S, Bf16>(),
            }
        }
    }
}
