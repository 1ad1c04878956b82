//! `eval kld`: how far a quantised model is from the original.

use super::eval::ProtocolName;
use crate::args::EngineArgs;
use crate::device::{self, Backend};
use crate::error::{Failure, Result};
use crate::progress::Bar;
use crate::{ids, interrupt, model, output};
use marlin_checkpoint::Checkpoint;
use marlin_eval::{Side, kld};
use marlin_models::{LoadOptions, Model};
use serde::Serialize;
use std::path::PathBuf;

/// Divergence of a quantised model from its original (lower is better)
///
/// Both models are given the same text, some tokens at a time. At every position the reference's prediction p is compared
/// with the quantised model's q: KL(p || q) in nats, whether the likeliest token is the same, and what became of the right
/// token's probability. Of mixtures it also counts how often a router chose another set of experts.
#[derive(Debug, clap::Args)]
pub struct Kld {
    /// The original
    reference: String,
    /// What was made of it
    quantised: String,
    /// The text: any UTF-8 file, best one that no calibration has seen
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
    /// Which tokens are compared, given what
    #[arg(long, value_enum, default_value_t = ProtocolName::Sliding)]
    protocol: ProtocolName,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    engine: EngineArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    reference: &'a str,
    quantised: &'a str,
    dataset: String,
    exact: bool,
    #[serde(flatten)]
    result: &'a marlin_eval::Kld,
}

struct Loaded {
    checkpoint: Checkpoint,
    backend: Backend,
    model: Model<Backend>,
}

fn load(name: &str, args: &EngineArgs) -> Result<Loaded> {
    let (checkpoint, backend) = (model::open(name)?, device::open(args));
    let mut bar = Bar::bytes(format!("loading {}", checkpoint.name));
    let model = Model::load(&backend, &checkpoint, LoadOptions::default(), &mut |p| bar.set(p.done, p.total))?;
    Ok(Loaded { checkpoint, backend, model })
}

pub fn run(args: &Kld) -> Result<()> {
    let protocol = args.protocol.with(args.context, args.stride)?;
    let given = args.ids.as_deref().map(ids::read).transpose()?;
    let sides = [load(&args.reference, &args.engine)?, load(&args.quantised, &args.engine)?];
    let [reference, quantised] = &sides;
    let tokenizer = match model::tokenizer(&reference.checkpoint.folder) {
        Err(Failure::Error(_)) if given.is_some() => None,
        other => other?,
    };
    let mut tokens = match (given, &args.text) {
        (Some(ids), _) => ids,
        (None, path) => {
            let path = path.clone().unwrap_or_default();
            let text = std::fs::read_to_string(&path).map_err(|e| Failure::text(format!("{}: {e}", path.display())))?;
            let tokenizer = tokenizer.as_ref().ok_or_else(|| model::no_tokenizer(&reference.checkpoint))?;
            tokenizer.encode(&text, false)?
        }
    };
    let dataset = args.ids.as_deref().or(args.text.as_deref()).map(|p| p.display().to_string()).unwrap_or_default();
    if let Some(wanted) = args.tokens {
        if wanted > tokens.len() {
            let found = tokens.len();
            return Err(Failure::text(format!("{dataset}: --tokens asks for {wanted} tokens, but there are {found}")));
        }
        tokens.truncate(wanted);
    }
    let bos = reference.checkpoint.generation.bos.or(tokenizer.as_ref().and_then(|t| t.bos()));
    let watch = interrupt::watch();
    let mut bar = Bar::items("comparing");
    let result = kld(
        &Side { backend: &reference.backend, model: &reference.model },
        &Side { backend: &quantised.backend, model: &quantised.model },
        reference.backend.cpu().pool(),
        &tokens,
        protocol,
        bos,
        tokenizer.as_ref().map(|t| t.vocab_size()),
        &mut |done, total| {
            bar.set(done as u64, total as u64);
            !watch.pressed()
        },
    );
    drop(bar);
    let result = result?;
    let report = Report {
        reference: &reference.checkpoint.name,
        quantised: &quantised.checkpoint.name,
        dataset,
        exact: args.engine.exact,
        result: &result,
    };
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

impl Report<'_> {
    fn text(&self) -> String {
        let r = self.result;
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
