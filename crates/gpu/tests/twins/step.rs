//! The decoding step: contexts read in parts, KV memory of every type, fused blocks, tokens that stay on the device, replays.

use crate::device::{OPTIONS, backends, backends_with, close, twins};
use crate::numbers::Numbers;
use marlin_backend::blocks::{self, Attention, LatentAttention, Mlp, Norm};
use marlin_backend::{
    Backend, Error, KvLayout, KvSpec, LatentForm, Pass, Reference, RopeTable, SampleRow, SequenceStep, Step, Token,
};
use marlin_checkpoint::weight::Codebook;
use marlin_checkpoint::{DType, InputTransform, LatentProjection, OutputTransform};
use marlin_cpu::{CpuBackend, CpuOptions, KvType};
use marlin_gpu::kernels::Element;
use marlin_gpu::{GpuBackend, GpuOptions, GpuRecordings};
use std::sync::Arc;

const LIMIT: f32 = 2e-5;
/// With f32 products only, and where many rows are multiplied in halves.
const PRODUCTS: [(GpuOptions, f32); 2] = [(GpuOptions { exact: true, ..OPTIONS }, LIMIT), (OPTIONS, 6e-4)];
/// Tokens before the step.
const BEFORE: usize = 150;

fn blocks_of(tokens: usize) -> Vec<u32> {
    (0..tokens.div_ceil(16) as u32).rev().collect()
}

/// One sequence: all tokens before the step, then one.
fn steps() -> [Step; 2] {
    let step = |cached, len| Step {
        tokens: vec![Token::Id(1); len],
        sequences: vec![SequenceStep { cached, len, blocks: blocks_of(BEFORE + 1) }],
        outputs: vec![len as u32 - 1],
    };
    [step(0, BEFORE), step(BEFORE, 1)]
}

fn pool(layout: KvLayout) -> KvSpec {
    KvSpec { layers: 1, layout, block_size: 16, blocks: 10 }
}

/// One row of queries over a long context.
fn one_row<B: Backend>(b: &B, layout: KvLayout, seed: u32) -> marlin_backend::Result<Vec<f32>> {
    let mut numbers = Numbers(seed);
    let mut write = |rows, cols| b.write(rows, cols, numbers.many(rows * cols));
    let kv = b.kv(pool(layout))?;
    let steps = steps();
    let [first, second] = [b.begin(&steps[0], &kv, None)?, b.begin(&steps[1], &kv, None)?];
    let y = match layout {
        KvLayout::Heads { heads, key, value } => {
            for (rows, batch) in [(BEFORE, &first), (1, &second)] {
                b.append(&kv, 0, &write(rows, heads * key)?, &write(rows, heads * value)?, batch)?;
            }
            b.attention(&write(1, 5 * heads * key)?, &kv, 0, 5 * heads, 0.4, &second)?
        }
        KvLayout::Latent { rank, rope } => {
            for (rows, batch) in [(BEFORE, &first), (1, &second)] {
                b.append_latent(&kv, 0, &write(rows, rank)?, &write(rows, rope)?, batch)?;
            }
            let (heads, nope, value) = (3, 16, 8);
            let q = write(1, heads * (nope + rope))?;
            let kv_b = b.linear(Numbers(seed + 1).dense("kv_b", heads * (nope + value), rank, DType::F32))?;
            b.latent_attention(&q, LatentProjection::Whole(&kv_b), &kv, 0, heads, 0.4, LatentForm::Absorbed, &second)?
        }
    };
    b.read(&y)
}

/// Heads of several sizes, also such as are no multiples of eight, and latents with one scale and with two.
const LAYOUTS: [KvLayout; 5] = [
    KvLayout::Heads { heads: 1, key: 128, value: 128 },
    KvLayout::Heads { heads: 2, key: 24, value: 40 },
    KvLayout::Heads { heads: 1, key: 20, value: 12 },
    KvLayout::Latent { rank: 40, rope: 8 },
    KvLayout::Latent { rank: 192, rope: 16 },
];

#[test]
fn contexts_read_in_parts() {
    for (i, layout) in LAYOUTS.into_iter().enumerate() {
        twins!("attention in parts", LIMIT, |b| one_row(b, layout, 40 + i as u32));
    }
}

#[test]
fn kv_memory_of_every_type_is_the_cpus() {
    for (kv, theirs) in [
        (Element::F16, KvType::F16),
        (Element::Bf16, KvType::Bf16),
        (Element::Int8, KvType::Int8),
        (Element::Fp8, KvType::Fp8),
    ] {
        let cpu = CpuBackend::new(CpuOptions { threads: 1, exact: true, kv: theirs });
        for b in backends_with(GpuOptions { kv, ..OPTIONS }).into_iter().take(1) {
            for (i, layout) in LAYOUTS.into_iter().enumerate() {
                let found = one_row(&b, layout, 50 + i as u32).unwrap();
                let expected = one_row(&cpu, layout, 50 + i as u32).unwrap();
                close(&format!("{kv:?} {layout:?}"), &found, &expected, 2e-5);
                // And not what single precision gives.
                let single = one_row(&Reference, layout, 50 + i as u32).unwrap();
                assert!(found.iter().zip(&single).any(|(a, b)| (a - b).abs() > 1e-4 * b.abs()), "{kv:?}");
            }
        }
    }
}

fn norm<B: Backend>(b: &B, numbers: &mut Numbers, width: usize) -> marlin_backend::Result<Norm<B>> {
    Ok(Norm { weight: b.vector(numbers.many(width))?, eps: 1e-5 })
}

/// Norm, projections, head norms, rotation, append, attention and the residual, which a norm then takes with it.
fn grouped<B: Backend>(b: &B, head_norms: bool, interleaved: bool, pairs: usize) -> marlin_backend::Result<Vec<f32>> {
    let mut n = Numbers(60);
    let (hidden, heads, kv_heads, dim) = (48, 4, 2, 24);
    let mut linear = |rows, cols| b.linear(n.dense("w", rows, cols, DType::F32));
    let (q_proj, k_proj) = (linear(heads * dim, hidden)?, linear(kv_heads * dim, hidden)?);
    let (v_proj, o_proj) = (linear(kv_heads * dim, hidden)?, linear(hidden, heads * dim)?);
    let head_norm = |n: &mut Numbers| head_norms.then(|| norm(b, n, dim)).transpose();
    let inv_freq = (0..pairs).map(|i| 1.0 / (1.0 + i as f32 * 3.0)).collect();
    let w = Attention {
        norm: norm(b, &mut n, hidden)?,
        q_proj,
        k_proj,
        v_proj,
        o_proj,
        q_norm: head_norm(&mut n)?,
        k_norm: head_norm(&mut n)?,
        rope: Arc::new(b.rope_table(RopeTable { inv_freq, interleaved })?),
        heads,
        head_dim: dim,
        scale: 0.3,
    };
    let kv = b.kv(pool(KvLayout::Heads { heads: kv_heads, key: dim, value: dim }))?;
    let last = norm(b, &mut n, hidden)?;
    let mut out = Vec::new();
    for step in [(0, 21), (21, 1)].map(|(cached, len)| Step {
        tokens: vec![Token::Id(0); len],
        sequences: vec![SequenceStep { cached, len, blocks: blocks_of(22) }],
        outputs: (0..len as u32).collect(),
    }) {
        let batch = b.begin(&step, &kv, None)?;
        let pass = Pass { batch: &batch, kv: &kv, layer: 0, latent_form: LatentForm::Absorbed, observer: None };
        let h = b.write(step.tokens.len(), hidden, n.many(step.tokens.len() * hidden))?;
        let q = b.attention_input(&w, &h, &pass)?;
        let h = b.attention_output(&w, &q, h, &pass)?;
        out.extend(b.read(&last.apply(b, &b.outputs(&h, &batch)?)?)?);
        out.extend(b.read(&h)?);
    }
    Ok(out)
}

#[test]
fn grouped_attention_as_a_block() {
    for (head_norms, interleaved, pairs) in [(true, false, 12), (false, true, 12), (true, true, 5), (false, false, 7)] {
        for (options, limit) in PRODUCTS {
            twins!(options, "attention block", limit, |b| grouped(b, head_norms, interleaved, pairs));
        }
    }
}

fn latent<B: Backend>(b: &B, interleaved: bool, fused: bool) -> marlin_backend::Result<Vec<f32>> {
    let mut n = Numbers(61);
    let (hidden, heads, nope, rope_dim, value, rank, q_rank) = (40, 3, 16, 12, 20, 136, 24);
    let mut linear = |rows, cols| b.linear(n.dense("w", rows, cols, DType::BF16));
    let (q_a_proj, q_b_proj) = (linear(q_rank, hidden)?, linear(heads * (nope + rope_dim), q_rank)?);
    let (kv_a, kv_b) = (linear(rank + rope_dim, hidden)?, linear(heads * (nope + value), rank)?);
    let o_proj = linear(hidden, heads * value)?;
    let inv_freq = (0..rope_dim / 2).map(|i| 0.9f32.powi(i as i32)).collect();
    let w = LatentAttention {
        norm: norm(b, &mut n, hidden)?,
        q_a_proj,
        q_a_layernorm: norm(b, &mut n, q_rank)?,
        q_b_proj,
        kv_a_proj_with_mqa: kv_a,
        kv_a_layernorm: norm(b, &mut n, rank)?,
        kv_b_proj: LatentProjection::Whole(kv_b),
        o_proj,
        rope: Arc::new(b.rope_table(RopeTable { inv_freq, interleaved })?),
        heads,
        nope,
        rope_dim,
        rank,
        scale: 0.2,
    };
    let kv = b.kv(pool(KvLayout::Latent { rank, rope: rope_dim }))?;
    let mut out = Vec::new();
    for (cached, len) in [(0, 19), (19, 2)] {
        let sequences = vec![SequenceStep { cached, len, blocks: blocks_of(21) }];
        let step = Step { tokens: vec![Token::Id(0); len], sequences, outputs: vec![0] };
        let batch = b.begin(&step, &kv, None)?;
        let pass = Pass { batch: &batch, kv: &kv, layer: 0, latent_form: LatentForm::Absorbed, observer: None };
        let h = b.write(len, hidden, n.many(len * hidden))?;
        let y = if fused {
            let q = b.latent_input(&w, &h, &pass)?;
            b.latent_output(&w, &q, h, &pass)?
        } else {
            let q = blocks::latent_input(b, &w, &h, &pass)?;
            blocks::latent_output(b, &w, &q, h, &pass)?
        };
        out.extend(b.read(&y)?);
    }
    Ok(out)
}

#[test]
fn latent_attention_as_a_block() {
    for interleaved in [false, true] {
        for fused in [false, true] {
            for (options, limit) in PRODUCTS {
                twins!(options, "latent block", limit, |b| latent(b, interleaved, fused));
            }
        }
    }
}

#[test]
fn fused_latents_are_stored_in_bytes_as_single_ones_are() {
    for kv in [Element::Int8, Element::Fp8] {
        for b in backends_with(GpuOptions { kv, ..OPTIONS }) {
            close("latents in bytes", &latent(&b, true, true).unwrap(), &latent(&b, true, false).unwrap(), 2e-4);
        }
    }
}

/// A layer of many rows, and the norm after it: attention and MLP of trellises with rotations all around (or of dense weights), whose
/// products are finished by what comes next.
fn layer<B: Backend>(b: &B, trellises: bool, bias: bool) -> marlin_backend::Result<Vec<f32>> {
    let mut n = Numbers(65);
    let (hidden, inner, heads, dim, rows) = (256, 640, 2, 64, 21);
    let mut linear = |rows, cols| {
        if !trellises {
            return b.linear(n.dense("w", rows, cols, DType::BF16));
        }
        // Around what a model has: outputs of about the inputs' size.
        let mut scale = |len, size: f32| Some(n.many(len).into_iter().map(|v| size * v).collect::<Vec<_>>().into());
        let input = InputTransform::Hadamard { scale: scale(cols, 1.0), block: 128 };
        let output = OutputTransform::Hadamard { scale: scale(rows, 0.1), block: 128 };
        let mut all = n.trellis(rows, cols, 3, Codebook::Mul1).with_transforms(input, output).unwrap();
        all.bias = bias.then(|| n.many(rows));
        b.linear(all)
    };
    let (q_proj, k_proj, v_proj) =
        (linear(heads * dim, hidden)?, linear(heads * dim, hidden)?, linear(heads * dim, hidden)?);
    let o_proj = linear(hidden, heads * dim)?;
    let (gate_proj, up_proj, down_proj) = (linear(inner, hidden)?, linear(inner, hidden)?, linear(hidden, inner)?);
    let inv_freq = (0..dim / 2).map(|i| 0.8f32.powi(i as i32)).collect();
    let attention = Attention {
        norm: norm(b, &mut n, hidden)?,
        q_proj,
        k_proj,
        v_proj,
        o_proj,
        q_norm: Some(norm(b, &mut n, dim)?),
        k_norm: None,
        rope: Arc::new(b.rope_table(RopeTable { inv_freq, interleaved: false })?),
        heads,
        head_dim: dim,
        scale: 0.125,
    };
    let mlp = Mlp { norm: norm(b, &mut n, hidden)?, gate_proj, up_proj, down_proj };
    let last = norm(b, &mut n, hidden)?;
    let kv = b.kv(pool(KvLayout::Heads { heads, key: dim, value: dim }))?;
    let sequences = vec![SequenceStep { cached: 0, len: rows, blocks: blocks_of(rows) }];
    let step = Step { tokens: vec![Token::Id(0); rows], sequences, outputs: (0..rows as u32).collect() };
    let batch = b.begin(&step, &kv, None)?;
    let pass = Pass { batch: &batch, kv: &kv, layer: 0, latent_form: LatentForm::Auto, observer: None };
    let h = b.write(rows, hidden, n.many(rows * hidden))?;
    let q = b.attention_input(&attention, &h, &pass)?;
    let h = b.attention_output(&attention, &q, h, &pass)?;
    let h = b.mlp(&mlp, h, &pass)?;
    // Once more, now on top of products.
    let q = b.attention_input(&attention, &h, &pass)?;
    let h = b.attention_output(&attention, &q, h, &pass)?;
    let h = b.mlp(&mlp, h, &pass)?;
    let mut out = b.read(&last.apply(b, &h)?)?;
    out.extend(b.read(&h)?);
    Ok(out)
}

#[test]
fn a_layer_of_many_rows() {
    for (trellises, bias) in [(false, false), (true, false), (true, true)] {
        for (options, limit) in PRODUCTS {
            let limit = if limit == LIMIT { 1e-4 } else { 4e-3 };
            twins!(options, "a layer", limit, |b| layer(b, trellises, bias));
        }
    }
}

#[test]
fn the_most_probable_token_is_found_on_the_device() {
    let mut numbers = Numbers(62);
    let (rows, cols, vocab) = (4, 3000, 2990);
    let mut logits: Vec<f32> = numbers.many(rows * cols).into_iter().map(|v| v * 6.0).collect();
    // Ties, padding beyond the vocabulary that is greater than all, a token that is ruled out.
    (logits[cols + 40], logits[cols + 2100], logits[2 * cols + 2995]) = (9.0, 9.0, 20.0);
    logits[3 * cols + 7] = f32::NEG_INFINITY;
    let choose = |b: &dyn Fn(Vec<f32>) -> Vec<marlin_backend::Sample>| b(logits.clone());
    let run = |b: &GpuBackend, logits: Vec<f32>| {
        let x = b.write(rows, cols, logits).unwrap();
        b.read_samples(&b.sample(&x, &vec![SampleRow::greedy(vocab); rows]).unwrap()).unwrap()
    };
    let expected = choose(&|l| {
        let x = Reference.write(rows, cols, l).unwrap();
        Reference.read_samples(&Reference.sample(&x, &vec![SampleRow::greedy(vocab); rows]).unwrap()).unwrap().to_vec()
    });
    assert_eq!((expected[1].token, expected[1].margin), (40, 0.0));
    for b in backends() {
        let before = b.gpu().counts().waits;
        let found = run(&b, logits.clone());
        assert_eq!(b.gpu().counts().waits - before, 1);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!((found.token, found.margin), (expected.token, expected.margin));
            assert!((found.logprob - expected.logprob).abs() < 1e-5, "{} {}", found.logprob, expected.logprob);
        }
        // NaN anywhere, plus infinity, or nothing possible: the token means nothing, and that shows.
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = logits.clone();
            logits[2 * cols + 1234] = bad;
            assert!(run(&b, logits)[2].logprob.is_nan());
        }
        assert!(run(&b, vec![f32::NEG_INFINITY; rows * cols])[0].logprob.is_nan());
        assert_eq!(b.fallbacks().snapshot().total, 0);
    }
}

/// Rows of a table by the samples of the step before, without the host knowing them.
#[test]
fn tokens_stay_on_the_device() {
    let mut numbers = Numbers(63);
    let table = numbers.dense("embed", 12, 24, DType::BF16);
    let logits = numbers.many(2 * 12);
    twins!("sampled tokens", LIMIT, |b| {
        let kv = b.kv(pool(KvLayout::Heads { heads: 1, key: 8, value: 8 }))?;
        let samples = b.sample(&b.write(2, 12, logits.clone())?, &vec![SampleRow::greedy(12); 2])?;
        let next = Step {
            tokens: vec![Token::Sampled(1), Token::Id(3), Token::Sampled(0)],
            sequences: vec![SequenceStep { cached: 0, len: 3, blocks: vec![1] }],
            outputs: vec![0, 1, 2],
        };
        let batch = b.begin(&next, &kv, Some(&samples))?;
        b.read(&b.embed(&b.linear(table.clone())?, &batch)?)
    });
}

/// A pass is computed, then recorded, then replayed: every time for the tokens and positions of its own step.
#[test]
fn steps_of_one_shape_are_replayed() {
    let mut numbers = Numbers(64);
    let table = numbers.dense("embed", 50, 16, DType::F32);
    let head = numbers.dense("head", 20, 16, DType::F32);
    for b in backends() {
        let kv = b.kv(pool(KvLayout::Heads { heads: 1, key: 16, value: 16 })).unwrap();
        let held = (b.linear(table.clone()).unwrap(), b.linear(head.clone()).unwrap());
        let reference = (table.clone(), head.clone());
        let their = Reference.kv(pool(KvLayout::Heads { heads: 1, key: 16, value: 16 })).unwrap();
        let (recordings, never) = (GpuRecordings::default(), GpuRecordings::default());
        macro_rules! pass {
            ($b:expr, $w:expr, $kv:expr, $batch:expr) => {{
                let x = $b.embed(&$w.0, $batch)?;
                $b.append($kv, 0, &x, &x, $batch)?;
                let o = $b.attention(&x, $kv, 0, 1, 0.5, $batch)?;
                $b.linears(&[&$w.1], &$b.add(x, &o)?).map(|mut all| all.remove(0))
            }};
        }
        let mut kept: Vec<(Vec<f32>, _)> = Vec::new();
        for position in 0..9 {
            // Two sequences of different lengths.
            let sequence = |cached, blocks| SequenceStep { cached, len: 1, blocks };
            let step = Step {
                tokens: vec![Token::Id(7 * position as u32 % 50), Token::Id(position as u32 + 3)],
                sequences: vec![sequence(position, vec![2]), sequence(position + 20, vec![5, 6])],
                outputs: vec![0, 1],
            };
            if position == 0 {
                // What the second sequence has before.
                let first = Step {
                    tokens: vec![Token::Id(9); 20],
                    sequences: vec![SequenceStep { cached: 0, len: 20, blocks: vec![5, 6] }],
                    outputs: Vec::new(),
                };
                let (batch, theirs) =
                    (b.begin(&first, &kv, None).unwrap(), Reference.begin(&first, &their, None).unwrap());
                let on_gpu = || -> marlin_backend::Result<_> { pass!(b, held, &kv, &batch) };
                let on_reference = || -> marlin_backend::Result<_> { pass!(Reference, reference, &their, &theirs) };
                on_gpu().unwrap();
                on_reference().unwrap();
            }
            let batch = b.begin(&step, &kv, None).unwrap();
            let y =
                b.whole(&recordings, &batch, &kv, |batch| -> marlin_backend::Result<_> { pass!(b, held, &kv, batch) });
            let theirs = Reference.begin(&step, &their, None).unwrap();
            let expected =
                (|| -> marlin_backend::Result<_> { pass!(Reference, reference, &their, &theirs) })().unwrap();
            let expected = Reference.read(&expected).unwrap();
            kept.push((expected, y.unwrap()));
            // What waits for the device cannot be replayed, and is computed every time.
            let waits = b.whole(&never, &batch, &kv, |batch| {
                let y = pass!(b, held, &kv, batch)?;
                b.write(2, 20, b.read(&y)?)
            });
            close("a pass that reads", &b.read(&waits.unwrap()).unwrap(), &kept[position].0, LIMIT);
        }
        // Results of earlier replays are not overwritten by later ones.
        for (expected, found) in &kept {
            close("a replayed pass", &b.read(found).unwrap(), expected, LIMIT);
        }
        assert_eq!(b.gpu().counts().replays, 8, "the first is computed, the second recorded");
        let error =
            b.whole(&recordings, &b.begin(&steps()[0], &kv, None).unwrap(), &kv, |_| Err(Error::shape("x", 1, 2)));
        assert!(error.is_err());
    }
}

#[test]
fn memory_of_a_recording_is_its_own_until_it_is_gone() {
    for b in backends() {
        let gpu = b.gpu();
        let x = gpu.upload(&[1.0f32, 2.0, 3.0]).unwrap();
        let active = gpu.memory().active;
        let add = |x: &marlin_gpu::Slice<f32>| -> marlin_gpu::Result<marlin_gpu::Slice<f32>> {
            let y = gpu.uninitialised(3)?;
            let count = marlin_gpu::kernels::CountArgs { count: 3 };
            marlin_gpu::kernels::Add {}.launch(gpu, [1, 1, 1], x, x, &y, &count)?;
            Ok(y)
        };
        add(&x).unwrap(); // compiled
        let recorded = gpu.record(|| add(&add(&x)?)).unwrap();
        let (recording, y) = recorded.unwrap();
        let y = y.unwrap();
        for values in [[1.0f32, 2.0, 3.0], [5.0, 6.0, 7.0]] {
            gpu.write(&x, 0, &values).unwrap();
            // Whoever takes memory now does not get what the replay writes.
            let other = gpu.upload(&[9.0f32; 3]).unwrap();
            gpu.replay(&recording).unwrap();
            assert_eq!(gpu.read(&y).unwrap(), values.map(|v| 4.0 * v));
            assert_eq!(gpu.read(&other).unwrap(), [9.0; 3]);
        }
        assert!(gpu.memory().active > active);
        drop((recording, y));
        assert_eq!(gpu.memory().active, active);
        let refused = gpu.record(|| gpu.read(&x).err()).unwrap().unwrap().1;
        assert!(refused.unwrap().to_string().contains("cannot be replayed"));
    }
}

#[test]
fn times_are_kept_by_kernel() {
    for b in backends() {
        let gpu = b.gpu();
        assert!(!gpu.is_timing());
        gpu.start_timing();
        let x = b.write(3, 40, vec![1.0; 120]).unwrap();
        let weight = b.vector(vec![1.0; 40]).unwrap();
        for _ in 0..2 {
            b.read(&b.rms_norm(&x, &weight, 1e-5).unwrap()).unwrap();
        }
        b.swiglu(x.clone(), &x).unwrap();
        let times = gpu.stop_timing().unwrap();
        let mut found: Vec<_> = times.iter().map(|t| (t.kernel.as_str(), t.launches)).collect();
        found.sort_unstable();
        assert_eq!(found, [("mm_rms_norm_1_1_4_n", 2), ("mm_swiglu", 1)]);
        assert!(times.iter().all(|t| t.seconds >= 0.0 && t.bytes >= 480 && t.seconds <= times[0].seconds));
        assert!(!gpu.is_timing());
    }
}
