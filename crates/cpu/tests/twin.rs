//! Every primitive of the CPU backend against its reference twin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a failing test may panic

use half::{bf16, f16};
use marlin_backend::blocks::{RouterRule, Scoring};
use marlin_backend::{
    Backend, Error, Expert, KvLayout, KvSpec, LatentForm, LinearHandle, Reference, RopeTable, SequenceStep, Step, Token,
};
use marlin_checkpoint::weight::{ScaleTree, ScaleType, Scales, ValueMap, Zero};
use marlin_checkpoint::{
    Bytes, DType, Dense, Grouped, InputTransform, LatentProjection, Linear, OutputTransform, Tensor, TensorInfo, Weight,
};
use marlin_cpu::{Cpu, CpuBackend, CpuOptions, KvType, Level};

/// Numbers in [-1, 1) from a linear congruence.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    fn many(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.next()).collect()
    }

    fn dense(&mut self, name: &str, rows: usize, cols: usize, dtype: DType) -> Linear {
        let scale = (3.0 / cols as f32).sqrt();
        let values = self.many(rows * cols).into_iter().map(|v| v * scale);
        let data: Vec<u8> = match dtype {
            DType::BF16 => values.flat_map(|v| bf16::from_f32(v).to_le_bytes()).collect(),
            DType::F16 => values.flat_map(|v| f16::from_f32(v).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        };
        let info = TensorInfo { name: name.into(), dtype, shape: vec![rows, cols] };
        let bias = (rows % 2 == 1).then(|| self.many(rows));
        Linear::new(name, Weight::Dense(Dense::new(Tensor { info, data: data.into() }).unwrap()), bias)
    }

    fn plain(&mut self, name: &str, rows: usize, cols: usize, dtype: DType) -> Linear {
        let mut linear = self.dense(name, rows, cols, dtype);
        linear.bias = None;
        linear
    }

    /// 4-bit codes in groups of 16 with f32 scales.
    fn four_bits(&mut self, rows: usize, cols: usize, map: ValueMap) -> Linear {
        let codes: Vec<u8> = (0..rows * cols / 2).map(|_| (self.next() * 128.0) as i8 as u8).collect();
        let scales: Vec<u8> = (0..rows * cols.div_ceil(16)).flat_map(|_| (self.next() * 0.2).to_le_bytes()).collect();
        let scales = Scales::new(ScaleType::F32, rows, cols, (1, 16), scales.into()).unwrap();
        let weight = Grouped::new([rows, cols], 4, codes.into(), map, ScaleTree::flat(scales), None).unwrap();
        Linear::new("grouped", Weight::Grouped(Box::new(weight)), None)
    }

    /// The same with everything a `Linear` can put around them.
    fn grouped(&mut self, rows: usize, cols: usize, map: ValueMap) -> Linear {
        let linear = self.four_bits(rows, cols, map);
        let bias = Some(self.many(rows - 3));
        linear
            .with_transforms(
                InputTransform::Hadamard { scale: Some(self.many(cols).into()), block: 32 },
                OutputTransform::Hadamard { scale: Some(self.many(rows).into()), block: 16 },
            )
            .map(|mut linear| {
                linear.bias = bias;
                linear
            })
            .unwrap()
            .with_features([rows - 3, cols - 5])
            .unwrap()
    }
}

/// The CPU at every level this machine has, exact.
fn cpus() -> impl Iterator<Item = CpuBackend> {
    Level::ALL
        .into_iter()
        .filter(|level| level.available())
        .map(|level| CpuBackend::on(Cpu::with_level(2, level), CpuOptions { exact: true, ..CpuOptions::default() }))
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(1.0f32, |m, v| m.max(v.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= 1e-5 * scale, "{what}: value {i}: {a}, twin {b}");
    }
}

/// Runs the same operations on both backends and compares what is read.
fn both<F, G>(what: &str, on_cpu: F, on_reference: G)
where
    F: Fn(&CpuBackend) -> marlin_backend::Result<Vec<f32>>,
    G: Fn(&Reference) -> marlin_backend::Result<Vec<f32>>,
{
    let expected = on_reference(&Reference).unwrap();
    for b in cpus() {
        close(&format!("{what} on {}", b.name()), &on_cpu(&b).unwrap(), &expected);
    }
}

macro_rules! twins {
    ($what:expr, |$b:ident| $body:expr) => {
        both($what, |$b| $body, |$b| $body)
    };
}

#[test]
fn linears_of_every_kind() {
    let mut numbers = Numbers(1);
    for (rows, cols) in [(1, 1), (33, 64), (70, 100), (257, 96)] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let linear = numbers.dense("dense", rows, cols, dtype);
            for m in [1, 2, 5, 33] {
                let x = numbers.many(m * cols);
                twins!("dense", |b| {
                    let w = b.linear(linear.clone())?;
                    let y = b.linears(&[&w, &w], &b.write(m, cols, x.clone())?)?;
                    b.read(&y[1])
                });
            }
        }
    }
    let table: [f32; 16] = std::array::from_fn(|i| i as f32 - 7.5);
    for map in [ValueMap::Integer(Zero::Constant(8)), ValueMap::E2M1, ValueMap::Table(Box::new(table))] {
        let linear = numbers.grouped(320, 64, map);
        for m in [1, 9] {
            let x = numbers.many(m * 59);
            twins!("grouped", |b| {
                let w = b.linear(linear.clone())?;
                assert_eq!((LinearHandle::rows(&w), LinearHandle::cols(&w)), (317, 59));
                b.read(&b.linears(&[&w], &b.write(m, 59, x.clone())?)?[0])
            });
        }
    }
}

#[test]
fn norms_and_elementwise() {
    let mut numbers = Numbers(2);
    for (rows, cols, group) in [(1, 8, 8), (3, 96, 32), (5, 130, 65), (40, 1024, 1024)] {
        let (x, y, w) = (numbers.many(rows * cols), numbers.many(rows * cols), numbers.many(group));
        let gate = numbers.many(rows);
        twins!("rms_norm", |b| b.read(&b.rms_norm(&b.write(rows, cols, x.clone())?, &b.vector(w.clone())?, 1e-5)?));
        twins!("swiglu", |b| b.read(&b.swiglu(b.write(rows, cols, x.clone())?, &b.write(rows, cols, y.clone())?)?));
        twins!("add", |b| b.read(&b.add(b.write(rows, cols, x.clone())?, &b.write(rows, cols, y.clone())?)?));
        twins!("gated", |b| b.read(&b.gated(b.write(rows, cols, x.clone())?, &b.write(rows, 1, gate.clone())?)?));
        twins!("columns", |b| b.read(&b.columns(&b.write(rows, cols, x.clone())?, 3, cols - 1)?));
    }
}

/// Two sequences, one with 37 tokens before this step.
fn step() -> Step {
    Step {
        tokens: [3, 1, 4, 1, 5, 9, 2].map(Token::Id).to_vec(),
        sequences: vec![
            SequenceStep { cached: 37, len: 2, blocks: vec![5, 0, 3] },
            SequenceStep { cached: 0, len: 5, blocks: vec![2] },
        ],
        outputs: vec![1, 6],
    }
}

/// The 37 tokens that `step` builds upon.
fn before() -> Step {
    Step {
        tokens: vec![Token::Id(0); 37],
        sequences: vec![SequenceStep { cached: 0, len: 37, blocks: vec![5, 0, 3] }],
        outputs: Vec::new(),
    }
}

fn pool(layout: KvLayout) -> KvSpec {
    KvSpec { layers: 2, layout, block_size: 16, blocks: 6 }
}

#[test]
fn embedding_rotation_and_wanted_rows() {
    let mut numbers = Numbers(3);
    let table = numbers.dense("embed", 12, 24, DType::BF16);
    let x = numbers.many(7 * 40);
    let spec = pool(KvLayout::Heads { heads: 1, key: 8, value: 8 });
    let coded = numbers.four_bits(12, 32, ValueMap::E2M1);
    for table in [&table, &coded] {
        twins!("embed", |b| {
            let batch = b.begin(&step(), &b.kv(spec)?, None)?;
            b.read(&b.outputs(&b.embed(&b.linear(table.clone())?, &batch)?, &batch)?)
        });
    }
    for interleaved in [false, true] {
        let rope = RopeTable { inv_freq: vec![1.0, 0.3, 0.01, 0.001], interleaved };
        twins!("rope", |b| {
            let batch = b.begin(&step(), &b.kv(spec)?, None)?;
            b.read(&b.rope(b.write(7, 40, x.clone())?, &b.rope_table(rope.clone())?, 10, 2, &batch)?)
        });
    }
}

#[test]
fn attention_over_blocks() {
    let mut numbers = Numbers(4);
    for (heads, kv_heads, key, value) in [(4, 2, 16, 16), (6, 1, 32, 48), (3, 3, 80, 80)] {
        let layout = KvLayout::Heads { heads: kv_heads, key, value };
        let (k0, v0) = (numbers.many(37 * kv_heads * key), numbers.many(37 * kv_heads * value));
        let (k1, v1) = (numbers.many(7 * kv_heads * key), numbers.many(7 * kv_heads * value));
        let q = numbers.many(7 * heads * key);
        twins!("attention", |b| {
            let kv = b.kv(pool(layout))?;
            let (first, second) = (b.begin(&before(), &kv, None)?, b.begin(&step(), &kv, None)?);
            let write = |rows, values: &Vec<f32>| b.write(rows, values.len() / rows, values.clone());
            b.append(&kv, 1, &write(37, &k0)?, &write(37, &v0)?, &first)?;
            b.append(&kv, 1, &write(7, &k1)?, &write(7, &v1)?, &second)?;
            b.read(&b.attention(&write(7, &q)?, &kv, 1, heads, 0.3, &second)?)
        });
    }
}

/// KV memory in bytes at every level, exact and fast.
fn bytes() -> impl Iterator<Item = (CpuBackend, KvType)> {
    let levels = Level::ALL.into_iter().filter(|level| level.available());
    levels.flat_map(|level| {
        [(KvType::Int8, true), (KvType::Int8, false), (KvType::Fp8, true), (KvType::Fp8, false)].map(|(kv, exact)| {
            let options = CpuOptions { exact, kv, ..CpuOptions::default() };
            (CpuBackend::on(Cpu::with_level(2, level), options), kv)
        })
    })
}

/// How far attention may be off with values in [-1, 1): a score changes by at most `scale * sum |q| * step`, which
/// changes probabilities, and with them sums of values, by at most twice as much; values change by a step themselves.
/// A step is half a unit of the type below 1, and what fast mode rounds to bf16 besides.
fn off_by(kv: KvType, q: &[f32], scale: f32) -> f32 {
    let step = if kv == KvType::Int8 { 1.0 / 254.0 } else { 1.0 / 16.0 } + 1.0 / 256.0;
    // Errors have either sign, so that a sum over n of them grows with the root of n: four standard deviations.
    let sum = q.iter().map(|v| v * v).sum::<f32>().sqrt() * 4.0 / 3f32.sqrt();
    step + 2.0 * scale * sum * step
}

#[test]
fn attention_over_bytes_is_off_by_their_rounding() {
    let mut numbers = Numbers(7);
    for (heads, kv_heads, key, value) in [(4, 2, 16, 16), (6, 1, 32, 48), (3, 3, 80, 80), (2, 2, 6, 10)] {
        let spec = pool(KvLayout::Heads { heads: kv_heads, key, value });
        let (k0, v0) = (numbers.many(37 * kv_heads * key), numbers.many(37 * kv_heads * value));
        let (k1, v1) = (numbers.many(7 * kv_heads * key), numbers.many(7 * kv_heads * value));
        let q = numbers.many(7 * heads * key);
        macro_rules! run {
            ($b:expr) => {{
                let b = $b;
                let kv = b.kv(spec).unwrap();
                let (first, second) = (b.begin(&before(), &kv, None).unwrap(), b.begin(&step(), &kv, None).unwrap());
                let write = |rows, values: &Vec<f32>| b.write(rows, values.len() / rows, values.clone()).unwrap();
                b.append(&kv, 1, &write(37, &k0), &write(37, &v0), &first).unwrap();
                b.append(&kv, 1, &write(7, &k1), &write(7, &v1), &second).unwrap();
                b.read(&b.attention(&write(7, &q), &kv, 1, heads, 0.3, &second).unwrap()).unwrap()
            }};
        }
        let expected = run!(&Reference);
        for (b, kv) in bytes() {
            let found = run!(&b);
            let most = q.chunks(key).map(|q| off_by(kv, q, 0.3)).fold(0.0, f32::max);
            for (a, e) in found.iter().zip(&expected) {
                assert!((a - e).abs() <= most, "{kv:?} on {}: {a}, twin {e}, may be off by {most}", b.name());
            }
            assert_ne!(found, expected);
        }
    }
}

#[test]
fn latent_attention_over_bytes_is_off_by_their_rounding() {
    let mut numbers = Numbers(8);
    let (heads, nope, rope, value, rank) = (3, 24, 8, 20, 160);
    let spec = pool(KvLayout::Latent { rank, rope });
    let kv_b = numbers.plain("kv_b", heads * (nope + value), rank, DType::F32);
    let (c0, p0, c1, p1) =
        (numbers.many(37 * rank), numbers.many(37 * rope), numbers.many(7 * rank), numbers.many(7 * rope));
    let q = numbers.many(7 * heads * (nope + rope));
    for form in [LatentForm::Absorbed, LatentForm::Expanded] {
        macro_rules! run {
            ($b:expr) => {{
                let b = $b;
                let kv = b.kv(spec).unwrap();
                let (first, second) = (b.begin(&before(), &kv, None).unwrap(), b.begin(&step(), &kv, None).unwrap());
                let write = |rows, values: &Vec<f32>| b.write(rows, values.len() / rows, values.clone()).unwrap();
                b.append_latent(&kv, 0, &write(37, &c0), &write(37, &p0), &first).unwrap();
                b.append_latent(&kv, 0, &write(7, &c1), &write(7, &p1), &second).unwrap();
                let w = b.linear(kv_b.clone()).unwrap();
                let w = LatentProjection::Whole(&w);
                b.read(&b.latent_attention(&write(7, &q), w, &kv, 0, heads, 0.2, form, &second).unwrap()).unwrap()
            }};
        }
        let expected = run!(&Reference);
        for (b, kv) in bytes() {
            let found = run!(&b);
            // Rows of the projection are of length sqrt(3) times a normal vector's in [-1, 1): values and keys keep
            // their size, and so do their errors.
            let most = 2.0 * q.chunks(nope + rope).map(|q| off_by(kv, q, 0.2)).fold(0.0, f32::max);
            for (a, e) in found.iter().zip(&expected) {
                assert!((a - e).abs() <= most, "{kv:?} on {}: {a}, twin {e}, may be off by {most}", b.name());
            }
        }
    }
}

#[test]
fn a_pool_takes_the_bytes_that_it_says() {
    let bytes = |kv, layout| {
        CpuBackend::new(CpuOptions { kv, ..CpuOptions::default() }).kv_bytes(&KvSpec {
            blocks: 3,
            layers: 2,
            block_size: 8,
            layout,
        })
    };
    let heads = KvLayout::Heads { heads: 4, key: 64, value: 32 };
    assert_eq!(bytes(KvType::Bf16, heads), 48 * 4 * 96 * 2);
    assert_eq!(bytes(KvType::Int8, heads), 48 * 4 * (96 + 2 * 4));
    assert_eq!(bytes(KvType::Fp8, heads), bytes(KvType::Int8, heads));
    let latent = KvLayout::Latent { rank: 512, rope: 64 };
    assert_eq!(bytes(KvType::F16, latent), 48 * 576 * 2);
    assert_eq!(bytes(KvType::Int8, latent), 48 * (576 + 5 * 4));
}

#[test]
fn latent_attention_in_both_forms() {
    let mut numbers = Numbers(5);
    let (heads, nope, rope, value, rank) = (3, 24, 8, 20, 32);
    let kv_b = numbers.plain("kv_b", heads * (nope + value), rank, DType::BF16);
    let (c0, p0, c1, p1) =
        (numbers.many(37 * rank), numbers.many(37 * rope), numbers.many(7 * rank), numbers.many(7 * rope));
    let q = numbers.many(7 * heads * (nope + rope));
    let kv_b = LatentProjection::Whole(kv_b);
    let coded = LatentProjection::Whole(numbers.four_bits(heads * (nope + value), rank, ValueMap::E2M1));
    let mut plain = |rows, cols| numbers.plain("split", rows, cols, DType::BF16);
    let split = LatentProjection::Split { k: plain(heads * rank, nope), v: plain(heads * value, rank) };
    let (k, v) = (heads * rank, heads * value);
    let coded_split = LatentProjection::Split {
        k: numbers.four_bits(k, nope, ValueMap::E2M1),
        v: numbers.four_bits(v, rank, ValueMap::E2M1),
    };
    for (form, kv_b) in [
        (LatentForm::Absorbed, &kv_b),
        (LatentForm::Expanded, &kv_b),
        (LatentForm::Auto, &kv_b),
        (LatentForm::Auto, &coded),
        (LatentForm::Auto, &split),
        (LatentForm::Expanded, &split),
        (LatentForm::Auto, &coded_split),
    ] {
        twins!("latent attention", |b| {
            let kv = b.kv(pool(KvLayout::Latent { rank, rope }))?;
            let (first, second) = (b.begin(&before(), &kv, None)?, b.begin(&step(), &kv, None)?);
            let write = |rows, values: &Vec<f32>| b.write(rows, values.len() / rows, values.clone());
            b.append_latent(&kv, 0, &write(37, &c0)?, &write(37, &p0)?, &first)?;
            b.append_latent(&kv, 0, &write(7, &c1)?, &write(7, &p1)?, &second)?;
            let w = kv_b.as_ref().map(|w| b.linear(w.clone())).transpose()?;
            b.read(&b.latent_attention(&write(7, &q)?, w.as_ref(), &kv, 0, heads, 0.2, form, &second)?)
        });
    }
}

#[test]
fn routing_and_experts() {
    let mut numbers = Numbers(6);
    let (hidden, inner, experts) = (40, 24, 12);
    let gate = numbers.plain("gate", experts, hidden, DType::F32);
    let bias = numbers.many(experts);
    let even = |n: &mut Numbers, rows, cols| n.plain("expert", rows, cols, DType::BF16);
    let all: Vec<Expert> = (0..experts)
        .map(|_| Expert {
            gate: even(&mut numbers, inner, hidden),
            up: even(&mut numbers, inner, hidden),
            down: even(&mut numbers, hidden, inner),
        })
        .collect();
    let mut coded = all.clone();
    coded[2].up = numbers.four_bits(inner + 8, hidden + 8, ValueMap::E2M1).with_features([inner, hidden]).unwrap();
    coded[5].down = numbers.four_bits(hidden, inner + 8, ValueMap::E2M1).with_features([hidden, inner]).unwrap();
    let x = numbers.many(9 * hidden);
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for (normalise, groups, top_groups) in [(false, 1, 1), (true, 1, 1), (true, 4, 2)] {
            let rule = RouterRule { scoring, top_k: 3, normalise, scale: 1.8, groups, top_groups };
            twins!("routing", |b| {
                let x = b.write(9, hidden, x.clone())?;
                let routing = b.route(&x, &b.linear(gate.clone())?, Some(&b.vector(bias.clone())?), &rule)?;
                let choices = b.read_routing(&routing)?;
                Ok(choices.into_iter().flatten().flat_map(|(e, w)| [e as f32, w]).collect())
            });
            for experts in [&all, &coded] {
                twins!("experts", |b| {
                    let x = b.write(9, hidden, x.clone())?;
                    let routing = b.route(&x, &b.linear(gate.clone())?, None, &rule)?;
                    b.read(&b.apply_experts(&x, &b.experts(experts.clone())?, &routing)?)
                });
            }
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name_and_place() {
    for (dtype, bytes) in [
        (DType::BF16, bf16::NAN.to_le_bytes().to_vec()),
        (DType::F16, f16::INFINITY.to_le_bytes().to_vec()),
        (DType::F32, f32::NEG_INFINITY.to_le_bytes().to_vec()),
    ] {
        let mut data = vec![0u8; 6 * 10 * dtype.size()];
        data[37 * dtype.size()..38 * dtype.size()].copy_from_slice(&bytes);
        let info = TensorInfo { name: "w".into(), dtype, shape: vec![6, 10] };
        let weight = Weight::Dense(Dense::new(Tensor { info, data: Bytes::from(data) }).unwrap());
        for b in cpus() {
            match b.linear(Linear::new("layers.3.up_proj", weight.clone(), None)) {
                Err(Error::NotFinite { name, index, .. }) => {
                    assert_eq!((name.as_str(), index), ("layers.3.up_proj", 37))
                }
                _ => panic!("accepted"),
            }
        }
    }
}

#[test]
fn steps_that_cannot_be_carried_out_are_refused() {
    let b = CpuBackend::new(CpuOptions::default());
    let kv = b.kv(pool(KvLayout::Heads { heads: 1, key: 8, value: 8 })).unwrap();
    let refused = |change: &dyn Fn(&mut Step)| {
        let mut step = step();
        change(&mut step);
        b.begin(&step, &kv, None).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert!(refused(&|s| s.sequences[0].blocks.truncate(2)).contains("need 3 blocks"));
    assert!(refused(&|s| s.sequences[0].blocks[0] = 6).contains("block 6 of a pool of 6"));
    assert!(refused(&|s| s.tokens.truncate(6)).contains("6 tokens, but the sequences have 7"));
    assert!(refused(&|s| s.outputs = vec![7]).contains("output rows"));
    assert!(refused(&|s| s.tokens[0] = Token::Sampled(0)).contains("sample 0 of 0"));
}
