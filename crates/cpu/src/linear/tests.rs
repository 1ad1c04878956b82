//! Every tail, type and level against sums in `f64`, and bitwise invariance to the batch.

use super::*;
use crate::Mat;
use crate::{DType, Mode};
use half::{bf16, f16};

/// A small generator, so that tests need no seed file: values in -1..1.
pub(crate) struct Rng(pub u64);

impl Rng {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    }
    pub(crate) fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }
}

/// Bytes of the values in a type, one byte off any alignment, and the values as they were rounded.
pub(crate) fn store(values: &[f32], dtype: DType) -> (Vec<u8>, Vec<f32>) {
    let mut bytes = vec![0u8; 1];
    let mut rounded = Vec::new();
    for &v in values {
        match dtype {
            DType::F32 => {
                bytes.extend(v.to_le_bytes());
                rounded.push(v);
            }
            DType::F16 => {
                bytes.extend(f16::from_f32_const(v).to_le_bytes());
                rounded.push(f16::from_f32_const(v).to_f32_const());
            }
            DType::Bf16 => {
                bytes.extend(bf16::from_f32(v).to_le_bytes());
                rounded.push(bf16::from_f32(v).to_f32());
            }
        }
    }
    (bytes, rounded)
}

pub(crate) const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::Bf16];

pub(crate) fn levels() -> Vec<Cpu> {
    crate::Level::ALL.into_iter().filter(|l| l.available()).map(|l| Cpu::with_level(2, l)).collect()
}

fn close(y: f32, want: f64, scale: f64) -> bool {
    (f64::from(y) - want).abs() <= 4e-6 * scale.max(1.0)
}

fn linear(cpu: &Cpu, mode: Mode, x: &[f32], m: usize, w: Mat<'_>) -> Vec<f32> {
    let mut buf = ActsBuf::default();
    let acts = buf.prepare(cpu, mode, Needs { bf16: true, ..Needs::default() }, x, m, w.cols(), w.cols()).unwrap();
    let mut out = vec![f32::NAN; m * w.rows()];
    linears(cpu, &[Job::new(acts, w, Out::new(&mut out, w.rows()))]).unwrap();
    out
}

#[test]
fn agrees_with_f64_at_every_tail() {
    let mut rng = Rng(1);
    let shapes: Vec<(usize, usize, usize)> = (1..=9)
        .chain([12, 33, 100])
        .flat_map(|m| {
            [(m, 1, 1), (m, 7, 15), (m, 6, 16), (m, 13, 17), (m, 5, 31), (m, 33, 32), (m, 70, 300), (m, 41, 96)]
        })
        .chain((1..70).map(|n| (10, n, 40)))
        .chain((1..130).map(|k| (5, 3, k)))
        .chain((1..130).map(|k| (13, 8, k)))
        .collect();
    for cpu in levels() {
        for &(m, n, k) in &shapes {
            for dtype in TYPES {
                let (x, w) = (rng.vec(m * k), rng.vec(n * k));
                let (bytes, w) = store(&w, dtype);
                let mat = Mat::new(&bytes[1..], dtype, n, k).unwrap();
                for mode in [Mode::Exact, Mode::Fast] {
                    let x_used: Vec<f32> = if cpu.rounds(mode, dtype) {
                        x.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
                    } else {
                        x.clone()
                    };
                    let y = linear(&cpu, mode, &x, m, mat);
                    for i in 0..m * n {
                        let (a, b) = (&x_used[i / n * k..][..k], &w[i % n * k..][..k]);
                        let want: f64 = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                        assert!(
                            close(y[i], want, (k as f64).sqrt()),
                            "{m} {n} {k} {dtype:?} {mode:?} {}: {} {want}",
                            cpu.level(),
                            y[i]
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_the_threads() {
    let mut rng = Rng(2);
    for (m, n, k) in [(33, 70, 300), (200, 150, 64), (9, 31, 129), (17, 25, 1000)] {
        let (x, w) = (rng.vec(m * k), rng.vec(n * k));
        for dtype in TYPES {
            let (bytes, _) = store(&w, dtype);
            let mat = Mat::new(&bytes[1..], dtype, n, k).unwrap();
            for cpu in levels() {
                let other = Cpu::with_level(5, cpu.level());
                for mode in [Mode::Exact, Mode::Fast] {
                    let whole = linear(&cpu, mode, &x, m, mat);
                    assert_eq!(whole, linear(&other, mode, &x, m, mat));
                    for split in [1, 2, 3, 4, 5, 7, 8, 9, 16] {
                        let mut parts = Vec::new();
                        for rows in x.chunks(split * k) {
                            parts.extend(linear(&cpu, mode, rows, rows.len() / k, mat));
                        }
                        // Matrix tiles sum in another order than what serves fewer rows.
                        let tiled = |rows: usize| mode == Mode::Fast && dtype == DType::Bf16 && cpu.tiled(rows);
                        let near = tiled(m) != tiled(split.min(m)) || tiled(m) != tiled((m - 1) % split + 1);
                        let same = |(a, b): (&f32, &f32)| a == b || near && (a - b).abs() < 2e-5 * (k as f32).sqrt();
                        let all = whole.iter().zip(&parts).all(same);
                        assert!(all, "{m} {n} {k} {dtype:?} {mode:?} {} {split}", cpu.level());
                    }
                }
            }
        }
    }
}

#[test]
fn exact_mode_is_the_same_on_every_level() {
    let mut rng = Rng(3);
    for (m, n, k) in [(3, 20, 77), (21, 20, 200)] {
        let (x, w) = (rng.vec(m * k), rng.vec(n * k));
        for dtype in TYPES {
            let (bytes, _) = store(&w, dtype);
            let mat = Mat::new(&bytes[1..], dtype, n, k).unwrap();
            let results: Vec<_> = levels().iter().map(|cpu| linear(cpu, Mode::Exact, &x, m, mat)).collect();
            assert!(results.windows(2).all(|r| r[0] == r[1]));
        }
    }
}

#[test]
fn epilogues_and_shared_inputs() {
    let mut rng = Rng(4);
    for cpu in levels() {
        for (m, n, k) in [(1, 19, 40), (11, 50, 33)] {
            let x = rng.vec(m * k);
            let bias = rng.vec(n);
            let residual = rng.vec(m * n);
            let (a, aw) = store(&rng.vec(n * k), DType::Bf16);
            let (b, bw) = store(&rng.vec(n * k), DType::F16);
            let a = Mat::new(&a[1..], DType::Bf16, n, k).unwrap();
            let b = Mat::new(&b[1..], DType::F16, n, k).unwrap();
            let product = |w: &[f32], i: usize| -> f64 {
                (0..k).map(|c| f64::from(x[i / n * k + c]) * f64::from(w[i % n * k + c])).sum()
            };
            let mut buf = ActsBuf::default();
            let acts = buf.prepare(&cpu, Mode::Exact, Needs { bf16: true, ..Needs::default() }, &x, m, k, k).unwrap();
            let (mut one, mut two, mut three) = (residual.clone(), vec![0.0; m * (n + 3)], vec![0.0; m * n]);
            let jobs = [
                Job::new(acts, a, Out::new(&mut one, n)).bias(Some(&bias)).add(true),
                Job::new(acts, b, Out::new(&mut two, n + 3)),
                Job::swiglu(acts, a, b, Out::new(&mut three, n)),
            ];
            linears(&cpu, &jobs).unwrap();
            for i in 0..m * n {
                let (pa, pb) = (product(&aw, i), product(&bw, i));
                assert!(close(one[i], pa + f64::from(bias[i % n]) + f64::from(residual[i]), 10.0));
                assert!(close(two[i / n * (n + 3) + i % n], pb, 10.0));
                assert!(close(three[i], pa / (1.0 + (-pa).exp()) * pb, 10.0));
            }
        }
    }
}

#[test]
fn experts_agree_and_do_not_depend_on_the_batch() {
    let mut rng = Rng(5);
    let (hidden, inner, count, slots, m) = (48, 40, 7, 3, 23);
    let stores: Vec<_> = (0..count * 3).map(|_| store(&rng.vec(hidden * inner), DType::Bf16)).collect();
    let list: Vec<_> = (0..count)
        .map(|e| Expert {
            gate: Mat::new(&stores[e * 3].0[1..], DType::Bf16, inner, hidden).unwrap().into(),
            up: Mat::new(&stores[e * 3 + 1].0[1..], DType::Bf16, inner, hidden).unwrap().into(),
            down: Mat::new(&stores[e * 3 + 2].0[1..], DType::Bf16, hidden, inner).unwrap().into(),
        })
        .collect();
    let x = rng.vec(m * hidden);
    let chosen: Vec<u32> = (0..m * slots).map(|i| ((i / slots * 5 + i % slots * 2) % count) as u32).collect();
    let weights = rng.vec(m * slots);
    let start = rng.vec(m * hidden);
    for cpu in levels() {
        let mut buf = ExpertsBuf::default();
        for mode in [Mode::Exact, Mode::Fast] {
            let mut out = start.clone();
            let route = Route { experts: &chosen, weights: &weights, slots };
            experts(&cpu, mode, &x, m, &list, route, &mut buf, true, &mut out).unwrap();
            let tolerance = if cpu.rounds(mode, DType::Bf16) { 0.06 } else { 1e-5 };
            for t in 0..m {
                let mut want = vec![0.0f64; hidden];
                for s in 0..slots {
                    let e = chosen[t * slots + s] as usize;
                    let dot = |w: &[f32], r: usize| -> f64 {
                        (0..hidden).map(|c| f64::from(x[t * hidden + c]) * f64::from(w[r * hidden + c])).sum()
                    };
                    let h: Vec<f64> = (0..inner)
                        .map(|r| {
                            let g = dot(&stores[e * 3].1, r);
                            g / (1.0 + (-g).exp()) * dot(&stores[e * 3 + 1].1, r)
                        })
                        .collect();
                    for (c, want) in want.iter_mut().enumerate() {
                        let y: f64 = (0..inner).map(|r| h[r] * f64::from(stores[e * 3 + 2].1[c * inner + r])).sum();
                        *want += f64::from(weights[t * slots + s]) * y;
                    }
                }
                for c in 0..hidden {
                    let want = want[c] + f64::from(start[t * hidden + c]);
                    let got = f64::from(out[t * hidden + c]);
                    assert!((got - want).abs() < tolerance * want.abs().max(10.0), "{got} {want}");
                }
                let mut alone = start[t * hidden..(t + 1) * hidden].to_vec();
                let r = t * slots..(t + 1) * slots;
                let route = Route { experts: &chosen[r.clone()], weights: &weights[r], slots };
                let xt = &x[t * hidden..(t + 1) * hidden];
                experts(&cpu, mode, xt, 1, &list, route, &mut buf, true, &mut alone).unwrap();
                assert_eq!(alone, out[t * hidden..(t + 1) * hidden]);
            }
        }
    }
}

#[test]
fn products_per_head() {
    let mut rng = Rng(6);
    let (heads, nope, v, rank) = (3, 10, 13, 37);
    let per = nope + v;
    for dtype in TYPES {
        let (bytes, w) = store(&rng.vec(heads * per * rank), dtype);
        let mat = Mat::new(&bytes[1..], dtype, heads * per, rank).unwrap();
        for rows in [1, 2, 5, 35] {
            let q = rng.vec(rows * heads * (nope + 4));
            let o = rng.vec(rows * heads * rank);
            let mut first: Option<Vec<f32>> = None;
            for cpu in levels() {
                let mut lat = vec![0.0; rows * heads * rank];
                per_head_transposed(&cpu, &q, nope + 4, rows, heads, mat, 0, nope, &mut lat).unwrap();
                let mut buf = ActsBuf::default();
                let mut out = vec![0.0; rows * heads * v];
                per_head(&cpu, Mode::Exact, &o, rank, rows, heads, mat, nope, v, &mut buf, &mut out).unwrap();
                for i in 0..rows * heads {
                    let h = i % heads;
                    for c in 0..rank {
                        let want: f64 = (0..nope)
                            .map(|n| f64::from(q[i * (nope + 4) + n]) * f64::from(w[(h * per + n) * rank + c]))
                            .sum();
                        assert!(close(lat[i * rank + c], want, 5.0));
                    }
                    for c in 0..v {
                        let want: f64 = (0..rank)
                            .map(|n| f64::from(o[i * rank + n]) * f64::from(w[(h * per + nope + c) * rank + n]))
                            .sum();
                        assert!(close(out[i * v + c], want, 5.0));
                    }
                }
                lat.extend(out);
                assert_eq!(first.get_or_insert_with(|| lat.clone()), &lat);
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let cpu = Cpu::with_level(1, crate::Level::Scalar);
    let x = [0.0; 8];
    let w = [0u8; 64];
    let mut buf = ActsBuf::default();
    assert!(Mat::new(&w, DType::F32, 5, 4).is_err());
    assert!(buf.prepare(&cpu, Mode::Exact, Needs { bf16: true, ..Needs::default() }, &x, 3, 4, 4).is_err());
    let acts = buf.prepare(&cpu, Mode::Exact, Needs { bf16: true, ..Needs::default() }, &x, 2, 4, 4).unwrap();
    let w = Mat::new(&w, DType::F32, 4, 4).unwrap();
    let mut out = [0.0; 8];
    assert!(linears(&cpu, &[Job::new(acts, w, Out::new(&mut out, 3))]).is_err());
    assert!(linears(&cpu, &[Job::new(acts, w, Out::new(&mut out[..7], 4))]).is_err());
    assert!(linears(&cpu, &[Job::new(acts, w, Out::new(&mut out, 4)).bias(Some(&[0.0; 3]))]).is_err());
    assert!(linears(&cpu, &[Job::new(acts, w, Out::new(&mut out, 4))]).is_ok());
}
