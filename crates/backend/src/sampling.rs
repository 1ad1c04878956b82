//! Choosing a token from logits.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cmp::Ordering;

/// How the next token of one row is chosen, and the row's own history.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    /// 0 (or anything below 1e-5) chooses the most probable token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep only the `top_k` most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most probable tokens whose probabilities reach `top_p`; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less probable than `min_p` times the most probable one; 0 drops none.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or answer; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the answer, once for each occurrence.
    pub frequency_penalty: f32,
    /// Added to single logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the sequence's draws.
    pub seed: u64,
    /// Which draw of the sequence this is; draw `n` of a seed is the same in any batch.
    pub draw: u64,
    /// Tokens seen so far with their counts in the prompt and in the answer; empty when no penalty needs them.
    pub seen: Vec<Seen>,
    /// How many of the most probable alternatives to report, with log-probabilities.
    pub top_logprobs: usize,
    /// Tokens at and above this id are padding of the vocabulary and are never chosen.
    pub vocab: usize,
}

/// How often a token has been seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The token.
    pub token: u32,
    /// Occurrences in the prompt.
    pub prompt: u32,
    /// Occurrences in the answer so far.
    pub answer: u32,
}

impl SampleRow {
    /// The most probable of `vocab` tokens, nothing else.
    pub fn greedy(vocab: usize) -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
            draw: 0,
            seen: Vec::new(),
            top_logprobs: 0,
            vocab,
        }
    }

    /// Whether the most probable token is chosen.
    pub fn is_greedy(&self) -> bool {
        self.temperature < GREEDY
    }

    /// What the choice needs besides the logits as they are and the row's numbers, or reports besides the token, if anything.
    pub fn extra(&self) -> Option<&'static str> {
        let asked = [
            (!self.seen.is_empty(), "penalties"),
            (!self.logit_bias.is_empty(), "logit bias"),
            (self.top_logprobs > 0, "top log-probabilities"),
        ];
        asked.into_iter().find(|(is, _)| *is).map(|(_, what)| what)
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The token.
    pub token: u32,
    /// Its log-probability under the model's own distribution (before temperature, penalties and truncation). NaN if any
    /// logit is NaN or plus infinity, or all are minus infinity: then the token means nothing.
    pub logprob: f32,
    /// The most probable alternatives under the same distribution, best first.
    pub top: Vec<(u32, f32)>,
    /// How far the choice was from another one, in logits: were no logit off by more than half of it, the same token
    /// would have been chosen.
    pub margin: f32,
}

/// Below this temperature the most probable token is chosen.
const GREEDY: f32 = 1e-5;

/// Chooses a token from one row of logits: repetition penalty, the other penalties, bias, then temperature, then the
/// tokens that top-k and min-p both keep, then top-p among these, then a draw.
///
/// The draw is an argmax over the kept tokens of logit plus Gumbel noise, the noise a function of (seed, draw, token)
/// alone. That samples the softmax exactly, needs no cumulative sums, and changes only where two sums nearly tie or a
/// token stands at the edge of the kept set. Ties go to the lower id. What decides is computed in single steps of f32, so that a
/// GPU finds the same numbers.
pub fn choose(logits: &[f32], row: &SampleRow) -> Sample {
    let logits = &logits[..row.vocab.min(logits.len())];
    let log_sum = log_sum_exp(logits);
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let adjusted = adjust(logits, row);
    let (token, margin) = if row.is_greedy() { best_two(&adjusted) } else { draw(&adjusted, row) };
    Sample {
        token,
        logprob: logits.get(token as usize).map_or(f32::NAN, |l| logprob(*l)),
        top: best(logits, row.top_logprobs).into_iter().map(|(id, l)| (id, logprob(l))).collect(),
        margin: margin / steepness(row),
    }
}

/// Logarithm of the sum of exponentials, to about 1e-6.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = max(logits);
    f64::from(max) + sum_exp(logits, max).ln()
}

/// The largest value, written so that compilers use vectors; NaN is passed over.
fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, larger)
}

/// Sum of `exp(value - max)`: short runs in f32, the runs in f64.
fn sum_exp(values: &[f32], max: f32) -> f64 {
    let mut sum = 0.0;
    for run in values.chunks(512) {
        let (chunks, rest) = run.as_chunks::<16>();
        let mut lanes = [0f32; 16];
        for chunk in chunks {
            for (lane, value) in lanes.iter_mut().zip(chunk) {
                *lane += exp(value - max);
            }
        }
        sum += lanes.iter().map(|l| f64::from(*l)).sum::<f64>();
        sum += rest.iter().map(|v| f64::from(exp(v - max))).sum::<f64>();
    }
    sum
}

/// `e^x` for `x <= 0` within 2e-7 of itself, 0 below -87, without a branch or a call; a vocabulary's worth of libm's
/// takes a millisecond. Coefficients: Cephes' expf.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts, the first with few bits, so that n times it is exact.
    let r = (x - n * (355.0 / 512.0)) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let e = p * r * r + r + 1.0;
    // 2^n by its exponent bits; the low bits of `rounded` are n, from -126 to 0 where it counts.
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x < -87.0 { 0.0 } else { e * scale }
}

fn adjust<'a>(logits: &'a [f32], row: &SampleRow) -> Cow<'a, [f32]> {
    if row.seen.is_empty() && row.logit_bias.is_empty() {
        return Cow::Borrowed(logits);
    }
    let mut logits = logits.to_vec();
    for seen in &row.seen {
        let Some(logit) = logits.get_mut(seen.token as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / row.repetition_penalty } else { *logit * row.repetition_penalty };
        if seen.answer > 0 {
            *logit -= row.presence_penalty + row.frequency_penalty * seen.answer as f32;
        }
    }
    for (token, bias) in &row.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
    Cow::Owned(logits)
}

/// How much faster than itself a logit can move after penalties.
fn steepness(row: &SampleRow) -> f32 {
    let penalty = row.repetition_penalty;
    if row.seen.is_empty() { 1.0 } else { penalty.max(1.0 / penalty) }
}

/// The best token and its lead over the second.
fn best_two(scores: &[f32]) -> (u32, f32) {
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (i, &score) in scores.iter().enumerate() {
        if score > first {
            (best, first, second) = (i, score, first);
        } else if score > second {
            second = score;
        }
    }
    (best as u32, first - second)
}

/// Descending by logit, ascending by id.
fn order(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `count` best tokens with their logits, best first; none that is impossible.
fn best(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let count = count.min(logits.len());
    let room = 2 * count + 64;
    let mut kept = Vec::with_capacity(room);
    let mut floor = f32::NEG_INFINITY;
    for (id, &logit) in (0..).zip(logits) {
        // A later token that ties with the last of the best has the higher id.
        if logit > floor {
            kept.push((id, logit));
            if kept.len() == room {
                kept.select_nth_unstable_by(count - 1, order);
                kept.truncate(count);
                floor = kept[count - 1].1;
            }
        }
    }
    kept.sort_unstable_by(order);
    kept.truncate(count);
    kept
}

/// Noise never lies outside [-3.7, 36.8] (the logarithms of a 52-bit uniform number), so a token this far below the
/// best cannot win.
const NOISE_SPAN: f32 = 41.0;

fn draw(logits: &[f32], row: &SampleRow) -> (u32, f32) {
    let (mut kept, edge) = keep(logits, row);
    kept.sort_unstable_by_key(|(token, _)| *token);
    let (token, lead) = noisy_best(&kept, row.seed, row.draw);
    (token, lead.min(edge) * row.temperature)
}

/// The tokens that may be drawn, with logits relative to the best at the row's temperature; and how far, in these
/// logits, the set is from being another one.
fn keep(logits: &[f32], row: &SampleRow) -> (Vec<(u32, f32)>, f32) {
    let max = max(logits);
    let inverse = 1.0 / row.temperature;
    let mut edge = f32::INFINITY;
    let mut kept: Vec<(u32, f32)> = if (1..logits.len()).contains(&row.top_k) {
        let mut kept = best(logits, row.top_k + 1);
        kept.iter_mut().for_each(|(_, l)| *l = (*l - max) * inverse);
        if kept.len() > row.top_k {
            edge = kept[row.top_k - 1].1 - kept[row.top_k].1;
            kept.truncate(row.top_k);
        }
        kept.retain(|(_, l)| *l > -NOISE_SPAN);
        kept
    } else {
        let scaled = logits.iter().map(|l| (l - max) * inverse);
        (0..).zip(scaled).filter(|(_, l)| *l > -NOISE_SPAN).collect()
    };
    if row.min_p > 0.0 {
        let least = row.min_p.min(1.0).ln();
        edge = edge.min(keep_min_p(&mut kept, least));
    }
    if row.top_p < 1.0 {
        edge = edge.min(keep_top_p(&mut kept, row.top_p));
    }
    (kept, edge)
}

/// Keeps the tokens whose logits, relative to the best, are at least `least`; gives how far the set is from being
/// another one.
fn keep_min_p(kept: &mut Vec<(u32, f32)>, least: f32) -> f32 {
    let (mut edge, mut second, mut passed) = (f32::INFINITY, f32::NEG_INFINITY, false);
    for &(_, logit) in kept.iter() {
        if logit == 0.0 && !passed {
            passed = true;
        } else {
            second = second.max(logit);
            edge = edge.min((logit - least).abs());
        }
    }
    kept.retain(|(_, l)| *l >= least);
    // The best one stays in unless another one gets that far ahead of it.
    edge.min((-least).max(-second))
}

/// Keeps the fewest best tokens whose probabilities reach `top_p`, at least one; gives how far, in logits, the set is
/// from being another one. (Logits off by e move a sum of probabilities by at most e / 2.)
fn keep_top_p(kept: &mut Vec<(u32, f32)>, top_p: f32) -> f32 {
    let total: f64 = kept.iter().map(|(_, l)| f64::from(exp(*l))).sum();
    let target = f64::from(top_p.max(0.0)) * total;
    // Sort only as many as are needed; a few hundred tokens nearly always reach `top_p`.
    let (mut sorted, mut sum) = (0, 0.0);
    let mut window = 256;
    loop {
        let end = (sorted + window).min(kept.len());
        if end < kept.len() {
            kept[sorted..].select_nth_unstable_by(end - sorted - 1, order);
        }
        kept[sorted..end].sort_unstable_by(order);
        for i in sorted..end {
            let before = sum;
            sum += f64::from(exp(kept[i].1));
            if sum >= target {
                let next = kept[i + 1..].iter().map(|(_, l)| kept[i].1 - l).fold(f32::INFINITY, f32::min);
                kept.truncate(i + 1);
                // No token can follow the last, and the first is kept whatever its probability.
                let above = if next.is_finite() { sum - target } else { f64::INFINITY };
                let below = if i > 0 { target - before } else { f64::INFINITY };
                return next.min(4.0 * (above.min(below) / total) as f32);
            }
        }
        if end == kept.len() {
            return f32::INFINITY;
        }
        (sorted, window) = (end, window * 4);
    }
}

/// The token whose logit plus noise is largest, and its lead over the second; `tokens` in ascending order.
fn noisy_best(tokens: &[(u32, f32)], seed: u64, draw: u64) -> (u32, f32) {
    let stream = stream(seed, draw);
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    // e^-second.
    let mut bar = f64::INFINITY;
    for &(token, logit) in tokens {
        let uniform = uniform(stream, token);
        // Noise -ln(-ln u) passes second - logit only if -ln u < e^(logit - second), and -ln u is at least 1 - u. So
        // nearly all tokens of a large vocabulary need no logarithm. (The factor is for rounding.)
        if (ONE - uniform) as f64 / ONE as f64 >= 1.001 * f64::from(exp(logit)) * bar {
            continue;
        }
        let score = logit + gumbel(uniform);
        if score > first {
            (best, first, second) = (token, score, first);
        } else if score > second {
            second = score;
        } else {
            continue;
        }
        bar = f64::from(-second).exp();
    }
    (best, first - second)
}

/// Where the random numbers of a draw begin: token `t`'s is [`mix`] of `t` more than this.
pub fn stream(seed: u64, draw: u64) -> u64 {
    mix(mix(seed).wrapping_add(draw))
}

/// What random numbers are fractions of.
const ONE: u64 = 1 << 53;

/// The token's random number within (0, 1), in units of 2^-53: odd, so never an end.
fn uniform(stream: u64, token: u32) -> u64 {
    (mix(stream.wrapping_add(u64::from(token))) >> 12) << 1 | 1
}

/// Standard Gumbel noise from a uniform number.
fn gumbel(uniform: u64) -> f32 {
    const UNIT: f32 = 1.0 / ONE as f32;
    let rest = ONE - uniform;
    // Near 1 the logarithm is that of 1 less the rest. (The bound is 9/32 of one.)
    let t = if rest >> 32 < 0x9_0000 { -ln_near_one(-(rest as f32 * UNIT), 0.0) } else { -ln(uniform as f32 * UNIT) };
    -ln(t)
}

/// Natural logarithm of a normal number, to about an f32's precision.
fn ln(x: f32) -> f32 {
    // The part within [sqrt(1/2), sqrt(2)), and the power of two.
    let e = (x.to_bits() as i32 - 0x3F35_04F3) >> 23;
    ln_near_one(f32::from_bits(x.to_bits().wrapping_sub((e as u32) << 23)) - 1.0, e as f32)
}

/// `ln(1 + f) + e ln 2` for 1 + f within [sqrt(1/2), sqrt(2)). Coefficients: Cephes' logf.
fn ln_near_one(f: f32, e: f32) -> f32 {
    let z = f * f;
    let p = 7.037_683_6e-2;
    let p = p * f - 1.151_461e-1;
    let p = p * f + 1.167_699_8e-1;
    let p = p * f - 1.242_014_1e-1;
    let p = p * f + 1.424_932_3e-1;
    let p = p * f - 1.666_805_8e-1;
    let p = p * f + 2.000_071_5e-1;
    let p = p * f - 2.499_999_4e-1;
    let p = p * f + 3.333_333e-1;
    let p = p * f * z;
    let p = p + e * -2.121_944_4e-4;
    let p = p - 0.5 * z;
    f + p + e * (355.0 / 512.0)
}

/// The output function of splitmix64 (Steele, Lea, Flood 2014) after one increment: spreads numbers that lie close
/// together over all of 64 bits.
pub fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
