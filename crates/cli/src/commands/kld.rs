//! `eval kld`: how far a quantised model is from the original.

use super::eval::ProtocolName;
use crate::args::EngineArgs;
use crate::device;
use crate::error::{Failure, Result};
use crate::progress::Bar;
use crate::{ids, interrupt, model, output};
use clap::ArgGroup;
use marlin_checkpoint::Checkpoint;
use marlin_cpu::CpuBackend;
use marlin_eval::{Protocol, Side, kld};
use marlin_models::{LoadOptions, Model};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Divergence of a quantised model from its original (lower is better)
///
/// Both models are given the same text, some tokens at a time. At every position the reference's prediction p is compared
/// with the quantised model's q: KL(p || q) in nats, whether the likeliest token is the same, and what became of the right
/// token's probability. Of mixtures it also counts how often a router chose another set of experts.
#[derive(Debug, clap::Args)]
#[command(group(ArgGroup::new("input").required(true).args(["text", "ids"])))]
pub struct Kld {
    /// The original
    reference: String,
    /// What was made of it
    quantised: String,
    #[command(flatten)]
    input: InputArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

/// On what predictions are compared.
#[derive(Clone, Debug, clap::Args)]
pub struct InputArgs {
    /// The text: any UTF-8 file, best one that no calibration has seen
    #[arg(long, value_name = "FILE")]
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
    /// Which tokens are compared, given what
    #[arg(long, value_enum, default_value_t = ProtocolName::Sliding)]
    protocol: ProtocolName,
}

/// A result, with what it is of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub reference: String,
    pub quantised: String,
    pub dataset: String,
    pub exact: bool,
    #[serde(flatten)]
    pub result: marlin_eval::Kld,
}

struct Loaded {
    checkpoint: Checkpoint,
    backend: CpuBackend,
    model: Model<CpuBackend>,
}

fn load(name: &str, args: &EngineArgs) -> Result<Loaded> {
    let (checkpoint, backend) = (model::open(name)?, device::cpu(args)?);
    let mut bar = Bar::bytes(format!("loading {}", checkpoint.name));
    let model = Model::load(&backend, &checkpoint, LoadOptions::default(), &mut |p| bar.set(p.done, p.total))?;
    Ok(Loaded { checkpoint, backend, model })
}

/// The original with a text, ready to be compared with.
pub struct Reference<'a> {
    loaded: Loaded,
    engine: &'a EngineArgs,
    dataset: String,
    tokens: Vec<u32>,
    protocol: Protocol,
    bos: Option<u32>,
    vocab: Option<usize>,
}

impl<'a> Reference<'a> {
    /// Loads the model called `name` and reads the text.
    pub fn load(name: &str, input: &InputArgs, engine: &'a EngineArgs) -> Result<Self> {
        let protocol = input.protocol.with(input.context, input.stride)?;
        let given = input.ids.as_deref().map(ids::read).transpose()?;
        let loaded = load(name, engine)?;
        let tokenizer = match model::tokenizer(&loaded.checkpoint.folder) {
            Err(Failure::Error(_)) if given.is_some() => None,
            other => other?,
        };
        let mut tokens = match (given, &input.text) {
            (Some(ids), _) => ids,
            (None, path) => {
                let path = path.clone().unwrap_or_default();
                let text =
                    std::fs::read_to_string(&path).map_err(|e| Failure::text(format!("{}: {e}", path.display())))?;
                let tokenizer = tokenizer.as_ref().ok_or_else(|| model::no_tokenizer(&loaded.checkpoint))?;
                tokenizer.encode(&text, false)?
            }
        };
        let path = input.ids.as_deref().or(input.text.as_deref());
        let dataset = path.map(|p| p.display().to_string()).unwrap_or_default();
        if let Some(wanted) = input.tokens {
            if wanted > tokens.len() {
                let found = tokens.len();
                return Err(Failure::text(format!(
                    "{dataset}: --tokens asks for {wanted} tokens, but there are {found}"
                )));
            }
            tokens.truncate(wanted);
        }
        let bos = loaded.checkpoint.generation.bos.or(tokenizer.as_ref().and_then(|t| t.bos()));
        let vocab = tokenizer.as_ref().map(|t| t.vocab_size());
        Ok(Self { loaded, engine, dataset, tokens, protocol, bos, vocab })
    }

    /// Compares it with the model called `quantised`.
    pub fn compare(&self, quantised: &str) -> Result<Measured> {
        let (reference, quantised) = (&self.loaded, load(quantised, self.engine)?);
        let watch = interrupt::watch();
        let mut bar = Bar::items("comparing");
        let result = kld(
            &Side { backend: &reference.backend, model: &reference.model },
            &Side { backend: &quantised.backend, model: &quantised.model },
            reference.backend.cpu().pool(),
            &self.tokens,
            self.protocol,
            self.bos,
            self.vocab,
            &mut |done, total| {
                bar.set(done as u64, total as u64);
                !watch.pressed()
            },
        );
        drop(bar);
        Ok(Measured {
            reference: reference.checkpoint.name.clone(),
            quantised: quantised.checkpoint.name,
            dataset: self.dataset.clone(),
            exact: self.engine.exact,
            result: result?,
        })
    }
}

pub fn run(args: &Kld) -> Result<()> {
    let measured = Reference::load(&args.reference, &args.input, &args.engine)?.compare(&args.quantised)?;
    if args.json { output::print_json(&measured) } else { output::print(&measured.text()) }
}

impl Measured {
    fn text(&self) -> String {
        let r = &self.result;
        let p = &r.percentiles;
        let mut out = String::new();
        let mut line = |name: &str, value: String| out.push_str(&format!("{name:<18}{value}\n"));
        line("mean KL", format!("{:.6} ± {:.6} nats ({} from {})", r.mean, r.stderr, self.quantised, self.reference));
        line(
            "percentiles",
            format!(
                "1 % {:.2e}, 5 % {:.2e}, 10 % {:.2e}, median {:.5}, 90 % {:.5}, 95 % {:.5}, 99 % {:.5}, 99.9 % {:.5}, max {:.5}",
                p.p1, p.p5, p.p10, p.p50, p.p90, p.p95, p.p99, p.p999, p.max
            ),
        );
        line("same likeliest", format!("{:.2} %", 100.0 * r.top1_agreement));
        line(
            "right token",
            format!("probability off by {:.4} (rms), {:+.5} in the mean", r.rms_delta_p, r.mean_delta_p),
        );
        line(
            "perplexity",
            format!(
                "{:.4} from {:.4}, ln ratio {:+.5} ± {:.5}",
                r.ppl_quantised, r.ppl_reference, r.ln_ppl_ratio, r.ln_ppl_ratio_stderr
            ),
        );
        if let Some(flips) = &r.flips {
            line(
                "experts",
                format!(
                    "another set in {:.2} % of choices; {:.2} % of tokens have one in some layer",
                    100.0 * flips.mean,
                    100.0 * flips.tokens
                ),
            );
        }
        line(
            "text",
            format!(
                "{}: {} positions of {} tokens; {} protocol, context {}, stride {}",
                self.dataset,
                output::grouped(r.tokens_scored as u64),
                output::grouped(r.tokens as u64),
                r.protocol,
                r.context,
                r.stride
            ),
        );
        out
    }
}
