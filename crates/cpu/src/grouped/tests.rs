//! Tiles against the canonical reference decoder, on every level.
#![allow(clippy::unwrap_used)] // a failing test may panic

use super::{Bytes8Buf, Float, GroupedMat, Integer, ROWS, STARTS, float, integer};
use crate::linear::tests::Rng;
use crate::{Cpu, Level};
use half::{bf16, f16};
use marlin_checkpoint::weight::{ScaleTree, ScaleType, Scales, ValueMap, Zero};
use marlin_checkpoint::{Grouped, Weight};

fn byte(rng: &mut Rng) -> u8 {
    (rng.next() * 128.0) as i8 as u8
}

fn cpus() -> impl Iterator<Item = Cpu> {
    Level::ALL.into_iter().filter(|l| l.available()).map(|l| Cpu::with_level(2, l))
}

/// Numbers of a type that are neither large nor zero.
fn scales(rng: &mut Rng, kind: ScaleType, rows: usize, cols: usize, block: (usize, usize)) -> Scales {
    let across = cols.div_ceil(block.1);
    let lines = rows.div_ceil(block.0);
    let mut data = Vec::new();
    for _ in 0..lines {
        match kind {
            ScaleType::U4 => data.extend((0..across.div_ceil(2)).map(|_| byte(rng))),
            _ => {
                for _ in 0..across {
                    let v = 0.01 + rng.next().abs() * 0.1;
                    match kind {
                        ScaleType::F32 => data.extend(v.to_le_bytes()),
                        ScaleType::F16 => data.extend(f16::from_f32(v).to_le_bytes()),
                        ScaleType::BF16 => data.extend(bf16::from_f32(v).to_le_bytes()),
                        ScaleType::E4M3 => data.push(byte(rng) % 0x50),
                        ScaleType::E8M0 => data.push(120 + byte(rng) % 8),
                        _ => data.push(byte(rng) % 64),
                    }
                }
            }
        }
    }
    Scales::new(kind, rows, cols, block, data.into()).unwrap()
}

/// A matrix of every kind that a format has, with odd sizes.
fn matrices() -> Vec<(String, Grouped)> {
    let mut rng = Rng(7);
    let mut all = Vec::new();
    for (rows, cols) in [(1, 32), (21, 256), (48, 544), (50, 70), (33, 1312)] {
        let mut add = |name: &str, bits: u32, map: ValueMap, scale: ScaleTree, minimum: Option<ScaleTree>| {
            let stride = (cols * bits as usize).div_ceil(32) * 4;
            let mut codes: Vec<u8> = (0..rows * stride).map(|_| byte(&mut rng)).collect();
            if matches!(map, ValueMap::E4M3 | ValueMap::E5M2) {
                codes.iter_mut().for_each(|c| *c &= 0xbb); // no infinities, no NaN
            }
            let weight = Grouped::new([rows, cols], bits, codes.into(), map, scale, minimum).unwrap();
            all.push((format!("{name} [{rows}, {cols}]"), weight));
        };
        let mut r = Rng(11);
        let mut flat = |kind, group| ScaleTree::flat(scales(&mut r, kind, rows, cols, (1, group)));
        let integer = |zero| ValueMap::Integer(Zero::Constant(zero));
        let table: [f32; 16] =
            [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];
        let odd: [f32; 16] = std::array::from_fn(|i| i as f32 * 0.37 - 2.0);
        add("q4_0", 4, integer(8), flat(ScaleType::F16, 32), None);
        add("q8_0", 8, integer(128), flat(ScaleType::F16, 32), None);
        add("iq4_nl", 4, ValueMap::Table(Box::new(table)), flat(ScaleType::F16, 32), None);
        add("odd table", 4, ValueMap::Table(Box::new(odd)), flat(ScaleType::F16, 32), None);
        add("fp4 g128", 4, ValueMap::E2M1, flat(ScaleType::F16, 128), None);
        add("mxfp4", 4, ValueMap::E2M1, flat(ScaleType::E8M0, 32), None);
        add("mxfp8", 8, ValueMap::E4M3, flat(ScaleType::E8M0, 32), None);
        add("e5m2", 8, ValueMap::E5M2, flat(ScaleType::F32, 4096), None);
        add("int8 by channel", 8, integer(128), flat(ScaleType::BF16, 4096), None);
        add("int4 g96", 4, integer(8), flat(ScaleType::BF16, 96), None);
        add("int4 g512", 4, integer(8), flat(ScaleType::F16, 512), None);
        for bits in 2..=8 {
            let (s, m) = (flat(ScaleType::BF16, 64), flat(ScaleType::BF16, 64));
            add(&format!("mlx {bits}"), bits, integer(0), s, Some(m));
            let mut r = Rng(13);
            let zeros = scales(&mut r, if bits > 4 { ScaleType::U8 } else { ScaleType::U4 }, rows, cols, (1, 128));
            add(&format!("gptq {bits}"), bits, ValueMap::Integer(Zero::Groups(zeros)), flat(ScaleType::F16, 128), None);
        }
        let mut r = Rng(17);
        let mut nested = |kind, group, outer, wide| {
            let inner = scales(&mut r, kind, rows, cols, (1, group));
            ScaleTree::nested(inner, scales(&mut r, outer, rows, cols, (1, wide)))
        };
        let f16 = ScaleType::F16;
        let (s, m) = (nested(ScaleType::U8, 32, f16, 256), nested(ScaleType::U8, 32, f16, 256));
        add("q4_k", 4, integer(0), s, Some(m));
        add("q6_k", 6, integer(32), nested(ScaleType::I8, 16, f16, 256), None);
        add("q3_k", 3, integer(4), nested(ScaleType::I8, 16, f16, 256), None);
        let (s, m) = (nested(ScaleType::U4, 16, f16, 256), nested(ScaleType::U4, 16, f16, 256));
        add("q2_k", 2, integer(0), s, Some(m));
        let whole = |v| Scales::whole(rows, cols, v).unwrap();
        let inner = |r: &mut Rng| scales(r, ScaleType::E4M3, rows, cols, (1, 16));
        add("modelopt nvfp4", 4, ValueMap::E2M1, ScaleTree::nested(inner(&mut r), whole(0.037)), None);
        add("ct nvfp4", 4, ValueMap::E2M1, ScaleTree::divided(inner(&mut r), whole(27.3)), None);
        let tiles = scales(&mut r, ScaleType::F32, rows, cols, (128, 128));
        add("fp8 blocks", 8, ValueMap::E4M3, ScaleTree::flat(tiles), None);
    }
    all
}

fn reference(w: &[f32], cols: usize, x: &[f32]) -> Vec<(f64, f64)> {
    w.chunks_exact(cols)
        .map(|w| {
            let terms = || w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            (terms().sum(), terms().map(f64::abs).sum())
        })
        .collect()
}

/// Activations as 32 of a row round: absmax / 127, ties to even.
fn rounded(x: &[f32]) -> Vec<f32> {
    x.chunks(32)
        .flat_map(|x| {
            let scale = x.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
            x.iter().map(move |v| (v / scale).round_ties_even() * scale).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn products_of_every_kind_on_every_level() {
    for (name, weight) in matrices() {
        let (rows, cols) = (weight.rows(), weight.cols());
        let values = Weight::Grouped(Box::new(weight.clone())).dequantize().unwrap();
        for cpu in cpus() {
            let what = format!("{name} on {}", cpu.level());
            let w = GroupedMat::from_grouped(&cpu, "w", &weight).unwrap().unwrap();
            let limit = weight.bytes() as f64 * 1.05 + (w.layout().tiles() * ROWS * (cols + 256)) as f64 / 4.0 + 2048.0;
            assert!((w.layout().bytes() as f64) < limit, "{what}: {} bytes for {}", w.layout().bytes(), weight.bytes());
            for m in [1, 2, 5, 19] {
                let mut rng = Rng(23);
                let x: Vec<f32> = (0..m * cols).map(|_| rng.next()).collect();
                let tiles = w.layout().tiles();
                let mut out = vec![f32::NAN; m * rows];
                let mut scratch = vec![0u8; float::SCRATCH.max(integer::SCRATCH) + 64];
                let scratch = scratch.as_mut_ptr().wrapping_add(64 - scratch.as_ptr() as usize % 64);
                let (to, ld) = (out.as_mut_ptr(), rows);
                let product = Float { w: &w, first: 0, tiles, x: x.as_ptr(), x_ld: cols, m, out: to, ld, scratch };
                // SAFETY: everything has the sizes that the shapes ask for.
                unsafe { product.run(cpu.level()) };
                for (i, x) in x.chunks_exact(cols).enumerate() {
                    for (n, (y, scale)) in reference(&values, cols, x).into_iter().enumerate() {
                        let found = f64::from(out[i * rows + n]);
                        assert!((found - y).abs() <= 2e-6 * scale, "{what}, f32, m {m}: ({i}, {n}) {found}, {y}");
                    }
                }
                if !w.layout().mapping().is_integer() {
                    continue;
                }
                let mut buf = Bytes8Buf::default();
                let mut kinds = [None; STARTS];
                kinds[1] = Some(w.layout().start());
                let x8 = buf.prepare(&cpu, kinds, &x, m, cols, cols).unwrap();
                let starts = x8.start(w.layout().start()).unwrap();
                out.fill(f32::NAN);
                let product = Integer { w: &w, first: 0, tiles, x: x8, starts, out: to, ld, scratch };
                // SAFETY: as above.
                unsafe { product.run(cpu.level()) };
                for (i, x) in x.chunks_exact(cols).enumerate() {
                    for (n, (y, scale)) in reference(&values, cols, &rounded(x)).into_iter().enumerate() {
                        let found = f64::from(out[i * rows + n]);
                        // A value on the edge of two bytes may round either way.
                        assert!((found - y).abs() <= 2e-4 * scale, "{what}, bytes, m {m}: ({i}, {n}) {found}, {y}");
                    }
                }
            }
            let mut row = vec![0.0; cols];
            for r in [0, rows / 2, rows - 1] {
                w.row(cpu.level(), r, &mut row);
                for (k, (a, b)) in row.iter().zip(&values[r * cols..]).enumerate() {
                    assert!((a - b).abs() <= 1e-6 * b.abs(), "{what}: row {r}, column {k}: {a}, {b}");
                }
            }
        }
    }
}

#[test]
fn a_factor_that_is_not_finite_is_named() {
    let mut data = f16::from_f32(1.0).to_le_bytes().repeat(40 * 3);
    data[2 * (17 * 3 + 2)..][..2].copy_from_slice(&f16::NAN.to_le_bytes());
    let scale = ScaleTree::flat(Scales::new(ScaleType::F16, 40, 96, (1, 32), data.into()).unwrap());
    let map = ValueMap::Integer(Zero::Constant(8));
    let weight = Grouped::new([40, 96], 4, vec![0x99; 40 * 48].into(), map, scale, None).unwrap();
    let error = GroupedMat::from_grouped(&Cpu::new(2), "model.w", &weight).err().unwrap().to_string();
    assert!(error.starts_with(&format!("model.w: element {} of the weight is NaN", 17 * 96 + 64)), "{error}");
}

#[test]
fn groups_without_a_kernel_are_left_alone() {
    let scale = ScaleTree::flat(scales(&mut Rng(1), ScaleType::F16, 16, 64, (1, 8)));
    let weight = Grouped::new([16, 64], 4, vec![0; 512].into(), ValueMap::E2M1, scale, None).unwrap();
    assert!(GroupedMat::from_grouped(&Cpu::new(1), "w", &weight).unwrap().is_none());
}

#[test]
fn activations_that_are_not_finite_stay_visible() {
    let scale = ScaleTree::flat(scales(&mut Rng(3), ScaleType::F16, 16, 64, (1, 32)));
    let weight = Grouped::new([16, 64], 4, vec![0x9a; 512].into(), ValueMap::E2M1, scale, None).unwrap();
    for cpu in cpus() {
        let w = GroupedMat::from_grouped(&cpu, "w", &weight).unwrap().unwrap();
        for (bad, at) in [(f32::NAN, 3), (f32::INFINITY, 40), (f32::NEG_INFINITY, 63)] {
            for m in [1, 2] {
                let mut x = vec![0.5; m * 64];
                x[at] = bad;
                let mut buf = Bytes8Buf::default();
                let start = w.layout().start();
                let x8 = buf.prepare(&cpu, [Some(start); STARTS], &x, m, 64, 64).unwrap();
                let (mut out, mut scratch) = (vec![0.0; m * 16], vec![0u64; integer::SCRATCH / 8 + 8]);
                let scratch = scratch.as_mut_ptr().cast::<u8>();
                let scratch = scratch.wrapping_add(scratch.align_offset(64));
                let starts = x8.start(start).unwrap();
                let product =
                    Integer { w: &w, first: 0, tiles: 1, x: x8, starts, out: out.as_mut_ptr(), ld: 16, scratch };
                // SAFETY: everything has the sizes that the shapes ask for.
                unsafe { product.run(cpu.level()) };
                assert!(out[..16].iter().all(|v| v.is_nan()), "{} {bad}: {:?}", cpu.level(), &out[..16]);
                assert!(out[16..].iter().all(|v| v.is_finite()));
            }
        }
    }
}
