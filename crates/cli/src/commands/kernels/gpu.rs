//! The same for a GPU: this machine's, or one that is only named.

use super::{Args, Modules, of_model};
use crate::error::{Failure, Result};
use crate::values::Device;
use crate::{device, output};
use marlin_gpu::select::{self, Chip, Choice, Limit, Thresholds, Weight};
use serde::Serialize;

/// Rows at which the table looks; those between two that are alike are alike.
const ROWS: [usize; 20] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 64, 512, 4096];

/// Outputs and inputs of the examples.
const EXAMPLE: [u32; 2] = [4096, 4096];

#[derive(Serialize)]
struct Report {
    chip: Chip,
    /// `default`, or the file that `bench kernels --save` has written.
    thresholds_from: String,
    thresholds: Thresholds,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
    kernels: Vec<Row>,
    /// What lanes and memory of an Apple chip allow, for a model of so many weights.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    limits: Vec<Limit>,
}

/// Weights that a token takes, in the limits shown.
const WEIGHTS: f64 = 8e9;

#[derive(Serialize)]
struct Row {
    weights: String,
    /// Whether they choose experts.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    router: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    modules: Option<usize>,
    rows: String,
    #[serde(flatten)]
    choice: Choice,
}

/// The chip that is meant, and what is known of it.
fn chip(args: &Args) -> Result<(Chip, Thresholds, String)> {
    if let Some(name) = &args.chip {
        let unknown = || {
            let known: Vec<&str> =
                select::chips::CHIPS.iter().map(|c| if c.is_nvidia() { c.architecture } else { c.name }).collect();
            Failure::text(format!("--chip {name:?}: expected one of {}", known.join(", ")))
        };
        let chip = Chip::named(name).ok_or_else(unknown)?;
        return Ok((*chip, chip.thresholds, "default".to_owned()));
    }
    let wanted = args.device.filter(|d| *d != Device::Auto);
    let found = device::find(wanted)
        .map_err(|e| Failure::text(format!("the GPU cannot be used: {}; --chip NAME shows another\'s table", e.why)))?;
    let info = found.info();
    let from = select::saved(info).and_then(|_| select::file(info));
    let chip = Chip { cores: info.cores, ..*Chip::of(info) };
    Ok((chip, Thresholds::of(info), from.map_or("default".to_owned(), |path| path.display().to_string())))
}

pub fn run(args: &Args) -> Result<()> {
    let (chip, thresholds, thresholds_from) = chip(args)?;
    let choose = |weight: &Weight, rows| select::choose(&chip, &thresholds, args.exact, true, weight, rows);
    let mut kernels = Vec::new();
    match (args.explain, &args.model) {
        (Some(batch), Some(name)) => {
            for (linear, of) in of_model(name)? {
                let line = of.line();
                let Modules { router, count, .. } = of;
                let row = |weights, choice| Row {
                    weights,
                    router,
                    module: line,
                    modules: count,
                    rows: batch.to_string(),
                    choice,
                };
                kernels.push(match Weight::of(&linear.name, &linear.weight)? {
                    Ok(weight) => row(weight.describe(), choose(&weight, batch)),
                    Err(reason) => {
                        let choice = Choice {
                            kernel: "none: the CPU".to_owned(),
                            tile: String::new(),
                            why: format!("no kernel serves it ({})", reason.code()),
                        };
                        row("other".to_owned(), choice)
                    }
                });
            }
        }
        (Some(batch), None) => {
            for weight in Weight::examples(EXAMPLE) {
                kernels.push(Row::example(&weight, batch.to_string(), choose(&weight, batch)));
            }
        }
        (None, _) => {
            for weight in Weight::examples(EXAMPLE) {
                let mut first = 0;
                for (i, rows) in ROWS.iter().enumerate() {
                    let choice = choose(&weight, *rows);
                    if ROWS.get(i + 1).is_some_and(|next| choose(&weight, *next) == choice) {
                        continue;
                    }
                    let range = match (ROWS[first], *rows) {
                        (from, _) if i + 1 == ROWS.len() => format!("{from} and more"),
                        (from, to) if from == to => from.to_string(),
                        (from, to) => format!("{from} to {to}"),
                    };
                    kernels.push(Row::example(&weight, range, choice));
                    first = i + 1;
                }
            }
        }
    }
    let mut limits = Vec::new();
    if !chip.is_nvidia() && args.explain.is_none() {
        limits.extend(Weight::examples(EXAMPLE).iter().filter_map(|w| Limit::of(&chip, w, WEIGHTS)));
    }
    let report = Report { chip, thresholds_from, thresholds, batch: args.explain, kernels, limits };
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

impl Row {
    fn example(weight: &Weight, rows: String, choice: Choice) -> Self {
        Self { weights: weight.describe(), router: false, module: None, modules: None, rows, choice }
    }
}

impl Report {
    fn text(&self) -> String {
        let Self { chip, thresholds: t, .. } = self;
        let mut out = format!(
            "{} ({}): {} cores of {} lanes at {} MHz, {} GB/s; thresholds: {}\n",
            chip.name, chip.architecture, chip.cores, chip.lanes, chip.clock, chip.bandwidth, self.thresholds_from
        );
        out += &format!(
            "a few rows: up to {}; experts are sorted from {} pairs each; attention splits for {} groups a core\n",
            t.few_rows, t.sort_pairs, t.attention_groups
        );
        if let Some(batch) = self.batch {
            out += &format!("at {batch} row{}:\n", if batch == 1 { "" } else { "s" });
        }
        for row in &self.kernels {
            let Choice { kernel, tile, why } = &row.choice;
            match self.batch {
                None => out += &format!("{:<32} {:<13} {kernel}: {tile}\n", row.weights, row.rows),
                Some(_) => {
                    out += &format!("{:<32} {kernel}: {tile} ({why})\n", row.weights);
                    if let Some(line) = &row.module {
                        out += &format!("{:<32} {line}\n", "");
                    }
                }
            }
        }
        if !self.limits.is_empty() {
            out += "\none row of 8 billion weights, at most (instructions counted, nothing measured):\n";
            out += &format!(
                "{:<42}{:>13}{:>8}{:>8}{:>18}{:>14}\n",
                "", "instructions", "clocks", "bytes", "tok/s by lanes", "by memory"
            );
        }
        for l in &self.limits {
            out += &format!(
                "{:<42}{:>13.1}{:>8.1}{:>8.3}{:>18.0}{:>14.0}\n",
                l.weights, l.instructions, l.clocks, l.bytes, l.by_instructions, l.by_memory
            );
        }
        out
    }
}
