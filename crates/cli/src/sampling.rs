//! Options for how tokens are chosen and where an answer ends.

use crate::args;
use crate::output;
use crate::values;
use clap::Args;
use marlin_checkpoint::GenerationConfig;
use marlin_engine::{Request, Sampling};

/// How tokens are chosen. What is not given is as the checkpoint's generation_config.json says.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling (by default as generation_config.json says; otherwise greedy)")]
pub struct SamplingArgs {
    /// Always the most probable token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    pub greedy: bool,
    /// Divide logits by T before the draw; 0 is greedy [1 where top-k, top-p or min-p is given]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Draw from the K most probable tokens only; 0 for all
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw from the most probable tokens that together reach P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Draw from tokens at least P times as probable as the most probable one
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens already there by R (multiply negative ones)
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Subtract from the logits of tokens already in the answer
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtract from the logits of tokens in the answer, for each time they occur
    #[arg(long, value_name = "A", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Add to a token's logit; -inf forbids it (may be repeated)
    #[arg(long, value_name = "ID=BIAS", value_parser = values::logit_bias, allow_hyphen_values = true)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the draws; the same seed gives the same answer
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Where an answer ends, besides the model's own end tokens.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Where the answer ends")]
pub struct StopArgs {
    /// Tokens to generate at most [256; in a chat an eighth of the context]
    #[arg(short = 'n', long, value_name = "N", value_parser = values::some_tokens, env = "MARLIN_MAX_TOKENS")]
    pub max_tokens: Option<usize>,
    /// End before this text (may be repeated)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// End after this token (may be repeated)
    #[arg(long, value_name = "ID")]
    pub stop_id: Vec<u32>,
    /// Go on past the model's own end tokens
    #[arg(long)]
    pub ignore_eos: bool,
}

/// Tokens of a continued text.
const CONTINUATION: usize = 256;

impl SamplingArgs {
    /// The settings, on top of the checkpoint's own.
    pub fn resolve(&self, checkpoint: &GenerationConfig) -> Sampling {
        let base = Sampling::from_checkpoint(checkpoint);
        let drawn = [self.top_k.is_some(), self.top_p.is_some(), self.min_p.is_some()].contains(&true);
        let temperature = match self.temperature {
            Some(t) => t,
            None if self.greedy => 0.0,
            None if drawn && base.temperature == 0.0 => checkpoint.temperature.unwrap_or(1.0),
            None => base.temperature,
        };
        Sampling {
            temperature,
            top_k: self.top_k.unwrap_or(base.top_k),
            top_p: self.top_p.unwrap_or(base.top_p),
            min_p: self.min_p.unwrap_or(base.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(base.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(base.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(base.frequency_penalty),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
            top_logprobs: 0,
        }
    }
}

impl StopArgs {
    /// A request for `prompt` in a context of so many tokens. Without --max-tokens a continued text ends somewhere, and
    /// an answer in a chat leaves room for the next.
    pub fn request(&self, prompt: Vec<u32>, sampling: Sampling, chat: bool, context: usize) -> Request {
        let usual = if chat { (context / 8).max(CONTINUATION) } else { CONTINUATION };
        // A limit that nobody asked for must not make a prompt too long.
        let room = context.saturating_sub(prompt.len()).max(1);
        Request {
            sampling,
            max_tokens: Some(self.max_tokens.unwrap_or(usual.min(room))),
            stop: self.stop.clone(),
            stop_tokens: self.stop_id.clone(),
            ignore_eos: self.ignore_eos,
            ..Request::new(prompt)
        }
    }
}

/// Says on standard error which settings are used.
pub fn describe(engine: &args::EngineArgs, request: &Request) {
    if !engine.verbose {
        return;
    }
    let s = &request.sampling;
    let mut parts = vec![match s.temperature {
        0.0 => "greedy".to_owned(),
        t => format!("temperature {t}, top-k {}, top-p {}, min-p {}", s.top_k, s.top_p, s.min_p),
    }];
    let penalties = [
        ("repetition penalty", s.repetition_penalty, 1.0),
        ("presence penalty", s.presence_penalty, 0.0),
        ("frequency penalty", s.frequency_penalty, 0.0),
    ];
    parts.extend(
        penalties.iter().filter(|(_, value, none)| value != none).map(|(name, value, _)| format!("{name} {value}")),
    );
    match request.max_tokens {
        Some(n) => parts.push(format!("at most {n} tokens")),
        None => parts.push("to the end of the context".to_owned()),
    }
    output::note(&format!("sampling: {}", parts.join(", ")));
}
