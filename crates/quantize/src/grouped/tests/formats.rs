//! What is written, read back, and what cannot be written.

use marlin_checkpoint::DType;
use marlin_cpu::Cpu;
use serde_json::Value;

use super::{Normal, hessian, read};
use crate::grouped::{Factor, Format, Grouped, Order, Rounder, Rounding, settings, stack};
use crate::{Hessian, Matrix, Method, Quantised};

/// Every kind of format, bits and group.
fn formats() -> Vec<(Format, &'static str)> {
    let mut formats = Vec::new();
    for group in [None, Some(16), Some(32), Some(64), Some(96)] {
        for symmetric in [true, false] {
            formats.extend([2, 3, 4, 8].map(|bits| (Format::Gptq { bits, symmetric, group }, "gptq")));
            formats.extend((2..=8).map(|bits| (Format::Packed { bits, symmetric, group }, "compressed-tensors")));
        }
    }
    for (group, rounding) in [(32, Rounding::F16), (64, Rounding::BF16)] {
        formats.extend([2, 3, 4, 5, 6, 8].map(|bits| (Format::Mlx { bits, group, rounding }, "mlx")));
    }
    formats.push((Format::MlxMxfp4, "mlx"));
    for (group, rotation) in [(16, None), (32, Some(64)), (64, None), (64, Some(64)), (192, Some(32))] {
        formats.push((Format::Fp4 { group, rotation }, "fp4"));
    }
    formats.extend([(Format::Nvfp4, "nvfp4"), (Format::Mxfp4, "mxfp4")]);
    formats
}

fn config(method: Grouped) -> Value {
    Value::Object(settings(&[("m".to_owned(), Some(method))]).unwrap())
}

#[test]
fn what_is_written_is_read() {
    let cpu = Cpu::new(2);
    let mut normal = Normal(2);
    let weight = normal.matrix(64, 192);
    let seen = hessian(&normal.inputs(300, 192));
    let orders = [Order::Natural, Order::Activation, Order::ActivationGroups];
    for (format, scheme) in formats() {
        for rounder in orders.map(|order| Rounder::Gptq { damping: 0.01, order }).into_iter().chain([Rounder::Nearest])
        {
            let method = Grouped { format, factor: Factor::Search, rounder };
            let result = method.quantise(&cpu, "m", &weight, Some(&seen));
            if matches!(rounder, Rounder::Gptq { order: Order::ActivationGroups, .. }) && scheme != "gptq" {
                let refused = result.unwrap_err().to_string();
                assert!(refused.contains("static groups"), "{refused}");
                continue;
            }
            let quantised = result.unwrap_or_else(|e| panic!("{}: {e}", method.name()));
            assert_eq!(quantised.bits(), format.stored_bits([64, 192]), "{}", method.name());
            let (found, values) = read("m", &quantised, &config(method));
            assert_eq!(found, scheme, "{}", method.name());
            assert_eq!(values, quantised.decoded.data(), "{}", method.name());
        }
    }
}

fn nearest(format: Format, weight: &Matrix) -> Quantised {
    Grouped { format, factor: Factor::Largest, rounder: Rounder::Nearest }
        .quantise(&Cpu::new(1), "m", weight, None)
        .unwrap()
}

fn words(quantised: &Quantised, suffix: &str) -> Vec<u32> {
    let tensor = quantised.tensors.iter().find(|t| t.suffix == suffix).unwrap();
    tensor.data.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
}

/// A row of MLX's own example: 32 values from -1 to 2.
#[test]
fn mlx_of_a_line() {
    let line: Vec<f32> = (0..32).map(|i| -1.0 + 3.0 * i as f32 / 31.0).collect();
    let weight = Matrix::new(1, 32, line).unwrap();
    let quantised = nearest(Format::Mlx { bits: 4, group: 32, rounding: Rounding::F16 }, &weight);
    let half = |suffix: &str| {
        let tensor = quantised.tensors.iter().find(|t| t.suffix == suffix).unwrap();
        assert_eq!((tensor.dtype, &tensor.shape[..]), (DType::F16, &[1, 1][..]));
        half::f16::from_le_bytes([tensor.data[0], tensor.data[1]])
    };
    assert_eq!((half("scales"), half("biases")), (half::f16::from_f32(-0.2), half::f16::from_f32(2.0)));
    let codes: Vec<u32> =
        words(&quantised, "weight").iter().flat_map(|w| (0..8).map(move |i| w >> (4 * i) & 15)).collect();
    assert_eq!((codes[0], codes[1], codes[2], codes[31]), (15, 15, 14, 0));
    assert!(codes.is_sorted_by(|a, b| a >= b));
}

/// Words of GPTQ's files: codes one above another, zero points less one beside each other.
#[test]
fn words_of_gptq() {
    // Steps of 1 from -7 to 7, so that the factor is 1 and code k stands for k - 8.
    let row: Vec<f32> = (0..32).map(|i| [-7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 7.0][i % 8]).collect();
    let weight = Matrix::new(8, 32, row.repeat(8)).unwrap();
    let quantised = nearest(Format::Gptq { bits: 4, symmetric: true, group: Some(16) }, &weight);
    assert_eq!(words(&quantised, "qweight"), vec![0xf765_4321; 4 * 8]);
    assert_eq!(words(&quantised, "qzeros"), [0x7777_7777; 2]);
    assert_eq!(words(&quantised, "g_idx"), [vec![0; 16], vec![1; 16]].concat());
    let scales = quantised.tensors.iter().find(|t| t.suffix == "scales").unwrap();
    assert_eq!((&scales.shape[..], &scales.data[..]), (&[2, 8][..], &[0x00, 0x3c].repeat(16)[..]));
    // Three bits: 32 codes in three words; codes 1 to 7 stand for -3 to 3.
    let row: Vec<f32> = (0..32).map(|i| [3.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0][i % 8]).collect();
    let weight = Matrix::new(32, 32, row.repeat(32)).unwrap();
    let quantised = nearest(Format::Gptq { bits: 3, symmetric: true, group: None }, &weight);
    // As 0..7 in the published example, 88fac688 c688fac6 fac688fa, with 7 instead of 0.
    let stream = [0x88fa_c688_u32, 0xc688_fac6, 0xfac6_88fa];
    let sevens = |word: usize| (0..32).filter(|bit| (32 * word + bit) % 24 < 3).fold(0, |all, bit| all | 1u32 << bit);
    let expected: Vec<u32> = (0..3).flat_map(|w| vec![stream[w] | sevens(w); 32]).collect();
    assert_eq!(words(&quantised, "qweight"), expected);
}

/// One group of each kind of FP4, computed by hand.
#[test]
fn bytes_of_fp4() {
    let row: Vec<f32> = (0..32).map(|i| [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.5][i % 8]).collect();
    let weight = Matrix::new(1, 32, row.clone()).unwrap();
    let own = nearest(Format::Fp4 { group: 32, rotation: None }, &weight);
    assert_eq!(words(&own, "weight"), [0x9765_4321; 4]);
    assert_eq!(words(&own, "weight.group_size"), [32]);
    assert_eq!(own.decoded.data(), row);
    let bytes = |quantised: &Quantised, suffix: &str| -> Vec<u8> {
        quantised.tensors.iter().find(|t| t.suffix == suffix).unwrap().data.clone()
    };
    let mx = nearest(Format::Mxfp4, &weight);
    assert_eq!(bytes(&mx, "weight_packed"), [0x21, 0x43, 0x65, 0x97].repeat(4));
    assert_eq!(bytes(&mx, "weight_scale"), [127]);
    // The largest of the tensor is 6: the divisor is 448, and so is the factor of each group.
    let nv = nearest(Format::Nvfp4, &weight);
    assert_eq!(bytes(&nv, "weight_packed"), [0x21, 0x43, 0x65, 0x97].repeat(4));
    assert_eq!(bytes(&nv, "weight_scale"), [0x7e; 2]);
    assert_eq!(bytes(&nv, "weight_global_scale"), 448f32.to_le_bytes());
}

#[test]
fn groups_of_zeros_are_zeros() {
    let mut weight = Normal(3).matrix(32, 192);
    weight.data_mut()[..3 * 192 + 64].fill(0.0);
    for (format, _) in formats() {
        for factor in [Factor::Largest, Factor::Search] {
            let method = Grouped { format, factor, rounder: Rounder::Nearest };
            let quantised = method.quantise(&Cpu::new(1), "m", &weight, None).unwrap();
            assert!(quantised.decoded.data()[..3 * 192].iter().all(|v| *v == 0.0), "{}", method.name());
            assert_eq!(read("m", &quantised, &config(method)).1, quantised.decoded.data(), "{}", method.name());
        }
    }
}

#[test]
fn stacks_of_experts() {
    let format = Format::Mlx { bits: 3, group: 32, rounding: Rounding::BF16 };
    let experts = [4, 5].map(|seed| nearest(format, &Normal(seed).matrix(16, 64)).tensors);
    let stacked = stack(&experts).unwrap();
    assert_eq!(stacked[0].shape, [2, 16, 6]);
    assert_eq!(stacked[1].shape, [2, 16, 2]);
    for (i, tensor) in stacked.iter().enumerate() {
        assert_eq!(tensor.data, [&experts[0][i].data[..], &experts[1][i].data[..]].concat());
    }
    let other = nearest(Format::Mlx { bits: 4, group: 32, rounding: Rounding::BF16 }, &Normal(6).matrix(16, 64));
    let refused = stack(&[experts[0].clone(), other.tensors]).unwrap_err().to_string();
    assert!(refused.contains("[16, 6]") && refused.contains("[16, 8] in expert 1"), "{refused}");
    assert!(stack(&[]).is_err());
}

#[test]
fn what_cannot_be_written() {
    let cpu = Cpu::new(1);
    let refused = |format: Format, weight: &Matrix, hessian: Option<&Hessian>| {
        let method = Grouped { format, factor: Factor::Search, rounder: Rounder::GPTQ };
        method.quantise(&cpu, "model.up_proj", weight, hessian).unwrap_err().to_string()
    };
    let weight = Normal(7).matrix(32, 192);
    let gptq = |bits, group| Format::Gptq { bits, symmetric: true, group };
    for (format, expected) in [
        (gptq(4, Some(128)), "model.up_proj: groups of 128 do not divide its 192 inputs"),
        (gptq(5, None), "bits: expected one of [2, 3, 4, 8]"),
        (gptq(4, Some(0)), "group: expected at least 1"),
        (Format::Packed { bits: 9, symmetric: true, group: None }, "found 9"),
        (Format::Mlx { bits: 4, group: 16, rounding: Rounding::F16 }, "group: expected 32, 64 or 128"),
        (Format::Fp4 { group: 64, rotation: Some(48) }, "a rotation of 48 is no power of two"),
        (Format::Fp4 { group: 64, rotation: Some(128) }, "a rotation of 128 is no power of two that divides its 192"),
        (Format::Fp4 { group: 12, rotation: None }, "group: expected 16 to 256"),
    ] {
        let found = refused(format, &weight, None);
        assert!(found.contains(expected), "{found}");
    }
    let found = refused(gptq(3, None), &Normal(8).matrix(20, 192), None);
    assert!(found.contains("[20, 192] codes of 3 bits are no whole 32-bit words"), "{found}");
    let mut bad = weight.clone();
    bad.data_mut()[2 * 192 + 5] = f32::NAN;
    assert_eq!(refused(gptq(4, None), &bad, None), "model.up_proj: weight [2, 5] is not a finite number");
    bad.data_mut()[2 * 192 + 5] = 1e30;
    assert!(refused(gptq(4, None), &bad, None).contains("too large for the factors"));
    let seen = Hessian::new(192);
    assert!(refused(gptq(4, None), &weight, Some(&seen)).contains("has seen no inputs"));
    assert!(
        refused(gptq(4, None), &weight, Some(&Hessian::new(64))).contains("a Hessian of 192 inputs, found one of 64")
    );
    let mut sums = Matrix::zeros(192, 192);
    (0..192).for_each(|i| sums.row_mut(i)[i] = 1.0);
    sums.row_mut(7)[7] = f32::INFINITY;
    let seen = Hessian::from_sums(sums, 1.0).unwrap();
    assert!(refused(gptq(4, None), &weight, Some(&seen)).contains("not finite"));
    let mut sums = Matrix::zeros(192, 192);
    (0..192).for_each(|i| sums.row_mut(i).fill(-5.0));
    (0..192).for_each(|i| sums.row_mut(i)[i] = 1.0);
    let seen = Hessian::from_sums(sums, 1.0).unwrap();
    assert!(refused(gptq(4, None), &weight, Some(&seen)).contains("not positive definite"));
    let damped = Grouped {
        format: gptq(4, None),
        factor: Factor::Search,
        rounder: Rounder::Gptq { damping: f32::NAN, order: Order::Natural },
    };
    assert!(damped.quantise(&cpu, "m", &weight, None).unwrap_err().to_string().contains("damping: expected 0 to 1"));
}
