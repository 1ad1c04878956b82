//! `doctor`: what this machine is and can do.

use crate::error::{Failure, Result};
use crate::{builtin, device, interrupt, model, output};
use marlin_backend::fallback::Snapshot;
use marlin_checkpoint::Hub;
use marlin_cpu::{Cpu, CpuBackend, CpuOptions, bandwidth};
use marlin_eval::check::{self, Check};
use marlin_eval::machine::{self, Memory};
use marlin_gpu::kernels::Element;
use marlin_gpu::{GpuBackend, GpuOptions, Warmth};
use output::bytes;
use serde::Serialize;

/// Show what this machine is and what it can do
///
/// Memory bandwidth and arithmetic are measured, and the kernels for this processor compared with the plain reference
/// implementation, which takes a few seconds and up to 2 GiB of memory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Threads; 0 takes the physical cores
    #[arg(long, value_name = "N", env = "MARLIN_THREADS", default_value_t = 0, value_parser = crate::values::threads)]
    threads: usize,
    /// Measure and check nothing
    #[arg(long)]
    quick: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    system: String,
    processor: String,
    features: Vec<&'static str>,
    /// The level of SIMD that kernels use.
    simd: String,
    threads: usize,
    logical_processors: usize,
    memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    measured: Option<Measured>,
    #[serde(skip_serializing_if = "Option::is_none")]
    self_check: Option<SelfCheck>,
    devices: Vec<&'static str>,
    gpu: Gpu,
    built_in_model: Option<&'static str>,
    cache: String,
    cached_models: usize,
    cached_bytes: u64,
}

#[derive(Serialize)]
struct Measured {
    read_bytes_per_second: f64,
    read_method: String,
    f32_flops_per_second: f64,
    bf16_flops_per_second: f64,
}

/// What is known of the GPU.
#[derive(Default, Serialize)]
struct Gpu {
    /// `cuda` or `metal`.
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    architecture: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<usize>,
    /// Whether every primitive computes what the reference computes, where that was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    self_check: Option<bool>,
    /// What was compiled and compared for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<Warmth>,
    /// What took a slower path meanwhile.
    #[serde(skip_serializing_if = "Option::is_none")]
    fallbacks: Option<Snapshot>,
    /// Why it is not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable: Option<String>,
}

impl Gpu {
    fn look(quick: bool) -> Self {
        let kind = if cfg!(target_os = "macos") { "metal" } else { "cuda" };
        let found = match device::find(None) {
            Ok(found) => found,
            Err(unusable) => return Self { kind, unusable: Some(unusable.why), ..Self::default() },
        };
        let info = found.info().clone();
        let options = GpuOptions { kv: Element::Bf16, memory: info.memory, threads: 0, record: true, exact: false };
        let checked = (!quick).then(|| GpuBackend::open(found, options));
        let good = checked.as_ref().and_then(|c| c.as_ref().ok());
        let (kernels, fallbacks) = (good.map(GpuBackend::warmth), good.map(|b| b.fallbacks().snapshot()));
        let unusable = checked.as_ref().and_then(|c| c.as_ref().err()).map(ToString::to_string);
        Self {
            kind,
            name: Some(info.name),
            architecture: Some(info.architecture),
            driver: Some(info.driver),
            memory_bytes: Some(info.memory),
            self_check: checked.map(|c| c.is_ok()),
            kernels,
            fallbacks,
            unusable,
        }
    }

    fn text(&self) -> String {
        let Some(name) = &self.name else { return format!("none: {}", self.unusable.as_deref().unwrap_or_default()) };
        let (architecture, driver) =
            (self.architecture.as_deref().unwrap_or_default(), self.driver.as_deref().unwrap_or_default());
        let memory = bytes(self.memory_bytes.unwrap_or_default() as u64);
        let check = match (&self.unusable, self.self_check) {
            (Some(why), _) => format!("not used: {why}"),
            (None, Some(_)) => {
                let slower =
                    self.fallbacks.as_ref().and_then(output::fallbacks).map_or_else(String::new, |s| format!("; {s}"));
                let kernels = self.kernels.as_ref().map_or_else(String::new, |w| format!("; {}", output::kernels(w)));
                format!("every primitive agrees with the reference{kernels}{slower}")
            }
            (None, None) => "not checked".to_owned(),
        };
        format!("{name} ({architecture}, driver {driver}, {memory}): {check}")
    }
}

/// The built-in model's logits, compared with those of the plain reference implementation.
#[derive(Serialize)]
struct SelfCheck {
    exact: Check,
    fast: Check,
}

impl SelfCheck {
    const TEXT: &str = "Once upon a time there was a king who had three daughters, and the youngest of them was";

    /// `None` in a build without a built-in model.
    fn run(threads: usize) -> Result<Option<Self>> {
        if !builtin::is_there() {
            return Ok(None);
        }
        let checkpoint = builtin::open()?;
        let Some(tokenizer) = model::tokenizer(&checkpoint.folder)? else { return Ok(None) };
        let tokens = tokenizer.encode(Self::TEXT, true)?;
        let expected = check::reference_logits(&checkpoint, &tokens)?;
        let compare = |exact: bool| -> Result<Check> {
            let backend = CpuBackend::new(CpuOptions { threads, exact, ..CpuOptions::default() });
            Ok(Check::of(&check::logits(backend, &checkpoint, &tokens)?, &expected, exact))
        };
        Ok(Some(Self { exact: compare(true)?, fast: compare(false)? }))
    }

    fn passed(&self) -> bool {
        self.exact.passed && self.fast.passed
    }
}

/// How the bandwidth is measured.
pub const METHOD: &str = "best of three read loops (plain, prefetching, four streams), two turns each";

/// Bytes to read: well beyond the caches, without taking more than a quarter of what is free.
pub fn region() -> usize {
    let memory = machine::memory();
    let free = memory.available.or(memory.total).unwrap_or(8 << 30).min(memory.limit.unwrap_or(u64::MAX));
    (free / 4).clamp(64 << 20, 2 << 30) as usize
}

pub fn run(args: &Args) -> Result<()> {
    let hub = Hub::from_env()?;
    let models = hub.list()?;
    let cpu = Cpu::new(args.threads);
    let watch = interrupt::watch();
    let (mut measured, mut self_check) = (None, None);
    if !args.quick {
        if !args.json {
            output::note("measuring memory and arithmetic ...");
        }
        let region = region();
        let read = bandwidth::read_bytes_per_second(&cpu, region);
        watch.check()?;
        let (single, pairs) = bandwidth::peak_flops(&cpu);
        watch.check()?;
        measured = Some(Measured {
            read_bytes_per_second: read,
            read_method: format!("{METHOD}, over {} MiB", region >> 20),
            f32_flops_per_second: single,
            bf16_flops_per_second: pairs,
        });
        self_check = SelfCheck::run(args.threads)?;
        watch.check()?;
    }
    let passed = self_check.as_ref().is_none_or(SelfCheck::passed);
    let gpu = Gpu::look(args.quick);
    let report = Report {
        version: env!("CARGO_PKG_VERSION"),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        processor: machine::processor(),
        features: machine::cpu_features(),
        simd: cpu.level().name().to_owned(),
        threads: cpu.pool().threads(),
        logical_processors: machine::logical_processors(),
        memory: machine::memory(),
        measured,
        self_check,
        devices: if gpu.name.is_some() { vec!["cpu", gpu.kind] } else { vec!["cpu"] },
        gpu,
        built_in_model: builtin::is_there().then_some(builtin::NAME),
        cache: hub.cache().display().to_string(),
        cached_models: models.len(),
        cached_bytes: models.iter().map(|m| m.bytes).sum(),
    };
    if args.json {
        output::print_json(&report)?
    } else {
        output::print(&report.text())?
    }
    if passed {
        return Ok(());
    }
    Err(Failure::text(format!(
        "the kernels for {} do not compute what the reference computes; answers would be wrong. MARLIN_SIMD=scalar avoids them; please report this",
        cpu.level().name()
    )))
}

impl Report {
    fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| out.push_str(&format!("{name:<14}{value}\n"));
        line("version", format!("{} on {}", self.version, self.system));
        line("processor", self.processor.clone());
        line("features", self.features.join(" "));
        line("kernels use", format!("{}, {} of {} threads", self.simd, self.threads, self.logical_processors));
        let part = |value: Option<u64>, what: &str| value.map(|v| format!("{} {what}", bytes(v)));
        let Memory { total, available, limit } = self.memory;
        let memory = [part(total, "in all"), part(available, "available"), part(limit, "allowed")];
        line("memory", memory.into_iter().flatten().collect::<Vec<_>>().join(", "));
        if let Some(m) = &self.measured {
            line("read", format!("{:.1} GB/s ({})", m.read_bytes_per_second / 1e9, m.read_method));
            let (single, pairs) = (m.f32_flops_per_second / 1e9, m.bf16_flops_per_second / 1e9);
            line("arithmetic", format!("f32 {single:.0} GFLOP/s, bf16 {pairs:.0} GFLOP/s"));
        }
        if let Some(c) = &self.self_check {
            let said = if c.passed() { "passed" } else { "FAILED" };
            let (exact, fast, n) = (c.exact.relative_error, c.fast.relative_error, c.exact.logits);
            let n = output::grouped(n as u64);
            line(
                "self-check",
                format!(
                    "{said}: {n} logits of the built-in model are off by {exact:.0e} of their size (exact) and {fast:.0e} (fast)"
                ),
            );
        }
        line("devices", self.devices.join(", "));
        line("gpu", self.gpu.text());
        line("built-in", self.built_in_model.unwrap_or("none").to_owned());
        line("cache", format!("{} ({} models, {})", self.cache, self.cached_models, bytes(self.cached_bytes)));
        out
    }
}
