//! `compare`: how far the weights of one checkpoint are from another's.

use super::dequantise::find;
use crate::error::{Failure, Result};
use crate::progress::Bar;
use crate::{interrupt, model, output};
use marlin_checkpoint::{Checkpoint, Modules, Stored, TensorInfo};
use marlin_cpu::Pool;
use marlin_eval::values::Difference;
use marlin_models::{Architecture, Inventory};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::Arc;

/// Compare the weights of two checkpoints, module by module
///
/// A is the original, B what was made of it: the same model quantised, converted or fine-tuned. Modules are decoded one
/// after another, so memory stays small. The error is ||A - B|| / ||A||, worst first.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The original
    a: String,
    /// What it is compared with, of the same architecture
    b: String,
    /// This module only
    #[arg(long, value_name = "NAME")]
    module: Option<String>,
    /// Modules to list; 0 for all
    #[arg(long, value_name = "N", default_value_t = 20)]
    worst: usize,
    /// Threads; 0 takes the physical cores
    #[arg(long, value_name = "N", env = "MARLIN_THREADS", default_value_t = 0, value_parser = crate::values::threads)]
    threads: usize,
    /// Print one JSON object, with all modules
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    a: String,
    b: String,
    total: Line,
    /// Worst first.
    modules: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    module: String,
    weights: u64,
    /// How each is stored.
    stored: [String; 2],
    relative_rms: f64,
    max_abs: f64,
    cosine: f64,
}

/// One of the two checkpoints.
struct Side {
    checkpoint: Checkpoint,
    inventory: Inventory,
    modules: Arc<dyn Modules>,
}

impl Side {
    fn open(name: &str) -> Result<Self> {
        let checkpoint = model::open(name)?;
        let inventory = Architecture::parse(&checkpoint.config)?.inventory();
        let modules = checkpoint.modules()?;
        Ok(Self { checkpoint, inventory, modules })
    }
}

pub fn run(args: &Args) -> Result<()> {
    let sides = [Side::open(&args.a)?, Side::open(&args.b)?];
    let names = match &args.module {
        Some(name) => vec![name.clone()],
        None => common(&sides)?,
    };
    let pool = Pool::new(args.threads);
    let watch = interrupt::watch();
    let mut bar = Bar::items("comparing");
    let (mut lines, mut total, mut weights) = (Vec::with_capacity(names.len()), Difference::default(), 0);
    for (i, name) in names.iter().enumerate() {
        watch.check()?;
        bar.set(i as u64, names.len() as u64);
        let (line, difference) = one(&sides, name, &pool)?;
        weights += line.weights;
        total = total.with(difference);
        lines.push(line);
    }
    drop(bar);
    // What is no number is worst of all.
    lines.sort_by(|x, y| y.relative_rms.abs().total_cmp(&x.relative_rms.abs()).then_with(|| x.module.cmp(&y.module)));
    let [a, b] = sides.each_ref().map(|side| side.checkpoint.name.clone());
    let total = Line::new("all".to_owned(), weights, [a.clone(), b.clone()], &total);
    let report = Report { a, b, total, modules: lines };
    if args.json { output::print_json(&report) } else { output::print(&report.text(args.worst)) }
}

/// The names of what both architectures declare; an error where they differ.
fn common(sides: &[Side; 2]) -> Result<Vec<String>> {
    let [a, b] = sides;
    let (mine, theirs) = (a.inventory.required(), b.inventory.required());
    let apart =
        |why: String| Failure::text(format!("{why}; only checkpoints of the same architecture can be compared"));
    let by_name = |list: &[TensorInfo]| -> HashMap<String, Vec<usize>> {
        list.iter().map(|t| (t.name.clone(), t.shape.clone())).collect()
    };
    let (ours, others) = (by_name(mine), by_name(theirs));
    for tensor in mine {
        match others.get(&tensor.name) {
            Some(other) if *other == tensor.shape => {}
            Some(other) => {
                let (name, x, y) = (&tensor.name, &a.checkpoint.name, &b.checkpoint.name);
                return Err(apart(format!("{name} is {:?} in {x} and {:?} in {y}", tensor.shape, other)));
            }
            None => return Err(apart(format!("{} has no {}", b.checkpoint.name, tensor.name))),
        }
    }
    if let Some(tensor) = theirs.iter().find(|t| !ours.contains_key(&t.name)) {
        return Err(apart(format!("{} has no {}", a.checkpoint.name, tensor.name)));
    }
    Ok(mine.iter().map(|t| t.name.clone()).collect())
}

fn one(sides: &[Side; 2], name: &str, pool: &Pool) -> Result<(Line, Difference)> {
    let matrix = |side: &Side| find(&side.checkpoint, &side.inventory, side.modules.as_ref(), name);
    let (a, b) = (matrix(&sides[0])?, matrix(&sides[1])?);
    if (a.rows(), a.cols()) != (b.rows(), b.cols()) {
        let [x, y] = sides.each_ref().map(|side| &side.checkpoint.name);
        let (m, n) = ([a.rows(), a.cols()], [b.rows(), b.cols()]);
        return Err(Failure::text(format!("{name} is {m:?} in {x} and {n:?} in {y}; shapes must be the same")));
    }
    let difference = a.difference(&b, pool)?;
    let stored = [&a, &b].map(|matrix| described(&matrix.stored));
    let module = name.strip_suffix(".weight").unwrap_or(name).to_owned();
    Ok((Line::new(module, (a.rows() * a.cols()) as u64, stored, &difference), difference))
}

fn described(stored: &[Stored]) -> String {
    let mut parts: Vec<String> = stored.iter().map(|s| format!("{} {}", s.scheme, s.detail)).collect();
    parts.dedup();
    parts.join(" + ")
}

impl Line {
    fn new(module: String, weights: u64, stored: [String; 2], d: &Difference) -> Self {
        let (relative_rms, max_abs, cosine) = (d.relative_rms(), d.max_abs(), d.cosine());
        Self { module, weights, stored, relative_rms, max_abs, cosine }
    }

    fn text(&self, longest: usize) -> String {
        let (error, most, cosine) = (self.relative_rms, self.max_abs, self.cosine);
        format!("{:<longest$} {error:>12.6} {most:>12.6} {cosine:>10.6}", self.module)
    }
}

impl Report {
    fn text(&self, worst: usize) -> String {
        let shown = if worst == 0 { self.modules.len() } else { worst.min(self.modules.len()) };
        let lines = &self.modules[..shown];
        let longest = lines.iter().map(|l| l.module.len()).max().unwrap_or(0).max(6);
        let mut out = format!("A {}\nB {}\n", self.a, self.b);
        out += &format!("{:<longest$} {:>12} {:>12} {:>10}\n", "module", "error", "greatest", "cosine");
        for line in lines {
            out += &format!("{}  {} -> {}\n", line.text(longest), line.stored[0], line.stored[1]);
        }
        if shown < self.modules.len() {
            out += &format!("... and {} better ones (--worst 0 lists all)\n", self.modules.len() - shown);
        }
        out += &format!("{}  {} weights\n", self.total.text(longest), output::grouped(self.total.weights));
        out
    }
}
