//! GPTQ against the recursion as the paper has it, in f64, and against rounding to nearest.

use marlin_checkpoint::weight::hadamard;
use marlin_cpu::Cpu;

use super::{Normal, hessian, loss};
use crate::grouped::inputs::{Preparation, Prepared, inputs, normalised};
use crate::grouped::{Factor, Format, Grouped, Order, Rounder, Rounding};
use crate::{Hessian, Matrix, Method};

const DAMPING: f32 = 0.01;

fn quantise(format: Format, factor: Factor, rounder: Rounder, weight: &Matrix, seen: Option<&Hessian>) -> Matrix {
    Grouped { format, factor, rounder }.quantise(&Cpu::new(2), "m", weight, seen).unwrap().decoded
}

fn gptq(order: Order) -> Rounder {
    Rounder::Gptq { damping: DAMPING, order }
}

/// The inverse by Gauss and Jordan.
fn inverse(a: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = a.len();
    let mut rows: Vec<Vec<f64>> = a
        .iter()
        .enumerate()
        .map(|(i, row)| row.iter().copied().chain((0..n).map(|j| if i == j { 1.0 } else { 0.0 })).collect())
        .collect();
    for i in 0..n {
        let best = (i..n).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs())).unwrap();
        rows.swap(i, best);
        let pivot = rows[i][i];
        rows[i].iter_mut().for_each(|v| *v /= pivot);
        let line = rows[i].clone();
        for (r, row) in rows.iter_mut().enumerate() {
            let factor = row[i];
            if r != i {
                row.iter_mut().zip(&line).for_each(|(v, l)| *v -= factor * l);
            }
        }
    }
    rows.into_iter().map(|row| row[n..].to_vec()).collect()
}

/// `U` with `U^T U = a`.
fn upper(a: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let n = a.len();
    let mut u = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in i..n {
            let sum: f64 = (0..i).map(|k| u[k][i] * u[k][j]).sum();
            u[i][j] = if i == j { (a[i][i] - sum).sqrt() } else { (a[i][j] - sum) / u[i][i] };
        }
    }
    u
}

/// Symmetric integers: the factor from the largest magnitude, in f16.
fn factor(weights: &[f64], bits: u32) -> f64 {
    let most = weights.iter().fold(0.0f64, |m, w| m.max(w.abs()));
    half::f16::from_f64(most / f64::from((1 << (bits - 1)) - 1)).to_f64()
}

fn round(w: f64, scale: f64, bits: u32) -> f64 {
    let half = f64::from(1 << (bits - 1));
    scale * (w / scale).round_ties_even().clamp(-half, half - 1.0)
}

/// The whole algorithm for one row at a time, every error carried at once to all that follows.
fn textbook(weight: &Matrix, seen: &Hessian, bits: u32, group: usize, order: Order) -> Vec<f64> {
    let n = weight.cols();
    let mut h: Vec<Vec<f64>> = (0..n).map(|i| seen.sums().row(i).iter().map(|v| f64::from(*v)).collect()).collect();
    let mut places: Vec<usize> = (0..n).collect();
    if order != Order::Natural {
        places.sort_by(|a, b| h[*b][*b].total_cmp(&h[*a][*a]));
    }
    let damp = f64::from(DAMPING) * (0..n).map(|i| h[i][i]).sum::<f64>() / n as f64;
    (0..n).for_each(|i| h[i][i] += damp);
    let h: Vec<Vec<f64>> = places.iter().map(|i| places.iter().map(|j| h[*i][*j]).collect()).collect();
    let u = upper(&inverse(&h));
    let mut all = Vec::new();
    for r in 0..weight.rows() {
        let original: Vec<f64> = weight.row(r).iter().map(|w| f64::from(*w)).collect();
        let mut w: Vec<f64> = places.iter().map(|i| original[*i]).collect();
        let mut decoded = vec![0.0; n];
        let mut scale = 0.0;
        for i in 0..n {
            if order == Order::Activation {
                let first = places[i] / group * group;
                scale = factor(&original[first..first + group], bits);
            } else if i % group == 0 {
                scale = factor(&w[i..i + group], bits);
            }
            let q = round(w[i], scale, bits);
            decoded[places[i]] = q;
            let error = (w[i] - q) / u[i][i];
            (i + 1..n).for_each(|j| w[j] -= error * u[i][j]);
        }
        all.extend(decoded);
    }
    all
}

/// Blocks of 128 inputs, groups below, above and across them, in every order.
#[test]
fn as_the_textbook_has_it() {
    let orders = [Order::Natural, Order::Activation, Order::ActivationGroups];
    for (case, (cols, group)) in
        [(24, 8), (64, 64), (320, 32), (288, 96), (384, 192), (352, 352)].into_iter().enumerate()
    {
        let mut normal = Normal(20 + case as u64);
        let weight = normal.matrix(8, cols);
        let seen = hessian(&normal.inputs(2 * cols, cols));
        for order in orders {
            let format = Format::Gptq { bits: 4, symmetric: true, group: Some(group) };
            let found = quantise(format, Factor::Largest, gptq(order), &weight, Some(&seen));
            let expected = textbook(&weight, &seen, 4, group, order);
            // Sums of f32 may tip a weight that lies between two values, which then tips others of its row.
            let rows = found.data().chunks(cols).zip(expected.chunks(cols));
            let same = rows.filter(|(a, b)| a.iter().zip(*b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-5)).count();
            assert!(same >= 7, "{cols} inputs in groups of {group}, {order:?}: {same} of 8 rows agree");
        }
    }
}

/// With inputs that do not resemble each other there is nothing to make up for.
#[test]
fn without_correlation_it_is_rounding_to_nearest() {
    let weight = Normal(40).matrix(64, 192);
    let mut sums = Matrix::zeros(192, 192);
    (0..192).for_each(|i| sums.row_mut(i)[i] = 3.0);
    let seen = Hessian::from_sums(sums, 192.0).unwrap();
    for format in [
        Format::Gptq { bits: 3, symmetric: true, group: Some(64) },
        Format::Packed { bits: 4, symmetric: false, group: Some(48) },
        Format::Mlx { bits: 5, group: 32, rounding: Rounding::BF16 },
        Format::Fp4 { group: 64, rotation: None },
        Format::Fp4 { group: 32, rotation: Some(64) },
        Format::Nvfp4,
        Format::Mxfp4,
    ] {
        for factor in [Factor::Largest, Factor::Search] {
            let expected = quantise(format, factor, Rounder::Nearest, &weight, None);
            for order in [Order::Natural, Order::Activation] {
                let found = quantise(format, factor, gptq(order), &weight, Some(&seen));
                if matches!(format, Format::Fp4 { rotation: Some(_), .. }) {
                    // The rotated Hessian is a multiple of the identity up to rounding.
                    let off =
                        found.data().iter().zip(expected.data()).filter(|(a, b)| (**a - **b).abs() > 1e-5).count();
                    assert!(off * 1000 < found.data().len(), "{}: {off}", format.name());
                } else {
                    assert_eq!(found, expected, "{} {order:?}", format.name());
                }
            }
        }
    }
}

#[test]
fn correlated_inputs_lose_less() {
    let mut normal = Normal(50);
    let weight = normal.matrix(64, 256);
    let seen = hessian(&normal.inputs(2000, 256));
    let fp4 = |rotation| Format::Fp4 { group: 128, rotation };
    for (format, part) in [
        (Format::Gptq { bits: 4, symmetric: true, group: Some(128) }, 0.6),
        (Format::Gptq { bits: 3, symmetric: false, group: Some(64) }, 0.6),
        (Format::Packed { bits: 2, symmetric: false, group: Some(64) }, 0.8),
        (Format::Mlx { bits: 4, group: 64, rounding: Rounding::F16 }, 0.6),
        (fp4(None), 0.6),
        (fp4(Some(64)), 0.6),
        (Format::Nvfp4, 0.6),
        (Format::Mxfp4, 0.6),
    ] {
        let loss = |rounder, seen2| loss(&weight, &quantise(format, Factor::Search, rounder, &weight, seen2), &seen);
        let plain = loss(Rounder::Nearest, None);
        let weighted = loss(Rounder::Nearest, Some(&seen));
        let natural = loss(gptq(Order::Natural), Some(&seen));
        let ordered = loss(gptq(Order::Activation), Some(&seen));
        println!("{:36} {plain:11.0} {weighted:11.0} {natural:11.0} {ordered:11.0}", format.name());
        assert!(weighted < 1.02 * plain, "{}: {weighted}, {plain}", format.name());
        assert!(natural < part * plain && ordered < part * plain, "{}: {natural}, {ordered}, {plain}", format.name());
    }
}

/// Weights and inputs rotated by hand, quantised without a rotation, and turned back.
#[test]
fn rotated_as_by_hand() {
    let mut normal = Normal(60);
    let (weight, inputs) = (normal.matrix(16, 128), normal.inputs(600, 128));
    let turn = |m: &Matrix| {
        let mut m = m.clone();
        (0..m.rows()).for_each(|r| hadamard(m.row_mut(r), 64));
        m
    };
    let format = |rotation| Format::Fp4 { group: 32, rotation };
    let found = quantise(format(Some(64)), Factor::Search, gptq(Order::Natural), &weight, Some(&hessian(&inputs)));
    let by_hand =
        quantise(format(None), Factor::Search, gptq(Order::Natural), &turn(&weight), Some(&hessian(&turn(&inputs))));
    let expected = turn(&by_hand);
    let rows = (0..16).filter(|r| found.row(*r).iter().zip(expected.row(*r)).all(|(a, b)| (a - b).abs() < 1e-4));
    assert!(rows.count() >= 14);
}

/// An input that is always zero: its weights do not count, and become zero.
#[test]
fn dead_inputs() {
    let mut normal = Normal(70);
    let weight = normal.matrix(8, 64);
    let mut inputs = normal.inputs(300, 64);
    (0..300).for_each(|t| inputs.row_mut(t)[9] = 0.0);
    let seen = hessian(&inputs);
    let format = Format::Gptq { bits: 4, symmetric: true, group: Some(32) };
    for order in [Order::Natural, Order::Activation, Order::ActivationGroups] {
        let found = quantise(format, Factor::Search, gptq(order), &weight, Some(&seen));
        assert!((0..8).all(|r| found.row(r)[9] == 0.0), "{order:?}");
        assert!((0..8).any(|r| found.row(r)[10] != 0.0), "{order:?}");
    }
}

#[test]
fn threads_do_not_matter() {
    let mut normal = Normal(80);
    let weight = normal.matrix(70, 320);
    let seen = hessian(&normal.inputs(400, 320));
    for rounder in [Rounder::Nearest, gptq(Order::Activation)] {
        let method = Grouped { format: Format::Fp4 { group: 64, rotation: Some(64) }, factor: Factor::Search, rounder };
        let one = method.quantise(&Cpu::new(1), "m", &weight, Some(&seen)).unwrap();
        let three = method.quantise(&Cpu::new(3), "m", &weight, Some(&seen)).unwrap();
        assert_eq!(one.tensors, three.tensors);
        assert_eq!(one.decoded, three.decoded);
    }
}

#[test]
fn linears_with_the_same_inputs_share_the_factorisation() {
    let mut normal = Normal(81);
    let weights = [normal.matrix(48, 128), normal.matrix(16, 128)];
    let mut x = normal.inputs(300, 128);
    // An input that was always zero.
    (0..300).for_each(|row| x.row_mut(row)[7] = 0.0);
    let shared = hessian(&x);
    let method = |order, rotation| Grouped {
        format: Format::Fp4 { group: 64, rotation },
        factor: Factor::Search,
        rounder: gptq(order),
    };
    for method in [method(Order::Natural, None), method(Order::Natural, Some(64)), method(Order::Activation, Some(64))]
    {
        for weight in &weights {
            let own = method.quantise(&Cpu::new(2), "m", weight, Some(&shared.clone())).unwrap();
            let found = method.quantise(&Cpu::new(2), "m", weight, Some(&shared)).unwrap();
            assert_eq!((own.tensors, own.decoded), (found.tensors, found.decoded));
        }
    }
    // Made once for settings, and again when they or the sums change.
    let settings = |damping| Preparation { rotation: None, damping, order: Order::Natural };
    let mut made = 0;
    let mut ask = |hessian: &Hessian, damping| {
        let (h, dead) = normalised("m", hessian).unwrap();
        let make = || {
            made += 1;
            Ok(Prepared { dead, inputs: inputs(&Cpu::new(1), "m", h, damping, Order::Natural)? })
        };
        hessian.prepared(settings(damping), make).unwrap();
        made
    };
    let mut other = shared.clone();
    assert_eq!([ask(&other, 0.1), ask(&other, 0.1), ask(&other, 0.2), ask(&other, 0.2)], [1, 1, 2, 2]);
    other.parts_mut().0.row_mut(0)[0] *= 2.0;
    assert_eq!(ask(&other, 0.2), 3);
}
