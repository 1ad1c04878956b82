//! From the name on the command line to a model that answers.

use crate::args::{ContextArgs, EngineArgs};
use crate::device::Runs;
use crate::error::{Failure, Result};
use crate::metrics::Steps;
use crate::progress::Bar;
use crate::{builtin, output};
use marlin_checkpoint::text::{ChatTemplate, Tokenizer, TokenizerConfig};
use marlin_checkpoint::{Checkpoint, Folder, Hub};
use marlin_engine::{Engine, EngineOptions};
use marlin_models::{LoadOptions, Model};
use std::cell::OnceCell;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Opens the checkpoint that `name` means, without reading its weights.
pub fn open(name: &str) -> Result<Checkpoint> {
    if name == builtin::NAME {
        return builtin::open();
    }
    let path = Path::new(name);
    if path.exists() {
        return Ok(Checkpoint::open(path)?);
    }
    if !is_hub_id(name) {
        return Err(Failure::text(format!(
            "model {name:?}: there is no such file or folder, and it is no name of the hub (org/name); {:?} is the built-in model",
            builtin::NAME
        )));
    }
    Ok(Checkpoint::open(Hub::from_env()?.resolve(name)?)?)
}

/// Whether `name` could be `org/name` or `org/name@revision`.
fn is_hub_id(name: &str) -> bool {
    let repository = name.split_once('@').map_or(name, |(repository, _)| repository);
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    matches!(repository.split_once('/'), Some((org, model)) if good(org) && good(model))
}

/// What a command begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text: there is nothing to do without a tokenizer that works.
    Text,
    /// Token ids: a tokenizer that cannot be read is told and done without.
    Ids,
}

fn tokenizer_config(folder: &Folder) -> Result<Option<TokenizerConfig>> {
    const NAME: &str = "tokenizer_config.json";
    let text = folder.text(NAME)?;
    Ok(text.map(|text| TokenizerConfig::parse(&folder.describe(NAME), &text)).transpose()?)
}

/// The tokenizer in `folder`, if there is one.
pub fn tokenizer(folder: &Folder) -> Result<Option<Tokenizer>> {
    const NAME: &str = "tokenizer.json";
    let Some(text) = folder.text(NAME)? else { return Ok(None) };
    let config = tokenizer_config(folder)?;
    Ok(Some(Tokenizer::from_bytes(&folder.describe(NAME), text.as_bytes(), config.as_ref())?))
}

/// The chat template in `folder`, if there is one.
pub fn template(folder: &Folder) -> Result<Option<ChatTemplate>> {
    let config_name = folder.describe("tokenizer_config.json");
    let config = tokenizer_config(folder)?;
    let (jinja_name, jinja) = (folder.describe("chat_template.jinja"), folder.text("chat_template.jinja")?);
    Ok(ChatTemplate::find(
        jinja.as_deref().map(|text| (jinja_name.as_str(), text)),
        config.as_ref().map(|config| (config_name.as_str(), config)),
    )?)
}

/// A model that is ready to answer.
pub struct Loaded<B: Runs> {
    /// The engine around it.
    pub engine: Engine<B>,
    /// Where it came from.
    pub checkpoint: Checkpoint,
    /// Its chat template, if it has one; read when a conversation first wants it.
    template: OnceCell<Option<ChatTemplate>>,
    /// What loading took, this program's own start aside.
    pub load: Duration,
}

impl<B: Runs> Loaded<B> {
    /// The tokenizer, which must be there.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.engine.tokenizer().ok_or_else(|| no_tokenizer(&self.checkpoint))
    }

    /// Says, if `verbose`, how steps followed one another and what was computed on slower paths than it might be.
    pub fn say_fallbacks(&self, verbose: bool) {
        if verbose {
            output::note(&Steps::of(&self.engine.stats()).line());
            let found = self.engine.backend().slower();
            output::note(&output::fallbacks(&found).unwrap_or_else(|| "slower paths: none taken".to_owned()));
        }
    }

    /// The chat template, which must be there.
    pub fn template(&self) -> Result<&ChatTemplate> {
        let found = match self.template.get() {
            Some(found) => found,
            None => {
                let read = template(&self.checkpoint.folder)?;
                self.template.get_or_init(|| read)
            }
        };
        Ok(found.as_ref().ok_or_else(|| ChatTemplate::missing(&self.checkpoint.name))?)
    }
}

/// The error for text without a tokenizer.
pub fn no_tokenizer(checkpoint: &Checkpoint) -> Failure {
    Failure::text(format!(
        "{}: there is no tokenizer.json beside the weights, so text cannot be read; give token ids instead (--prompt-ids, --ids)",
        checkpoint.name
    ))
}

/// Loads the model called `name` on `backend`.
pub fn load<B: Runs>(
    backend: B,
    name: &str,
    engine: &EngineArgs,
    context: &ContextArgs,
    options: EngineOptions,
    prompt: Prompt,
) -> Result<Loaded<B>> {
    let started = Instant::now();
    load_checkpoint(backend, open(name)?, engine, context, options, prompt, started)
}

/// Loads the model in `checkpoint`, which was begun to be opened when it `started`.
pub fn load_checkpoint<B: Runs>(
    backend: B,
    checkpoint: Checkpoint,
    args: &EngineArgs,
    context: &ContextArgs,
    options: EngineOptions,
    prompt: Prompt,
    started: Instant,
) -> Result<Loaded<B>> {
    let tokenizer = match tokenizer(&checkpoint.folder) {
        Err(failure @ Failure::Error(_)) if prompt == Prompt::Ids => {
            output::note(&format!("note: the tokenizer is not used, so there is no text: {failure}"));
            None
        }
        other => other?,
    };
    let backend = Arc::new(backend);
    let mut bar = Bar::bytes(format!("loading {}", checkpoint.name));
    let model = Model::load(backend.as_ref(), &checkpoint, LoadOptions::default(), &mut |p| bar.set(p.done, p.total))?;
    drop(bar);
    let options = EngineOptions {
        context: context.context.or(options.context),
        kv_tokens: context.kv_tokens.or(options.kv_tokens),
        guard: args.guard,
        pipeline: if args.no_pipeline { Some(false) } else { options.pipeline },
        ..options
    };
    let eos = checkpoint.generation.eos.clone();
    let model = Arc::new(model);
    let engine = Engine::new(backend, model, tokenizer, eos, options)?;
    let bar = Mutex::new(Bar::items("compiling kernels"));
    engine.warm(&|done, total| bar.lock().unwrap_or_else(PoisonError::into_inner).set(done as u64, total as u64))?;
    drop(bar);
    let loaded = Loaded { engine, checkpoint, template: OnceCell::new(), load: started.elapsed() };
    warn(&loaded);
    if args.verbose {
        describe(&loaded);
    }
    Ok(loaded)
}

/// Says where what is computed is not what the checkpoint seems to say.
fn warn<B: Runs>(loaded: &Loaded<B>) {
    let converted = loaded.engine.model().report().converted.len();
    if converted > 0 {
        let tensors = if converted == 1 { "1 tensor is".to_owned() } else { format!("{converted} tensors are") };
        output::note(&format!("note: {tensors} stored in F64 and computed with in F32"));
    }
    let Checkpoint { config, store, .. } = &loaded.checkpoint;
    if config.bool_or("tie_word_embeddings", false).unwrap_or(false) && store.contains("lm_head.weight") {
        output::note(
            "note: lm_head.weight is ignored, for config.json has tie_word_embeddings: the embedding is used instead",
        );
    }
}

fn describe<B: Runs>(loaded: &Loaded<B>) {
    let Loaded { engine, checkpoint, load, .. } = loaded;
    let info = engine.model().info();
    output::note(&format!(
        "model {} ({}, {} layers) on {}, loaded in {}",
        checkpoint.name,
        info.architecture,
        info.layers,
        engine.backend().name(),
        output::seconds(load.as_secs_f64())
    ));
    if let Some(warmth) = engine.backend().warmth() {
        output::note(&output::kernels(&warmth));
    }
    output::note(&format!("context {} tokens, {}", engine.context(), engine.sizing()));
    let report = engine.model().report();
    if !report.mtp.is_empty() {
        output::note(&format!("{} tensors of the multi-token-prediction layers are not used", report.mtp.len()));
    }
}
