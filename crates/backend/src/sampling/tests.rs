use super::*;

/// A generator of test inputs, independent of the one under test (Marsaglia 2003).
struct Xorshift(u64);

impl Xorshift {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Uniform in [-1, 1).
    fn unit(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn logits(&mut self, n: usize, spread: f32) -> Vec<f32> {
        (0..n).map(|_| (self.unit() + self.unit()) * spread).collect()
    }
}

fn row(temperature: f32, seed: u64) -> SampleRow {
    SampleRow { temperature, seed, ..SampleRow::greedy(usize::MAX) }
}

/// What `choose` should draw from, computed the long way: every token's probability.
fn exact(logits: &[f32], row: &SampleRow) -> Vec<f64> {
    let mut logits: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    for s in &row.seen {
        let l = &mut logits[s.token as usize];
        let r = f64::from(row.repetition_penalty);
        *l = if *l > 0.0 { *l / r } else { *l * r };
        if s.answer > 0 {
            *l -= f64::from(row.presence_penalty) + f64::from(row.frequency_penalty) * f64::from(s.answer);
        }
    }
    for (token, bias) in &row.logit_bias {
        logits[*token as usize] += f64::from(*bias);
    }
    let softmax = |logits: &[f64]| -> Vec<f64> {
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let e: Vec<f64> = logits.iter().map(|l| ((l - max) / f64::from(row.temperature)).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.iter().map(|e| e / sum).collect()
    };
    let p = softmax(&logits);
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    let best = p[order[0]];
    let mut kept = if row.top_k == 0 { p.len() } else { row.top_k.min(p.len()) };
    kept = kept.min(order.iter().filter(|i| p[**i] >= f64::from(row.min_p) * best).count());
    let mass: f64 = order[..kept].iter().map(|i| p[*i]).sum();
    if row.top_p < 1.0 {
        let mut sum = 0.0;
        let reaches = |i: &usize| {
            sum += p[*i];
            sum >= f64::from(row.top_p) * mass
        };
        kept = order[..kept].iter().position(reaches).map_or(kept, |i| i + 1);
    }
    let mass: f64 = order[..kept].iter().map(|i| p[*i]).sum();
    let mut out = vec![0.0; p.len()];
    order[..kept].iter().for_each(|i| out[*i] = p[*i] / mass);
    out
}

/// Pearson's statistic, in standard deviations from its mean (Wilson-Hilferty), and the number of impossible events.
fn deviation(counts: &[u32], p: &[f64]) -> (f64, u32) {
    let n: f64 = counts.iter().map(|c| f64::from(*c)).sum();
    let impossible = counts.iter().zip(p).filter(|(_, p)| **p == 0.0).map(|(c, _)| c).sum();
    let possible: Vec<(f64, f64)> =
        counts.iter().zip(p).filter(|(_, p)| **p > 0.0).map(|(c, p)| (f64::from(*c), p * n)).collect();
    let freedom = possible.len() as f64 - 1.0;
    if freedom < 1.0 {
        return (0.0, impossible);
    }
    let square: f64 = possible.iter().map(|(c, e)| (c - e) * (c - e) / e).sum();
    let variance = 2.0 / (9.0 * freedom);
    (((square / freedom).cbrt() - (1.0 - variance)) / variance.sqrt(), impossible)
}

const LOGITS: [f32; 12] = [2.0, 1.5, 1.4, 0.0, -0.3, 0.7, 1.5, -2.0, 0.1, 0.9, -0.9, 1.1];

fn settings() -> Vec<SampleRow> {
    let seen = vec![
        Seen { token: 0, prompt: 1, answer: 2 },
        Seen { token: 4, prompt: 3, answer: 0 },
        Seen { token: 6, prompt: 0, answer: 1 },
    ];
    let plain = || row(1.0, 7);
    vec![
        plain(),
        row(0.6, 8),
        row(1.7, 9),
        SampleRow { top_k: 4, ..plain() },
        SampleRow { top_p: 0.7, ..plain() },
        SampleRow { top_p: 0.999, ..row(0.8, 3) },
        SampleRow { min_p: 0.25, ..plain() },
        SampleRow { top_k: 6, top_p: 0.8, min_p: 0.1, ..row(0.8, 1) },
        SampleRow { logit_bias: vec![(7, 4.0), (0, f32::NEG_INFINITY)], ..plain() },
        SampleRow { repetition_penalty: 1.5, seen: seen.clone(), ..plain() },
        SampleRow { presence_penalty: 0.5, frequency_penalty: 0.4, seen: seen.clone(), ..plain() },
        SampleRow { repetition_penalty: 0.8, top_p: 0.9, frequency_penalty: -0.2, seen, ..row(1.3, 2) },
    ]
}

#[test]
fn draws_follow_the_exact_probabilities() {
    for mut row in settings() {
        let p = exact(&LOGITS, &row);
        let mut counts = [0; LOGITS.len()];
        for draw in 0..100_000 {
            row.draw = draw;
            counts[choose(&LOGITS, &row).token as usize] += 1;
        }
        let (deviations, impossible) = deviation(&counts, &p);
        assert_eq!(impossible, 0, "{row:?}");
        assert!(deviations < 4.5, "{row:?}: {deviations} standard deviations\n{counts:?}\n{p:?}");
    }
}

#[test]
fn seeds_draw_as_independently_as_draws_do() {
    let p = exact(&LOGITS, &row(1.0, 0));
    let mut counts = [0; LOGITS.len()];
    for seed in 0..100_000 {
        counts[choose(&LOGITS, &row(1.0, seed)).token as usize] += 1;
    }
    assert!(deviation(&counts, &p).0 < 4.5);
}

#[test]
fn neighbouring_draws_and_seeds_are_independent() {
    let n = LOGITS.len();
    let p = exact(&LOGITS, &row(1.0, 0));
    let joint: Vec<f64> = (0..n * n).map(|i| p[i / n] * p[i % n]).collect();
    let token = |seed, draw| choose(&LOGITS, &SampleRow { draw, ..row(1.0, seed) }).token as usize;
    let pairs: [&dyn Fn(u64) -> (usize, usize); 3] =
        [&|i| (token(5, 2 * i), token(5, 2 * i + 1)), &|i| (token(2 * i, 0), token(2 * i + 1, 0)), &|i| {
            (token(i, 1), token(i + 1, 0))
        }];
    for (which, pair) in pairs.iter().enumerate() {
        let mut counts = vec![0; n * n];
        for i in 0..60_000 {
            let (a, b) = pair(i);
            counts[a * n + b] += 1;
        }
        let (deviations, _) = deviation(&counts, &joint);
        assert!(deviations < 4.5, "{which}: {deviations} standard deviations");
    }
}

#[test]
fn the_kept_set_is_the_exact_one() {
    let mut random = Xorshift::new(3);
    for n in [1, 2, 5, 300, 3000] {
        for (top_k, top_p, min_p, temperature) in [
            (0, 1.0, 0.0, 1.0),
            (1, 1.0, 0.0, 1.0),
            (40, 1.0, 0.0, 0.7),
            (0, 0.3, 0.0, 1.0),
            (0, 0.95, 0.0, 2.0),
            (0, 0.0, 0.0, 1.0),
            (0, 1.0, 0.05, 1.0),
            (0, 1.0, 1.0, 1.0),
            (200, 0.9, 0.01, 1.5),
            (20, 0.95, 0.0, 0.6),
        ] {
            let logits = random.logits(n, 4.0);
            let row = SampleRow { top_k, top_p, min_p, ..row(temperature, 0) };
            let p = exact(&logits, &row);
            let mut kept: Vec<u32> = keep(&logits, &row).0.into_iter().map(|k| k.0).collect();
            kept.sort_unstable();
            let expected: Vec<u32> = (0..n as u32).filter(|i| p[*i as usize] > 0.0).collect();
            assert_eq!(kept, expected, "{n} tokens, top_k {top_k}, top_p {top_p}, min_p {min_p}");
        }
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    let tied = [1.0, 3.0, 3.0, 2.0, 3.0];
    let greedy = choose(&tied, &SampleRow { top_logprobs: 4, ..SampleRow::greedy(5) });
    assert_eq!((greedy.token, greedy.margin), (1, 0.0));
    assert_eq!(greedy.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 4, 3]);
    let kept = |row: SampleRow| {
        let mut ids: Vec<u32> = keep(&tied, &row).0.into_iter().map(|k| k.0).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(kept(SampleRow { top_k: 2, ..row(1.0, 0) }), [1, 2]);
    assert_eq!(kept(SampleRow { top_p: 0.5, ..row(1.0, 0) }), [1, 2]);
    assert_eq!(kept(SampleRow { min_p: 1.0, ..row(1.0, 0) }), [1, 2, 4]);
    let cut = choose(&tied, &SampleRow { top_k: 2, ..row(1.0, 0) });
    assert_eq!(cut.margin, 0.0, "the cut goes through a tie");
}

/// Logits that are off by less than half the margin give the same token.
#[test]
fn margins_hold() {
    let mut random = Xorshift::new(11);
    let mut positive = 0;
    for case in 0..20_000u64 {
        let n = 2 + case as usize % 40;
        let logits = random.logits(n, 2.5);
        let one = |x: f32, choices: &[f32]| choices[(x.abs() * 997.0) as usize % choices.len()];
        let row = SampleRow {
            top_k: one(random.unit(), &[0.0, 0.0, 1.0, 5.0]) as usize,
            top_p: one(random.unit(), &[1.0, 1.0, 0.9, 0.4]),
            min_p: one(random.unit(), &[0.0, 0.0, 0.1, 0.9, 1.0]),
            repetition_penalty: one(random.unit(), &[1.0, 1.3, 0.7]),
            frequency_penalty: 0.2,
            seen: vec![Seen { token: case as u32 % n as u32, prompt: 1, answer: 1 }],
            ..row(one(random.unit(), &[0.0, 0.5, 1.0, 1.5]), case)
        };
        let sample = choose(&logits, &row);
        assert!(sample.margin >= 0.0, "{sample:?}");
        let off = sample.margin.min(20.0) / 2.0 * 0.999 - 1e-5;
        if off <= 0.0 {
            continue;
        }
        positive += 1;
        for _ in 0..6 {
            // The worst that can be: every logit off by as much as it may.
            let moved: Vec<f32> = logits.iter().map(|l| l + off.copysign(random.unit())).collect();
            assert_eq!(choose(&moved, &row).token, sample.token, "{row:?} {sample:?}");
        }
        // All against the chosen one.
        let against: Vec<f32> =
            logits.iter().zip(0..).map(|(l, i)| if i == sample.token { l - off } else { l + off }).collect();
        assert_eq!(choose(&against, &row).token, sample.token, "{row:?} {sample:?}");
    }
    assert!(positive > 15_000);
}

/// A greedy margin is no smaller than it need be: a little more than half turns the choice.
#[test]
fn greedy_margins_are_tight() {
    let sample = choose(&LOGITS, &SampleRow::greedy(12));
    assert_eq!((sample.token, sample.margin), (0, 0.5));
    let mut moved = LOGITS;
    (moved[0], moved[1]) = (moved[0] - 0.26, moved[1] + 0.26);
    assert_eq!(choose(&moved, &SampleRow::greedy(12)).token, 1);
}

#[test]
fn log_probabilities_are_the_models_own() {
    let mut random = Xorshift::new(5);
    for n in [1, 15, 16, 17, 511, 513, 5000] {
        let logits = random.logits(n, 12.0);
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let expected = |token: u32| f64::from(logits[token as usize]) - sum.ln();
        // Penalties, bias and truncation do not show in log-probabilities.
        let row = SampleRow { top_k: 3, logit_bias: vec![(0, 5.0)], top_logprobs: 20, ..row(0.5, 1) };
        let sample = choose(&logits, &row);
        assert!((f64::from(sample.logprob) - expected(sample.token)).abs() < 4e-6);
        assert_eq!(sample.top.len(), n.min(20));
        let mut order: Vec<u32> = (0..n as u32).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        for ((token, logprob), best) in sample.top.iter().zip(order) {
            assert_eq!(*token, best);
            assert!((f64::from(*logprob) - expected(best)).abs() < 4e-6);
        }
    }
}

#[test]
fn logits_that_are_not_numbers_show() {
    let inf = f32::INFINITY;
    for bad in [f32::NAN, inf] {
        for at in [0, 7, 11] {
            for temperature in [0.0, 1.0] {
                let mut logits = LOGITS;
                logits[at] = bad;
                let row = SampleRow { top_k: 3, top_p: 0.9, min_p: 0.1, top_logprobs: 3, ..row(temperature, 1) };
                assert!(choose(&logits, &row).logprob.is_nan(), "{bad} at {at}");
            }
        }
    }
    assert!(choose(&[-inf; 20], &row(1.0, 1)).logprob.is_nan());
    assert!(choose(&[], &row(1.0, 1)).logprob.is_nan());
    // Minus infinity forbids a token and is nothing wrong.
    let mut logits = LOGITS;
    logits[0] = -inf;
    assert_eq!(choose(&logits, &SampleRow::greedy(12)).token, 1);
    assert!(choose(&logits, &SampleRow::greedy(12)).logprob.is_finite());
}

#[test]
fn padding_is_never_chosen() {
    let mut logits = LOGITS.to_vec();
    logits.extend([50.0; 4]);
    for draw in 0..1000 {
        let row = SampleRow { draw, vocab: 12, top_logprobs: 16, ..row(5.0, 0) };
        let sample = choose(&logits, &row);
        assert!(sample.token < 12 && sample.top.len() == 12);
    }
}

#[test]
fn a_temperature_of_almost_nothing_is_greedy() {
    for temperature in [0.0, 1e-40, 1e-9, 1e-5, 1e-4] {
        assert_eq!(choose(&LOGITS, &row(temperature, 3)).token, 0);
    }
}

/// Skipping tokens that cannot win changes nothing.
#[test]
fn the_short_cut_changes_nothing() {
    let mut random = Xorshift::new(17);
    for seed in 0..200 {
        let tokens: Vec<(u32, f32)> = (0..).zip(random.logits(5000, 8.0)).map(|(i, l)| (i, l - 16.0)).collect();
        let stream = stream(seed, 3);
        let scores: Vec<f32> = tokens.iter().map(|(t, l)| l + gumbel(uniform(stream, *t))).collect();
        assert_eq!(noisy_best(&tokens, seed, 3), best_two(&scores));
    }
}

#[test]
fn the_exponential_is_as_good_as_said() {
    let mut worst = 0f64;
    for i in 0..870_000 {
        let x = -(i as f32) * 1e-4;
        let expected = f64::from(x).exp();
        worst = worst.max((f64::from(exp(x)) - expected).abs() / expected);
    }
    assert!(worst < 2e-7, "{worst}");
    assert_eq!((exp(0.0), exp(-87.5), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    assert!(exp(f32::NAN).is_nan());
}

/// The generator is splitmix64: the published first outputs for seed 1234567.
#[test]
fn the_generator_is_splitmix64() {
    let golden = 0x9E37_79B9_7F4A_7C15u64;
    let outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431];
    for (i, expected) in (0..).zip(outputs) {
        assert_eq!(mix(1234567u64.wrapping_add(golden.wrapping_mul(i))), expected);
    }
    for token in 0..100_000 {
        let u = uniform(42, token);
        assert!(u % 2 == 1 && u < ONE);
        assert!((-3.7..=36.8).contains(&gumbel(u)));
    }
    assert!(gumbel(1) > -3.7 && gumbel(ONE - 1) < 36.8);
}

/// Against f64's logarithms, over all magnitudes of the uniform number and of its distance from 1.
#[test]
fn noise_is_gumbels() {
    let mut random = Xorshift::new(9);
    let exact = |uniform: u64| {
        let (u, rest) = (uniform as f64 / ONE as f64, (ONE - uniform) as f64 / ONE as f64);
        let t = if u < 0.5 { -u.ln() } else { -(-rest).ln_1p() };
        -t.ln()
    };
    let (mut least, mut most) = (f32::INFINITY, f32::NEG_INFINITY);
    for bits in 1..=53 {
        for _ in 0..2000 {
            let within = ((f64::from(random.unit()).abs() * (1u64 << bits) as f64) as u64) | 1;
            for uniform in [within.min(ONE - 1), ONE - within.min(ONE - 1)] {
                let found = gumbel(uniform);
                let expected = exact(uniform);
                let off = (f64::from(found) - expected).abs();
                assert!(off < 3e-7 * expected.abs().max(1.0) + 2e-7, "{uniform}: {found} {expected}");
                (least, most) = (least.min(found), most.max(found));
            }
        }
    }
    assert!(least < -3.6 && most > 36.7 && most - least < NOISE_SPAN, "{least} {most}");
}
