//! Tokens drawn on the device: the very ones that the CPU's sampler draws from the same logits.

use crate::device::backends;
use crate::numbers::Numbers;
use marlin_backend::sampling::{Seen, choose};
use marlin_backend::{Backend, Sample, SampleRow};
use marlin_gpu::GpuBackend;

fn row(vocab: usize, temperature: f32, seed: u64) -> SampleRow {
    SampleRow { temperature, seed, draw: seed % 7, ..SampleRow::greedy(vocab) }
}

fn draw(b: &GpuBackend, logits: &[f32], cols: usize, rows: &[SampleRow]) -> Vec<Sample> {
    let x = b.write(rows.len(), cols, logits.to_vec()).unwrap();
    let samples = b.sample(&x, rows).unwrap();
    b.submit().unwrap();
    b.read_samples(&samples).unwrap()
}

/// Margins that were equal, and all.
#[derive(Default)]
struct Margins([usize; 2]);

/// Every row drawn on a device, or in every order of its threads, is the CPU's: token, log-probability, and a margin no wider
/// than the CPU's.
fn same(what: &str, orders: usize, logits: &[f32], cols: usize, rows: &[SampleRow], margins: &mut Margins) {
    for b in backends().into_iter().take(orders) {
        let before = b.gpu().counts().waits;
        let found = draw(&b, logits, cols, rows);
        assert_eq!(b.gpu().counts().waits - before, 1);
        assert_eq!(b.fallbacks().snapshot().total, 0, "{what}");
        for ((found, values), row) in found.iter().zip(logits.chunks_exact(cols)).zip(rows) {
            let expected = choose(values, row);
            assert_eq!(found.token, expected.token, "{what}: {row:?} {found:?} {expected:?}");
            let off = (found.logprob - expected.logprob).abs();
            assert!(off <= 2e-5 + 1e-6 * expected.logprob.abs(), "{what}: {row:?} {found:?} {expected:?}");
            // Tokens beyond the noise's reach are no candidates, so that a top-k among them has no edge here.
            let best = values[..row.vocab].iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let near = values[..row.vocab].iter().filter(|v| (**v - best) / row.temperature > -41.0).count();
            if row.top_k >= near && row.top_k < row.vocab {
                continue;
            }
            let limit = 1e-4 + 1e-3 * expected.margin.abs();
            assert!(
                found.margin >= 0.0 && found.margin <= expected.margin + limit,
                "{what}: {row:?} {found:?} {expected:?}"
            );
            margins.0[1] += 1;
            margins.0[0] +=
                usize::from(found.margin == expected.margin || (found.margin - expected.margin).abs() <= limit);
        }
    }
}

/// Settings of all kinds for a vocabulary.
fn settings(vocab: usize, seed: u64) -> Vec<SampleRow> {
    let at = |temperature, n: u64| row(vocab, temperature, 1000 * seed + n);
    vec![
        at(0.0, 0),
        at(1.0, 1),
        at(0.3, 2),
        at(1e-5, 3),
        SampleRow { top_k: 1, ..at(0.9, 4) },
        SampleRow { top_k: 2, ..at(1.3, 5) },
        SampleRow { top_k: 50, ..at(0.8, 6) },
        SampleRow { top_k: vocab - 1, ..at(1.0, 7) },
        SampleRow { top_k: vocab, ..at(1.0, 8) },
        SampleRow { top_k: vocab / 2 + 1, ..at(1.6, 9) },
        SampleRow { top_p: 0.0, ..at(1.0, 10) },
        SampleRow { top_p: 1e-20, ..at(1.0, 11) },
        SampleRow { top_p: 0.1, ..at(1.0, 12) },
        SampleRow { top_p: 0.9, ..at(0.7, 13) },
        SampleRow { top_p: 0.95, ..at(2.5, 14) },
        SampleRow { top_p: 1.0 - f32::EPSILON / 2.0, ..at(1.0, 15) },
        SampleRow { min_p: 0.05, ..at(1.0, 16) },
        SampleRow { min_p: 1.0, ..at(1.0, 17) },
        SampleRow { min_p: 0.02, top_p: 0.8, ..at(1.2, 18) },
        SampleRow { min_p: 0.1, top_k: 20, ..at(1.2, 19) },
        SampleRow { top_k: 40, top_p: 0.95, min_p: 0.01, ..at(0.6, 20) },
        SampleRow { top_k: 64, top_p: 0.5, ..at(1.0, 21) },
        SampleRow { top_k: 3, top_p: 0.99, min_p: 0.3, ..at(4.0, 22) },
    ]
}

/// A batch of logits, each row made by `value` of its number.
fn logits(rows: usize, cols: usize, mut value: impl FnMut(usize, usize) -> f32) -> Vec<f32> {
    (0..rows * cols).map(|i| value(i / cols, i % cols)).collect()
}

#[test]
fn draws_are_the_cpus() {
    let mut numbers = Numbers(80);
    let mut margins = Margins::default();
    for (i, vocab) in [1, 2, 3, 33, 257, 1000, 2049, 5003].into_iter().enumerate() {
        let cols = vocab + i % 3;
        let rows = settings(vocab, i as u64);
        let spread = |row: usize| [0.5, 6.0, 60.0][(row + i) % 3];
        let values = logits(rows.len(), cols, |row, _| (numbers.next() + numbers.next()) * spread(row));
        let orders = if vocab == 1000 { 3 } else { 1 };
        same(&format!("a vocabulary of {vocab}"), orders, &values, cols, &rows, &mut margins);
    }
    // Nearly all margins are the CPU's; those of top-p whose next token is not among the candidates are narrower.
    assert!(margins.0[0] * 10 > margins.0[1] * 9, "{:?}", margins.0);
}

#[test]
fn equal_logits_are_told_apart_by_the_lower_token() {
    let mut numbers = Numbers(81);
    let mut margins = Margins::default();
    for vocab in [40, 1501] {
        let rows = settings(vocab, 50);
        for (i, steps) in [[0.0, 1.0, 3.0], [3.0, 0.0, 1.0]].into_iter().enumerate() {
            let values = logits(rows.len(), vocab, |row, _| (numbers.next() * steps[row % 3]).round());
            same(&format!("few logits of {vocab}, {i}"), 1, &values, vocab, &rows, &mut margins);
        }
    }
}

#[test]
fn tokens_that_are_ruled_out_are_never_drawn() {
    let mut numbers = Numbers(82);
    let mut margins = Margins::default();
    for (vocab, every) in [(300, 2), (2000, 3), (700, 650)] {
        let rows = settings(vocab, 90);
        let value = |_, i| if i % every == 1 { numbers.next() * 5.0 } else { f32::NEG_INFINITY };
        same(&format!("one of {every} in {vocab}"), 1, &logits(rows.len(), vocab, value), vocab, &rows, &mut margins);
    }
}

/// A vocabulary of real size, several parts of which have to agree.
#[test]
fn a_large_vocabulary() {
    let mut numbers = Numbers(83);
    let mut margins = Margins::default();
    let (cols, vocab) = (20_016, 20_001);
    let kinds = settings(vocab, 3);
    let rows: Vec<SampleRow> = [1, 6, 13, 14, 18, 20].map(|i| kinds[i].clone()).to_vec();
    let values = logits(rows.len(), cols, |_, _| (numbers.next() + numbers.next() + numbers.next()) * 7.0);
    same("a large vocabulary", 1, &values, cols, &rows, &mut margins);
}

/// The same logits, draw after draw and seed after seed.
#[test]
fn many_seeds() {
    let mut numbers = Numbers(84);
    let mut margins = Margins::default();
    let vocab = 200;
    let one: Vec<f32> = (0..vocab).map(|_| numbers.next() * 4.0).collect();
    let mut seen = std::collections::HashSet::new();
    for kind in [
        SampleRow { top_k: 12, ..row(vocab, 1.0, 0) },
        SampleRow { top_p: 0.7, ..row(vocab, 1.0, 0) },
        SampleRow { top_k: 30, top_p: 0.9, min_p: 0.02, ..row(vocab, 1.4, 0) },
        row(vocab, 1.0, 0),
    ] {
        let rows: Vec<SampleRow> = (0..40u64)
            .map(|n| SampleRow { seed: n.wrapping_mul(0x9E37_79B9_97F4_A7C1), draw: n * n, ..kind.clone() })
            .collect();
        same("many seeds", 1, &one.repeat(rows.len()), vocab, &rows, &mut margins);
        seen.extend(rows.iter().map(|row| choose(&one, row).token));
    }
    assert!(seen.len() > 25, "draws differ: {}", seen.len());
}

/// NaN anywhere, plus infinity, or nothing possible: the token means nothing, and that shows.
#[test]
fn draws_from_what_is_no_number_show() {
    let mut numbers = Numbers(85);
    let vocab = 300;
    let rows = settings(vocab, 4);
    for b in backends().into_iter().take(1) {
        for bad in [f32::NAN, f32::INFINITY] {
            let values = logits(rows.len(), vocab, |_, i| if i == 123 { bad } else { numbers.next() });
            for (sample, row) in draw(&b, &values, vocab, &rows).iter().zip(&rows) {
                assert!(sample.logprob.is_nan() && (sample.token as usize) < vocab, "{bad}: {row:?} {sample:?}");
            }
        }
        let nothing = vec![f32::NEG_INFINITY; rows.len() * vocab];
        for sample in draw(&b, &nothing, vocab, &rows) {
            assert!(sample.logprob.is_nan() && (sample.token as usize) < vocab, "{sample:?}");
        }
    }
}

/// Penalties, biases and lists of probable tokens are the CPU's business, and counted.
#[test]
fn what_is_chosen_on_the_cpu_is_counted() {
    let mut numbers = Numbers(86);
    let vocab = 100;
    let logits = numbers.many(vocab);
    let penalised = SampleRow { seen: vec![Seen { token: 3, prompt: 1, answer: 1 }], ..row(vocab, 0.8, 1) };
    let biased = SampleRow { logit_bias: vec![(7, 9.0)], ..row(vocab, 0.8, 1) };
    let listed = SampleRow { top_logprobs: 3, ..row(vocab, 0.0, 1) };
    for b in backends() {
        for (asked, why) in [(&penalised, "penalties"), (&biased, "logit bias"), (&listed, "top log-probabilities")] {
            assert!(!b.keeps(std::slice::from_ref(asked)));
            let found = draw(&b, &logits, vocab, std::slice::from_ref(asked));
            assert_eq!(found, [choose(&logits, asked)]);
            let counted = b.fallbacks().snapshot();
            assert_eq!((counted.total, counted.by_reason["sampled_on_cpu"]), (1, 1));
            assert!(counted.last.unwrap().module.contains(why));
            b.fallbacks().reset();
        }
        assert!(b.keeps(&[row(vocab, 0.8, 1), row(vocab, 0.0, 1)]) && b.pipelines());
    }
}

/// A copy to the host has what was there when it was asked for.
#[test]
fn copies_to_the_host_do_not_see_what_comes_later() {
    for b in backends() {
        let gpu = b.gpu();
        let x = gpu.upload(&[1u32, 2, 3]).unwrap();
        let first = gpu.fetch(&x.part(1, 2)).unwrap();
        gpu.write(&x, 0, &[7, 8, 9]).unwrap();
        let second = gpu.fetch(&x).unwrap();
        assert_eq!(gpu.fetched(&second).unwrap(), [7, 8, 9]);
        assert_eq!(gpu.fetched(&first).unwrap(), [2, 3]);
        assert_eq!(gpu.fetched(&first).unwrap(), [2, 3]);
        drop((first, second));
        // Memory of copies that nobody wants any more is used again.
        for n in 0..5u32 {
            let again = gpu.fetch(&gpu.upload(&[n; 600]).unwrap()).unwrap();
            assert_eq!(gpu.fetched(&again).unwrap(), [n; 600]);
        }
    }
}
