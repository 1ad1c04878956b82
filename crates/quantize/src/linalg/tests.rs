use super::*;
use crate::{Compute, Matrix};
use marlin_cpu::Cpu;

/// `X X^T / n + 0.05 I` of pseudo-random `X`, symmetric bit for bit.
fn positive(n: usize) -> Matrix {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let x: Vec<f32> = (0..n * n).map(|_| next()).collect();
    let mut a = Matrix::zeros(n, n);
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..n).map(|k| f64::from(x[i * n + k]) * f64::from(x[j * n + k])).sum();
            let v = (dot / n as f64) as f32 + if i == j { 0.05 } else { 0.0 };
            a.row_mut(i)[j] = v;
            a.row_mut(j)[i] = v;
        }
    }
    a
}

/// The greatest difference of `left right^T` from `want`.
fn error(left: &Matrix, right: &Matrix, want: &Matrix) -> f64 {
    let n = want.rows();
    let mut most = 0.0f64;
    for i in 0..n {
        for j in 0..n {
            let dot: f64 = left.row(i).iter().zip(right.row(j)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            most = most.max((dot - f64::from(want.row(i)[j])).abs());
        }
    }
    most
}

fn identity(n: usize) -> Matrix {
    let mut a = Matrix::zeros(n, n);
    (0..n).for_each(|i| a.row_mut(i)[i] = 1.0);
    a
}

#[test]
fn factors_and_inverses() {
    for n in [1, 16, 100, 128, 300] {
        let cpu = Cpu::new(2);
        let a = positive(n);
        let mut c = a.clone();
        cholesky(&cpu, &mut c).unwrap().unwrap();
        assert!((0..n).all(|i| c.row(i)[i] > 0.0 && c.row(i)[i + 1..].iter().all(|v| *v == 0.0)), "{n}");
        assert!(error(&c, &c, &a) < 1e-5, "{n}: {}", error(&c, &c, &a));

        let u = inverse_transposed(&cpu, &c).unwrap();
        assert!((0..n).all(|i| u.row(i)[..i].iter().all(|v| *v == 0.0)), "{n}");
        // C U^T = C C^-1.
        assert!(error(&c, &u, &identity(n)) < 1e-4, "{n}: {}", error(&c, &u, &identity(n)));
        let inverse = inverse(&cpu, &c).unwrap();
        assert_eq!(inverse, inverse.transposed(), "{n}");
        assert!(error(&a, &inverse, &identity(n)) < 1e-3, "{n}: {}", error(&a, &inverse, &identity(n)));
    }
}

#[test]
fn block_ldl_of_a_matrix() {
    let (cpu, n, block) = (Cpu::new(2), 160, 16);
    let a = positive(n);
    let mut c = a.clone();
    cholesky(&cpu, &mut c).unwrap().unwrap();
    let mut l = c.clone();
    block_ldl(&cpu, &mut l, block);
    // L D, with D_i = C_ii C_ii^T.
    let mut ld = Matrix::zeros(n, n);
    for r in 0..n {
        for j in 0..n {
            let from = j / block * block;
            let d = |k: usize| (from..from + block).map(|m| c.row(k)[m] * c.row(j)[m]).sum::<f32>();
            ld.row_mut(r)[j] = (from..from + block).map(|k| l.row(r)[k] * d(k)).sum();
        }
        for (i, part) in l.row(r).chunks(block).enumerate().skip(r / block) {
            let want = |c: usize| if i * block + c == r { 1.0 } else { 0.0 };
            assert!(part.iter().enumerate().all(|(c, v)| *v == want(c)), "row {r}, block {i}");
        }
    }
    assert!(error(&ld, &l, &a) < 1e-5, "{}", error(&ld, &l, &a));
}

#[test]
fn matrices_without_a_factor() {
    let cpu = Cpu::new(2);
    for bad in [-1.0, 0.0, f32::NAN, f32::INFINITY] {
        for at in [0, 5, 140] {
            let mut a = identity(150);
            a.row_mut(at)[at] = bad;
            assert_eq!(cholesky(&cpu, &mut a).unwrap(), Err(NotPositive { row: at }), "{bad}");
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let all = |threads| {
        let cpu: &dyn Compute = &Cpu::new(threads);
        let mut c = positive(200);
        cholesky(cpu, &mut c).unwrap().unwrap();
        let mut l = c.clone();
        block_ldl(cpu, &mut l, 16);
        (inverse(cpu, &c).unwrap(), c, l)
    };
    assert_eq!(all(1), all(3));
}
