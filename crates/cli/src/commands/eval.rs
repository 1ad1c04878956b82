//! `eval`: how good a model is.

use super::kld;
use crate::args::{ContextArgs, EngineArgs};
use crate::device::{Runs, on_device};
use crate::error::{Failure, Result};
use crate::model::{self, Prompt};
use crate::progress::Bar;
use crate::{ids, interrupt, output};
use clap::{Subcommand, ValueEnum};
use marlin_backend::fallback::Snapshot;
use marlin_engine::EngineOptions;
use marlin_eval::{Perplexity, Protocol, perplexity};
use serde::Serialize;
use std::path::PathBuf;

/// Measure how good a model is
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Ppl(Ppl),
    Kld(kld::Kld),
}

/// Perplexity: how well a model predicts a text (lower is better)
#[derive(Debug, clap::Args)]
struct Ppl {
    /// The model
    model: String,
    /// The text: any UTF-8 file, best one that the model has not seen
    #[arg(long, value_name = "FILE", required_unless_present = "ids", conflicts_with = "ids")]
    text: Option<PathBuf>,
    /// The text as token ids: 32-bit little-endian integers
    #[arg(long, value_name = "FILE")]
    ids: Option<PathBuf>,
    /// Use the first N tokens only
    #[arg(long, value_name = "N", value_parser = crate::values::some_tokens)]
    tokens: Option<usize>,
    /// Tokens of a window [512; exl3: 2048]
    #[arg(long, value_name = "N", value_parser = crate::values::some_tokens)]
    context: Option<usize>,
    /// Tokens between the starts of windows, sliding only (256 by default)
    #[arg(long, value_name = "N", value_parser = crate::values::some_tokens)]
    stride: Option<usize>,
    /// Which tokens are scored, given what
    #[arg(long, value_enum, default_value_t = ProtocolName::Sliding)]
    protocol: ProtocolName,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// Windows overlap; every token but the first is scored once, with at least context - stride tokens before it
    Sliding,
    /// As llama.cpp: windows side by side, BOS first where the model has one, the second half of each scored
    #[value(name = "llama.cpp")]
    LlamaCpp,
    /// As exllamav3: windows side by side, all of each scored
    Exl3,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    dataset: String,
    exact: bool,
    #[serde(flatten)]
    result: &'a Perplexity,
    /// Products that took a slower path.
    fallbacks: Snapshot,
}

/// Tokens of a step; several windows share one.
const STEP: usize = 2048;

pub fn run(args: &Args) -> Result<()> {
    match &args.what {
        What::Ppl(args) => on_device!(&args.engine, |backend| ppl(args, backend)),
        What::Kld(args) => kld::run(args),
    }
}

fn ppl<B: Runs>(args: &Ppl, backend: B) -> Result<()> {
    let protocol = args.protocol.with(args.context, args.stride)?;
    let given = args.ids.as_deref().map(ids::read).transpose()?;
    let text = args
        .text
        .as_deref()
        .map(|path| std::fs::read_to_string(path).map_err(|e| Failure::text(format!("{}: {e}", path.display()))))
        .transpose()?;
    let prompt = if given.is_some() { Prompt::Ids } else { Prompt::Text };
    let context = ContextArgs { context: None, kv_tokens: Some(STEP.max(protocol.context()) + 512) };
    let options =
        EngineOptions { prefill_chunk: Some(STEP), prefix_cache: false, block_size: 32, ..EngineOptions::default() };
    let mut loaded = model::load(backend, &args.model, &args.engine, &context, options, prompt)?;
    let mut tokens = match (given, text) {
        (Some(ids), _) => ids,
        (None, text) => loaded.tokenizer()?.encode(&text.unwrap_or_default(), false)?,
    };
    let path = args.ids.as_deref().or(args.text.as_deref());
    let dataset = path.map(|p| p.display().to_string()).unwrap_or_default();
    if let Some(wanted) = args.tokens {
        if wanted > tokens.len() {
            let found = tokens.len();
            return Err(Failure::text(format!("{dataset}: --tokens asks for {wanted} tokens, but there are {found}")));
        }
        tokens.truncate(wanted);
    }
    let bos = loaded.checkpoint.generation.bos.or(loaded.engine.tokenizer().and_then(|t| t.bos()));
    let watch = interrupt::watch();
    let mut bar = Bar::items("scoring");
    let result = perplexity(&mut loaded.engine, &tokens, protocol, bos, &mut |done, total| {
        bar.set(done as u64, total as u64);
        !watch.pressed()
    });
    drop(bar);
    let result = result?;
    loaded.say_fallbacks(args.engine.verbose);
    if args.json {
        return output::print_json(&Report {
            model: &loaded.checkpoint.name,
            dataset,
            exact: args.engine.exact,
            result: &result,
            fallbacks: loaded.engine.backend().slower(),
        });
    }
    let bos = result.bos.map_or("no BOS".to_owned(), |id| format!("BOS {id} first"));
    output::print(&format!(
        "perplexity {:.4} ± {:.4} ({} on {dataset})\n\
         {} tokens scored of {}, negative log-likelihood {:.3}; {} protocol, context {}, stride {}, {bos}\n",
        result.perplexity,
        result.stderr,
        loaded.checkpoint.name,
        output::grouped(result.tokens_scored as u64),
        output::grouped(result.tokens as u64),
        result.nll_sum,
        result.protocol,
        result.context,
        result.stride,
    ))
}

impl ProtocolName {
    /// The protocol with these settings, or the usual ones.
    pub fn with(self, context: Option<usize>, stride: Option<usize>) -> Result<Protocol> {
        if stride.is_some() && self != Self::Sliding {
            return Err(Failure::text(
                "--stride belongs to the sliding protocol; the others have windows side by side",
            ));
        }
        let context = context.unwrap_or(if self == Self::Exl3 { 2048 } else { 512 });
        Ok(match self {
            Self::Sliding => Protocol::Sliding { context, stride: stride.unwrap_or((context / 2).max(1)) },
            Self::LlamaCpp => Protocol::LlamaCpp { context },
            Self::Exl3 => Protocol::Exl3 { context },
        })
    }
}
