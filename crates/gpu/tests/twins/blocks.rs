//! Everything that is not a product with a weight.

use crate::device::{OPTIONS, backends, twins};
use crate::numbers::Numbers;
use marlin_backend::blocks::{RouterRule, Scoring};
use marlin_backend::{Backend, Expert, KvLayout, KvSpec, LatentForm, RopeTable, SampleRow, SequenceStep, Step, Token};
use marlin_checkpoint::weight::{Codebook, ScaleTree, ScaleType, ValueMap, Zero};
use marlin_checkpoint::{DType, InputTransform, LatentProjection, Linear, OutputTransform};
use marlin_gpu::GpuOptions;

const LIMIT: f32 = 2e-5;
/// Of products whose operands are halves.
const HALVES_LIMIT: f32 = 2e-3;
/// No tensor cores with inputs of 16 bits.
const EXACT: GpuOptions = GpuOptions { exact: true, ..OPTIONS };

#[test]
fn norms_and_elementwise() {
    let mut numbers = Numbers(2);
    for (rows, cols, group) in [(1, 8, 8), (3, 96, 32), (5, 130, 65), (4, 1024, 1024), (2, 1000, 1000)] {
        let (x, y, w) = (numbers.many(rows * cols), numbers.many(rows * cols), numbers.many(group));
        let gate = numbers.many(rows);
        twins!("rms_norm", LIMIT, |b| b.read(&b.rms_norm(
            &b.write(rows, cols, x.clone())?,
            &b.vector(w.clone())?,
            1e-5
        )?));
        twins!("swiglu", LIMIT, |b| b
            .read(&b.swiglu(b.write(rows, cols, x.clone())?, &b.write(rows, cols, y.clone())?)?));
        twins!("add", LIMIT, |b| b.read(&b.add(b.write(rows, cols, x.clone())?, &b.write(rows, cols, y.clone())?)?));
        twins!("gated", LIMIT, |b| b
            .read(&b.gated(b.write(rows, cols, x.clone())?, &b.write(rows, 1, gate.clone())?)?));
        twins!("columns", LIMIT, |b| b.read(&b.columns(&b.write(rows, cols, x.clone())?, 3, cols - 1)?));
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
        twins!("embed", LIMIT, |b| {
            let batch = b.begin(&step(), &b.kv(spec)?, None)?;
            b.read(&b.outputs(&b.embed(&b.linear(table.clone())?, &batch)?, &batch)?)
        });
    }
    for interleaved in [false, true] {
        let rope = RopeTable { inv_freq: vec![1.0, 0.3, 0.01, 0.001], interleaved };
        twins!("rope", LIMIT, |b| {
            let batch = b.begin(&step(), &b.kv(spec)?, None)?;
            b.read(&b.rope(b.write(7, 40, x.clone())?, &b.rope_table(rope.clone())?, 10, 2, &batch)?)
        });
        // A tensor that somebody else holds stays as it was.
        twins!("rope of a clone", LIMIT, |b| {
            let batch = b.begin(&step(), &b.kv(spec)?, None)?;
            let kept = b.write(7, 40, x.clone())?;
            b.rope(kept.clone(), &b.rope_table(rope.clone())?, 10, 2, &batch)?;
            b.read(&kept)
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
        twins!("attention", LIMIT, |b| {
            let kv = b.kv(pool(layout))?;
            let (first, second) = (b.begin(&before(), &kv, None)?, b.begin(&step(), &kv, None)?);
            let write = |rows, values: &Vec<f32>| b.write(rows, values.len() / rows, values.clone());
            b.append(&kv, 1, &write(37, &k0)?, &write(37, &v0)?, &first)?;
            b.append(&kv, 1, &write(7, &k1)?, &write(7, &v1)?, &second)?;
            b.read(&b.attention(&write(7, &q)?, &kv, 1, heads, 0.3, &second)?)
        });
    }
}

#[test]
fn latent_attention_of_every_form_of_projection() {
    let mut numbers = Numbers(5);
    let (heads, nope, rope, value, rank) = (3, 32, 8, 20, 32);
    let (c0, p0, c1, p1) =
        (numbers.many(37 * rank), numbers.many(37 * rope), numbers.many(7 * rank), numbers.many(7 * rope));
    let q = numbers.many(7 * heads * (nope + rope));
    let whole = |w| LatentProjection::Whole(w);
    let all = [
        whole(numbers.dense("kv_b", heads * (nope + value), rank, DType::BF16)),
        whole(numbers.dense("kv_b", heads * (nope + value), rank, DType::F32)),
        whole(numbers.four_bits(heads * (nope + value), rank, ValueMap::E2M1)),
        LatentProjection::Split {
            k: numbers.dense("k", heads * rank, nope, DType::BF16),
            v: numbers.dense("v", heads * value, rank, DType::BF16),
        },
        LatentProjection::Split {
            k: numbers.four_bits(heads * rank, nope, ValueMap::E2M1),
            v: numbers.four_bits(heads * value, rank, ValueMap::E2M1),
        },
    ];
    for kv_b in &all {
        twins!("latent attention", LIMIT, |b| {
            let kv = b.kv(pool(KvLayout::Latent { rank, rope }))?;
            let (first, second) = (b.begin(&before(), &kv, None)?, b.begin(&step(), &kv, None)?);
            let write = |rows, values: &Vec<f32>| b.write(rows, values.len() / rows, values.clone());
            b.append_latent(&kv, 0, &write(37, &c0)?, &write(37, &p0)?, &first)?;
            b.append_latent(&kv, 0, &write(7, &c1)?, &write(7, &p1)?, &second)?;
            let w = kv_b.as_ref().map(|w| b.linear(w.clone())).transpose()?;
            b.read(&b.latent_attention(&write(7, &q)?, w.as_ref(), &kv, 0, heads, 0.2, LatentForm::Auto, &second)?)
        });
    }
}

#[test]
fn routing_and_experts() {
    let mut numbers = Numbers(6);
    let (hidden, inner, experts) = (40, 24, 12);
    let gate = numbers.dense("gate", experts, hidden, DType::F32);
    let bias = numbers.many(experts);
    let all: Vec<Expert> = (0..experts)
        .map(|_| Expert {
            gate: numbers.dense("expert", inner, hidden, DType::BF16),
            up: numbers.dense("expert", inner, hidden, DType::BF16),
            down: numbers.dense("expert", hidden, inner, DType::BF16),
        })
        .collect();
    let x = numbers.many(9 * hidden);
    let many = numbers.many(45 * hidden);
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for (normalise, groups, top_groups) in [(false, 1, 1), (true, 1, 1), (true, 4, 2)] {
            let rule = RouterRule { scoring, top_k: 3, normalise, scale: 1.8, groups, top_groups };
            twins!("routing", LIMIT, |b| {
                let x = b.write(9, hidden, x.clone())?;
                let routing = b.route(&x, &b.linear(gate.clone())?, Some(&b.vector(bias.clone())?), &rule)?;
                let choices = b.read_routing(&routing)?;
                Ok(choices.into_iter().flatten().flat_map(|(e, w)| [e as f32, w]).collect())
            });
            for (options, limit) in [(EXACT, LIMIT), (OPTIONS, HALVES_LIMIT)] {
                twins!(options, "many rows for experts", limit, |b| {
                    let x = b.write(45, hidden, many.clone())?;
                    let routing = b.route(&x, &b.linear(gate.clone())?, Some(&b.vector(bias.clone())?), &rule)?;
                    b.read(&b.apply_experts(&x, &b.experts(all.clone())?, &routing)?)
                });
            }
            twins!("experts", LIMIT, |b| {
                let x = b.write(9, hidden, x.clone())?;
                let routing = b.route(&x, &b.linear(gate.clone())?, None, &rule)?;
                b.read(&b.apply_experts(&x, &b.experts(all.clone())?, &routing)?)
            });
        }
    }
}

/// Experts of one layer with several numbers of bits, each with rotations of its own.
#[test]
fn experts_of_several_kinds() {
    let mut numbers = Numbers(7);
    let (hidden, inner, experts) = (128, 128, 6);
    let mut one = |rows, cols, bits| {
        let scale = |n: &mut Numbers, len| Some(n.many(len).into());
        let input = InputTransform::Hadamard { scale: scale(&mut numbers, cols), block: 128 };
        let output = OutputTransform::Hadamard { scale: scale(&mut numbers, rows), block: 128 };
        numbers.trellis(rows, cols, bits, Codebook::Mul1).with_transforms(input, output).unwrap()
    };
    let all: Vec<Expert> = (0..experts)
        .map(|e| Expert {
            gate: one(inner, hidden, 2 + e % 2),
            up: one(inner, hidden, 3),
            down: one(hidden, inner, 2 + e % 3),
        })
        .collect();
    let gate = numbers.dense("gate", experts, hidden, DType::F32);
    let x = numbers.many(5 * hidden);
    let rule =
        RouterRule { scoring: Scoring::Softmax, top_k: 2, normalise: true, scale: 1.0, groups: 1, top_groups: 1 };
    twins!("experts of several kinds", LIMIT, |b| {
        let x = b.write(5, hidden, x.clone())?;
        let routing = b.route(&x, &b.linear(gate.clone())?, None, &rule)?;
        b.read(&b.apply_experts(&x, &b.experts(all.clone())?, &routing)?)
    });
    // Many rows are sorted by their experts; some of those have more than a tile of rows, others none.
    let mut gate = gate.clone();
    let many = numbers.many(70 * hidden);
    gate.bias = Some(vec![3.0, -9.0, 0.5, 0.0, 0.2, 0.0]);
    for (options, limit) in [(EXACT, LIMIT), (OPTIONS, HALVES_LIMIT)] {
        twins!(options, "many rows for experts of several kinds", limit, |b| {
            let x = b.write(70, hidden, many.clone())?;
            let routing = b.route(&x, &b.linear(gate.clone())?, None, &rule)?;
            b.read(&b.apply_experts(&x, &b.experts(all.clone())?, &routing)?)
        });
    }
    // Observers see them one at a time.
    twins!("one expert", LIMIT, |b| {
        let held = b.experts(all.clone())?;
        let x = b.write(5, hidden, x.clone())?;
        b.read(&b.linears(&b.expert(&held, 4), &x)?[2])
    });
}

/// Trellises of whole blocks, of few rows and many, some with more than a tile of rows and some with none.
#[test]
fn trellises_of_experts_by_tensor_cores() {
    let (hidden, inner, experts) = (256, 384, 3);
    let rule =
        RouterRule { scoring: Scoring::Softmax, top_k: 2, normalise: true, scale: 1.0, groups: 1, top_groups: 1 };
    let around = |numbers: &mut Numbers, linear: Linear, scales: bool| {
        let [cols, rows] = [linear.in_features(), linear.out_features()];
        let mut scale = |len| scales.then(|| numbers.many(len).into());
        let input = InputTransform::Hadamard { scale: scale(cols), block: 128 };
        linear.with_transforms(input, OutputTransform::Hadamard { scale: scale(rows), block: 128 }).unwrap()
    };
    for (bits, book, rotated, scales) in [
        ([3, 2], Codebook::Mul1, true, true),
        ([4, 5], Codebook::Mcg, true, false),
        ([8, 1], Codebook::ThreeInst, false, false),
    ] {
        let mut numbers = Numbers(17 + bits[0] as u32);
        let mut one = |rows, cols, bits| {
            let linear = numbers.trellis(rows, cols, bits, book);
            if rotated { around(&mut numbers, linear, scales) } else { linear }
        };
        let all: Vec<Expert> = (0..experts)
            .map(|e| Expert {
                gate: one(inner, hidden, bits[e % 2]),
                up: one(inner, hidden, bits[0]),
                down: one(hidden, inner, bits[1]),
            })
            .collect();
        let mut gate = numbers.dense("gate", experts, hidden, DType::F32);
        gate.bias = Some(vec![9.0, -30.0, 1.0]);
        for rows in [1, 3, 70] {
            let x = numbers.many(rows * hidden);
            twins!(&format!("{bits:?} bits of {book:?}, {rows} rows for experts"), HALVES_LIMIT, |b| {
                let x = b.write(rows, hidden, x.clone())?;
                let routing = b.route(&x, &b.linear(gate.clone())?, None, &rule)?;
                b.read(&b.apply_experts(&x, &b.experts(all.clone())?, &routing)?)
            });
        }
    }
}

/// Grouped codes and dense weights at sizes that are no multiples of a tile's.
#[test]
fn rows_of_experts_by_tensor_cores() {
    let mut numbers = Numbers(23);
    let (hidden, inner, experts, rows) = (96, 144, 2, 20);
    let rule =
        RouterRule { scoring: Scoring::Sigmoid, top_k: 2, normalise: true, scale: 1.0, groups: 1, top_groups: 1 };
    type Kind = fn(&mut Numbers, usize, usize) -> Linear;
    let kinds: [(&str, Kind); 5] = [
        ("bf16", |n, rows, cols| n.dense("expert", rows, cols, DType::BF16)),
        ("f32", |n, rows, cols| n.dense("expert", rows, cols, DType::F32)),
        ("e2m1", |n, rows, cols| n.four_bits(rows, cols, ValueMap::E2M1)),
        ("3 bits", |n, rows, cols| {
            let shape = [rows, cols];
            let scale = ScaleTree::flat(n.scales(ScaleType::F16, shape, (1, 32)));
            let minimum = Some(ScaleTree::flat(n.scales(ScaleType::F16, shape, (1, 32))));
            n.grouped(shape, 3, ValueMap::Integer(Zero::Constant(0)), scale, minimum)
        }),
        ("8 bits", |n, rows, cols| {
            let scale = ScaleTree::flat(n.scales(ScaleType::F32, [rows, cols], (1, 16)));
            n.grouped([rows, cols], 8, ValueMap::Integer(Zero::Constant(128)), scale, None)
        }),
    ];
    for (what, kind) in kinds {
        let all: Vec<Expert> = (0..experts)
            .map(|_| Expert {
                gate: kind(&mut numbers, inner, hidden),
                up: kind(&mut numbers, inner, hidden),
                down: kind(&mut numbers, hidden, inner),
            })
            .collect();
        let gate = numbers.dense("gate", experts, hidden, DType::F32);
        let x = numbers.many(rows * hidden);
        twins!(&format!("{rows} rows for experts of {what}"), HALVES_LIMIT, |b| {
            let x = b.write(rows, hidden, x.clone())?;
            let routing = b.route(&x, &b.linear(gate.clone())?, None, &rule)?;
            b.read(&b.apply_experts(&x, &b.experts(all.clone())?, &routing)?)
        });
    }
}

/// Experts that differ in what stands around them are computed one by one, and that is counted.
#[test]
fn mixed_experts_are_counted() {
    let mut numbers = Numbers(8);
    let (hidden, inner) = (32, 16);
    let mut all: Vec<Expert> = (0..4)
        .map(|_| Expert {
            gate: numbers.dense("layers.7.experts.0.gate", inner, hidden, DType::BF16),
            up: numbers.dense("expert", inner, hidden, DType::BF16),
            down: numbers.dense("expert", hidden, inner, DType::BF16),
        })
        .collect();
    all[1].up = numbers.four_bits(inner + 8, hidden + 16, ValueMap::E2M1).with_features([inner, hidden]).unwrap();
    let gate = numbers.dense("gate", 4, hidden, DType::F32);
    let x = numbers.many(3 * hidden);
    let rule =
        RouterRule { scoring: Scoring::Softmax, top_k: 2, normalise: true, scale: 1.0, groups: 1, top_groups: 1 };
    macro_rules! run {
        ($b:expr) => {{
            let b = $b;
            let x = b.write(3, hidden, x.clone()).unwrap();
            let routing = b.route(&x, &b.linear(gate.clone()).unwrap(), None, &rule).unwrap();
            b.read(&b.apply_experts(&x, &b.experts(all.clone()).unwrap(), &routing).unwrap()).unwrap()
        }};
    }
    let expected = run!(&marlin_backend::Reference);
    for b in backends() {
        crate::device::close("mixed experts", &run!(&b), &expected, LIMIT);
        let found = b.fallbacks().snapshot();
        let last = found.last.unwrap();
        assert_eq!((found.by_reason["mixed_experts"], last.top_k, last.experts, last.batch), (1, 2, 4, 3));
    }
}

#[test]
fn a_step_may_name_the_samples_of_the_one_before() {
    let mut numbers = Numbers(9);
    let table = numbers.dense("embed", 12, 24, DType::BF16);
    let logits = numbers.many(2 * 12);
    let spec = pool(KvLayout::Heads { heads: 1, key: 8, value: 8 });
    macro_rules! run {
        ($b:expr) => {{
            let b = $b;
            let kv = b.kv(spec).unwrap();
            let rows = [SampleRow::greedy(12), SampleRow::greedy(11)];
            let samples = b.sample(&b.write(2, 12, logits.clone()).unwrap(), &rows).unwrap();
            let next = Step {
                tokens: vec![Token::Sampled(1), Token::Sampled(0)],
                sequences: vec![SequenceStep { cached: 0, len: 2, blocks: vec![1] }],
                outputs: vec![0, 1],
            };
            let batch = b.begin(&next, &kv, Some(&samples)).unwrap();
            let y = b.read(&b.embed(&b.linear(table.clone()).unwrap(), &batch).unwrap()).unwrap();
            (y, b.read_samples(&samples).unwrap())
        }};
    }
    let expected = run!(&marlin_backend::Reference);
    for b in backends() {
        assert_eq!(run!(&b), expected);
        assert_eq!(b.fallbacks().snapshot().by_reason["sampled_on_cpu"], 1);
    }
}

#[test]
fn memory_is_counted_capped_and_given_back() {
    for b in backends() {
        let gpu = b.gpu();
        let before = gpu.memory();
        let tensor = b.write(100, 100, vec![1.0; 10_000]).unwrap();
        let during = gpu.memory();
        assert!(during.active >= before.active + 40_000 && during.peak >= during.active);
        drop(tensor);
        let after = gpu.memory();
        assert_eq!((after.active, after.peak), (before.active, during.peak));
        assert!(after.cached >= 40_000);
        // The same memory again.
        let again = b.write(100, 100, vec![2.0; 10_000]).unwrap();
        assert_eq!(gpu.memory().cached, after.cached - (during.active - before.active));
        drop(again);
        gpu.clear_cache();
        gpu.reset_peak();
        assert_eq!((gpu.memory().cached, gpu.memory().peak), (0, before.active));
        let error = gpu.buffer(crate::device::OPTIONS.memory + 1).err().unwrap().to_string();
        assert!(error.contains("out of memory"), "{error}");
    }
}
