//! Choosing a token from logits.

/// How the next token of one row is chosen, and the row's own history.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleRow {
    /// 0 chooses the most probable token; otherwise logits are divided by it.
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
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The token.
    pub token: u32,
    /// Its log-probability under the model's own distribution (before temperature, penalties and truncation).
    pub logprob: f32,
    /// The most probable alternatives under the same distribution, best first.
    pub top: Vec<(u32, f32)>,
    /// How far the choice was from another one, in logits: were no logit off by more than half of it, the same token
    /// would have been chosen.
    pub margin: f32,
}

/// Chooses a token from one row of logits: bias and penalties, then temperature, then the intersection of top-k, top-p
/// and min-p, then a draw.
///
/// The draw is an argmax over the kept tokens of logit plus Gumbel noise, the noise a function of (seed, draw, token)
/// alone. That samples the softmax exactly, needs no cumulative sums, and changes only where two sums nearly tie or a
/// token stands at the edge of the kept set. Ties go to the lower id.
pub fn choose(logits: &[f32], row: &SampleRow) -> Sample {
    let logits = &logits[..row.vocab.min(logits.len())];
    let raw = LogSoftmax::of(logits);
    let mut adjusted = logits.to_vec();
    adjust(&mut adjusted, row);
    let (token, margin) = if row.temperature <= 0.0 { best_two(&adjusted) } else { draw(&adjusted, row) };
    Sample {
        token,
        logprob: logits.get(token as usize).map_or(f32::NAN, |l| raw.of_logit(*l)),
        top: top(logits, row.top_logprobs).into_iter().map(|(id, l)| (id, raw.of_logit(l))).collect(),
        margin,
    }
}

struct LogSoftmax {
    log_sum: f64,
}

impl LogSoftmax {
    fn of(logits: &[f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
        Self { log_sum: f64::from(max) + sum.ln() }
    }

    fn of_logit(&self, logit: f32) -> f32 {
        (f64::from(logit) - self.log_sum) as f32
    }
}

fn adjust(logits: &mut [f32], row: &SampleRow) {
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
fn order(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// The `count` best tokens with their logits, best first.
fn top(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let mut all: Vec<(u32, f32)> = (0..).zip(logits.iter().copied()).collect();
    if count < all.len() {
        all.select_nth_unstable_by(count - 1, order);
        all.truncate(count);
    }
    all.sort_unstable_by(order);
    all
}

/// Noise never lies outside about [-3.2, 36.8] (the logarithms of a 53-bit uniform number), so a token this far below
/// the best cannot win.
const NOISE_SPAN: f32 = 40.0;

fn draw(logits: &[f32], row: &SampleRow) -> (u32, f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let inverse = 1.0 / row.temperature;
    // Logits relative to the best, at the row's temperature.
    let scaled = (0..).zip(logits.iter().map(|l| (l - max) * inverse));
    let mut kept: Vec<(u32, f32)> = scaled.filter(|(_, l)| *l > -NOISE_SPAN).collect();
    let mut edge = f32::INFINITY;
    if row.min_p > 0.0 {
        let least = row.min_p.min(1.0).ln();
        edge = kept.iter().map(|(_, l)| (l - least).abs()).fold(edge, f32::min);
        kept.retain(|(_, l)| *l >= least);
    }
    if row.top_k > 0 && row.top_k < kept.len() {
        kept.select_nth_unstable_by(row.top_k - 1, order);
        let last = kept[row.top_k - 1].1;
        edge = kept[row.top_k..].iter().map(|(_, l)| last - l).fold(edge, f32::min);
        kept.truncate(row.top_k);
    }
    if row.top_p < 1.0 {
        edge = edge.min(keep_top_p(&mut kept, row.top_p));
    }
    let noise = |token: u32| gumbel(row.seed, row.draw, token);
    let (mut best, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    kept.sort_unstable_by_key(|(token, _)| *token);
    for (token, logit) in kept {
        let score = logit + noise(token);
        if score > first {
            (best, first, second) = (token, score, first);
        } else if score > second {
            second = score;
        }
    }
    (best, (first - second).min(edge) * row.temperature)
}

/// Keeps the fewest best tokens whose probabilities reach `top_p`, at least one; gives how far, in logits, the set is
/// from being another one. (Logits off by e move a sum of probabilities by at most e / 2.)
fn keep_top_p(kept: &mut Vec<(u32, f32)>, top_p: f32) -> f32 {
    let total: f64 = kept.iter().map(|(_, l)| f64::from(*l).exp()).sum();
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
            sum += f64::from(kept[i].1).exp();
            if sum >= target {
                let next = kept[i + 1..].iter().map(|(_, l)| kept[i].1 - l).fold(f32::INFINITY, f32::min);
                kept.truncate(i + 1);
                let sums = (sum - target).min((target - before).abs()) / total;
                return next.min(4.0 * sums as f32);
            }
        }
        if end == kept.len() {
            return f32::INFINITY;
        }
        (sorted, window) = (end, window * 4);
    }
}

/// Standard Gumbel noise, a pure function of its arguments.
fn gumbel(seed: u64, draw: u64, token: u32) -> f32 {
    let bits = mix(mix(mix(seed).wrapping_add(draw)).wrapping_add(u64::from(token)));
    let uniform = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    (-(-uniform.ln()).ln()) as f32
}

/// The output function of splitmix64 (Steele, Lea, Flood 2014) after one increment.
fn mix(x: u64) -> u64 {
    let z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
