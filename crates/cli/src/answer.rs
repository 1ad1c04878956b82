//! Drives the engine through one answer.

use crate::device::Backend;
use crate::error::{Failure, Result};
use crate::interrupt::Watch;
use crate::metrics;
use crate::progress::Bar;
use marlin_checkpoint::text::Tokenizer;
use marlin_engine::{Engine, Event, FinishReason, Request, TokenEvent, Usage};
use serde::Serialize;
use std::time::Duration;

/// A token's log-probability, and those of the most probable tokens at its place.
#[derive(Clone, Debug, Serialize)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// Its text, if there is a tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
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
    /// Its text, if there is a tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
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
    let prompt = request.prompt.len() as u64;
    let id = engine.submit(request)?;
    let before = engine.stats().computed_tokens;
    let mut bar = Some(Bar::items("reading the prompt"));
    let (mut tokens, mut text, mut logprobs) = (Vec::new(), String::new(), Vec::new());
    let mut start_to_first = None;
    loop {
        if watch.pressed() {
            engine.cancel(id);
        }
        let events = engine.step()?;
        if events.is_empty() {
            bar.iter_mut().for_each(|bar| bar.set(engine.stats().computed_tokens - before, prompt));
        } else {
            bar = None;
        }
        for event in events {
            match event {
                Event::Token(t) if t.id == id => {
                    start_to_first.get_or_insert_with(metrics::since_start);
                    tokens.push(t.token);
                    text.push_str(&t.text);
                    logprobs.push(token_logprob(engine.tokenizer(), &t));
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

fn token_logprob(tokenizer: Option<&Tokenizer>, event: &TokenEvent) -> TokenLogprob {
    let text = |id: u32| tokenizer.and_then(|t| t.decode(&[id], false).ok());
    let top = event.top.iter().map(|&(token_id, logprob)| TopLogprob { token_id, text: text(token_id), logprob });
    TokenLogprob { token_id: event.token, logprob: event.logprob, top: top.collect(), text: text(event.token) }
}
