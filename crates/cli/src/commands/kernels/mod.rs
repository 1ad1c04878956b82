//! `kernels`: which kernel serves which weights here.

mod gpu;

use crate::error::{Failure, Result};
use crate::values::{self, Device};
use crate::{model, output};
use marlin_checkpoint::Linear;
use marlin_cpu::kernels::{self, Kind, TABLE, Thresholds};
use marlin_cpu::{Cpu, DType, Mode};
use marlin_models::Architecture;
use serde::Serialize;
use std::collections::BTreeMap;

/// Show which kernel serves which weights on this machine
///
/// Kernels are tried from the top; the first one that fits the weights, the mode, the number of rows of activations (a
/// step's tokens) and the machine is taken. `bench kernels --save` measures the thresholds here. With --device or --chip the same for
/// a GPU, this machine's or any other.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// With --explain: the model whose modules to explain; without one, examples of each kind
    #[arg(requires = "explain")]
    model: Option<String>,
    /// Say which kernel is taken for BATCH rows, and why
    #[arg(long, value_name = "BATCH", value_parser = crate::values::some_tokens)]
    explain: Option<usize>,
    /// For the GPU of this machine: cuda or metal
    #[arg(long, value_parser = values::device)]
    device: Option<Device>,
    /// For a GPU by its name, which need not be here: an Apple chip such as "M3 Max", an NVIDIA architecture such as sm_90
    #[arg(long, value_name = "NAME")]
    chip: Option<String>,
    /// As it is with --exact
    #[arg(long, requires = "explain")]
    exact: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    simd: &'static str,
    /// `default`, or the file that `bench kernels --save` has written.
    thresholds_from: String,
    thresholds: Thresholds,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    table: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    choices: Vec<Choice>,
}

#[derive(Serialize)]
struct Row {
    kernel: &'static str,
    weights: &'static str,
    mode: &'static str,
    rows: String,
    needs: &'static str,
    available: bool,
    does: &'static str,
}

#[derive(Clone, Serialize)]
struct Choice {
    /// What the weights are.
    weights: String,
    /// Whether they choose experts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    router: bool,
    /// How they are stored, and one module of how many; nothing for examples.
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    example: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modules: Option<usize>,
    kernel: &'static str,
    why: String,
}

pub fn run(args: &Args) -> Result<()> {
    if args.chip.is_some() || matches!(args.device, Some(Device::Cuda | Device::Metal | Device::Auto)) {
        return gpu::run(args);
    }
    let cpu = Cpu::new(1);
    let (level, thresholds) = (cpu.level(), *cpu.thresholds());
    let from = kernels::saved(level).and_then(|_| kernels::file(level));
    let mut report = Report {
        simd: level.name(),
        thresholds_from: from.map_or("default".to_owned(), |path| path.display().to_string()),
        thresholds,
        table: Vec::new(),
        batch: args.explain,
        choices: Vec::new(),
    };
    match args.explain {
        None => report.table = table(&cpu),
        Some(batch) => {
            let mode = if args.exact { Mode::Exact } else { Mode::Fast };
            let kinds = match &args.model {
                Some(name) => {
                    let found = of_model(name)?.into_iter();
                    found.map(|(linear, of)| Ok((kernels::kind_of(&linear)?, of))).collect::<Result<Vec<_>>>()?
                }
                None => examples(),
            };
            for (kind, of) in kinds {
                let mut choice = (kind, Choice::of(&kind, of));
                let mode = if choice.1.router { Mode::Exact } else { mode };
                let chosen = kernels::choose(level, &thresholds, mode, &choice.0, batch);
                if let Some((entry, why)) = chosen {
                    let why = if choice.1.router { "routers are always computed in f32".to_owned() } else { why };
                    (choice.1.kernel, choice.1.why) = (entry.kernel, why);
                    report.choices.push(choice.1);
                }
            }
        }
    }
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

fn table(cpu: &Cpu) -> Vec<Row> {
    let row = |entry: &kernels::Entry| Row {
        kernel: entry.kernel,
        weights: entry.weights,
        mode: if entry.fast { "fast" } else { "any" },
        rows: entry.batch.describe(cpu.thresholds()),
        needs: entry.needs.describe(),
        available: entry.available(cpu.level()),
        does: entry.does,
    };
    TABLE.iter().map(row).collect()
}

/// Which modules of a model are stored alike.
#[derive(Clone, Default)]
struct Modules {
    /// Whether they choose experts.
    router: bool,
    stored: Option<String>,
    example: Option<String>,
    count: Option<usize>,
}

impl Modules {
    /// The line that says so.
    fn line(&self) -> Option<String> {
        let (stored, example) = (self.stored.as_ref()?, self.example.as_ref()?);
        let others = self.count.filter(|n| *n > 1).map_or_else(String::new, |n| format!(" and {} more", n - 1));
        Some(format!("{stored}: {example}{others}"))
    }
}

impl Choice {
    fn of(kind: &Kind, of: Modules) -> Self {
        let Modules { router, stored, example, count } = of;
        Self { weights: kind.describe(), router, stored, example, modules: count, kernel: "", why: String::new() }
    }

    fn line(&self) -> Option<String> {
        let Self { router, stored, example, modules, .. } = self.clone();
        Modules { router, stored, example, count: modules }.line()
    }
}

fn examples() -> Vec<(Kind, Modules)> {
    let kinds = [
        Kind::Dense(DType::Bf16),
        Kind::Dense(DType::F16),
        Kind::Dense(DType::F32),
        Kind::Integers { bits: 4, group: 128, highest: 15 },
        Kind::Floats { bits: 8, group: 128 },
        Kind::Trellis { bits: 3 },
    ];
    kinds.map(|kind| (kind, Modules::default())).into_iter().collect()
}

/// One of each way in which the model's matrices are stored.
fn of_model(name: &str) -> Result<Vec<(Linear, Modules)>> {
    let checkpoint = model::open(name)?;
    let inventory = Architecture::parse(&checkpoint.config)?.inventory();
    let modules = checkpoint.modules()?;
    let report = inventory.check(modules.as_ref(), checkpoint.store.as_ref())?;
    let mut seen: BTreeMap<(bool, &str, String, u32, Option<usize>), usize> = BTreeMap::new();
    let mut found: Vec<(Linear, Modules)> = Vec::new();
    for (module, stored) in report.modules.iter().filter(|(_, stored)| stored.features.len() == 2) {
        let router = module.ends_with(".mlp.gate");
        let key = (router, stored.scheme, stored.detail.clone(), stored.bits, stored.group);
        if let Some((_, of)) = seen.get(&key).and_then(|&i| found.get_mut(i)) {
            of.count = of.count.map(|n| n + 1);
            continue;
        }
        let linear = match inventory.sizes(module) {
            Some(sizes) => {
                let parts = modules.latent(module, sizes)?;
                let part = parts.matrices().find(|part| part.stored == *stored);
                part.ok_or_else(|| Failure::text(format!("{module}: is not stored as it was a moment ago")))?.build()?
            }
            None => {
                let &[rows, cols] = stored.features.as_slice() else { continue };
                modules.linear(module, [rows, cols])?.build()?
            }
        };
        let stored = Some(format!("{} {}", stored.scheme, stored.detail));
        seen.insert(key, found.len());
        found.push((linear, Modules { router, stored, example: Some(module.clone()), count: Some(1) }));
    }
    Ok(found)
}

impl Report {
    fn text(&self) -> String {
        let t = &self.thresholds;
        let mut out = format!("{} on {}; thresholds: {}\n", self.simd, kernels::processor(), self.thresholds_from);
        match self.batch {
            None => {
                out += &format!(
                    "{:<22} {:<5} {:<12} {:<8} {}\n",
                    "kernel", "mode", "rows", "here", "weights: what it does"
                );
                for row in &self.table {
                    let here = if row.available { "yes" } else { "no" };
                    out += &format!(
                        "{:<22} {:<5} {:<12} {here:<8} {}: {}\n",
                        row.kernel, row.mode, row.rows, row.weights, row.does
                    );
                    if !row.available {
                        out += &format!("{:<22} needs {}\n", "", row.needs);
                    }
                }
                out += &format!(
                    "latent attention: keys and values are expanded for prefills of {} rows and more, up to {} positions\n",
                    t.latent_expand_rows, t.latent_expand_positions
                );
            }
            Some(batch) => {
                out += &format!("at {batch} row{}:\n", if batch == 1 { "" } else { "s" });
                for c in &self.choices {
                    out += &format!("{:<32} {:<22} {}\n", c.weights, c.kernel, c.why);
                    if let Some(line) = c.line() {
                        out += &format!("{:<32} {line}\n", "");
                    }
                }
            }
        }
        out
    }
}
