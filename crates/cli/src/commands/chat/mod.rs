//! `chat`: a conversation.

mod input;
mod thinking;

use crate::answer::{Answer, answer};
use crate::args::{ContextArgs, EngineArgs};
use crate::device::{Runs, on_device};
use crate::error::{Failure, Result};
use crate::interrupt::{self, Watch};
use crate::metrics::Metrics;
use crate::model::{self, Loaded, Prompt};
use crate::sampling::{self, SamplingArgs, StopArgs};
use crate::values::Switch;
use crate::{builtin, output};
use input::{Input, Line};
use marlin_checkpoint::text::{ChatOptions, Message, starts_in_thinking};
use marlin_engine::{EngineOptions, FinishReason};
use std::path::{Path, PathBuf};
use thinking::Thinking;

/// Hold a conversation
///
/// Answers stream; Ctrl-C stops an answer, Ctrl-D or /quit leaves. What the model has read stays in its KV memory from
/// turn to turn. /help lists the commands. With a pipe as standard input each line is a turn.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    #[arg(short, long, value_name = "MODEL", env = "MARLIN_MODEL", default_value = builtin::NAME)]
    model: String,
    /// Instructions before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Whether the model thinks before it answers, where its template has the switch
    #[arg(long, value_name = "SWITCH", value_enum)]
    think: Option<Switch>,
    #[command(flatten)]
    stop: StopArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

const HELP: &str = "\
/reset          forget the conversation
/system TEXT    instructions for the model; without TEXT none
/think on|off   whether the model thinks before it answers, where its template has the switch
/save FILE      write the conversation as JSON
/stats          what has been computed and what memory holds
/quit           leave (or Ctrl-D)
A line that ends with \\ goes on in the next; \"\"\" begins and ends a text of several lines. Ctrl-C stops an answer.";

pub fn run(args: &Args) -> Result<()> {
    on_device!(&args.engine, |backend| run_on(args, backend))
}

fn run_on<B: Runs>(args: &Args, backend: B) -> Result<()> {
    let options = EngineOptions { max_batch: 1, ..EngineOptions::default() };
    let loaded = model::load(backend, &args.model, &args.engine, &args.context, options, Prompt::Text)?;
    loaded.template()?;
    loaded.tokenizer()?;
    let mut input = Input::open();
    if input.is_terminal() {
        output::note(&format!("{} · /help for commands, Ctrl-D to leave", loaded.checkpoint.name));
    }
    let mut chat = Chat {
        args,
        loaded,
        system: args.system.clone(),
        think: args.think.map(Switch::is_on),
        messages: Vec::new(),
        saved: Vec::new(),
        turns: 0,
    };
    loop {
        match input.read()? {
            Line::End => break,
            Line::Interrupted => output::note("(Ctrl-D or /quit leaves)"),
            Line::Text(text) if text.trim().is_empty() => {}
            Line::Text(text) if text.starts_with('/') && !text.contains('\n') => {
                if !chat.command(text.trim())? {
                    break;
                }
            }
            Line::Text(text) => chat.say(text)?,
        }
    }
    Ok(())
}

struct Chat<'a, B: Runs> {
    args: &'a Args,
    loaded: Loaded<B>,
    system: Option<String>,
    think: Option<bool>,
    messages: Vec<Message>,
    /// Files that this session has written and may write again.
    saved: Vec<PathBuf>,
    turns: usize,
}

impl<B: Runs> Chat<'_, B> {
    /// Carries out a command; false to leave.
    fn command(&mut self, line: &str) -> Result<bool> {
        let (name, rest) = line.split_once(char::is_whitespace).map_or((line, ""), |(name, rest)| (name, rest.trim()));
        match name {
            "/help" | "/?" => output::note(HELP),
            "/quit" | "/exit" => return Ok(false),
            "/reset" => {
                self.messages.clear();
                output::note("the conversation is forgotten");
            }
            "/system" => {
                self.system = (!rest.is_empty()).then(|| rest.to_owned());
                output::note(if rest.is_empty() { "no instructions" } else { "instructions taken" });
            }
            "/think" => match rest {
                "on" | "off" => {
                    self.think = Some(rest == "on");
                    output::note(&format!("thinking {rest}"));
                }
                _ => output::note("error: /think: expected on or off"),
            },
            "/save" => match self.save(rest) {
                Ok(()) => output::note(&format!("saved to {rest}")),
                Err(failure) => output::note(&format!("error: {failure}")),
            },
            "/stats" => self.stats(),
            _ => output::note(&format!("error: there is no command {name}; /help lists them")),
        }
        Ok(true)
    }

    /// A turn: the user's text, the model's answer. What goes wrong with the text is told and the text forgotten.
    fn say(&mut self, text: String) -> Result<()> {
        // From here to the end of the turn Ctrl-C stops the answer, and not the program.
        let watch = interrupt::watch();
        self.messages.push(Message::user(text));
        let outcome = self.answer(&watch);
        match outcome {
            Ok(message) => self.messages.push(message),
            Err(Failure::Error(error)) => {
                self.messages.pop();
                output::note(&format!("error: {}", Failure::Error(error)));
            }
            Err(other) => return Err(other),
        }
        Ok(())
    }

    fn conversation(&self) -> Vec<Message> {
        self.system.iter().map(Message::system).chain(self.messages.iter().cloned()).collect()
    }

    fn answer(&mut self, watch: &Watch) -> Result<Message> {
        let options = ChatOptions { enable_thinking: self.think, ..ChatOptions::default() };
        let prompt = self.loaded.template()?.render(&self.conversation(), &options)?;
        let tokenizer = self.loaded.tokenizer()?;
        let tokens = tokenizer.encode_chat(&prompt)?;
        let mut thinking = Thinking::new(tokenizer, starts_in_thinking(&prompt));
        let sampling = self.args.sampling.resolve(&self.loaded.checkpoint.generation);
        let request = self.args.stop.request(tokens, sampling, true, self.loaded.engine.context());
        if self.turns == 0 {
            sampling::describe(&self.args.engine, &request);
        }
        let styled = output::is_terminal();
        let Answer { reason, usage, start_to_first, .. } =
            answer(&mut self.loaded.engine, request, watch, &mut |token, piece| {
                output::print(&thinking.push(token, piece, styled))
            })?;
        output::print(&thinking.end(styled))?;
        match reason {
            FinishReason::Cancelled => output::note("[stopped]"),
            FinishReason::Length => output::note("[cut: --max-tokens sets how long an answer may get]"),
            _ => {}
        }
        let start_to_first = start_to_first.filter(|_| self.turns == 0);
        output::note(&Metrics::new(&usage, self.loaded.load, start_to_first).line());
        self.turns += 1;
        Ok(thinking.message())
    }

    fn save(&mut self, file: &str) -> Result<()> {
        if file.is_empty() {
            return Err(Failure::text("/save: expected a file name"));
        }
        let path = Path::new(file);
        if path.exists() && !self.saved.iter().any(|p| p == path) {
            return Err(Failure::text(format!("{file} is there already and will not be overwritten")));
        }
        let text = serde_json::to_string_pretty(&serde_json::json!({
            "model": self.loaded.checkpoint.name,
            "messages": self.conversation(),
        }))?;
        std::fs::write(path, text + "\n").map_err(|e| Failure::text(format!("{file}: {e}")))?;
        self.saved.push(path.to_owned());
        Ok(())
    }

    fn stats(&self) {
        let engine = &self.loaded.engine;
        let stats = engine.stats();
        let pool = stats.pool;
        output::note(&format!(
            "{} turns; {} prompt tokens, {} of them found in KV memory; {} tokens generated, {} computed in {} steps",
            self.turns, stats.prompt_tokens, pool.hits, stats.generated_tokens, stats.computed_tokens, stats.steps
        ));
        let held = (pool.used + pool.cached) * engine.sizing().block_size;
        output::note(&format!("context {} tokens; {}; about {held} tokens in it", engine.context(), engine.sizing()));
        if let Some(peak) = marlin_eval::machine::peak_memory() {
            output::note(&format!("peak memory {}", output::bytes(peak)));
        }
    }
}
