//! `run`: one prompt, one answer.

use crate::answer::{Answer, TokenLogprob, answer};
use crate::args::{ContextArgs, EngineArgs};
use crate::device::{Runs, on_device};
use crate::error::{Failure, Result};
use crate::metrics::{Metrics, Steps};
use crate::model::{self, Loaded, Prompt};
use crate::sampling::{self, SamplingArgs, StopArgs};
use crate::values::Switch;
use crate::{builtin, ids, interrupt, output};
use marlin_backend::fallback::Snapshot;
use marlin_checkpoint::text::{ChatOptions, Message};
use marlin_engine::{EngineOptions, FinishReason};
use serde::Serialize;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

/// Continue a text, or answer a question
///
/// The prompt is continued as it stands: `metal-marlin run "Once upon a time"` tells how the tale goes on. With --chat
/// (or --system, or --think) it is a user's message, put into the model's chat template. The text streams to standard output;
/// what it took is told on standard error afterwards. Ctrl-C ends the answer.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prompt; without one, or with -, it is read from standard input (a newline at its end is dropped)
    #[arg(allow_hyphen_values = false)]
    prompt: Option<String>,
    /// The model
    #[arg(short, long, value_name = "MODEL", env = "MARLIN_MODEL", default_value = builtin::NAME)]
    model: String,
    /// Read the prompt as token ids: 32-bit little-endian integers
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "chat", "system", "think"])]
    prompt_ids: Option<PathBuf>,
    /// Treat the prompt as a user's message, by the model's chat template
    #[arg(long)]
    chat: bool,
    /// Instructions before the message (implies --chat)
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Whether the model thinks before it answers, where its template has the switch (implies --chat)
    #[arg(long, value_name = "SWITCH", value_enum)]
    think: Option<Switch>,
    /// Report log-probabilities: of each token, and of the N most probable ones at its place (with --json)
    #[arg(long, value_name = "N", requires = "json")]
    logprobs: Option<usize>,
    /// Print one JSON object at the end: token_ids, text, finish_reason, metrics
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    pub engine: EngineArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    token_ids: &'a [u32],
    text: &'a str,
    finish_reason: &'static str,
    /// The token or text that ended the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    stopped_by: Option<String>,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'a [TokenLogprob]>,
    metrics: Metrics,
    #[serde(flatten)]
    steps: Steps,
    /// Products that took a slower path.
    fallbacks: Snapshot,
}

pub fn run(args: &Args) -> Result<()> {
    on_device!(&args.engine, |backend| run_on(args, backend))
}

fn run_on<B: Runs>(args: &Args, backend: B) -> Result<()> {
    // The prompt first: who types it should not wait for the model, nor the model for a wrong file name.
    let ids = args.prompt_ids.as_deref().map(ids::read).transpose()?;
    let text = if ids.is_some() { None } else { Some(prompt_text(args)?) };
    let options = EngineOptions { max_batch: 1, prefix_cache: false, ..EngineOptions::default() };
    let prompt = if ids.is_some() { Prompt::Ids } else { Prompt::Text };
    let mut loaded = model::load(backend, &args.model, &args.engine, &args.context, options, prompt)?;
    let prompt = match (ids, text) {
        (Some(ids), _) => ids,
        (None, text) => encode(args, &loaded, &text.unwrap_or_default())?,
    };
    let mut sampling = args.sampling.resolve(&loaded.checkpoint.generation);
    sampling.top_logprobs = args.logprobs.unwrap_or(0);
    let request = args.stop.request(prompt, sampling, args.is_chat(), loaded.engine.context());
    sampling::describe(&args.engine, &request);

    let watch = interrupt::watch();
    let mut ends_line = true;
    let answer = answer(&mut loaded.engine, request, &watch, &mut |_, piece| {
        if args.json || piece.is_empty() {
            return Ok(());
        }
        ends_line = piece.ends_with('\n');
        output::print(piece)
    })?;
    let metrics = Metrics::new(&answer.usage, loaded.load, answer.start_to_first);
    if args.json {
        print_json(args, &loaded, &answer, metrics)?;
    } else {
        if !ends_line {
            output::print("\n")?;
        }
        output::note(&metrics.line());
    }
    loaded.say_fallbacks(args.engine.verbose);
    watch.check()
}

fn print_json<B: Runs>(args: &Args, loaded: &Loaded<B>, answer: &Answer, metrics: Metrics) -> Result<()> {
    let stopped_by = match &answer.reason {
        FinishReason::StopToken(id) => {
            let token = loaded.engine.tokenizer().and_then(|t| t.id_to_token(*id));
            Some(token.unwrap_or_else(|| id.to_string()))
        }
        FinishReason::StopString(text) => Some(text.clone()),
        _ => None,
    };
    output::print_json(&Report {
        model: &loaded.checkpoint.name,
        token_ids: &answer.tokens,
        text: &answer.text,
        finish_reason: answer.reason.name(),
        stopped_by,
        seed: answer.seed,
        logprobs: args.logprobs.map(|_| answer.logprobs.as_slice()),
        metrics,
        steps: Steps::of(&loaded.engine.stats()),
        fallbacks: loaded.engine.backend().slower(),
    })
}

impl Args {
    fn is_chat(&self) -> bool {
        self.chat || self.system.is_some() || self.think.is_some()
    }
}

fn prompt_text(args: &Args) -> Result<String> {
    match args.prompt.as_deref() {
        Some(text) if text != "-" => Ok(text.to_owned()),
        _ => {
            let mut input = std::io::stdin();
            if input.is_terminal() {
                output::note("the prompt, please; Ctrl-D at the beginning of a line ends it");
            }
            let mut bytes = Vec::new();
            input.read_to_end(&mut bytes)?;
            let mut text = String::from_utf8(bytes).map_err(|e| {
                Failure::text(format!("the prompt is not UTF-8 text (byte {} is wrong)", e.utf8_error().valid_up_to()))
            })?;
            if text.ends_with('\n') {
                text.pop();
                if text.ends_with('\r') {
                    text.pop();
                }
            }
            Ok(text)
        }
    }
}

fn encode<B: Runs>(args: &Args, loaded: &Loaded<B>, text: &str) -> Result<Vec<u32>> {
    let tokenizer = loaded.tokenizer()?;
    if !args.is_chat() {
        return Ok(tokenizer.encode(text, true)?);
    }
    let mut messages: Vec<Message> = args.system.iter().map(Message::system).collect();
    messages.push(Message::user(text));
    let options = ChatOptions { enable_thinking: args.think.map(Switch::is_on), ..ChatOptions::default() };
    Ok(tokenizer.encode_chat(&loaded.template()?.render(&messages, &options)?)?)
}
