//! `bench kernels`: what each kernel reaches here, and where one should take over from another.

use super::super::doctor;
use super::kernels_gpu;
use crate::error::{Failure, Result};
use crate::values::Device;
use crate::{interrupt, output, synthetic};
use marlin_backend::{Backend, LinearHandle};
use marlin_cpu::kernels::{self, Kind};
use marlin_cpu::linear::{ActsBuf, Job, Needs, Out, linears};
use marlin_cpu::{Cpu, CpuBackend, CpuLinear, CpuOptions, DType, Mat, Mode, Thresholds, bandwidth};
use marlin_models::Architecture;
use output::rate;
use serde::Serialize;
use std::time::Instant;

/// What each kernel reaches on this machine
///
/// Random weights of one layer of Qwen3-0.6B and of Qwen3-8B are multiplied with batches of several sizes, as often as
/// it takes for them not to come from the caches. With --save, the numbers of rows at which one kernel takes over from
/// another are measured too, and used from then on; only those that change nothing but the speed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Schemes to measure, as in NAME@SCHEME of --synthetic; bf16 is the unquantised one
    #[arg(long, value_name = "SCHEME", value_delimiter = ',', default_value = "bf16,fp4,mlx-4,int8,fp8,exl3-3")]
    schemes: Vec<String>,
    /// Rows of activations to measure
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,4,8,32,128", value_parser = crate::values::some_tokens)]
    batches: Vec<usize>,
    /// Megabytes of weights for each measurement, at least one matrix
    #[arg(long, value_name = "MB", default_value_t = 128)]
    megabytes: u64,
    /// Rounds, of which the best counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// The small model's matrices only
    #[arg(long)]
    small: bool,
    /// Measure the thresholds and save them for this processor
    #[arg(long)]
    save: bool,
    /// Measure the GPU, cuda or metal: its thresholds only, with steps of a few layers of random weights
    #[arg(long, value_parser = crate::values::device)]
    device: Option<Device>,
    /// Threads; 0 takes the physical cores
    #[arg(long, value_name = "N", env = "MARLIN_THREADS", default_value_t = 0, value_parser = crate::values::threads)]
    threads: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    simd: &'static str,
    threads: usize,
    memory_read_bytes_per_second: f64,
    results: Vec<Measured>,
    thresholds: Thresholds,
    #[serde(skip_serializing_if = "Option::is_none")]
    saved: Option<String>,
}

#[derive(Serialize)]
struct Measured {
    scheme: String,
    weights: String,
    kernel: &'static str,
    shape: [usize; 2],
    rows: usize,
    /// Of one product.
    seconds: f64,
    /// Stored weights read.
    bytes_per_second: f64,
    /// Share of the memory bandwidth.
    bandwidth_share: f64,
    multiply_adds_per_second: f64,
}

/// Models whose first layers are taken.
const MODELS: [&str; 2] = ["qwen3-0.6b", "qwen3-8b"];
/// The matrix of each layer.
const PART: &str = "mlp.gate_proj";
/// Most copies of a small matrix.
const COPIES: usize = 28;

pub fn run(args: &Args) -> Result<()> {
    if let Some(device) = args.device.filter(|d| *d != Device::Cpu) {
        return kernels_gpu::run(device, args.repeats, args.save, args.json);
    }
    let backend = CpuBackend::new(CpuOptions { threads: args.threads, ..CpuOptions::default() });
    let cpu = backend.cpu();
    let watch = interrupt::watch();
    let read = bandwidth::read_bytes_per_second(cpu, doctor::region());
    let mut results = Vec::new();
    for name in &MODELS[..if args.small { 1 } else { 2 }] {
        for scheme in &args.schemes {
            watch.check()?;
            let set = Set::load(&backend, name, scheme, args.megabytes)?;
            for &rows in &args.batches {
                watch.check()?;
                results.push(set.measure(&backend, rows, args.repeats, read)?);
            }
        }
    }
    let mut report = Report {
        simd: cpu.level().name(),
        threads: cpu.pool().threads(),
        memory_read_bytes_per_second: read,
        results,
        thresholds: *cpu.thresholds(),
        saved: None,
    };
    if args.save {
        report.thresholds = tune(args, &mut || watch.check())?;
        let failed = |e: std::io::Error| Failure::text(format!("the thresholds cannot be saved: {e}"));
        report.saved = Some(kernels::save(cpu.level(), &report.thresholds).map_err(failed)?.display().to_string());
    }
    if args.json { output::print_json(&report) } else { output::print(&report.text()) }
}

/// Matrices of one shape and scheme, together beyond the caches.
struct Set {
    scheme: String,
    kind: Kind,
    bytes: u64,
    weights: Vec<CpuLinear>,
}

impl Set {
    fn load(backend: &CpuBackend, model: &str, scheme: &str, megabytes: u64) -> Result<Self> {
        let quantised = (scheme != "bf16").then(|| scheme.to_owned());
        let checkpoint =
            synthetic::Model { name: model.to_owned(), scheme: quantised, layers: Some(COPIES) }.checkpoint()?;
        let inventory = Architecture::parse(&checkpoint.config)?.inventory();
        let modules = checkpoint.modules()?;
        let name = |i: usize| format!("model.layers.{i}.{PART}");
        let missing = || Failure::text(format!("{model}: there is no {}", name(0)));
        let features = inventory.features(&name(0)).ok_or_else(missing)?;
        let first = modules.linear(&name(0), features)?;
        let kind = kernels::kind_of(&first.build()?)?;
        let bytes = first.stored.bytes;
        let copies = ((megabytes << 20).div_ceil(bytes.max(1)) as usize).clamp(1, COPIES);
        let load = |i| Ok(backend.linear(modules.linear(&name(i), features)?.build()?)?);
        let weights = (0..copies).map(load).collect::<Result<Vec<_>>>()?;
        Ok(Self { scheme: scheme.to_owned(), kind, bytes, weights })
    }

    fn measure(&self, backend: &CpuBackend, rows: usize, repeats: u32, bandwidth: f64) -> Result<Measured> {
        let [n, k] = self.weights.first().map_or([0, 0], |w| [w.rows(), w.cols()]);
        let x = backend.write(rows, k, wave(rows * k))?;
        let all = best(repeats, || {
            for w in &self.weights {
                backend.linears(&[w], &x)?;
            }
            Ok(())
        })?;
        let seconds = all / self.weights.len().max(1) as f64;
        let cpu = backend.cpu();
        let chosen = kernels::choose(cpu.level(), cpu.thresholds(), Mode::Fast, &self.kind, rows);
        let achieved = self.bytes as f64 / seconds;
        Ok(Measured {
            scheme: self.scheme.clone(),
            weights: self.kind.describe(),
            kernel: chosen.map_or("none", |(entry, _)| entry.kernel),
            shape: [n, k],
            rows,
            seconds,
            bytes_per_second: achieved,
            bandwidth_share: if bandwidth > 0.0 { achieved / bandwidth } else { 0.0 },
            multiply_adds_per_second: (rows * n * k) as f64 / seconds,
        })
    }
}

/// Activations between -1 and 1.
fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// The best time of several runs after one that does not count, in seconds.
fn best(repeats: u32, mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    f()?;
    let mut best = f64::INFINITY;
    for _ in 0..repeats {
        let start = Instant::now();
        f()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// The thresholds of dense products that are fastest here; the others stay.
fn tune(args: &Args, go_on: &mut dyn FnMut() -> Result<()>) -> Result<Thresholds> {
    let found = *Cpu::new(args.threads).thresholds();
    let mut dense = Dense::new(args);
    let time = |dense: &mut Dense, t: Thresholds, rows| {
        dense.time(&Cpu::with_level(args.threads, level()).with_thresholds(t), rows)
    };
    let one = Thresholds { dense_gemv_rows: 1, ..found };
    let two = Thresholds { dense_gemv_rows: 2, ..found };
    go_on()?;
    let gemv = if time(&mut dense, two, 2)? <= time(&mut dense, one, 2)? { two } else { one };
    let mut widen = gemv.dense_gemv_rows;
    for rows in [4, 6, 8, 12, 16, 24, 32] {
        go_on()?;
        let tiles = time(&mut dense, Thresholds { dense_widen_rows: rows, ..gemv }, rows)?;
        let panels = time(&mut dense, Thresholds { dense_widen_rows: 0, ..gemv }, rows)?;
        if tiles > panels {
            break;
        }
        widen = rows;
    }
    Ok(Thresholds { dense_widen_rows: widen, ..gemv })
}

/// The level that everything runs at.
fn level() -> marlin_cpu::Level {
    Cpu::new(1).level()
}

/// f16 matrices, whose products are in f32 at every level.
struct Dense {
    data: Vec<u8>,
    copies: usize,
    repeats: u32,
    buf: ActsBuf,
}

impl Dense {
    const N: usize = 3072;
    const K: usize = 1024;
    const BYTES: usize = 2 * Self::N * Self::K;

    fn new(args: &Args) -> Self {
        let copies = ((args.megabytes as usize) << 20).div_ceil(Self::BYTES).clamp(1, 64);
        // 1 to 2 in f16, either sign.
        let bytes = |i: usize| (0x3c00 | (i * 37 % 1024) as u16 | ((i as u16 & 8) << 12)).to_le_bytes();
        let data = (0..copies * Self::N * Self::K).flat_map(bytes).collect();
        Self { data, copies, repeats: args.repeats, buf: ActsBuf::default() }
    }

    fn time(&mut self, cpu: &Cpu, rows: usize) -> Result<f64> {
        let x = wave(rows * Self::K);
        let mut out = vec![0.0; rows * Self::N];
        let failed = |e: marlin_cpu::Error| Failure::text(e.to_string());
        best(self.repeats, || {
            for copy in self.data.chunks_exact(Self::BYTES).take(self.copies) {
                let w = Mat::new(copy, DType::F16, Self::N, Self::K).map_err(failed)?;
                let acts = self.buf.prepare(cpu, Mode::Fast, Needs::default(), &x, rows, Self::K, Self::K);
                linears(cpu, &[Job::new(acts.map_err(failed)?, w, Out::new(&mut out, Self::N))]).map_err(failed)?;
            }
            Ok(())
        })
    }
}

impl Report {
    fn text(&self) -> String {
        let mut out = format!(
            "{}, {} threads, memory gives {:.1} GB/s\n",
            self.simd,
            self.threads,
            self.memory_read_bytes_per_second / 1e9
        );
        out += &format!(
            "{:<8} {:<30} {:<14} {:>5} {:<22} {:>9} {:>7} {:>6} {:>8}\n",
            "scheme", "weights", "shape", "rows", "kernel", "us", "GB/s", "share", "GMAC/s"
        );
        for m in &self.results {
            out += &format!(
                "{:<8} {:<30} {:<14} {:>5} {:<22} {:>9} {:>7} {:>4.0} % {:>8}\n",
                m.scheme,
                m.weights,
                format!("{:?}", m.shape),
                m.rows,
                m.kernel,
                rate(1e6 * m.seconds),
                rate(m.bytes_per_second / 1e9),
                100.0 * m.bandwidth_share,
                rate(m.multiply_adds_per_second / 1e9)
            );
        }
        if let Some(file) = &self.saved {
            let t = &self.thresholds;
            out += &format!(
                "saved to {file}: dense_gemv_rows {}, dense_widen_rows {} (measured); the others unchanged\n",
                t.dense_gemv_rows, t.dense_widen_rows
            );
        }
        out
    }
}
