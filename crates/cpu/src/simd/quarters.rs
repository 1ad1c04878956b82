//! Four independent problems side by side: vectors of four quarters, one for each, of `f32` or of `f16`.
//!
//! `f32` is there on every level ([`Single`]); `f16`, with twice as many lanes, where the machine computes with it:
//! AVX512-FP16 and NEON's FEAT_FP16 ([`run_f16`]).

use super::{Level, Simd};
use half::f16;
use std::marker::PhantomData;

/// Quarters of a vector.
pub const QUARTERS: usize = 4;

/// Numbers that costs are kept in.
pub trait Number: Copy + Send + Sync + 'static {
    /// Zero, and more than any other.
    const ENDS: [Self; 2];
    /// The nearest one.
    fn of(value: f32) -> Self;
    /// The same as `f32`, but that infinity may become more than any other.
    fn single(self) -> f32;
}

impl Number for f32 {
    const ENDS: [f32; 2] = [0.0, f32::INFINITY];

    #[inline(always)]
    fn of(value: f32) -> f32 {
        value
    }
    #[inline(always)]
    fn single(self) -> f32 {
        self
    }
}

impl Number for f16 {
    const ENDS: [f16; 2] = [f16::ZERO, f16::INFINITY];

    #[inline(always)]
    fn of(value: f32) -> f16 {
        f16::from_f32(value)
    }
    #[inline(always)]
    fn single(self) -> f32 {
        // Inline, without asking what the machine has: infinity becomes 65,536.
        let bits = u32::from(self.to_bits());
        f32::from_bits((bits & 0x8000) << 16 | (bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23)
    }
}

/// What is done with such vectors.
///
/// # Safety
/// Every method may only be called where the features of its level are enabled, and pointers must be valid for the values
/// that the method names; no alignment is needed.
#[allow(clippy::missing_safety_doc)]
pub trait Quarters {
    /// Lanes.
    type N: Number;
    /// A vector of four times [`Quarters::SIZE`] lanes.
    type V: Copy;
    /// Lanes of a quarter: 4 or 8.
    const SIZE: usize;
    /// Vectors of sums that registers hold side by side: 4 or 8.
    const SUMS: usize;

    /// Loads a vector.
    unsafe fn load(p: *const Self::N) -> Self::V;
    /// Loads `SIZE` values into each quarter.
    unsafe fn load_quarters(p: *const Self::N) -> Self::V;
    /// Stores a vector.
    unsafe fn store(p: *mut Self::N, v: Self::V);
    /// `a - b`.
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    /// `a * a + b`, rounded once.
    unsafe fn add_square(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller of each two.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// In each quarter, lanes by turns: the lower halves of both, and the upper halves.
    unsafe fn zip(a: Self::V, b: Self::V) -> (Self::V, Self::V);
}

/// Quarters of four `f32`, with the lanes of any level.
pub struct Single<S>(PhantomData<S>);

// SAFETY comments: the methods are those of `Simd`, under the same contract.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<S: Simd> Quarters for Single<S> {
    type N = f32;
    type V = S::F;
    const SIZE: usize = 4;
    const SUMS: usize = if S::MR >= 4 { 8 } else { 4 };

    #[inline(always)]
    unsafe fn load(p: *const f32) -> S::F {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn load_quarters(p: *const f32) -> S::F {
        unsafe { S::load_quarters(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: S::F) {
        unsafe { S::store(p, v) }
    }
    #[inline(always)]
    unsafe fn sub(a: S::F, b: S::F) -> S::F {
        unsafe { S::sub(a, b) }
    }
    #[inline(always)]
    unsafe fn add_square(a: S::F, b: S::F) -> S::F {
        unsafe { S::fma(a, a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: S::F, b: S::F) -> S::F {
        unsafe { S::min(a, b) }
    }
    #[inline(always)]
    unsafe fn zip(a: S::F, b: S::F) -> (S::F, S::F) {
        unsafe { S::zip_quarters(a, b) }
    }
}

/// A kernel that works on quarters of eight `f16`.
pub trait HalfKernel {
    /// What it returns.
    type Out;
    /// The body, inlined into a function with the features of `Q`.
    ///
    /// # Safety
    /// The features of `Q` must be available, and whatever the kernel's fields promise must hold.
    unsafe fn run<Q: Quarters<N = f16>>(self) -> Self::Out;
}

impl Level {
    /// Whether this machine, used at this level, computes with `f16`.
    pub fn has_f16(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 | Level::Amx => self.available() && is_x86_feature_detected!("avx512fp16"),
            #[cfg(target_arch = "aarch64")]
            Level::Neon | Level::NeonBf16 => self.available() && std::arch::is_aarch64_feature_detected!("fp16"),
            _ => false,
        }
    }
}

/// Runs a kernel on the machine's `f16` lanes.
///
/// # Safety
/// Whatever the kernel's fields promise must hold, and [`Level::has_f16`] of a level.
#[inline]
pub unsafe fn run_f16<K: HalfKernel>(kernel: K) -> K::Out {
    #[cfg(target_arch = "aarch64")]
    use super::neon_f16::run;
    #[cfg(target_arch = "x86_64")]
    use super::x86_f16::run;
    // SAFETY: the caller's promises.
    unsafe { run(kernel) }
}
