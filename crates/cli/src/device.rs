//! The backends that models run on.

use crate::args::EngineArgs;
use crate::error::{Failure, Result};
use crate::output;
use crate::values::Device;
use marlin_backend::Backend;
use marlin_backend::fallback::Snapshot;
use marlin_cpu::{Cpu, CpuBackend, CpuOptions, KvType, bandwidth};
use marlin_gpu::kernels::Element;
use marlin_gpu::{GpuBackend, GpuOptions, KernelTime, Warmth};
use std::path::Path;
use std::sync::Arc;

/// A backend that commands can run models on.
pub trait Runs: Backend {
    /// What took a slower path so far.
    fn slower(&self) -> Snapshot;
    /// Bytes a second that its memory gives, measured over so many.
    fn bytes_per_second(&self, region: usize) -> Result<f64>;
    /// What there is to say about its kernels, where they are compiled when they are wanted.
    fn warmth(&self) -> Option<Warmth> {
        None
    }
    /// Begins to write down what is launched, for the system's profiler.
    fn begin_capture(&self, file: Option<&Path>) -> Result<()> {
        let _ = file;
        Err(Failure::text(
            "nothing is captured: the CPU has no command queue; use the system's sampling profiler (perf, Instruments)",
        ))
    }
    /// Ends that.
    fn end_capture(&self) -> Result<()> {
        Ok(())
    }
    /// Begins to keep the times of kernels; false where there are none to be kept.
    fn start_timing(&self) -> bool {
        false
    }
    /// The times kept, longest first.
    fn stop_timing(&self) -> Result<Vec<KernelTime>> {
        Ok(Vec::new())
    }
}

impl Runs for CpuBackend {
    fn slower(&self) -> Snapshot {
        self.fallbacks().snapshot()
    }

    fn bytes_per_second(&self, region: usize) -> Result<f64> {
        Ok(bandwidth::read_bytes_per_second(self.cpu(), region))
    }
}

impl Runs for GpuBackend {
    fn slower(&self) -> Snapshot {
        self.fallbacks().snapshot()
    }

    fn bytes_per_second(&self, region: usize) -> Result<f64> {
        Ok(GpuBackend::bytes_per_second(self, region).map_err(marlin_backend::Error::from)?)
    }

    fn warmth(&self) -> Option<Warmth> {
        Some(GpuBackend::warmth(self))
    }

    fn begin_capture(&self, file: Option<&Path>) -> Result<()> {
        Ok(self.gpu().device().begin_capture(file).map_err(marlin_backend::Error::from)?)
    }

    fn end_capture(&self) -> Result<()> {
        Ok(self.gpu().device().end_capture().map_err(marlin_backend::Error::from)?)
    }

    fn start_timing(&self) -> bool {
        self.gpu().start_timing();
        true
    }

    fn stop_timing(&self) -> Result<Vec<KernelTime>> {
        Ok(self.gpu().stop_timing().map_err(marlin_backend::Error::from)?)
    }
}

/// A backend that has been opened; there is one.
#[allow(clippy::large_enum_variant)] // moved once
pub enum Opened {
    /// The processor.
    Cpu(CpuBackend),
    /// A GPU.
    Gpu(GpuBackend),
}

/// Runs `$body` with the backend that `$args` ask for, whichever it is.
macro_rules! on_device {
    ($args:expr, |$backend:ident| $body:expr) => {
        match $crate::device::open($args)? {
            $crate::device::Opened::Cpu($backend) => $body,
            $crate::device::Opened::Gpu($backend) => $body,
        }
    };
}
pub(crate) use on_device;

fn processor(args: &EngineArgs) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: args.threads, exact: args.exact, kv: args.kv_type })
}

/// The processor, for commands that compute nowhere else.
pub fn cpu(args: &EngineArgs) -> Result<CpuBackend> {
    match args.device {
        Device::Auto | Device::Cpu => Ok(processor(args)),
        Device::Cuda => Err(Failure::text("--device cuda: this command computes on the CPU; use auto or cpu")),
        Device::Metal => Err(Failure::text("--device metal: this command computes on the CPU; use auto or cpu")),
    }
}

/// The backend that the options ask for.
pub fn open(args: &EngineArgs) -> Result<Opened> {
    let (wanted, named) = match args.device {
        Device::Cpu => return Ok(Opened::Cpu(processor(args))),
        Device::Auto => (None, false),
        Device::Cuda => (Some(Device::Cuda), true),
        Device::Metal => (Some(Device::Metal), true),
    };
    match gpu(args, wanted) {
        Ok(backend) => Ok(Opened::Gpu(backend)),
        Err(Unusable { why, .. }) if named => Err(Failure::text(format!("the GPU cannot be used: {why}"))),
        Err(Unusable { why, absent }) => {
            // That there is no GPU is nothing to be told of, unless one asks; that one is there and is not used is.
            if args.verbose || !absent {
                output::note(&format!("computing on the CPU: {why}"));
            }
            Ok(Opened::Cpu(processor(args)))
        }
    }
}

/// Why a GPU is not used.
pub struct Unusable {
    /// In one line.
    pub why: String,
    /// Whether that is because there is none, or because of what was asked for.
    pub absent: bool,
}

impl From<marlin_gpu::Error> for Unusable {
    fn from(error: marlin_gpu::Error) -> Self {
        Self { absent: matches!(error, marlin_gpu::Error::Absent(_)), why: error.to_string() }
    }
}

/// The device of this machine: the one of its system where none is named.
pub fn find(wanted: Option<Device>) -> std::result::Result<Arc<dyn marlin_gpu::Device>, Unusable> {
    let here = if cfg!(target_os = "macos") { Device::Metal } else { Device::Cuda };
    if wanted.is_some_and(|wanted| wanted != here) {
        let why = if here == Device::Metal { "macOS has no CUDA" } else { "only macOS has Metal" };
        return Err(Unusable { why: why.into(), absent: true });
    }
    #[cfg(target_os = "macos")]
    return Ok(Arc::new(marlin_gpu::device::metal::Metal::open()?));
    #[cfg(not(target_os = "macos"))]
    Ok(Arc::new(marlin_gpu::device::cuda::Cuda::open(0)?))
}

fn gpu(args: &EngineArgs, wanted: Option<Device>) -> std::result::Result<GpuBackend, Unusable> {
    let device = find(wanted)?;
    let options = gpu_options(args, device.info().memory);
    GpuBackend::open(device, options).map_err(|error| Unusable { why: error.to_string(), absent: false })
}

/// How a GPU with so many bytes of memory computes.
fn gpu_options(args: &EngineArgs, memory: usize) -> GpuOptions {
    let kv = match args.kv_type {
        KvType::Auto if args.exact => Element::F32,
        KvType::Auto | KvType::Bf16 => Element::Bf16,
        KvType::F32 => Element::F32,
        KvType::F16 => Element::F16,
        KvType::Int8 => Element::Int8,
        KvType::Fp8 => Element::Fp8,
    };
    // Some memory is left to others.
    GpuOptions { kv, memory: memory / 16 * 15, threads: args.threads, record: true, exact: args.exact }
}

/// Threads that the options give the processor.
pub fn threads(args: &EngineArgs) -> usize {
    Cpu::new(args.threads).pool().threads()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;
    use clap::Parser;

    /// What `kernels` would compute with, as `run` takes the options.
    fn options(args: &[&str]) -> GpuOptions {
        let cli = Cli::parse_from([&["metal-marlin", "run", "x"], args].concat());
        let crate::args::Command::Run(run) = cli.command else { panic!("not run") };
        gpu_options(&run.engine, 1 << 30)
    }

    #[test]
    fn exact_holds_on_a_gpu_too() {
        let plain = options(&[]);
        assert_eq!((plain.exact, plain.kv), (false, Element::Bf16));
        let exact = options(&["--exact"]);
        assert_eq!((exact.exact, exact.kv), (true, Element::F32));
        assert_eq!(options(&["--exact", "--kv-type", "int8"]).kv, Element::Int8);
        assert!(plain.memory < 1 << 30 && plain.memory > 1 << 29);
    }
}
