//! The fast CPU kernels of Metal Marlin and the thread pool that runs them.
//!
//! * [`Cpu`]: a [`Pool`] and the [`Level`] of SIMD that the kernels use; every kernel takes it first.
//! * [`linear`]: dense layers, fused forms, and experts; [`attention`]: paged, latent and expanded attention.
//! * [`encode`]: the search for the codes of a trellis.
//! * [`ops`]: norms, rotary embedding, activations, routing, conversions; [`bandwidth`]: what the machine can do.
//!
//! **Invariance.** A value depends only on its own row of inputs and weights, never on the batch around it, the tiling,
//! or the number of threads: every kernel has one order of accumulation for each output, in either [`Mode`]. In
//! [`Mode::Exact`] the order is also the same on every level, so results are equal bit for bit across machines. In
//! [`Mode::Fast`] some [`Thresholds`] choose by the number of rows between kernels that round differently.

#![allow(unsafe_code)]
// Register tiles are arrays indexed by constants, several at a time; iterators would hide which.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
mod backend;
pub mod bandwidth;
mod buffer;
pub mod encode;
pub mod grouped;
pub mod kernels;
pub mod linear;
mod mat;
mod memory;
pub mod ops;
pub mod pool;
pub mod simd;
pub mod trellis;

pub use backend::{CpuBackend, CpuBatch, CpuExperts, CpuKv, CpuLinear, CpuOptions, CpuRouting, KvType, Tensor};
pub use kernels::Thresholds;
pub use mat::{DType, Error, Mat, Mode, Result};
pub use pool::Pool;
pub use simd::Level;

/// Threads and instruction set: what every kernel runs on.
pub struct Cpu {
    pool: Pool,
    level: Level,
    thresholds: Thresholds,
}

impl Cpu {
    /// `threads` threads (0: the physical cores) at the highest level of this machine, or at the level that the
    /// environment variable `MARLIN_SIMD` names, where the machine has it. Thresholds are those that `bench kernels --save`
    /// has saved, if it has.
    pub fn new(threads: usize) -> Cpu {
        let forced = std::env::var("MARLIN_SIMD").ok().and_then(|name| Level::parse(&name));
        let cpu = Cpu::with_level(threads, forced.unwrap_or_else(Level::best));
        let thresholds = kernels::saved(cpu.level).unwrap_or(cpu.thresholds);
        cpu.with_thresholds(thresholds)
    }

    /// As [`Cpu::new`], at this level, or at the highest one where the machine lacks it, with its default thresholds.
    pub fn with_level(threads: usize, level: Level) -> Cpu {
        let level = if level.available() { level } else { Level::best() };
        Cpu { pool: Pool::new(threads), level, thresholds: Thresholds::of(level) }
    }

    /// The same with other thresholds.
    pub fn with_thresholds(self, thresholds: Thresholds) -> Cpu {
        Cpu { thresholds: thresholds.within_limits(), ..self }
    }

    /// Where one kernel takes over from another.
    pub fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// The thread pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Whether products with so many rows of activations go to matrix tiles, in fast mode.
    pub(crate) fn tiled(&self, rows: usize) -> bool {
        self.level == Level::Amx && rows >= self.thresholds.tile_rows
    }

    /// Whether weights of this type are multiplied with activations rounded to `bf16` in this mode.
    pub fn rounds(&self, mode: Mode, dtype: DType) -> bool {
        mode == Mode::Fast && dtype == DType::Bf16 && self.level.has_bf16()
    }
}
