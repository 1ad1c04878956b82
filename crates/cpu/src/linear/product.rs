//! Plain products of `f32` matrices, for what is no layer of a model.

use super::{ActsBuf, Job, Out, W};
use crate::mat::{Mat, at_least, same};
use crate::{Cpu, DType, Mode, Result};

/// Some rows of `f32` values: `rows` of `cols`, `stride` values from row to row.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The first row on.
    pub data: &'a [f32],
    /// Rows.
    pub rows: usize,
    /// Values of a row.
    pub cols: usize,
    /// Values from row to row.
    pub stride: usize,
}

/// `out[i, j] += factor * sum_k a[i, k] * b[j, k]`: rows of `out` are `stride` values apart. In `f32`, with one order of
/// accumulation (see [`Mode::Exact`]); `b`, which is copied, is best the smaller one.
pub fn add_products(cpu: &Cpu, factor: f32, a: Rows<'_>, b: Rows<'_>, out: &mut [f32], stride: usize) -> Result<()> {
    const OP: &str = "product of matrices";
    same(OP, "values of a row of the second matrix", a.cols, b.cols)?;
    at_least(OP, "values from row to row of the second matrix", b.cols, b.stride)?;
    let needed = if b.rows == 0 { 0 } else { (b.rows - 1) * b.stride + b.cols };
    at_least(OP, "values of the second matrix", needed, b.data.len())?;
    if a.rows == 0 || b.rows == 0 || a.cols == 0 {
        return Ok(());
    }
    let mut copy = Vec::with_capacity(b.rows * b.cols);
    for row in b.data.chunks(b.stride).take(b.rows) {
        copy.extend(row[..b.cols].iter().map(|v| factor * v));
    }
    // SAFETY: plain floats, read as bytes for as long as `copy` lives.
    let bytes = unsafe { std::slice::from_raw_parts(copy.as_ptr().cast::<u8>(), 4 * copy.len()) };
    let w = W::from(Mat::new(bytes, DType::F32, b.rows, b.cols)?);
    let mut buf = ActsBuf::default();
    let acts = buf.prepare(cpu, Mode::Exact, w.needs(), a.data, a.rows, a.cols, a.stride)?;
    super::linears(cpu, &[Job::new(acts, w, Out::new(out, stride)).add(true)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Level;

    /// Integers small enough for every sum to be exact.
    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 37 + seed * 11) % 13) as f32 - 6.0).collect()
    }

    #[test]
    fn parts_of_matrices() {
        for level in Level::ALL.into_iter().filter(|l| l.available()) {
            let cpu = Cpu::with_level(2, level);
            for [m, n, k] in [[1, 1, 1], [5, 7, 19], [33, 16, 130], [64, 65, 48]] {
                let [a_ld, b_ld, ld] = [k + 3, k + 5, n + 2];
                let (a, b) = (numbers(m * a_ld, 1), numbers(n * b_ld, 2));
                let mut out = numbers(m * ld, 3);
                let mut want = out.clone();
                for i in 0..m {
                    for j in 0..n {
                        want[i * ld + j] -= (0..k).map(|l| a[i * a_ld + l] * b[j * b_ld + l]).sum::<f32>();
                    }
                }
                let a = Rows { data: &a, rows: m, cols: k, stride: a_ld };
                let b = Rows { data: &b, rows: n, cols: k, stride: b_ld };
                add_products(&cpu, -1.0, a, b, &mut out, ld).unwrap();
                assert_eq!(out, want, "{level} {m} {n} {k}");
            }
        }
    }

    #[test]
    fn matrices_that_do_not_fit() {
        let (cpu, data) = (Cpu::new(1), [0.0f32; 12]);
        let rows = |rows, cols, stride| Rows { data: &data, rows, cols, stride };
        let mut out = [0.0f32; 9];
        let mut product = |a, b| add_products(&cpu, 1.0, a, b, &mut out, 3);
        assert!(product(rows(3, 4, 4), rows(3, 4, 4)).is_ok());
        assert!(product(rows(3, 4, 4), rows(3, 3, 4)).is_err());
        assert!(product(rows(3, 4, 4), rows(4, 4, 4)).is_err());
        assert!(product(rows(4, 4, 4), rows(3, 4, 4)).is_err());
        assert!(product(rows(3, 4, 4), rows(3, 4, 3)).is_err());
    }
}
