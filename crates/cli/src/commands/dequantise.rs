//! `dequantise`: the values of one module.

use crate::error::{Failure, Result};
use crate::{interrupt, model, npy, output, values};
use marlin_checkpoint::{Checkpoint, Modules, Stored};
use marlin_cpu::Pool;
use marlin_eval::Matrix;
use marlin_eval::values::Statistics;
use marlin_models::{Architecture, Inventory};
use serde::Serialize;
use std::fs::File;
use std::io::BufWriter;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Show the values of one module of a checkpoint, whatever it is stored as
///
/// Values are those that a plain matrix would need to do the same: rotations and permutations are folded in, padding is
/// left out. The module's name is the architecture's: `inspect --tensors` lists them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model
    model: String,
    /// The module, such as model.layers.0.mlp.down_proj; a vector's whole name, such as model.norm.weight
    module: String,
    /// Rows to show, such as 0..8
    #[arg(long, value_name = "A..B", value_parser = values::range)]
    rows: Option<Range<usize>>,
    /// Columns to show
    #[arg(long, value_name = "C..D", value_parser = values::range)]
    cols: Option<Range<usize>>,
    /// Write all values (or those of --rows and --cols) to a NumPy file, float32
    #[arg(short, long, value_name = "OUT.npy")]
    output: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Rows and columns that are shown unless others are asked for.
const SHOWN: [usize; 2] = [4, 8];
/// Rows that are decoded at a time when they are written.
const ROWS: usize = 256;

#[derive(Serialize)]
struct Report {
    model: String,
    module: String,
    shape: [usize; 2],
    /// How it is stored: one part, or the two of a split projection.
    stored: Vec<Part>,
    #[serde(flatten)]
    statistics: Statistics,
    /// Which rows and columns `values` are.
    rows: [usize; 2],
    cols: [usize; 2],
    values: Vec<Vec<f32>>,
}

#[derive(Serialize)]
struct Part {
    scheme: &'static str,
    detail: String,
    bits: u32,
    group: Option<usize>,
    bits_per_weight: f64,
    bytes: u64,
}

impl Part {
    fn of(stored: &Stored) -> Self {
        Self {
            scheme: stored.scheme,
            detail: stored.detail.clone(),
            bits: stored.bits,
            group: stored.group,
            bits_per_weight: stored.bits_per_weight(),
            bytes: stored.bytes,
        }
    }

    fn text(&self) -> String {
        let group = self.group.map(|g| format!(", groups of {g}")).unwrap_or_default();
        let (bits, average) = (self.bits, self.bits_per_weight);
        format!(
            "{} {}, {bits} bits{group}, {average:.2} bits a weight, {}",
            self.scheme,
            self.detail,
            output::bytes(self.bytes)
        )
    }
}

pub fn run(args: &Args) -> Result<()> {
    let checkpoint = model::open(&args.model)?;
    let inventory = Architecture::parse(&checkpoint.config)?.inventory();
    let matrix = find(&checkpoint, &inventory, checkpoint.modules()?.as_ref(), &args.module)?;
    let rows = within("--rows", &args.rows, matrix.rows())?;
    let cols = within("--cols", &args.cols, matrix.cols())?;
    if let Some(path) = &args.output {
        write(path, &matrix, rows.clone(), cols.clone())?;
    }
    let statistics = matrix.statistics(&Pool::new(0))?;
    let some = |range: Range<usize>, asked: bool, few: usize| match asked {
        true => range,
        false => range.start..range.end.min(range.start + few),
    };
    let (rows, cols) = (some(rows, args.rows.is_some(), SHOWN[0]), some(cols, args.cols.is_some(), SHOWN[1]));
    let mut shown = Vec::with_capacity(rows.len());
    for r in rows.clone() {
        shown.push(matrix.panel(r..r + 1)?[cols.clone()].to_vec());
    }
    let report = Report {
        model: checkpoint.name.clone(),
        module: args.module.clone(),
        shape: [matrix.rows(), matrix.cols()],
        stored: matrix.stored.iter().map(Part::of).collect(),
        statistics,
        rows: [rows.start, rows.end],
        cols: [cols.start, cols.end],
        values: shown,
    };
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

/// The module called `name`, or an error that says which there are.
pub fn find(checkpoint: &Checkpoint, inventory: &Inventory, modules: &dyn Modules, name: &str) -> Result<Matrix> {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    for name in [name, module] {
        if let Some(matrix) = Matrix::find(inventory, modules, name)? {
            return Ok(matrix);
        }
    }
    let known = || inventory.required().iter().map(|t| t.name.as_str());
    let last = module.rsplit('.').next().unwrap_or(module);
    let mut near: Vec<&str> = known().filter(|n| n.contains(last)).take(3).collect();
    if near.is_empty() {
        near = known().take(3).collect();
    }
    Err(Failure::text(format!(
        "{}: there is no module {name:?}; there are, for example, {} (`metal-marlin inspect --tensors` lists all)",
        checkpoint.name,
        near.iter().map(|n| n.strip_suffix(".weight").unwrap_or(n)).collect::<Vec<_>>().join(", ")
    )))
}

fn within(option: &str, asked: &Option<Range<usize>>, size: usize) -> Result<Range<usize>> {
    match asked {
        None => Ok(0..size),
        Some(range) if range.end <= size => Ok(range.clone()),
        Some(range) => Err(Failure::text(format!("{option}: {}..{} is not within 0..{size}", range.start, range.end))),
    }
}

fn write(path: &Path, matrix: &Matrix, rows: Range<usize>, cols: Range<usize>) -> Result<()> {
    let failed = |e: std::io::Error| Failure::text(format!("{}: {e}", path.display()));
    let watch = interrupt::watch();
    let mut file = npy::Writer::new(BufWriter::new(File::create(path).map_err(failed)?), rows.len(), cols.len())
        .map_err(failed)?;
    let mut put = || -> Result<()> {
        for first in rows.clone().step_by(ROWS) {
            watch.check()?;
            let panel = matrix.panel(first..(first + ROWS).min(rows.end))?;
            for row in panel.chunks_exact(matrix.cols().max(1)) {
                file.push(&row[cols.clone()]).map_err(failed)?;
            }
        }
        Ok(())
    };
    if let Err(failure) = put().and_then(|()| file.finish().map_err(failed)) {
        // A part would look like the whole. The failure says why; that the part could not be removed adds nothing.
        let _ = std::fs::remove_file(path);
        return Err(failure);
    }
    output::note(&format!("{}: float32 [{}, {}]", path.display(), rows.len(), cols.len()));
    Ok(())
}

impl Report {
    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| out.push_str(&format!("{name:<14}{value}\n"));
        line("module", format!("{} of {}", self.module, self.model));
        line("shape", format!("[{}, {}]", self.shape[0], self.shape[1]));
        self.stored.iter().for_each(|part| line("stored as", part.text()));
        let s = &self.statistics;
        line("values", format!("min {:.6}, max {:.6}, mean {:.3e}, deviation {:.6}", s.min, s.max, s.mean, s.std));
        if s.not_finite > 0 {
            line("", format!("{} are infinite or no numbers: the checkpoint is damaged", s.not_finite));
        }
        let ([r0, r1], [c0, c1]) = (self.rows, self.cols);
        line("shown", format!("rows {r0}..{r1}, columns {c0}..{c1}"));
        for row in &self.values {
            let values: Vec<String> = row.iter().map(|v| format!("{v:>11.6}")).collect();
            out.push_str(&values.join(" "));
            out.push('\n');
        }
        out
    }
}
