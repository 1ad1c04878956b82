//! What is asked of the engine, and what it answers.

use crate::{Error, Result};
use marlin_checkpoint::GenerationConfig;
use std::fmt;
use std::time::Duration;

/// A request's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How tokens are chosen. The default is the most probable token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 chooses the most probable token; otherwise logits are divided by it.
    pub temperature: f32,
    /// Keep only the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the fewest most probable tokens that together reach this probability; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less probable than this times the most probable one; 0 drops none.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt and answer; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the answer for each occurrence.
    pub frequency_penalty: f32,
    /// Added to single logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws; the same seed and prompt give the same text in any batch. `None` takes a fresh one, which
    /// [`Finished::seed`] tells.
    pub seed: Option<u64>,
    /// How many of the most probable tokens to report for each chosen one.
    pub top_logprobs: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            top_logprobs: 0,
        }
    }
}

impl Sampling {
    /// As the checkpoint's makers would sample it; the most probable token if they do not say.
    pub fn from_checkpoint(config: &GenerationConfig) -> Self {
        let sampled = config.do_sample.unwrap_or(false);
        Self {
            temperature: if sampled { config.temperature.unwrap_or(1.0) } else { 0.0 },
            top_k: config.top_k.unwrap_or(0),
            top_p: config.top_p.unwrap_or(1.0),
            min_p: config.min_p.unwrap_or(0.0),
            repetition_penalty: config.repetition_penalty.unwrap_or(1.0),
            ..Self::default()
        }
    }

    /// Whether the tokens seen so far change the choice.
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Refuses settings that make no sense, for a model of `vocab` tokens.
    pub fn check(&self, vocab: usize) -> Result<()> {
        let within = |name, value: f32, least: f32, most: f32| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(Error::setting(name, format!("a number from {least} to {most}"), value))
        };
        within("temperature", self.temperature, 0.0, 100.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        for (token, bias) in &self.logit_bias {
            if *token as usize >= vocab {
                return Err(Error::setting("logit_bias", format!("tokens below {vocab}"), token));
            }
            // Minus infinity forbids a token.
            if bias.is_nan() || *bias == f32::INFINITY {
                return Err(Error::setting("logit_bias", "a number or minus infinity", bias));
            }
        }
        if self.top_logprobs > vocab {
            return Err(Error::setting("top_logprobs", format!("at most {vocab}"), self.top_logprobs));
        }
        Ok(())
    }
}

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens to generate at most, at least 1; `None` goes on to the end of the context.
    pub max_tokens: Option<usize>,
    /// Text that ends the answer and does not belong to it.
    pub stop: Vec<String>,
    /// Tokens that end the answer, besides the model's own.
    pub stop_tokens: Vec<u32>,
    /// Whether the model's own end tokens are tokens like any other.
    pub ignore_eos: bool,
    /// Whether special tokens are left out of the text.
    pub skip_special: bool,
}

impl Request {
    /// The most probable continuation of `prompt`, to its own end or that of the context.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            skip_special: true,
        }
    }
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was chosen.
    Token(TokenEvent),
    /// The request has ended; nothing more comes.
    Finished(Finished),
}

impl Event {
    /// Whose event it is.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Token(t) => t.id,
            Self::Finished(f) => f.id,
        }
    }
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The request.
    pub id: RequestId,
    /// The token. One that ends the answer is told too, without text.
    pub token: u32,
    /// Text that is now certain; often this token's own, but characters may need several tokens and stop strings hold
    /// text back. All `text` of a request, and last [`Finished::text`], make up the answer.
    pub text: String,
    /// Log-probability under the model's own distribution.
    pub logprob: f32,
    /// The most probable tokens with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
    /// How far the choice was from another one, in logits.
    pub margin: f32,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A token that ends answers.
    StopToken(u32),
    /// A stop string.
    StopString(String),
    /// `max_tokens` tokens, or the context is full.
    Length,
    /// [`Engine::cancel`](crate::Engine::cancel).
    Cancelled,
    /// Something failed, in words.
    Error(String),
}

impl FinishReason {
    /// `stop`, `length`, `cancelled` or `error`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StopToken(_) | Self::StopString(_) => "stop",
            Self::Length => "length",
            Self::Cancelled => "cancelled",
            Self::Error(_) => "error",
        }
    }
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// The request.
    pub id: RequestId,
    /// The end of the answer's text that had been held back.
    pub text: String,
    /// Why.
    pub reason: FinishReason,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens and times.
    pub usage: Usage,
}

/// What a request took. The intervals lie between these moments, in order: submitted, first scheduled, first token,
/// finished; an interval whose end never came is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of these, tokens found in the prefix cache.
    pub cached_tokens: usize,
    /// Tokens chosen, one that ended the answer included.
    pub generated_tokens: usize,
    /// Times the request gave its KV blocks up for older ones.
    pub preemptions: usize,
    /// Submitted to first scheduled.
    pub queue: Duration,
    /// First scheduled to first token.
    pub prefill: Duration,
    /// Submitted to first token.
    pub time_to_first_token: Duration,
    /// First token to finished: `generated_tokens - 1` tokens.
    pub decode: Duration,
}
