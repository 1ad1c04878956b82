//! The backend that models run on.

use crate::args::EngineArgs;
use crate::values::{Device, KvType};
use marlin_cpu::{CpuBackend, CpuOptions};

/// The one backend of this version.
pub type Backend = CpuBackend;

/// Opens it as the options say.
pub fn open(args: &EngineArgs) -> Backend {
    let Device::Cpu = args.device;
    let kv = match args.kv_type {
        KvType::Auto => marlin_cpu::KvType::Auto,
        KvType::F32 => marlin_cpu::KvType::F32,
        KvType::Bf16 => marlin_cpu::KvType::Bf16,
        KvType::F16 => marlin_cpu::KvType::F16,
        KvType::Int8 => marlin_cpu::KvType::Int8,
        KvType::Fp8 => marlin_cpu::KvType::Fp8,
    };
    CpuBackend::new(CpuOptions { threads: args.threads, exact: args.exact, kv })
}
