//! `inspect`: what a checkpoint is, without reading its weights.

use crate::error::Result;
use crate::{model, output};
use marlin_backend::KvLayout;
use marlin_checkpoint::{Checkpoint, Folder};
use marlin_eval::footprint::experts;
use marlin_eval::{Breakdown, Footprint, ModuleLine};
use marlin_models::Architecture;
use output::{bytes, count, grouped};
use serde::Serialize;

/// Show what a checkpoint is, without loading it
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: String,
    /// List every module and how it is stored, then every tensor with its type and shape
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Characters of a whole bar.
const BAR: f64 = 30.0;

/// Small files that a checkpoint may have.
const FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

#[derive(Serialize)]
struct Report {
    model: String,
    architecture: String,
    /// Whether this program can run it.
    runnable: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<String>,
    #[serde(flatten)]
    footprint: Footprint,
    tensor_count: usize,
    /// How the matrices are stored; empty where the tensors could not be understood.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<Breakdown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    layers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<Experts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv: Option<Kv>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vocab: Option<usize>,
    eos: Vec<u32>,
    bos: Option<u32>,
    files: Vec<&'static str>,
    mtp_tensors: Vec<String>,
    /// Stored in f64, computed with in f32.
    converted_tensors: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    modules: Vec<ModuleLine>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorLine>,
}

#[derive(Serialize)]
struct Experts {
    chosen: usize,
    all: usize,
}

#[derive(Serialize)]
struct Kv {
    layout: &'static str,
    values_per_token_per_layer: usize,
    /// Stored as bf16.
    bytes_per_token: usize,
    formula: String,
}

#[derive(Serialize)]
struct TensorLine {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
}

pub fn run(args: &Args) -> Result<()> {
    let checkpoint = model::open(&args.model)?;
    let report = Report::of(&checkpoint, args.tensors);
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

impl Kv {
    fn of(layout: KvLayout, layers: usize) -> Self {
        let values = layout.values();
        let (name, inner) = match layout {
            KvLayout::Heads { heads, key, value } => ("heads", format!("{heads} heads x ({key} key + {value} value)")),
            KvLayout::Latent { rank, rope } => ("latent", format!("({rank} latent + {rope} rotated key)")),
        };
        Self {
            layout: name,
            values_per_token_per_layer: values,
            bytes_per_token: 2 * layers * values,
            formula: format!("{layers} layers x {inner} x 2 bytes (bf16)"),
        }
    }
}

impl Report {
    fn of(checkpoint: &Checkpoint, tensors: bool) -> Self {
        let Checkpoint { config, generation, store, folder, .. } = checkpoint;
        let quantization = config.quantization_method().map(str::to_owned);
        let architecture = Architecture::parse(config);
        let found = architecture.as_ref().map_err(ToString::to_string).and_then(|architecture| {
            let modules = checkpoint.modules().map_err(|e| e.to_string())?;
            architecture.inventory().check(modules.as_ref(), store.as_ref()).map_err(|e| e.to_string())
        });
        let problem = found.as_ref().err().cloned();
        let parts = found.unwrap_or_default();
        let info = architecture.as_ref().ok().map(|a| a.info());
        let lines = store.tensors().iter().filter(|_| tensors);
        Self {
            model: checkpoint.name.clone(),
            architecture: config.model_type().unwrap_or("unknown").to_owned(),
            runnable: problem.is_none(),
            problem,
            quantization,
            footprint: Footprint::of(config, store.as_ref(), &parts),
            tensor_count: store.tensors().len(),
            storage: (!parts.modules.is_empty()).then(|| Breakdown::of(&parts.modules)),
            layers: info.map(|i| i.layers),
            hidden_size: info.map(|i| i.hidden),
            experts: experts(config).map(|(chosen, all)| Experts { chosen, all }),
            kv: info.map(|i| Kv::of(i.kv, i.layers)),
            context: info.map(|i| i.max_positions),
            vocab: info.map(|i| i.vocab),
            eos: generation.eos.clone(),
            bos: generation.bos,
            files: files(folder),
            modules: if tensors { ModuleLine::all(&parts.modules) } else { Vec::new() },
            mtp_tensors: parts.mtp,
            converted_tensors: parts.converted,
            tensors: lines
                .map(|t| TensorLine { name: t.name.clone(), dtype: t.dtype.name(), shape: t.shape.clone() })
                .collect(),
        }
    }

    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| out.push_str(&format!("{name:<14}{value}\n"));
        line("model", self.model.clone());
        let quantised = self.quantization.as_ref().map(|q| format!(", quantised ({q})")).unwrap_or_default();
        line("architecture", format!("{}{quantised}", self.architecture));
        match &self.problem {
            None => line("runs", "yes".to_owned()),
            Some(why) => line("runs", format!("no: {why}")),
        }
        let f = &self.footprint;
        let mut parameters = format!("{} ({})", grouped(f.parameters), count(f.parameters));
        if let Some(Experts { chosen, all }) = self.experts {
            let active = f.active_parameters;
            parameters += &format!("; active per token {} ({chosen} of {all} experts)", count(active));
        }
        line("parameters", parameters);
        let dtypes: Vec<String> =
            f.dtypes.iter().map(|(name, t)| format!("{name} {} in {} tensors", bytes(t.bytes), t.tensors)).collect();
        line("weights", format!("{} ({})", bytes(f.bytes), dtypes.join(", ")));
        if let Some(storage) = &self.storage {
            let schemes = storage.schemes.iter().map(|s| format!("{} {} in {} modules", s.scheme, s.detail, s.modules));
            line("stored as", schemes.collect::<Vec<_>>().join(", "));
            let (all, inner) = (storage.bits_per_weight, storage.bits_per_inner_weight);
            line("bits a weight", format!("{all:.2}; without the embedding and the output projection {inner:.2}"));
            if !storage.groups.is_empty() {
                let groups = storage.groups.iter().map(|(size, n)| format!("{size} ({} weights)", count(*n)));
                line("groups of", groups.collect::<Vec<_>>().join(", "));
            }
            for (i, b) in storage.histogram.iter().enumerate() {
                let bar = "#".repeat((BAR * b.share).round().max(1.0) as usize);
                let bits = format!("{} bit{}", b.bits, if b.bits == 1 { "" } else { "s" });
                let (weights, share) = (format!("{} weights", count(b.weights)), 100.0 * b.share);
                let row = format!("{bits:<8}{weights:>16}{share:>7.1} %{:>10}  {bar}", bytes(b.bytes));
                line(if i == 0 { "of which" } else { "" }, row);
            }
        }
        line("per token", format!("{} of weights are read", bytes(f.bytes_per_token)));
        if let (Some(layers), Some(hidden)) = (self.layers, self.hidden_size) {
            line("layers", format!("{layers}, hidden size {hidden}"));
        }
        if let Some(kv) = &self.kv {
            line("KV per token", format!("{} = {}", bytes(kv.bytes_per_token as u64), kv.formula));
        }
        if let (Some(context), Some(kv)) = (self.context, &self.kv) {
            let full = bytes((context * kv.bytes_per_token) as u64);
            line("context", format!("{} tokens (KV of a full one: {full})", grouped(context as u64)));
        }
        if let Some(vocab) = self.vocab {
            line("vocabulary", grouped(vocab as u64));
        }
        let eos: Vec<String> = self.eos.iter().map(u32::to_string).collect();
        let bos = self.bos.map(|id| format!(", begin {id}")).unwrap_or_default();
        line("special ids", format!("end {}{bos}", if eos.is_empty() { "none".to_owned() } else { eos.join(" ") }));
        line("files", self.files.join(" "));
        if !self.mtp_tensors.is_empty() {
            let parameters = count(f.mtp_parameters);
            let n = self.mtp_tensors.len();
            line("MTP", format!("{n} tensors, {parameters} parameters: multi-token prediction, recognised, not used"));
        }
        if !self.converted_tensors.is_empty() {
            line("converted", format!("{} tensors from f64 to f32", self.converted_tensors.len()));
        }
        out += &module_table(&self.modules);
        for tensor in &self.tensors {
            let mtp = if self.mtp_tensors.contains(&tensor.name) { "  MTP" } else { "" };
            out.push_str(&format!("{:<5} {:<18} {}{mtp}\n", tensor.dtype, format!("{:?}", tensor.shape), tensor.name));
        }
        out
    }
}

/// A line for each module, under a heading.
fn module_table(lines: &[ModuleLine]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let longest = lines.iter().map(|l| l.module.len()).max().unwrap_or(0).max(6);
    let mut out = format!(
        "{:<longest$}  {:<8} {:<14} {:>5} {:>6} {:>7}  {:<16} {:>9}\n",
        "module", "scheme", "detail", "bits", "group", "bits/w", "shape", "bytes"
    );
    for l in lines {
        let bits = match l.bits.iter().next() {
            Some((bits, _)) if l.bits.len() == 1 => bits.to_string(),
            _ => "mixed".to_owned(),
        };
        let group = l.group.map_or("-".to_owned(), |g| g.to_string());
        let shape = format!("{:?}", l.shape);
        let times = if l.modules > 1 { format!(" x{}", l.modules) } else { String::new() };
        out += &format!(
            "{:<longest$}  {:<8} {:<14} {bits:>5} {group:>6} {:>7.2}  {:<16} {:>9}",
            l.module,
            l.scheme,
            l.detail,
            l.bits_per_weight,
            shape + &times,
            bytes(l.bytes)
        );
        if l.bits.len() > 1 {
            let each: Vec<String> = l.bits.iter().map(|(bits, n)| format!("{bits} bits x{n}")).collect();
            out += &format!("  {}", each.join(", "));
        }
        out.push('\n');
    }
    out.push('\n');
    out
}

fn files(folder: &Folder) -> Vec<&'static str> {
    FILES.into_iter().filter(|name| folder.contains(name)).collect()
}
