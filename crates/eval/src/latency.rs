//! Speed: prefill and decode, over warm-up and repeats.

use crate::{Error, Result, Summary, routing};
use marlin_backend::Backend;
use marlin_backend::sampling::mix;
use marlin_engine::{Engine, Event, FinishReason, Request, Sampling};
use serde::Serialize;
use std::time::Instant;

/// What is timed.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyOptions {
    /// Tokens of the prompt whose prefill is timed; 0 for none.
    pub prompt: usize,
    /// Tokens generated after `depth`; 0 for none.
    pub generate: usize,
    /// Tokens of context before the first generated token that is timed.
    pub depth: usize,
    /// Rounds that are not counted.
    pub warmup: usize,
    /// Rounds that are.
    pub repeats: usize,
    /// Whether to look, afterwards, how many experts tokens were sent to; that takes another pass.
    pub experts: bool,
    /// How tokens are chosen; without a seed, by one that is the same every time.
    pub sampling: Sampling,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens timed after `depth`.
    pub generated_tokens: usize,
    /// Tokens of context before them.
    pub depth: usize,
    /// Rounds that were not counted.
    pub warmup: usize,
    /// Rounds that were.
    pub repeats: usize,
    /// Prompt tokens a second, one value a round.
    pub prefill_tokens_per_second: Option<Summary>,
    /// Generated tokens a second, one value a round.
    pub decode_tokens_per_second: Option<Summary>,
    /// Milliseconds from the request to the first token, one value a round.
    pub time_to_first_token_ms: Option<Summary>,
    /// Milliseconds between tokens, all of all rounds.
    pub inter_token_ms: Option<Summary>,
    /// Of a mixture: how many different experts of each layer the timed tokens of the last round were sent to. Few of
    /// them, and caches help.
    pub distinct_experts: Vec<usize>,
}

/// One request: seconds to the first token, then of each further one.
struct Round {
    first: f64,
    later: Vec<f64>,
    /// The prompt and what was generated.
    tokens: Vec<u32>,
}

/// Times `engine`, whose prefix cache should be off. `progress` hears how many of how many rounds are done and may stop
/// the work by answering false.
pub fn latency<B: Backend>(
    engine: &mut Engine<B>,
    options: &LatencyOptions,
    progress: &mut dyn FnMut(usize, usize) -> bool,
) -> Result<Latency> {
    let LatencyOptions { prompt, generate, depth, warmup, repeats, experts, .. } = *options;
    let sampling = &options.sampling;
    if repeats == 0 {
        return Err(Error::setting("repeats", "at least 1", repeats));
    }
    if prompt == 0 && generate == 0 {
        return Err(Error::setting("prompt and generate", "at least one that is not 0", "0 and 0"));
    }
    let total = warmup + repeats;
    let (mut prefill, mut decode, mut firsts, mut between) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut last = Vec::new();
    for number in 0..total {
        if !progress(number, total) {
            return Err(Error::Stopped);
        }
        let first = match prompt {
            0 => None,
            _ => Some(round(engine, prompt, 0, sampling, number, &mut || progress(number, total))?.first),
        };
        let later = match generate {
            0 => Vec::new(),
            _ => {
                let round = round(engine, depth.max(1), generate, sampling, number, &mut || progress(number, total))?;
                last = round.tokens;
                round.later
            }
        };
        if number < warmup {
            continue;
        }
        if let Some(first) = first {
            prefill.push(prompt as f64 / first);
            firsts.push(1e3 * first);
        }
        if generate > 0 {
            decode.push(generate as f64 / later.iter().sum::<f64>());
            between.extend(later.iter().map(|s| 1e3 * s));
        }
    }
    // The last token was an answer only.
    last.pop();
    let distinct_experts = match experts && routing::sparse(engine.model()) && !last.is_empty() {
        true => routing::distinct(engine.backend().as_ref(), engine.model(), &last, depth.max(1))?,
        false => Vec::new(),
    };
    progress(total, total);
    let some = |values: &[f64]| (!values.is_empty()).then(|| Summary::of(values));
    Ok(Latency {
        prompt_tokens: prompt,
        generated_tokens: generate,
        depth,
        warmup,
        repeats,
        prefill_tokens_per_second: some(&prefill),
        decode_tokens_per_second: some(&decode),
        time_to_first_token_ms: some(&firsts),
        inter_token_ms: some(&between),
        distinct_experts,
    })
}

/// Times one request of `prompt` arbitrary tokens, `later` tokens beyond the first; asks before every step whether to
/// `go_on`, and leaves nothing in the engine if not.
fn round<B: Backend>(
    engine: &mut Engine<B>,
    prompt: usize,
    later: usize,
    sampling: &Sampling,
    seed: usize,
    go_on: &mut dyn FnMut() -> bool,
) -> Result<Round> {
    let vocab = engine.vocab().max(1) as u64;
    // Arbitrary tokens, so that a mixture's experts are all used.
    let mut tokens: Vec<u32> = (0..prompt as u64).map(|i| (mix(i ^ (seed as u64) << 32) % vocab) as u32).collect();
    let sampling = Sampling { seed: Some(sampling.seed.unwrap_or(seed as u64)), ..sampling.clone() };
    let request = Request { sampling, max_tokens: Some(later + 1), ignore_eos: true, ..Request::new(tokens.clone()) };
    let start = Instant::now();
    let id = engine.submit(request)?;
    let mut times = Vec::with_capacity(later + 1);
    loop {
        if !go_on() {
            engine.cancel(id);
            engine.step()?;
            return Err(Error::Stopped);
        }
        for event in engine.step()? {
            match event {
                Event::Token(t) if t.id == id => {
                    times.push(start.elapsed().as_secs_f64());
                    tokens.push(t.token);
                }
                Event::Finished(f) if f.id == id => {
                    if let FinishReason::Error(why) = f.reason {
                        return Err(Error::setting("engine", "an answer", why));
                    }
                    let later = times.windows(2).map(|w| w[1] - w[0]).collect();
                    return Ok(Round { first: times.first().copied().unwrap_or(f64::NAN), later, tokens });
                }
                _ => {}
            }
        }
    }
}
