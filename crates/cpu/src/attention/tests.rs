//! Against a softmax in `f64`, and bitwise invariance to chunks, batches, blocks and threads. Unwritten memory is
//! filled with values that are not numbers, to show that it never takes part.

use super::*;
use crate::linear::tests::{Rng, TYPES, levels, store};
use marlin_checkpoint::weight::values::e4m3;

fn every_type() -> impl Iterator<Item = Stored> {
    TYPES.into_iter().map(Stored::Float).chain([Stored::Int8, Stored::Fp8])
}

fn round(x: &[f32], dtype: DType) -> Vec<f32> {
    store(x, dtype).1
}

/// What memory holds of vectors of `width` values, checked against how far off it may be.
fn stored_values(x: &[f32], width: usize, stored: Stored) -> Vec<f32> {
    let Stored::Float(dtype) = stored else {
        return x.chunks(width.max(1)).flat_map(|v| stored_bytes(v, stored)).collect();
    };
    round(x, dtype)
}

fn stored_bytes(v: &[f32], stored: Stored) -> Vec<f32> {
    let numbers: Vec<f32> = match stored {
        Stored::Fp8 => std::iter::once(0).chain(8..=0x7eu8).map(e4m3).collect(),
        _ => (0..=127).map(|i| i as f32).collect(),
    };
    let top = numbers[numbers.len() - 1];
    let most = v.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let (scale, inverse) = if most > 0.0 { (most / top, top / most) } else { (0.0, 0.0) };
    let nearest = |x: f32| {
        let wanted = f64::from((x * inverse).abs());
        let odd = |i: &usize| if stored == Stored::Fp8 { i.saturating_sub(1) % 2 } else { i % 2 };
        let off = |i: &usize| (f64::from(numbers[*i]) - wanted).abs();
        // Of two numbers as near, the one with an even code (the second E4M3 number is the code 8).
        let code = (0..numbers.len()).min_by(|a, b| off(a).total_cmp(&off(b)).then(odd(a).cmp(&odd(b)))).unwrap();
        let found = numbers[code].copysign(x) * scale;
        let bound = match stored {
            Stored::Fp8 => (x.abs() / 16.0).max(most / 448.0 / 128.0),
            _ => most / 254.0,
        };
        assert!((found - x).abs() <= bound * (1.0 + 1e-4), "{x} is stored as {found}, most {most}, {stored:?}");
        found
    };
    v.iter().map(|x| nearest(*x)).collect()
}

/// Naive attention of one query: keys and values as rows.
fn naive(q: &[f32], keys: &[&[f32]], values: &[&[f32]], scale: f64) -> Vec<f64> {
    let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() * scale;
    let s: Vec<f64> = keys.iter().map(|k| dot(k)).collect();
    let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let p: Vec<f64> = s.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = p.iter().sum();
    (0..values[0].len()).map(|d| p.iter().zip(values).map(|(p, v)| p / sum * f64::from(v[d])).sum()).collect()
}

struct Case {
    shape: KvShape,
    group: usize,
    n: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn new(rng: &mut Rng, shape: KvShape, group: usize, n: usize) -> Case {
        let h = shape.kv_heads;
        Case {
            shape,
            group,
            n,
            q: rng.vec(n * h * group * shape.k_dim).iter().map(|x| x * 2.0).collect(),
            k: rng.vec(n * h * shape.k_dim),
            v: rng.vec(n * h * shape.v_dim),
        }
    }

    /// Runs the sequence in steps of the given rows, each step appending before it attends.
    fn run(&self, cpu: &Cpu, mode: Mode, steps: &[usize], reversed: bool) -> Vec<f32> {
        let s = self.shape;
        let blocks = self.n.div_ceil(s.block) + 2;
        let mut table: Vec<u32> = (0..blocks as u32).collect();
        if reversed {
            table.reverse();
        }
        let mut k_pool = vec![0xffu8; blocks * s.k_block_bytes()];
        let mut v_pool = vec![0xffu8; blocks * s.v_block_bytes()];
        let (heads, qw, kw, vw) =
            (s.kv_heads * self.group, s.kv_heads * self.group * s.k_dim, s.kv_heads * s.k_dim, s.kv_heads * s.v_dim);
        let ow = heads * s.v_dim;
        let mut out = vec![f32::NAN; self.n * ow];
        let mut start = 0;
        for &rows in steps {
            let end = start + rows;
            let seq = [Sequence { span: Span { row: 0, rows, start }, table: &table }];
            append(
                cpu,
                s,
                &mut k_pool,
                &mut v_pool,
                &self.k[start * kw..end * kw],
                kw,
                &self.v[start * vw..end * vw],
                vw,
                &seq,
            )
            .unwrap();
            let (q, o) = (&self.q[start * qw..end * qw], &mut out[start * ow..end * ow]);
            attention(cpu, mode, s, &k_pool, &v_pool, q, qw, heads, &seq, 0.3, o, ow).unwrap();
            start = end;
        }
        assert_eq!(start, self.n);
        out
    }

    fn want(&self, i: usize, head: usize, rounded: bool) -> Vec<f64> {
        let s = self.shape;
        let (k, v) = (stored_values(&self.k, s.k_dim, s.stored), stored_values(&self.v, s.v_dim, s.stored));
        let h = head / self.group;
        let q = &self.q[(i * s.kv_heads * self.group + head) * s.k_dim..][..s.k_dim];
        let q = if rounded { round(q, DType::Bf16) } else { q.to_vec() };
        let keys: Vec<_> = (0..=i).map(|t| &k[(t * s.kv_heads + h) * s.k_dim..][..s.k_dim]).collect();
        let values: Vec<_> = (0..=i).map(|t| &v[(t * s.kv_heads + h) * s.v_dim..][..s.v_dim]).collect();
        naive(&q, &keys, &values, 0.3)
    }
}

/// Whether grouped attention rounds queries and probabilities.
fn rounds(cpu: &Cpu, mode: Mode, stored: Stored) -> bool {
    matches!(stored, Stored::Float(dtype) if cpu.rounds(mode, dtype))
}

fn assert_close(got: &[f32], want: &[f64], tolerance: f64, what: &str) {
    for (g, w) in got.iter().zip(want) {
        assert!((f64::from(*g) - w).abs() <= tolerance, "{what}: {g} {w}");
    }
}

#[test]
fn agrees_with_f64_for_every_shape() {
    let mut rng = Rng(10);
    for cpu in levels() {
        for stored in every_type() {
            for (k_dim, v_dim) in [(8, 8), (32, 32), (64, 64), (80, 80), (128, 128), (256, 256), (24, 40), (16, 48)] {
                for (kv_heads, group, block) in
                    [(1, 1, 32), (2, 2, 4), (1, 5, 64), (2, 13, 16), (1, 8, if stored.scaled() { 8 } else { 2 })]
                {
                    let n = 1 + (rng.0 % 70) as usize;
                    let shape = KvShape { kv_heads, k_dim, v_dim, block, stored };
                    let case = Case::new(&mut rng, shape, group, n);
                    for mode in [Mode::Exact, Mode::Fast] {
                        let rounded = rounds(&cpu, mode, stored);
                        if mode == Mode::Fast && !rounded {
                            continue;
                        }
                        let out = case.run(&cpu, mode, &[n], true);
                        for i in [0, n / 2, n - 1] {
                            for head in [0, kv_heads * group - 1] {
                                let got = &out[(i * kv_heads * group + head) * v_dim..][..v_dim];
                                let what = format!("{} {shape:?} {mode:?}", cpu.level());
                                assert_close(
                                    got,
                                    &case.want(i, head, rounded),
                                    if rounded { 6e-3 } else { 2e-5 },
                                    &what,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn steps_blocks_and_threads_do_not_change_a_bit() {
    let mut rng = Rng(11);
    for cpu in levels() {
        let slow = cpu.level() == crate::Level::Scalar;
        for stored in every_type() {
            for (kv_heads, group, n) in [(2, 2, 75), (1, 7, 600), (1, 1, 1100)] {
                if slow && n > 100 {
                    continue;
                }
                let shape = KvShape { kv_heads, k_dim: 32, v_dim: 32, block: 32, stored };
                let mut case = Case::new(&mut rng, shape, group, n);
                let five = Cpu::with_level(5, cpu.level());
                for mode in [Mode::Exact, Mode::Fast] {
                    let whole = case.run(&cpu, mode, &[n], false);
                    assert!(whole.iter().all(|x| x.is_finite()));
                    // Matrix tiles take whole tiles of positions for a dozen vectors, and round otherwise.
                    let tiled = cpu.tiled(usize::MAX) && rounds(&cpu, mode, stored);
                    for step in if tiled { &[][..] } else { &[1, 3, 17, 32, 100] } {
                        let step = *step;
                        let mut steps = vec![step; n / step];
                        steps.extend((n % step > 0).then_some(n % step));
                        let what = format!("steps of {step} {stored:?} {mode:?} {}", cpu.level());
                        assert_eq!(whole, case.run(&five, mode, &steps, true), "{what}");
                    }
                    for block in [if stored.scaled() { 4 } else { 2 }, 8, 64] {
                        case.shape.block = block;
                        assert_eq!(whole, case.run(&cpu, mode, &[n], true), "blocks of {block}");
                    }
                    case.shape.block = 32;
                }
                let i = n - 1;
                let whole = case.run(&cpu, Mode::Exact, &[n], false);
                assert_close(&whole[i * kv_heads * group * 32..][..32], &case.want(i, 0, false), 3e-6, "long");
            }
        }
    }
}

#[test]
fn exact_attention_is_the_same_on_every_level() {
    let mut rng = Rng(12);
    for stored in every_type() {
        let shape = KvShape { kv_heads: 2, k_dim: 48, v_dim: 48, block: 16, stored };
        let case = Case::new(&mut rng, shape, 3, 70);
        let all: Vec<_> = levels().iter().map(|cpu| case.run(cpu, Mode::Exact, &[40, 30], false)).collect();
        assert!(all.windows(2).all(|w| w[0] == w[1]));
    }
}

#[test]
fn a_ragged_batch_is_its_sequences() {
    let mut rng = Rng(13);
    for cpu in levels() {
        for stored in every_type() {
            let s = KvShape { kv_heads: 2, k_dim: 16, v_dim: 16, block: 8, stored };
            let (group, kw) = (2, 32);
            let ow = kw * group;
            // (positions before this step, rows of this step)
            let seqs = [(0, 5), (37, 1), (9, 12), (0, 1), (64, 2)];
            let (mut k_pool, mut v_pool) = (vec![0xff; 40 * s.k_block_bytes()], vec![0xff; 40 * s.v_block_bytes()]);
            let mut next = 0u32;
            let tables: Vec<Vec<u32>> = seqs
                .iter()
                .map(|&(before, rows): &(usize, usize)| {
                    let n = (before + rows).div_ceil(8);
                    next += n as u32;
                    (next - n as u32..next).rev().collect()
                })
                .collect();
            for (i, &(before, _)) in seqs.iter().enumerate() {
                let (k, v) = (rng.vec(before * kw), rng.vec(before * kw));
                let seq = Sequence { span: Span { row: 0, rows: before, start: 0 }, table: &tables[i] };
                append(&cpu, s, &mut k_pool, &mut v_pool, &k, kw, &v, kw, &[seq]).unwrap();
            }
            let total: usize = seqs.iter().map(|s| s.1).sum();
            let (k, v, q) = (rng.vec(total * kw), rng.vec(total * kw), rng.vec(total * ow));
            let mut row = 0;
            let batch: Vec<_> = seqs
                .iter()
                .zip(&tables)
                .map(|(&(start, rows), table)| {
                    row += rows;
                    Sequence { span: Span { row: row - rows, rows, start }, table }
                })
                .collect();
            append(&cpu, s, &mut k_pool, &mut v_pool, &k, kw, &v, kw, &batch).unwrap();
            for mode in [Mode::Exact, Mode::Fast] {
                let mut together = vec![0.0; total * ow];
                attention(&cpu, mode, s, &k_pool, &v_pool, &q, ow, 4, &batch, 0.2, &mut together, ow).unwrap();
                let mut alone = vec![0.0; total * ow];
                for seq in &batch {
                    attention(&cpu, mode, s, &k_pool, &v_pool, &q, ow, 4, &[*seq], 0.2, &mut alone, ow).unwrap();
                }
                assert_eq!(together, alone);
                assert!(together.iter().all(|x| x.is_finite()));
            }
        }
    }
}

#[test]
fn latent_attention_agrees_and_is_invariant() {
    let mut rng = Rng(14);
    for cpu in levels() {
        for stored in every_type() {
            for (rank, rope, heads, block, n) in
                [(32, 8, 4, 32, 70), (40, 16, 3, 4, 33), (128, 32, 5, 1, 20), (64, 0, 13, 16, 40), (200, 24, 2, 8, 37)]
            {
                let shape = LatentShape { rank, rope, block, stored };
                let (c, pe) = (rng.vec(n * rank), rng.vec(n * (rope + 1)));
                let (q_lat, q_pe) = (rng.vec(n * heads * rank), rng.vec(n * heads * (rope + 2)));
                let blocks = n.div_ceil(block);
                let table: Vec<u32> = (0..blocks as u32).rev().collect();
                let run = |cpu: &Cpu, mode: Mode, step: usize| {
                    let mut pool = vec![0xff; blocks * shape.block_bytes()];
                    let mut out = vec![f32::NAN; n * heads * rank];
                    for start in (0..n).step_by(step) {
                        let rows = step.min(n - start);
                        let seq = [Sequence { span: Span { row: 0, rows, start }, table: &table }];
                        append_latent(
                            shape,
                            &mut pool,
                            &c[start * rank..],
                            rank,
                            &pe[start * (rope + 1)..],
                            rope + 1,
                            &seq,
                        )
                        .unwrap();
                        let (w, pw) = (heads * rank, heads * (rope + 2));
                        let o = &mut out[start * w..(start + rows) * w];
                        latent_attention(
                            cpu,
                            mode,
                            shape,
                            &pool,
                            &q_lat[start * w..],
                            &q_pe[start * pw..],
                            rope + 2,
                            heads,
                            &seq,
                            0.25,
                            o,
                        )
                        .unwrap();
                    }
                    out
                };
                for mode in [Mode::Exact, Mode::Fast] {
                    let whole = run(&cpu, mode, n);
                    // Matrix tiles take a dozen vectors: of one row where there are as many heads, else of several rows.
                    let by_rows = cpu.tiled(usize::MAX) && mode == Mode::Fast && !cpu.tiled(heads);
                    for step in if by_rows { &[][..] } else { &[1, 7, 32] } {
                        let step = *step;
                        assert_eq!(whole, run(&Cpu::with_level(3, cpu.level()), mode, step));
                    }
                    let rounded = cpu.rounds(mode, DType::Bf16) && (stored.scaled() || rounds(&cpu, mode, stored));
                    let keys: Vec<Vec<f32>> = (0..n)
                        .map(|t| {
                            let c = c[t * rank..(t + 1) * rank].chunks(128);
                            let mut k: Vec<f32> = c.flat_map(|c| stored_values(c, rank, stored)).collect();
                            k.extend(stored_values(&pe[t * (rope + 1)..][..rope], rope, stored));
                            if rounded { round(&k, DType::Bf16) } else { k }
                        })
                        .collect();
                    for i in [0, n / 2, n - 1] {
                        let h = i % heads;
                        let mut q = q_lat[(i * heads + h) * rank..][..rank].to_vec();
                        q.extend(&q_pe[(i * heads + h) * (rope + 2)..][..rope]);
                        let q = if rounded { round(&q, DType::Bf16) } else { q };
                        let k: Vec<_> = keys[..=i].iter().map(|k| &k[..]).collect();
                        let v: Vec<_> = keys[..=i].iter().map(|k| &k[..rank]).collect();
                        let tolerance = if rounded { 6e-3 } else { 3e-6 };
                        assert_close(
                            &whole[(i * heads + h) * rank..][..rank],
                            &naive(&q, &k, &v, 0.25),
                            tolerance,
                            "latent",
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn expanded_attention_agrees_and_is_invariant() {
    let mut rng = Rng(15);
    let (heads, n, kw, pw, vw) = (3, 75, 24, 8, 40);
    let kv = rng.vec(n * heads * (kw + vw));
    let pe = rng.vec(n * pw);
    let q = rng.vec(n * heads * (kw + pw));
    let e = Expanded {
        k: &kv,
        k_ld: heads * (kw + vw),
        k_head_ld: kw + vw,
        k_width: kw,
        pe: &pe,
        pe_ld: pw,
        pe_width: pw,
        v: &kv[kw..],
        v_ld: heads * (kw + vw),
        v_head_ld: kw + vw,
        v_width: vw,
    };
    for cpu in levels() {
        for mode in [Mode::Exact, Mode::Fast] {
            let run = |step: usize| {
                let mut out = vec![f32::NAN; n * heads * vw];
                for start in (0..n).step_by(step) {
                    let rows = step.min(n - start);
                    let span = Span { row: 0, rows, start };
                    let q = &q[start * heads * (kw + pw)..];
                    expanded_attention(&cpu, mode, q, heads, &[(span, e)], 0.3, &mut out[start * heads * vw..])
                        .unwrap();
                }
                out
            };
            let whole = run(n);
            assert_eq!(whole, run(1));
            assert_eq!(whole, run(20));
            let rounded = cpu.rounds(mode, DType::Bf16);
            let r = |x: &[f32]| if rounded { round(x, DType::Bf16) } else { x.to_vec() };
            for i in [0, 40, n - 1] {
                for h in 0..heads {
                    let keys: Vec<Vec<f32>> = (0..=i)
                        .map(|t| {
                            let mut k = r(&kv[(t * heads + h) * (kw + vw)..][..kw]);
                            k.extend(r(&pe[t * pw..][..pw]));
                            k
                        })
                        .collect();
                    let values: Vec<Vec<f32>> =
                        (0..=i).map(|t| r(&kv[(t * heads + h) * (kw + vw) + kw..][..vw])).collect();
                    let keys: Vec<_> = keys.iter().map(|k| &k[..]).collect();
                    let values: Vec<_> = values.iter().map(|k| &k[..]).collect();
                    let q = r(&q[(i * heads + h) * (kw + pw)..][..kw + pw]);
                    let tolerance = if rounded { 6e-3 } else { 3e-6 };
                    assert_close(
                        &whole[(i * heads + h) * vw..][..vw],
                        &naive(&q, &keys, &values, 0.3),
                        tolerance,
                        "expanded",
                    );
                }
            }
        }
    }
}

#[test]
fn bytes_and_scales_lie_where_the_shape_says() {
    let mut rng = Rng(16);
    let cpu = Cpu::with_level(2, crate::Level::best());
    for stored in [Stored::Int8, Stored::Fp8] {
        // Keys of 6 elements are stored as 8.
        let s = KvShape { kv_heads: 3, k_dim: 6, v_dim: 10, block: 8, stored };
        assert_eq!((s.k_block_bytes(), s.v_block_bytes()), (3 * 8 * (8 + 4), 3 * 8 * (10 + 4)));
        let (n, table) = (13, [2u32, 0]);
        let (k, mut v) = (rng.vec(n * 18), rng.vec(n * 30));
        v[30..40].fill(0.0);
        let (mut k_pool, mut v_pool) = (vec![0xff; 3 * s.k_block_bytes()], vec![0xff; 3 * s.v_block_bytes()]);
        let seq = [Sequence { span: Span { row: 0, rows: n, start: 0 }, table: &table }];
        append(&cpu, s, &mut k_pool, &mut v_pool, &k, 18, &v, 30, &seq).unwrap();
        let number = |code: u8| if stored == Stored::Fp8 { e4m3(code) } else { f32::from(code as i8) };
        let scale = |pool: &[u8], at: usize| f32::from_ne_bytes(pool[at..at + 4].try_into().unwrap());
        for (t, h) in (0..n).flat_map(|t| (0..3).map(move |h| (t, h))) {
            let (head, t_in) = (table[t / 8] as usize * 3 + h, t % 8);
            let (key, value) = (&k_pool[head * 8 * 12..][..8 * 12], &v_pool[head * 8 * 14..][..8 * 14]);
            let got: Vec<f32> =
                (0..6).map(|e| number(key[(e / 4 * 8 + t_in) * 4 + e % 4]) * scale(key, 64 + t_in * 4)).collect();
            assert_eq!(got, stored_values(&k[t * 18 + h * 6..][..6], 6, stored));
            let got: Vec<f32> = (0..10)
                .map(|e| number(value[(t_in / 4 * 10 + e) * 4 + t_in % 4]) * scale(value, 80 + t_in * 4))
                .collect();
            assert_eq!(got, stored_values(&v[t * 30 + h * 10..][..10], 10, stored));
        }
        let s = LatentShape { rank: 130, rope: 6, block: 2, stored };
        assert_eq!(s.block_bytes(), 2 * (136 + 3 * 4));
        let (c, pe) = (rng.vec(3 * 130), rng.vec(3 * 6).iter().map(|x| x * 50.0).collect::<Vec<_>>());
        let mut pool = vec![0xff; 2 * s.block_bytes()];
        let seq = [Sequence { span: Span { row: 0, rows: 3, start: 0 }, table: &[1, 0] }];
        append_latent(s, &mut pool, &c, 130, &pe, 6, &seq).unwrap();
        for cpu in levels() {
            let mut rows = vec![0.0; 2 * 136];
            read_latent(&cpu, s, &pool[s.block_bytes()..], &mut rows).unwrap();
            for t in 0..2 {
                let c = &c[t * 130..][..130];
                let want: Vec<f32> = [&c[..128], &c[128..], &pe[t * 6..][..6]]
                    .iter()
                    .flat_map(|part| stored_values(part, 128, stored))
                    .collect();
                assert_eq!(rows[t * 136..][..136], want);
            }
        }
    }
}

#[test]
fn tables_and_shapes_that_do_not_fit_are_errors() {
    let cpu = Cpu::with_level(1, crate::Level::Scalar);
    let s = KvShape { kv_heads: 1, k_dim: 8, v_dim: 8, block: 4, stored: DType::F32.into() };
    let (mut k, mut v) = (vec![0; 2 * s.k_block_bytes()], vec![0; 2 * s.v_block_bytes()]);
    let x = [0.0; 40];
    let seq = |rows, start, table| [Sequence { span: Span { row: 0, rows, start }, table }];
    let mut go = |s: KvShape, seq: &[Sequence<'_>]| append(&cpu, s, &mut k, &mut v, &x, 8, &x, 8, seq);
    assert!(go(s, &seq(5, 0, &[0, 1])).is_ok());
    assert!(go(s, &seq(6, 0, &[0, 1])).is_err());
    assert!(go(s, &seq(5, 0, &[0, 2])).is_err());
    assert!(go(s, &seq(5, 4, &[0, 1])).is_err());
    assert!(go(KvShape { block: 3, ..s }, &seq(1, 0, &[0])).is_err());
    assert!(go(KvShape { block: 1, ..s }, &seq(1, 0, &[0])).is_err());
    assert!(go(KvShape { block: 2, stored: Stored::Int8, ..s }, &seq(1, 0, &[0])).is_err());
    let mut out = [0.0; 16];
    let one = seq(1, 0, &[0]);
    assert!(attention(&cpu, Mode::Exact, s, &k, &v, &x, 16, 2, &one, 1.0, &mut out, 16).is_ok());
    assert!(attention(&cpu, Mode::Exact, s, &k, &v, &x, 15, 2, &one, 1.0, &mut out, 16).is_err());
    let two = KvShape { kv_heads: 2, ..s };
    assert!(attention(&cpu, Mode::Exact, two, &k, &v, &x, 24, 3, &one, 1.0, &mut out, 24).is_err());
}
