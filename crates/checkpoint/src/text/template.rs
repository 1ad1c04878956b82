//! Chat templates: Jinja, set up as transformers' `apply_chat_template` sets it up.

use std::io;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, Value};

use super::{DateTime, Message, TokenizerConfig, guard, limits, python, tags};
use crate::{Error, Result};

/// Largest template that is accepted (bytes); published ones stay under 100 kB.
const MAX_SOURCE: usize = 512 << 10;
/// Largest prompt that a rendering may write (bytes).
const MAX_PROMPT: usize = 64 << 20;
/// Steps that a rendering may take, and more for each message and for each byte of tools.
const FUEL: u64 = 500_000;
const FUEL_PER_MESSAGE: u64 = 10_000;
const FUEL_PER_TOOL_BYTE: u64 = 20;
/// Stack of the rendering thread: deep values are dropped and printed recursively. Only what is touched is used.
const STACK: usize = 256 << 20;

/// What goes on inside a template, in minijinja's words.
type Rendered = std::result::Result<String, minijinja::Error>;

/// What to render besides the messages.
#[derive(Debug, Clone)]
pub struct ChatOptions {
    /// End with the words that open the assistant's turn. On by default.
    pub add_generation_prompt: bool,
    /// The model's thinking switch; `None` leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// GLM's switch: `false` keeps the reasoning of earlier turns in the prompt.
    pub clear_thinking: Option<bool>,
    /// JSON schemas of the tools that the model may call.
    pub tools: Vec<Value>,
    /// More variables for the template; these win over all others.
    pub extra: Map<String, Value>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            enable_thinking: None,
            clear_thinking: None,
            tools: Vec::new(),
            extra: Map::new(),
        }
    }
}

/// A checkpoint's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    env: Environment<'static>,
    file: String,
    /// `bos_token` and so on.
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// The template of a checkpoint, if it has one: `jinja` (name and text of `chat_template.jinja`) wins over the
    /// `chat_template` of `tokenizer_config.json`. `config` also gives the variables `bos_token`, `eos_token`, ...
    pub fn find(jinja: Option<(&str, &str)>, config: Option<(&str, &TokenizerConfig)>) -> Result<Option<Self>> {
        let special_tokens = config.map(|(_, c)| c.special_tokens().clone()).unwrap_or_default();
        let (file, sources) = match (jinja, config) {
            (Some((file, source)), _) => (file.to_owned(), vec![("default".to_owned(), source.to_owned())]),
            (None, Some((file, config))) => (format!("{file}: chat_template"), config.templates().to_vec()),
            (None, None) => return Ok(None),
        };
        if sources.is_empty() {
            return Ok(None);
        }
        let mut template = Self { env: environment(), file, special_tokens };
        for (name, source) in sources {
            template.add(name, &source)?;
        }
        Ok(Some(template))
    }

    /// What to say when [`find`](Self::find) gave nothing and a conversation was asked for.
    pub fn missing(model: &str) -> Error {
        Error::invalid(
            model,
            "has no chat template (neither chat_template.jinja nor chat_template in tokenizer_config.json), so it is \
             probably a base model: give it a text to continue (`run`), or use an instruct or chat version of it",
        )
    }

    fn add(&mut self, name: String, source: &str) -> Result<()> {
        if source.len() > MAX_SOURCE {
            let why = format!("expected a template of at most {MAX_SOURCE} bytes, found {}", source.len());
            return Err(Error::invalid(&self.file, why));
        }
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let source = tags::prepare(&source).map_err(|line| {
            let why = format!("blocks nested deeper than {}", tags::MAX_NESTING);
            Error::invalid(format!("{} line {line}", self.file), why)
        })?;
        let mut env = self.env.clone();
        let compile = || {
            let guarded = guard::rewrite(&name, &source, env.syntax())?;
            env.add_template_owned(name, guarded)
        };
        self.with_stack(|| compile().map_err(|e: minijinja::Error| self.error(&e)))??;
        self.env = env;
        Ok(())
    }

    /// Use `clock` instead of the local time for `strftime_now`.
    pub fn with_clock(mut self, clock: impl Fn() -> DateTime + Send + Sync + 'static) -> Self {
        set_clock(&mut self.env, Arc::new(clock));
        self
    }

    /// The prompt for a conversation. Encode it with [`Tokenizer::encode_chat`](super::Tokenizer::encode_chat).
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String> {
        let context = self.context(messages, options)?;
        let tool_bytes: usize = options.tools.iter().map(|tool| tool.to_string().len()).sum();
        let mut env = self.env.clone();
        env.set_fuel(Some(FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + FUEL_PER_TOOL_BYTE * tool_bytes as u64));
        let has = |name: &str| env.get_template(name).is_ok();
        let name = if !options.tools.is_empty() && has("tool_use") { "tool_use" } else { "default" };
        if !has(name) {
            return Err(Error::invalid(&self.file, "expected a template named \"default\" among the named templates"));
        }

        let render = || -> Rendered {
            limits::reset();
            let mut out = Limited(Vec::new());
            env.get_template(name)?.render_captured_to(minijinja::value::Serde(&context), &mut out)?;
            // The pieces were strings, so this cannot be lossy.
            Ok(String::from_utf8_lossy(&out.0).into_owned())
        };
        self.with_stack(|| render().map_err(|e| self.error(&e)))?
    }

    /// Run `work` on a thread with much stack.
    fn with_stack<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK);
        let outcome = std::thread::scope(|scope| thread.spawn_scoped(scope, work).map(|handle| handle.join()));
        match outcome {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => {
                Err(Error::invalid(&self.file, "rendering stopped unexpectedly; please report this template"))
            }
            Err(e) => Err(Error::invalid(&self.file, format!("cannot start a thread for the template: {e}"))),
        }
    }

    fn context(&self, messages: &[Message], options: &ChatOptions) -> Result<Map<String, Value>> {
        let mut context = self.special_tokens.clone();
        let messages = messages
            .iter()
            .map(|m| serde_json::to_value(m.with_parsed_arguments()))
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|e| Error::invalid("messages", e))?;
        context.insert("messages".into(), Value::Array(messages));
        let tools = if options.tools.is_empty() { Value::Null } else { Value::Array(options.tools.clone()) };
        context.insert("tools".into(), tools);
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), Value::Bool(options.add_generation_prompt));
        for (name, switch) in [("enable_thinking", options.enable_thinking), ("clear_thinking", options.clear_thinking)]
        {
            if let Some(on) = switch {
                context.insert(name.into(), Value::Bool(on));
            }
        }
        context.extend(options.extra.clone());
        Ok(context)
    }

    fn error(&self, error: &minijinja::Error) -> Error {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(inner) = source {
            if let Some(Raised(message)) = inner.downcast_ref() {
                return Error::invalid(&self.file, format!("the chat template refuses this conversation: {message}"));
            }
            source = inner.source();
        }
        let line = error.line().map(|line| format!(" line {line}")).unwrap_or_default();
        let why = match error.kind() {
            ErrorKind::OutOfFuel => "the template took too many steps (an endless loop?)".to_owned(),
            ErrorKind::WriteFailure => format!("the prompt grew beyond {} MiB", MAX_PROMPT >> 20),
            kind => match error.detail() {
                Some(detail) => format!("{kind}: {detail}"),
                None => kind.to_string(),
            },
        };
        Error::invalid(format!("{}{line}", self.file), why)
    }
}

/// Whether a rendered prompt ends inside an open thinking block, so that the reply starts there and the model will
/// write only the closing `</think>`.
pub fn starts_in_thinking(prompt: &str) -> bool {
    prompt.trim_end().ends_with("<think>")
}

fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    // The default delimiters are always valid.
    if let Ok(syntax) = syntax.trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    // It would keep the values around an error alive in the error.
    env.set_debug(false);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_recursion_limit(100);
    python::install(&mut env);
    guard::install(&mut env);
    env.add_function("raise_exception", |message: &str| -> Rendered {
        let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned());
        Err(error.with_source(Raised(message.to_owned())))
    });
    set_clock(&mut env, Arc::new(|| jiff::Zoned::now().datetime()));
    env
}

fn set_clock(env: &mut Environment<'static>, clock: Arc<dyn Fn() -> DateTime + Send + Sync>) {
    env.add_function("strftime_now", move |format: &str| -> Rendered {
        jiff::fmt::strtime::format(format, clock())
            .map_err(|e| minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
    });
}

/// What a template passed to `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Text with a largest size.
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_PROMPT {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
