//! Decoders and products against the checkpoint's plain reference and an independent implementation's vectors.

use super::*;
use crate::linear::Out;
use crate::linear::tests::{Rng, levels};
use crate::ops::hadamard::Rotation;
use crate::{Cpu, Level, Mode};
use half::{bf16, f16};
use marlin_checkpoint::weight::{Codebook, InputTransform, OutputTransform, trellis};
use marlin_checkpoint::{Bytes, DType, Linear, Store, Tensor, TensorInfo, TensorSource, Trellis, Weight};
use std::path::Path;

const BOOKS: [Codebook; 3] = [Codebook::Mul1, Codebook::Mcg, Codebook::ThreeInst];

fn stored(rows: usize, cols: usize, bits: usize, words: Vec<u8>, codebook: Codebook) -> Trellis {
    let shape = vec![cols / 16, rows / 16, 16 * bits];
    let info = TensorInfo { name: "x.trellis".into(), dtype: DType::I16, shape };
    Trellis::new(Tensor { info, data: Bytes::from(words) }, codebook).unwrap()
}

fn random(rows: usize, cols: usize, bits: usize, codebook: Codebook, seed: u64) -> Trellis {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..rows * cols * bits / 8)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as u8
        })
        .collect();
    stored(rows, cols, bits, words, codebook)
}

/// The matrix `[rows, cols]` by the checkpoint's reference.
fn reference(w: &Trellis) -> Vec<f32> {
    Weight::Trellis(w.clone()).dequantize().unwrap()
}

/// All values through the panels of halves, as a matrix of `f16` bits `[rows, cols]`.
fn halves(cpu: &Cpu, mat: &TrellisMat) -> Vec<u16> {
    let (rows, cols) = (mat.rows(), mat.cols());
    let mut out = vec![0; rows * cols];
    let (mut a, mut b) = (vec![0; cols * 16], vec![0; cols * 16]);
    for pair in 0..rows.div_ceil(32) {
        mat.decode_panel_f16(cpu, pair, 0..cols, [&mut a, &mut b]).unwrap();
        for (n, panel) in [(32 * pair, &a), (32 * pair + 16, &b)] {
            for n in n..(n + 16).min(rows) {
                (0..cols).for_each(|k| out[n * cols + k] = panel[k * 16 + n % 16]);
            }
        }
    }
    out
}

/// Tiles that an independent implementation made and decoded, decoded by this one on every level.
#[test]
fn published_tiles_bit_for_bit() {
    let text = include_str!("../../../checkpoint/src/weight/testdata/exl3-tiles.txt");
    let words = |line: &str| line.split_whitespace().map(|w| u16::from_str_radix(w, 16).unwrap()).collect::<Vec<_>>();
    let mut lines = text.lines().filter(|l| !l.starts_with('#') && !l.is_empty());
    let mut count = 0;
    while let (Some(tile), Some(stream), Some(seq)) = (lines.next(), lines.next(), lines.next()) {
        let parts: Vec<&str> = tile.split(' ').collect();
        let bits: usize = parts[1].parse().unwrap();
        let book = match parts[2] {
            "3inst" => Codebook::ThreeInst,
            "mcg" => Codebook::Mcg,
            _ => Codebook::Mul1,
        };
        let (sum, row0): (f64, f64) = (parts[3].parse().unwrap(), parts[4].parse().unwrap());
        let stream: Vec<u8> = words(&stream[4..]).iter().flat_map(|w| w.to_le_bytes()).collect();
        let seq = words(&seq[4..]);
        for cpu in levels() {
            let mat = TrellisMat::new(&cpu, &stored(16, 16, bits, stream.clone(), book)).unwrap();
            let got = halves(&cpu, &mat);
            let at = |input: usize, output: usize| got[output * 16 + input];
            let first =
                [(0, 0), (1, 0), (8, 0), (9, 0), (0, 8), (1, 8), (8, 8), (9, 8), (2, 0), (3, 0), (10, 0), (11, 0)];
            let last = [(2, 8), (3, 8), (10, 8), (11, 8)];
            let order: Vec<u16> = first.into_iter().chain(last).map(|(i, o)| at(i, o)).collect();
            assert_eq!(order, seq, "{bits} bits, {book:?}, {}", cpu.level());
            let total: f64 = got.iter().map(|v| f16::from_bits(*v).to_f64()).sum();
            let top: f64 = (0..16).map(|o| f16::from_bits(at(0, o)).to_f64()).sum();
            assert!((total - sum).abs() < 1e-8 && (top - row0).abs() < 1e-8, "{bits} bits, {book:?}, {}", cpu.level());
        }
        count += 1;
    }
    assert_eq!(count, 12);
}

#[test]
fn every_panel_of_every_kind() {
    for cpu in levels() {
        for book in BOOKS {
            for bits in 1..=8 {
                let (rows, cols) = (80, 208);
                let w = random(rows, cols, bits, book, bits as u64);
                let want = reference(&w);
                let mat = TrellisMat::new(&cpu, &w).unwrap();
                let label = format!("{bits} bits, {book:?}, {}", cpu.level());
                for (got, want) in halves(&cpu, &mat).iter().zip(&want) {
                    assert_eq!(f16::from_bits(*got).to_f32(), *want, "{label}");
                }
                // A part of the inputs, as f32, bf16 and bytes.
                let (from, to, pair) = (48, 176, 1);
                let n = (to - from) * 16;
                let (mut a, mut b) = (vec![0.0f32; n], vec![0.0f32; n]);
                let (mut c, mut d) = (vec![0u16; n], vec![0u16; n]);
                let (mut e, mut f) = (vec![0u8; n], vec![0u8; n]);
                mat.decode_panel_f32(&cpu, pair, from..to, [&mut a, &mut b]).unwrap();
                mat.decode_panel_bf16(&cpu, pair, from..to, [&mut c, &mut d]).unwrap();
                mat.decode_panel_u8(&cpu, pair, from..to, [&mut e, &mut f]).unwrap();
                let scale = mat.byte_scale();
                let (mut bias, mut square) = (0.0f64, 0.0f64);
                for output in 0..32 {
                    let (single, pairs, bytes) = if output < 16 { (&a, &c, &e) } else { (&b, &d, &f) };
                    let o = output % 16;
                    for k in 0..to - from {
                        let want = want[(32 * pair + output) * cols + from + k];
                        assert_eq!(single[k * 16 + o], want, "{label}");
                        assert_eq!(pairs[k / 2 * 32 + 2 * o + k % 2], bf16::from_f32(want).to_bits(), "{label}");
                        let byte = bytes[k / 4 * 64 + 4 * o + k % 4];
                        let error = f64::from((f32::from(byte) - scale.zero) * scale.step - want);
                        assert!(error.abs() < 0.85 * f64::from(scale.step), "{label}: {byte} for {want}");
                        bias += error;
                        square += error * error;
                    }
                }
                let count = (32 * (to - from)) as f64;
                assert!(bias.abs() / count < 0.03 * f64::from(scale.step), "{label}: bias {}", bias / count);
                assert!((square / count).sqrt() < 0.011, "{label}: error {}", (square / count).sqrt());
            }
        }
    }
}

/// RMS of the difference over RMS of the wanted.
fn distance(got: &[f32], want: &[f64]) -> f64 {
    let error: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    (error / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

fn plain_product(want: &[f32], x: &[f32], m: usize, cols: usize) -> Vec<f64> {
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
    (0..m).flat_map(|r| want.chunks_exact(cols).map(move |w| dot(&x[r * cols..][..cols], w))).collect()
}

fn product(cpu: &Cpu, precision: Precision, mat: &TrellisMat, x: &[f32], m: usize) -> Vec<f32> {
    let mut buf = TrellisActsBuf::default();
    let acts = buf.prepare(cpu, precision, None, x, m, mat.cols(), mat.cols(), mat.cols()).unwrap();
    let mut out = vec![f32::NAN; m * mat.rows()];
    trellis_linears(cpu, &[TrellisJob::new(acts, mat, Out::new(&mut out, mat.rows()))]).unwrap();
    out
}

/// What a precision may be away from the exact product on this machine.
fn tolerance(cpu: &Cpu, precision: Precision) -> f64 {
    match precision {
        Precision::Exact => 2e-6,
        Precision::Int16 => 1e-3,
        Precision::Bf16 if cpu.level() == Level::Amx => 0.005,
        Precision::Bf16 | Precision::Int8 => 0.02,
    }
}

#[test]
fn products_of_every_kind() {
    let mut rng = Rng(3);
    for book in BOOKS {
        for bits in 1..=8 {
            for (rows, cols) in [(16, 16), (48, 80), (128, 256), (144, 1040)] {
                let w = random(rows, cols, bits, book, (rows + bits) as u64);
                let matrix = reference(&w);
                for m in [1, 2, 3, 4, 5, 17, 64] {
                    if m == 64 && bits % 3 != 0 {
                        continue;
                    }
                    let x = rng.vec(m * cols);
                    let want = plain_product(&matrix, &x, m, cols);
                    let mut exact: Option<Vec<f32>> = None;
                    for cpu in levels() {
                        let mat = TrellisMat::new(&cpu, &w).unwrap();
                        for precision in [Precision::Exact, Precision::Int16, Precision::Int8, Precision::Bf16] {
                            let got = product(&cpu, precision, &mat, &x, m);
                            let d = distance(&got, &want);
                            let label = format!("{bits} bits, {book:?}, {rows}x{cols}, {m} rows, {}", cpu.level());
                            assert!(d < tolerance(&cpu, precision), "{label}, {precision:?}: {d}");
                            if precision == Precision::Exact {
                                let first = exact.get_or_insert_with(|| got.clone());
                                assert!(got.iter().zip(first).all(|(a, b)| a.to_bits() == b.to_bits()), "{label}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// How close the fast products are: rotated activations are close to normal, and rows of a model are long.
#[test]
fn sixteen_bits_are_enough() {
    let mut rng = Rng(4);
    for book in BOOKS {
        let (rows, cols) = (128, 6144);
        let w = random(rows, cols, 3, book, 9);
        let x: Vec<f32> = (0..cols).map(|_| (0..6).map(|_| rng.next()).sum()).collect();
        let want = plain_product(&reference(&w), &x, 1, cols);
        for cpu in levels() {
            let mat = TrellisMat::new(&cpu, &w).unwrap();
            let fine = distance(&product(&cpu, Precision::Int16, &mat, &x, 1), &want);
            assert!(fine < 5e-4, "{book:?}, {}: {fine}", cpu.level());
            let coarse = distance(&product(&cpu, Precision::Int8, &mat, &x, 1), &want);
            assert!(coarse < 0.018, "{book:?}, {}: {coarse}", cpu.level());
            println!("{book:?}, {}: 16 bits {fine:.2e}, 8 bits {coarse:.2e}", cpu.level());
        }
    }
}

/// The greatest values that a sum must hold, and none at all.
#[test]
fn extreme_activations() {
    for book in BOOKS {
        let (rows, cols) = (32, 256);
        let w = random(rows, cols, 4, book, 11);
        let matrix = reference(&w);
        for cpu in levels() {
            let mat = TrellisMat::new(&cpu, &w).unwrap();
            for precision in [Precision::Int16, Precision::Int8, Precision::Bf16] {
                let zeros = vec![0.0; cols];
                assert!(product(&cpu, precision, &mat, &zeros, 1).iter().all(|y| *y == 0.0));
                // Each activation the sign of one output's weight: that output's sum is as large as it gets.
                let x: Vec<f32> = (0..cols).map(|k| matrix[5 * cols + k].signum() * 1e20).collect();
                let d = distance(&product(&cpu, precision, &mat, &x, 1), &plain_product(&matrix, &x, 1, cols));
                assert!(d < tolerance(&cpu, precision), "{book:?}, {}, {precision:?}: {d}", cpu.level());
                let mut x = vec![0.0; cols];
                x[77] = -3e-5;
                let d = distance(&product(&cpu, precision, &mat, &x, 1), &plain_product(&matrix, &x, 1, cols));
                assert!(d < tolerance(&cpu, precision), "{book:?}, {}, {precision:?}: {d}", cpu.level());
                x[78] = f32::INFINITY;
                assert!(product(&cpu, precision, &mat, &x, 1).iter().all(|y| !y.is_finite()));
            }
        }
    }
}

#[test]
fn rows_do_not_depend_on_their_batch() {
    let mut rng = Rng(5);
    for cpu in levels() {
        for book in BOOKS {
            let (rows, cols, m) = (160, 592, 29);
            let mat = TrellisMat::new(&cpu, &random(rows, cols, 5, book, 2)).unwrap();
            let x = rng.vec(m * cols);
            for precision in [Precision::Exact, Precision::Int16, Precision::Int8, Precision::Bf16] {
                let all = product(&cpu, precision, &mat, &x, m);
                for some in [1, 2, 3, 4, 9] {
                    for from in (0..m - some).step_by(7) {
                        let part = product(&cpu, precision, &mat, &x[from * cols..][..some * cols], some);
                        assert_eq!(part, all[from * rows..][..some * rows], "{precision:?}, {book:?}, {}", cpu.level());
                    }
                }
            }
        }
    }
}

/// A layer of a checkpoint, or one like it, with rotations, a bias and padding, against its plain definition.
fn layer(cpu: &Cpu, linear: &Linear, mode: Mode, m: usize) -> f64 {
    let Weight::Trellis(w) = &linear.weight else { panic!("not a trellis") };
    let InputTransform::Hadamard { scale: suh, block } = linear.input() else { panic!("no input rotation") };
    let OutputTransform::Hadamard { scale: svh, .. } = linear.output() else { panic!("no output rotation") };
    let before = Rotation { block: *block, scale: suh.as_deref() };
    let after = Rotation { block: *block, scale: svh.as_deref() };
    let (inputs, outputs) = (linear.in_features(), linear.out_features());
    let mat = TrellisMat::new(cpu, w).unwrap();
    let x = Rng(8).vec(m * inputs);
    let want: Vec<f64> =
        x.chunks_exact(inputs).flat_map(|x| linear.apply(x).unwrap()).map(|y| f64::from(y) + 0.25).collect();
    let mut buf = TrellisActsBuf::default();
    let precision = Precision::of(cpu, mode, m);
    let acts = buf.prepare(cpu, precision, Some(before), &x, m, inputs, inputs, mat.cols()).unwrap();
    let mut out = vec![0.25; m * (outputs + 3)];
    let job = TrellisJob::new(acts, &mat, Out::new(&mut out, outputs + 3))
        .rotation(Some(after))
        .width(outputs)
        .bias(linear.bias.as_deref())
        .add(true);
    trellis_linears(cpu, &[job]).unwrap();
    let got: Vec<f32> = out
        .chunks_exact(outputs + 3)
        .flat_map(|row| {
            assert_eq!(row[outputs..], [0.25; 3]);
            row[..outputs].to_vec()
        })
        .collect();
    distance(&got, &want)
}

#[test]
fn layers_with_rotations() {
    let mut rng = Rng(6);
    for (rows, cols, block, outputs, inputs) in
        [(256, 384, 128, 250, 300), (128, 128, 64, 128, 128), (512, 512, 256, 512, 512), (1024, 1024, 1024, 700, 1024)]
    {
        let scale = |rng: &mut Rng, n| Some(rng.vec(n).into());
        let linear =
            Linear::new("x", Weight::Trellis(random(rows, cols, 3, Codebook::Mul1, 1)), Some(rng.vec(outputs)))
                .with_transforms(
                    InputTransform::Hadamard { scale: scale(&mut rng, cols), block },
                    OutputTransform::Hadamard { scale: scale(&mut rng, rows), block },
                )
                .unwrap()
                .with_features([outputs, inputs])
                .unwrap();
        for cpu in levels() {
            for (mode, m) in [(Mode::Exact, 3), (Mode::Fast, 1), (Mode::Fast, 4), (Mode::Fast, 11), (Mode::Fast, 29)] {
                let d = layer(&cpu, &linear, mode, m);
                let most = tolerance(&cpu, Precision::of(&cpu, mode, m));
                assert!(d < most, "{rows}x{cols}, {mode:?}, {m} rows, {}: {d}", cpu.level());
            }
        }
    }
}

#[test]
fn layers_of_real_checkpoints() {
    for (folder, book) in [("4.0bpw-3inst", Codebook::ThreeInst), ("3.0bpw-mul1", Codebook::Mul1)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/interop/exl3");
        let path = path.join(format!("fable-qwen3-exl3-{folder}"));
        if !path.exists() {
            eprintln!("SKIPPED: {} is not there", path.display());
            return;
        }
        let store = Store::open(&path).unwrap();
        for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"] {
            let part = |part: &str| store.tensor(&format!("model.layers.2.{name}.{part}")).unwrap();
            let scale = |name: &str| Some(part(name).to_f32().unwrap().into());
            let linear = Linear::new(name, Weight::Trellis(Trellis::new(part("trellis"), book).unwrap()), None)
                .with_transforms(
                    InputTransform::Hadamard { scale: scale("suh"), block: 128 },
                    OutputTransform::Hadamard { scale: scale("svh"), block: 128 },
                )
                .unwrap();
            for cpu in levels() {
                for (mode, m) in [(Mode::Exact, 2), (Mode::Fast, 1), (Mode::Fast, 3), (Mode::Fast, 30)] {
                    let d = layer(&cpu, &linear, mode, m);
                    let most = tolerance(&cpu, Precision::of(&cpu, mode, m));
                    assert!(d < most, "{folder} {name}, {mode:?}, {m} rows, {}: {d}", cpu.level());
                }
            }
        }
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let cpu = Cpu::new(1);
    let mat = TrellisMat::new(&cpu, &random(32, 64, 2, Codebook::Mcg, 1)).unwrap();
    assert_eq!((mat.rows(), mat.cols(), mat.bits(), mat.codebook()), (32, 64, 2, Codebook::Mcg));
    assert_eq!(mat.bytes(), 32 * 64 * 2 / 8);
    let x = vec![0.0; 64];
    let mut buf = TrellisActsBuf::default();
    assert!(buf.prepare(&cpu, Precision::Int16, None, &x, 2, 64, 64, 64).is_err());
    let odd = Rotation { block: 128, scale: None };
    assert!(buf.prepare(&cpu, Precision::Int16, Some(odd), &x, 1, 64, 64, 64).is_err());
    let acts = buf.prepare(&cpu, Precision::Int16, None, &x, 1, 64, 64, 64).unwrap();
    let mut out = vec![0.0; 31];
    assert!(trellis_linears(&cpu, &[TrellisJob::new(acts, &mat, Out::new(&mut out, 31))]).is_err());
    let job = TrellisJob::new(acts, &mat, Out::new(&mut out, 31)).width(31);
    trellis_linears(&cpu, &[job]).unwrap();
    let (mut a, mut b) = ([0u8; 256], [0u8; 256]);
    assert!(mat.decode_panel_u8(&cpu, 0, 0..32, [&mut a, &mut b]).is_err());
    assert!(mat.decode_panel_u8(&cpu, 1, 0..16, [&mut a, &mut b]).is_err());
    assert!(mat.decode_panel_u8(&cpu, 0, 8..24, [&mut a, &mut b]).is_err());
    assert!(mat.decode_panel_u8(&cpu, 0, 48..64, [&mut a, &mut b]).is_ok());
    let empty = TrellisActsBuf::default().prepare(&cpu, Precision::Exact, None, &[], 0, 64, 64, 64).map(|a| a.rows());
    assert_eq!(empty, Ok(0));
}

/// The words are those of the plain reader, whatever the number of tiles and tasks.
#[test]
fn large_matrices_are_laid_out_whole() {
    let w = random(2064, 1104, 3, Codebook::Mul1, 21);
    let cpu = Cpu::new(2);
    let mat = TrellisMat::new(&cpu, &w).unwrap();
    let got = halves(&cpu, &mat);
    for (n, k) in (0..2064).step_by(13).flat_map(|n| (0..1104).step_by(7).map(move |k| (n, k))) {
        let state = trellis::state(w.tile(k / 16, n / 16), 3, trellis::position(k % 16, n % 16));
        assert_eq!(got[n * 1104 + k], Codebook::Mul1.value(state).to_bits());
    }
}
