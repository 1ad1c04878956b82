//! Drives the engine through one answer.

use crate::device::Backend;
use crate::error::{Failure, Result};
use crate::interrupt::Watch;
use crate::metrics;
use marlin_engine::{Engine, Event, FinishReason, Request, Usage};
use serde::Serialize;
use std::time::Duration;

/// A token's log-probability, and those of the most probable tokens at its place.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its log-probability under the model's own distribution.
    pub logprob: f32,
    /// The most probable tokens, best first.
    pub top: Vec<TopLogprob>,
}

/// One of the most probable tokens.
#[derive(Clone, Debug, Serialize)]
pub struct TopLogprob {
    /// The token.
    pub token_id: u32,
    /// Its log-probability.
    pub logprob: f32,
}

/// A whole answer.
pub struct Answer {
    /// Its tokens, one that ended it included.
    pub tokens: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Log-probabilities of its tokens.
    pub logprobs: Vec<TokenLogprob>,
    /// Why it ended.
    pub reason: FinishReason,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens and times.
    pub usage: Usage,
    /// From the start of the program to the first token.
    pub start_to_first: Option<Duration>,
}

/// Carries out `request`, handing each token and the text that is now certain to `receive`. Ctrl-C ends the answer.
pub fn answer(
    engine: &mut Engine<Backend>,
    request: Request,
    watch: &Watch,
    receive: &mut dyn FnMut(Option<u32>, &str) -> Result<()>,
) -> Result<Answer> {
    let id = engine.submit(request)?;
    let (mut tokens, mut text, mut logprobs) = (Vec::new(), String::new(), Vec::new());
    let mut start_to_first = None;
    loop {
        if watch.pressed() {
            engine.cancel(id);
        }
        for event in engine.step()? {
            match event {
                Event::Token(t) if t.id == id => {
                    start_to_first.get_or_insert_with(metrics::since_start);
                    tokens.push(t.token);
                    text.push_str(&t.text);
                    let top = t.top.iter().map(|&(token_id, logprob)| TopLogprob { token_id, logprob }).collect();
                    logprobs.push(TokenLogprob { token_id: t.token, logprob: t.logprob, top });
                    receive(Some(t.token), &t.text)?;
                }
                Event::Finished(f) if f.id == id => {
                    if let FinishReason::Error(why) = f.reason {
                        return Err(Failure::text(why));
                    }
                    text.push_str(&f.text);
                    receive(None, &f.text)?;
                    let (reason, seed, usage) = (f.reason, f.seed, f.usage);
                    return Ok(Answer { tokens, text, logprobs, reason, seed, usage, start_to_first });
                }
                _ => {}
            }
        }
    }
}
