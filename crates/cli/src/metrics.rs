//! What an answer took.

use crate::output::{self, grouped, rate, seconds};
use marlin_engine::{Stats, Usage};
use marlin_eval::machine;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

static START: OnceLock<Instant> = OnceLock::new();

/// Called first thing in `main`.
pub fn mark_start() {
    START.get_or_init(Instant::now);
}

/// Time since the program began.
pub fn since_start() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}

/// Tokens, times and memory of one answer.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens whose KV was still there from an earlier turn.
    pub cached_tokens: usize,
    /// Prompt tokens computed, per second.
    pub prompt_tokens_per_second: Option<f64>,
    /// Tokens of the answer, one that ended it included.
    pub generated_tokens: usize,
    /// Tokens per second after the first.
    pub generated_tokens_per_second: Option<f64>,
    /// From the request to the first token.
    pub time_to_first_token_seconds: Option<f64>,
    /// From the start of the program to the first token, loading included.
    pub start_to_first_token_seconds: Option<f64>,
    /// Loading the model.
    pub load_seconds: f64,
    /// Largest resident memory so far, file pages included.
    pub peak_memory_bytes: Option<u64>,
}

impl Metrics {
    /// Of an answer; `start_to_first` only makes sense for the first one of the program.
    pub fn new(usage: &Usage, load: Duration, start_to_first: Option<Duration>) -> Self {
        let per_second = |tokens: usize, time: Duration| {
            (tokens > 0 && !time.is_zero()).then_some(tokens as f64 / time.as_secs_f64())
        };
        let first = usage.time_to_first_token;
        Self {
            prompt_tokens: usage.prompt_tokens,
            cached_tokens: usage.cached_tokens,
            prompt_tokens_per_second: per_second(usage.prompt_tokens - usage.cached_tokens, usage.prefill),
            generated_tokens: usage.generated_tokens,
            generated_tokens_per_second: per_second(usage.generated_tokens.saturating_sub(1), usage.decode),
            time_to_first_token_seconds: (!first.is_zero()).then_some(first.as_secs_f64()),
            start_to_first_token_seconds: start_to_first.map(|t| t.as_secs_f64()),
            load_seconds: load.as_secs_f64(),
            peak_memory_bytes: machine::peak_memory(),
        }
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let mut parts = Vec::new();
        let speed = |tokens: String, rated: Option<f64>| match rated {
            Some(r) => format!("{tokens} at {} tok/s", rate(r)),
            None => tokens,
        };
        let cached = if self.cached_tokens > 0 {
            format!(" ({} cached)", grouped(self.cached_tokens as u64))
        } else {
            String::new()
        };
        let prompt = format!("prompt {} tokens{cached}", grouped(self.prompt_tokens as u64));
        parts.push(speed(prompt, self.prompt_tokens_per_second));
        let generated = format!("generated {} tokens", grouped(self.generated_tokens as u64));
        parts.push(speed(generated, self.generated_tokens_per_second));
        if let Some(first) = self.time_to_first_token_seconds {
            parts.push(format!("first token after {}", seconds(first)));
        }
        if let Some(peak) = self.peak_memory_bytes {
            parts.push(format!("peak memory {}", output::bytes(peak)));
        }
        if self.start_to_first_token_seconds.is_some() {
            parts.push(format!("loaded in {}", seconds(self.load_seconds)));
        }
        parts.join(" · ")
    }
}

/// How an engine's steps followed one another.
#[derive(Clone, Debug, Serialize)]
pub struct Steps {
    /// Steps carried out.
    pub steps: u64,
    /// Of these, steps enqueued before the one before them was read.
    pub steps_ahead: u64,
    /// Why others had to wait for it, without reasons that never occurred.
    pub forced_waits: BTreeMap<&'static str, u64>,
    /// Tokens computed ahead for answers that turned out to have ended.
    pub discarded_tokens: u64,
}

impl Steps {
    /// Of an engine so far.
    pub fn of(stats: &Stats) -> Self {
        Self {
            steps: stats.steps,
            steps_ahead: stats.steps_ahead,
            forced_waits: stats.waits.iter().map(|(wait, n)| (wait.code(), n)).collect(),
            discarded_tokens: stats.discarded_tokens,
        }
    }

    /// One line for a person.
    pub fn line(&self) -> String {
        let waits: Vec<String> = self.forced_waits.iter().map(|(code, n)| format!("{code} {}", grouped(*n))).collect();
        format!(
            "{} steps, {} of them enqueued ahead; forced waits: {}; {} tokens discarded",
            grouped(self.steps),
            grouped(self.steps_ahead),
            if waits.is_empty() { "none".to_owned() } else { waits.join(", ") },
            grouped(self.discarded_tokens)
        )
    }
}
