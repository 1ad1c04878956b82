//! `kernels`: which kernel serves which weights here.

use crate::error::{Failure, Result};
use crate::{model, output};
use marlin_cpu::kernels::{self, Kind, TABLE, Thresholds};
use marlin_cpu::{Cpu, DType, Mode};
use marlin_models::Architecture;
use serde::Serialize;
use std::collections::BTreeMap;

/// Show which kernel serves which weights on this machine
///
/// Kernels are tried from the top; the first one that fits the weights, the mode, the number of rows of activations (a
/// step's tokens) and the machine is taken. `bench kernels --save` measures the thresholds here.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// With --explain: the model whose modules to explain; without one, examples of each kind
    #[arg(requires = "explain")]
    model: Option<String>,
    /// Say which kernel is taken for BATCH rows, and why
    #[arg(long, value_name = "BATCH", value_parser = crate::values::some_tokens)]
    explain: Option<usize>,
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

#[derive(Serialize)]
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
                Some(name) => of_model(name)?,
                None => examples(),
            };
            for mut choice in kinds {
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

impl Choice {
    fn of(kind: Kind) -> (Kind, Self) {
        let (weights, why) = (kind.describe(), String::new());
        (kind, Self { weights, router: false, stored: None, example: None, modules: None, kernel: "", why })
    }
}

fn examples() -> Vec<(Kind, Choice)> {
    let kinds = [
        Kind::Dense(DType::Bf16),
        Kind::Dense(DType::F16),
        Kind::Dense(DType::F32),
        Kind::Integers { bits: 4, group: 128, highest: 15 },
        Kind::Floats { bits: 8, group: 128 },
        Kind::Trellis { bits: 3 },
    ];
    kinds.map(Choice::of).into_iter().collect()
}

/// One of each way in which the model's matrices are stored.
fn of_model(name: &str) -> Result<Vec<(Kind, Choice)>> {
    let checkpoint = model::open(name)?;
    let inventory = Architecture::parse(&checkpoint.config)?.inventory();
    let modules = checkpoint.modules()?;
    let report = inventory.check(modules.as_ref(), checkpoint.store.as_ref())?;
    let mut seen: BTreeMap<(bool, &str, String, u32, Option<usize>), usize> = BTreeMap::new();
    let mut found: Vec<(Kind, Choice)> = Vec::new();
    for (module, stored) in report.modules.iter().filter(|(_, stored)| stored.features.len() == 2) {
        let router = module.ends_with(".mlp.gate");
        let key = (router, stored.scheme, stored.detail.clone(), stored.bits, stored.group);
        if let Some(choice) = seen.get(&key).and_then(|&i| found.get_mut(i)) {
            choice.1.modules = choice.1.modules.map(|n| n + 1);
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
        let (kind, mut choice) = Choice::of(kernels::kind_of(&linear)?);
        choice.router = router;
        choice.stored = Some(format!("{} {}", stored.scheme, stored.detail));
        (choice.example, choice.modules) = (Some(module.clone()), Some(1));
        seen.insert(key, found.len());
        found.push((kind, choice));
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
                    if let (Some(stored), Some(example), Some(n)) = (&c.stored, &c.example, c.modules) {
                        let others = if n > 1 { format!(" and {} more", n - 1) } else { String::new() };
                        out += &format!("{:<32} {stored}: {example}{others}\n", "");
                    }
                }
            }
        }
        out
    }
}
