//! Every kernel against plain arithmetic, at every tail and on every level.

use super::*;
use crate::linear::tests::{Rng, TYPES, levels, store};
use crate::{Cpu, DType, Level, Mat};
use half::{bf16, f16};

fn near(got: f32, want: f64, tolerance: f64) {
    assert!((f64::from(got) - want).abs() <= tolerance * want.abs().max(1.0), "{got} {want}");
}

#[test]
fn conversions_round_to_nearest_even() {
    let mut rng = Rng(20);
    for cpu in levels() {
        for n in (0..40).chain([1000, 70_000]) {
            let mut x: Vec<f32> = (0..n).map(|_| f32::from_bits((rng.next() * 2e9) as i32 as u32)).collect();
            x.iter_mut()
                .zip([f32::NAN, f32::INFINITY, -0.0, 65520.0, 1e-8, f32::MAX, 1.003_906_2, 1.011_718_8])
                .for_each(|(a, b)| *a = b);
            for dtype in TYPES {
                let mut bytes = vec![0u8; n * dtype.size()];
                from_f32(&cpu, &x, dtype, &mut bytes).unwrap();
                let want: Vec<f32> = match dtype {
                    DType::F32 => x.clone(),
                    DType::F16 => x.iter().map(|v| f16::from_f32_const(*v).to_f32_const()).collect(),
                    DType::Bf16 => x.iter().map(|v| bf16::from_f32(*v).to_f32()).collect(),
                };
                let mut back = vec![0.0; n];
                to_f32(&cpu, &bytes, dtype, &mut back).unwrap();
                for (b, w) in back.iter().zip(&want) {
                    assert!(
                        b.to_bits() == w.to_bits() || b.is_nan() && w.is_nan(),
                        "{dtype:?} {b} {w} {}",
                        cpu.level()
                    );
                }
            }
        }
    }
}

#[test]
fn rms_norm_of_rows_and_heads() {
    let mut rng = Rng(21);
    for cpu in levels() {
        for n in (1..40).chain([128, 1000]) {
            let m = 5;
            let (x, w) = (rng.vec(m * (n + 2)), rng.vec(n));
            let mut out = vec![0.0; m * n];
            rms_norm(&cpu, &x, n + 2, m, &w, 1e-5, &mut out, n).unwrap();
            for r in 0..m {
                let row = &x[r * (n + 2)..][..n];
                let mean = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64;
                for i in 0..n {
                    near(out[r * n + i], f64::from(row[i]) * f64::from(w[i]) / (mean + 1e-5).sqrt(), 1e-5);
                }
            }
            let mut heads = rng.vec(m * (3 * n + 1));
            let before = heads.clone();
            rms_norm_in_place(&cpu, &mut heads, 3 * n + 1, m, 3, &w, 1e-5).unwrap();
            for r in 0..m {
                for h in 0..3 {
                    let at = r * (3 * n + 1) + h * n;
                    let mut want = vec![0.0; n];
                    rms_norm(&cpu, &before[at..], n, 1, &w, 1e-5, &mut want, n).unwrap();
                    assert_eq!(heads[at..at + n], want);
                }
                assert_eq!(heads[r * (3 * n + 1) + 3 * n], before[r * (3 * n + 1) + 3 * n]);
            }
        }
    }
}

#[test]
fn rope_rotates_pairs() {
    let mut rng = Rng(22);
    for cpu in levels() {
        for half in [1, 4, 16, 20, 64] {
            let angles = rng.vec(50 * half);
            let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
            let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
            let positions = [3, 49, 0];
            let (heads, head_ld) = (2, 2 * half + 3);
            let ld = heads * head_ld + 1;
            for style in [RopeStyle::HalfSplit, RopeStyle::Interleaved] {
                let x = rng.vec(positions.len() * ld);
                let mut y = x.clone();
                rope(&cpu, style, Angles { cos: &cos, sin: &sin, half }, &positions, &mut y, ld, heads, head_ld)
                    .unwrap();
                let mut want = x.clone();
                for (r, p) in positions.iter().enumerate() {
                    for h in 0..heads {
                        let at = r * ld + h * head_ld;
                        for i in 0..half {
                            let (a, b) = match style {
                                RopeStyle::HalfSplit => (at + i, at + i + half),
                                RopeStyle::Interleaved => (at + 2 * i, at + 2 * i + 1),
                            };
                            let (s, c) = f64::from(angles[*p as usize * half + i]).sin_cos();
                            want[a] = (f64::from(x[a]) * c - f64::from(x[b]) * s) as f32;
                            want[b] = (f64::from(x[b]) * c + f64::from(x[a]) * s) as f32;
                        }
                    }
                }
                y.iter().zip(&want).for_each(|(y, w)| near(*y, f64::from(*w), 1e-6));
            }
        }
    }
}

#[test]
fn element_by_element() {
    let mut rng = Rng(23);
    for cpu in levels() {
        for n in (0..35).chain([40_000]) {
            let (a, b) = (rng.vec(n).iter().map(|v| v * 20.0).collect::<Vec<_>>(), rng.vec(n));
            let mut out = vec![0.0; n];
            swiglu(&cpu, &a, &b, &mut out).unwrap();
            for i in 0..n {
                let g = f64::from(a[i]);
                near(out[i], g / (1.0 + (-g).exp()) * f64::from(b[i]), 1e-6);
            }
            let mut sum = b.clone();
            add(&cpu, &a, &mut sum).unwrap();
            add_scaled(&cpu, -1.0, &a, &mut sum).unwrap();
            (0..n).for_each(|i| assert_eq!(sum[i], (b[i] + a[i]) - a[i]));
        }
        let (gate, x, start) = (rng.vec(7), rng.vec(7 * 19), rng.vec(7 * 19));
        let mut out = start.clone();
        add_sigmoid_gated(&cpu, &gate, &x, 19, &mut out).unwrap();
        for i in 0..7 * 19 {
            let s = 1.0 / (1.0 + (-f64::from(gate[i / 19])).exp());
            near(out[i], f64::from(start[i]) + s * f64::from(x[i]), 1e-6);
        }
    }
}

#[test]
fn softmax_and_its_logarithm() {
    let mut rng = Rng(24);
    for cpu in levels() {
        for n in (1..40).chain([151, 5000]) {
            let x: Vec<f32> = rng.vec(3 * n).iter().map(|v| v * 30.0).collect();
            let mut p = x.clone();
            softmax(&cpu, &mut p, n).unwrap();
            let mut stats = [LogSumExp::default(); 3];
            log_sum_exp(&cpu, &x, n, &mut stats).unwrap();
            for r in 0..3 {
                let row = &x[r * n..(r + 1) * n];
                let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = row.iter().map(|v| f64::from(v - top).exp()).sum();
                assert_eq!(stats[r].max, top);
                near(stats[r].log_sum, sum.ln(), 1e-6);
                (0..n).for_each(|i| near(p[r * n + i], f64::from(row[i] - top).exp() / sum, 1e-6));
            }
        }
    }
}

#[test]
fn largest_values_with_ties() {
    let mut rng = Rng(25);
    for cpu in levels() {
        for n in [1, 2, 15, 16, 17, 64, 65, 1000] {
            let x: Vec<f32> = (0..4 * n).map(|_| (rng.next() * 6.0).round()).collect();
            let mut first = [0; 4];
            argmax(&cpu, &x, n, &mut first).unwrap();
            for k in [1, 2, 5, n].into_iter().filter(|k| *k <= n) {
                let (mut i, mut v) = (vec![0; 4 * k], vec![0.0; 4 * k]);
                top_k(&cpu, &x, n, k, &mut i, &mut v).unwrap();
                for r in 0..4 {
                    let mut want: Vec<usize> = (0..n).collect();
                    let zeros = |v: f32| v + 0.0;
                    want.sort_by(|a, b| zeros(x[r * n + b]).total_cmp(&zeros(x[r * n + a])).then(a.cmp(b)));
                    assert_eq!(first[r] as usize, want[0]);
                    for j in 0..k {
                        assert_eq!((i[r * k + j] as usize, v[r * k + j]), (want[j], x[r * n + want[j]]));
                    }
                }
            }
        }
        let mut first = [9];
        argmax(&cpu, &[f32::NAN, 1.0, f32::NAN, 2.0], 4, &mut first).unwrap();
        assert_eq!(first, [3]);
    }
}

#[test]
fn routing_rules() {
    let logits = [0.1f32, 2.0, -1.0, 2.0, 0.5, 1.0];
    for cpu in levels() {
        let go = |rule: Router<'_>| {
            let (mut e, mut w) = (vec![0; rule.k], vec![0.0; rule.k]);
            route(&cpu, rule, &logits, 6, &mut e, &mut w).unwrap();
            (e, w)
        };
        let plain =
            Router { score: Score::Softmax, bias: None, k: 3, normalise: false, scale: 1.0, groups: 1, top_groups: 1 };
        let total: f64 = logits.iter().map(|v| f64::from(*v).exp()).sum();
        let (e, w) = go(plain);
        assert_eq!(e, [1, 3, 5]);
        near(w[0], 2f64.exp() / total, 1e-6);
        near(w[2], 1f64.exp() / total, 1e-6);
        let (_, w) = go(Router { normalise: true, scale: 1.8, ..plain });
        near(w.iter().sum(), 1.8, 1e-6);
        let bias = [10.0, 0.0, 5.0, 0.0, 0.0, 0.0];
        let (e, w) = go(Router { score: Score::Sigmoid, bias: Some(&bias), ..plain });
        assert_eq!(e, [0, 2, 1]);
        near(w[1], 1.0 / (1.0 + 1f64.exp()), 1e-6);
        // Two groups of three: the second has the greater sum of its two best.
        let (e, _) = go(Router { score: Score::Sigmoid, groups: 2, top_groups: 1, ..plain });
        assert_eq!(e, [3, 5, 4]);
        let (mut e, mut w) = ([0; 7], [0.0; 7]);
        assert!(route(&cpu, Router { k: 7, ..plain }, &logits, 6, &mut e, &mut w).is_err());
    }
}

#[test]
fn the_first_bad_value_is_found() {
    for cpu in levels() {
        for dtype in TYPES {
            let n = 300_001;
            let (bytes, _) = store(&vec![1.5; n], dtype);
            assert_eq!(first_not_finite(&cpu, &bytes[1..], dtype), None);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for at in [0, 1, 511, 512, 513, 131_071, 131_072, n - 1] {
                    let mut bytes = bytes.clone();
                    for i in [at, n - 1] {
                        let (value, _) = store(&[bad], dtype);
                        bytes[1 + i * dtype.size()..][..dtype.size()].copy_from_slice(&value[1..]);
                    }
                    assert_eq!(first_not_finite(&cpu, &bytes[1..], dtype), Some(at));
                }
            }
        }
    }
}

#[test]
fn rows_of_a_table() {
    let mut rng = Rng(26);
    for cpu in levels() {
        for dtype in TYPES {
            let (bytes, values) = store(&rng.vec(9 * 37), dtype);
            let table = Mat::new(&bytes[1..], dtype, 9, 37).unwrap();
            let mut out = vec![0.0; 3 * 37];
            embed(&cpu, table, &[8, 0, 4], &mut out).unwrap();
            for (i, t) in [8, 0, 4].into_iter().enumerate() {
                assert_eq!(out[i * 37..(i + 1) * 37], values[t * 37..(t + 1) * 37]);
            }
            assert!(embed(&cpu, table, &[9], &mut out).is_err());
        }
    }
}

#[test]
fn second_moments_of_rows() {
    let mut rng = Rng(31);
    for cpu in levels() {
        for (size, rows) in [(1, 3), (15, 1), (16, 2), (33, 300), (128, 256), (200, 257), (272, 40), (400, 5)] {
            let mut x = rng.vec(rows * size);
            let weights: Vec<f32> = rng.vec(rows).iter().map(|w| w * w).collect();
            let bad = rows > 2;
            if bad {
                x[size + size / 2] = f32::NAN;
                x[2 * size] = f32::INFINITY;
            }
            for weights in [None, Some(weights.as_slice())] {
                let mut sums = vec![0.0; size * size];
                (0..size).for_each(|i| sums[i * size + i] = 2.0);
                let left_out = gram(&cpu, &x, size, weights, &mut sums).unwrap();
                assert_eq!(left_out, if bad { 2 } else { 0 });
                for i in 0..size {
                    for j in 0..size {
                        let good = (0..rows).filter(|t| !(bad && (*t == 1 || *t == 2)));
                        let want: f64 = good
                            .map(|t| {
                                let w = weights.map_or(1.0, |w| f64::from(w[t]));
                                w * f64::from(x[t * size + i]) * f64::from(x[t * size + j])
                            })
                            .sum();
                        let want = want + if i == j { 2.0 } else { 0.0 };
                        let got = f64::from(sums[i * size + j]);
                        assert!((got - want).abs() <= 2e-5 * (rows as f64).sqrt().max(want.abs()), "{got} {want}");
                        assert_eq!(sums[i * size + j].to_bits(), sums[j * size + i].to_bits());
                    }
                }
            }
        }
    }
}

#[test]
fn second_moments_do_not_depend_on_threads() {
    let mut rng = Rng(32);
    let (size, rows) = (300, 600);
    let x = rng.vec(rows * size);
    let sums = |threads| {
        let mut sums = vec![0.0; size * size];
        gram(&Cpu::with_level(threads, Level::best()), &x, size, None, &mut sums).unwrap();
        sums
    };
    let one = sums(1);
    assert!(sums(2) == one && sums(3) == one && sums(7) == one);
}
