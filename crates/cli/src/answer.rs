//! Drives the engine through one answer.

use crate::error::{Failure, Result};
use crate::interrupt::Watch;
use crate::metrics;
use crate::progress::Bar;
use marlin_backend::Backend;
use marlin_checkpoint::text::Tokenizer;
use marlin_engine::{Engine, Event, FinishReason, Request, RequestId, TokenEvent, Usage};
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

/// Carries out `request`, handing each token and the text that is now certain to `receive`. Ctrl-C ends the answer, and
/// so does a `receive` that fails; no request is left behind.
pub fn answer<B: Backend>(
    engine: &mut Engine<B>,
    request: Request,
    watch: &Watch,
    receive: &mut dyn FnMut(Option<u32>, &str) -> Result<()>,
) -> Result<Answer> {
    let prompt = request.prompt.len() as u64;
    let id = engine.submit(request)?;
    let outcome = follow(engine, id, prompt, watch, receive);
    if outcome.is_err() && engine.cancel(id) {
        // What went wrong first is what to tell.
        let _ = engine.step();
    }
    outcome
}

/// Steps until `id`, whose prompt has so many tokens, has ended.
fn follow<B: Backend>(
    engine: &mut Engine<B>,
    id: RequestId,
    prompt: u64,
    watch: &Watch,
    receive: &mut dyn FnMut(Option<u32>, &str) -> Result<()>,
) -> Result<Answer> {
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

#[cfg(all(test, feature = "builtin-model"))]
mod tests {
    use super::*;
    use crate::args::{ContextArgs, EngineArgs};
    use crate::model::{self, Prompt};
    use crate::values::{Device, KvType};
    use crate::{builtin, interrupt};
    use marlin_engine::EngineOptions;

    #[test]
    fn nothing_is_left_running_when_the_text_cannot_be_written() {
        let args = EngineArgs {
            device: Device::Cpu,
            threads: 1,
            exact: true,
            kv_type: KvType::Auto,
            verbose: false,
            no_pipeline: false,
            guard: false,
        };
        let options = EngineOptions { max_batch: 1, ..EngineOptions::default() };
        let context = ContextArgs::default();
        let mut engine =
            model::load(crate::device::cpu(&args).unwrap(), builtin::NAME, &args, &context, options, Prompt::Ids)
                .unwrap()
                .engine;
        let request = Request { max_tokens: Some(16), ignore_eos: true, ..Request::new(vec![1, 2, 3]) };
        let failed = answer(&mut engine, request, &interrupt::watch(), &mut |_, _| Err(Failure::BrokenPipe));
        assert!(matches!(failed, Err(Failure::BrokenPipe)));
        let stats = engine.stats();
        assert!(engine.is_idle());
        assert_eq!((stats.running, stats.waiting, stats.pool.used, stats.cancelled), (0, 0, 0, 1));
    }
}
