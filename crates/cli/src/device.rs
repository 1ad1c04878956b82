//! The backend that models run on.

use crate::args::EngineArgs;
use crate::values::Device;
use marlin_cpu::{CpuBackend, CpuOptions};

/// The one backend of this version.
pub type Backend = CpuBackend;

/// Opens it as the options say.
pub fn open(args: &EngineArgs) -> Backend {
    let Device::Cpu = args.device;
    CpuBackend::new(CpuOptions { threads: args.threads, exact: args.exact, kv: args.kv_type })
}
