//! One vocabulary of sixteen `f32` lanes, spoken by every instruction set.
//!
//! Kernels are written once, generic over [`Simd`], and instantiated inside functions that enable the features of a
//! [`Level`]. Every level has the same sixteen lanes, the same fused multiply-add and the same reduction tree, so a
//! kernel in `f32` arithmetic gives the same bits on every level; only the `bf16` dot product ([`Simd::dot`]) rounds
//! differently, which is why it is a mode of its own.

mod elem;
pub mod int8;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_f16;
pub mod quarters;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86_512;
#[cfg(target_arch = "x86_64")]
mod x86_f16;

pub(crate) use elem::{Bf16, E4m3, E8m0, Elem, F16, F32, I8, U8};
use int8::Int8;
use std::fmt;

/// Lanes of [`Int8::F`].
pub const LANES: usize = 16;
/// `bf16` values in [`Simd::B`].
pub const PAIRS: usize = 32;

/// An instruction set that the kernels can be run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust; correct everywhere and slow.
    Scalar,
    /// x86-64 AVX2 with FMA and F16C.
    Avx2,
    /// x86-64 AVX-512 F, BW, DQ, VL.
    Avx512,
    /// [`Level::Avx512`] with the `bf16` and byte dot products.
    Avx512Bf16,
    /// [`Level::Avx512Bf16`] with Intel's matrix tiles (AMX).
    Amx,
    /// aarch64 NEON with the byte dot product.
    Neon,
    /// [`Level::Neon`] with the `bf16` dot product.
    NeonBf16,
}

impl Level {
    /// Every level, lowest first.
    pub const ALL: [Level; 7] =
        [Level::Scalar, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx, Level::Neon, Level::NeonBf16];

    /// The name that `MARLIN_SIMD` takes.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Amx => "amx",
            Level::Neon => "neon",
            Level::NeonBf16 => "neonbf16",
        }
    }

    /// The level with this name.
    pub fn parse(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|l| l.name() == name)
    }

    /// Whether this machine can run it.
    pub fn available(self) -> bool {
        match self {
            Level::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => {
                Level::Avx2.available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => {
                Level::Avx512.available()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Level::Amx => Level::Avx512Bf16.available() && crate::amx::available(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => {
                std::arch::is_aarch64_feature_detected!("neon") && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(target_arch = "aarch64")]
            Level::NeonBf16 => Level::Neon.available() && std::arch::is_aarch64_feature_detected!("bf16"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }

    /// The highest level of this machine.
    pub fn best() -> Level {
        Level::ALL.into_iter().rev().find(|l| l.available()).unwrap_or(Level::Scalar)
    }

    /// Whether dot products of bytes take unsigned codes above 127 without a detour.
    pub(crate) fn has_unsigned_bytes(self) -> bool {
        matches!(self, Level::Avx512Bf16 | Level::Amx | Level::Scalar)
    }

    /// Whether the level multiplies `bf16` pairs in hardware.
    pub fn has_bf16(self) -> bool {
        matches!(self, Level::Avx512Bf16 | Level::Amx | Level::NeonBf16)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Sixteen lanes of `f32` and what the kernels do with them.
///
/// # Safety
/// Every method may only be called where the level's features are enabled, and pointers must be valid for the bytes
/// the method names; no alignment is needed.
#[allow(clippy::missing_safety_doc)]
pub trait Simd: Int8 {
    /// Thirty-two `bf16` values, in sixteen pairs.
    type B: Copy;
    /// The level that these lanes belong to: `run(S::LEVEL, kernel)` calls a kernel as a function of its own.
    const LEVEL: Level;
    /// Whether [`Simd::dot`] is hardware.
    const BF16: bool;
    /// Rows of activations in a matrix tile.
    const MR: usize;
    /// Rows of weights in a matrix tile.
    const NR: usize;
    /// Query vectors in an attention tile of two vectors a row.
    const QR: usize;

    /// Zeros.
    unsafe fn zero() -> Self::F;
    /// The same value in all lanes.
    unsafe fn splat(v: f32) -> Self::F;
    /// Loads sixteen values.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Stores sixteen values.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Loads sixteen `bf16` values.
    unsafe fn load_bf16(p: *const u8) -> Self::F;
    /// Loads sixteen `f16` values.
    unsafe fn load_f16(p: *const u8) -> Self::F;
    /// Loads sixteen pairs of `bf16`: (first of each pair, second of each pair).
    unsafe fn load_bf16_pairs(p: *const u8) -> (Self::F, Self::F);
    /// Stores sixteen values as `bf16`, rounded to nearest even.
    unsafe fn store_bf16(p: *mut u8, v: Self::F);
    /// Stores sixteen values as `f16`, rounded to nearest even.
    unsafe fn store_f16(p: *mut u8, v: Self::F);
    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a > b ? a : b`, which is `b` where either is not a number.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a < b ? a : b`, which is `b` where either is not a number.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::F) -> Self::F;
    /// Two to the power of an integer in -126..=127.
    unsafe fn exp2i(n: Self::F) -> Self::F;
    /// `a < b ? x : y`, lane by lane.
    unsafe fn select_lt(a: Self::F, b: Self::F, x: Self::F, y: Self::F) -> Self::F;
    /// The first `n` lanes of `x`, then lanes of `y`.
    unsafe fn first(n: usize, x: Self::F, y: Self::F) -> Self::F;
    /// The sum by halves: lanes (i, i+8), (i, i+4), (i, i+2), (0, 1).
    unsafe fn sum(a: Self::F) -> f32;
    /// The largest lane, by the same tree.
    unsafe fn largest(a: Self::F) -> f32;

    /// Loads sixteen pairs of `bf16`.
    unsafe fn load_pairs(p: *const u8) -> Self::B;
    /// One pair of `bf16` in all sixteen places.
    unsafe fn splat_pair(p: *const u8) -> Self::B;
    /// Keeps the first of each pair and makes the second zero.
    unsafe fn keep_first(b: Self::B) -> Self::B;
    /// Adds the two products of each pair to the pair's lane.
    unsafe fn dot(acc: Self::F, a: Self::B, b: Self::B) -> Self::F;

    /// Loads four values into each quarter: `p[0], p[1], p[2], p[3], p[0], p[1], ...`.
    unsafe fn load_quarters(p: *const f32) -> Self::F;
    /// In each quarter of four lanes: (`a[0], b[0], a[1], b[1]`, `a[2], b[2], a[3], b[3]`).
    unsafe fn zip_quarters(a: Self::F, b: Self::F) -> (Self::F, Self::F);

    /// Hints that the cache line at `p` is wanted soon; any address is allowed.
    unsafe fn prefetch(_p: *const u8) {}

    /// Sums a tile of accumulators: `out[m * ld + n] = sum(acc[m][n])`.
    #[inline(always)]
    unsafe fn sum_tile<const M: usize, const N: usize>(acc: &[[Self::F; N]; M], out: *mut f32, ld: usize) {
        for (m, row) in acc.iter().enumerate() {
            for (n, v) in row.iter().enumerate() {
                // SAFETY: the caller gives room for M rows of N values, `ld` apart.
                unsafe { *out.add(m * ld + n) = Self::sum(*v) }
            }
        }
    }

    /// Pairs sixteen 16-bit words of `a` with sixteen of `b`: `dst[2 i] = a[i]`, `dst[2 i + 1] = b[i]`.
    #[inline(always)]
    unsafe fn zip(a: *const u8, b: *const u8, dst: *mut u8) {
        for i in 0..16 {
            // SAFETY: the caller vouches for sixteen words of each and 32 of room.
            unsafe {
                let (x, y) = (a.add(2 * i).cast::<[u8; 2]>().read(), b.add(2 * i).cast::<[u8; 2]>().read());
                dst.add(4 * i).cast::<[[u8; 2]; 2]>().write([x, y]);
            }
        }
    }

    /// Transposes 16 rows of 16 32-bit words: `dst[c * dst_ld + r] = src[r * src_ld + c]` (strides in words).
    #[inline(always)]
    unsafe fn transpose(src: *const u8, src_ld: usize, dst: *mut u8, dst_ld: usize) {
        for r in 0..16 {
            for c in 0..16 {
                // SAFETY: the caller vouches for sixteen rows of sixteen words on both sides.
                unsafe {
                    let v = src.add((r * src_ld + c) * 4).cast::<u32>().read_unaligned();
                    dst.add((c * dst_ld + r) * 4).cast::<u32>().write_unaligned(v);
                }
            }
        }
    }
}

/// A kernel: something to run at a level.
pub trait Kernel {
    /// What it returns.
    type Out;
    /// The body, inlined into a function with the features of `S`.
    ///
    /// # Safety
    /// The features of `S` must be available, and whatever the kernel's fields promise must hold.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// Runs a kernel at a level; a level that this machine lacks is run as [`Level::Scalar`].
///
/// # Safety
/// Whatever the kernel's fields promise must hold, and `level` must be available on this machine.
#[inline]
pub unsafe fn run<K: Kernel>(level: Level, kernel: K) -> K::Out {
    // SAFETY: the caller promises that the level is available and the kernel's own conditions hold.
    unsafe {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 | Level::Amx => x86_512::run_bf16(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => x86_512::run_plain(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => x86::run(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => neon::run_plain(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::NeonBf16 => neon::run_bf16(kernel),
            _ => kernel.run::<scalar::Scalar>(),
        }
    }
}

/// Loads `n < 16` values and zeros.
///
/// # Safety
/// `p` must be valid for `n` values.
#[inline(always)]
pub unsafe fn load_some<S: Simd>(p: *const f32, n: usize) -> S::F {
    let mut buf = [0.0f32; LANES];
    // SAFETY: n < 16 values are readable and the buffer holds sixteen.
    unsafe {
        std::ptr::copy_nonoverlapping(p.cast::<u8>(), buf.as_mut_ptr().cast::<u8>(), n * 4);
        S::load(buf.as_ptr())
    }
}

/// Stores the first `n < 16` lanes.
///
/// # Safety
/// `p` must be valid for writing `n` values.
#[inline(always)]
pub unsafe fn store_some<S: Simd>(p: *mut f32, n: usize, v: S::F) {
    let mut buf = [0.0f32; LANES];
    // SAFETY: n < 16 values are writable and the buffer holds sixteen.
    unsafe {
        S::store(buf.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(buf.as_ptr(), p, n);
    }
}

/// e to the power of each lane: within 2 units in the last place, exactly 1 at 0, exactly 0 below -87.3; not a
/// number stays so. Cephes' `expf` polynomial.
///
/// # Safety
/// The features of `S` must be enabled.
#[inline(always)]
pub unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    const LOW: f32 = -87.336_54;
    const HIGH: f32 = 88.376_26;
    // SAFETY: the caller enabled the features; no memory is touched.
    unsafe {
        let low = S::splat(LOW);
        let c = S::min(S::splat(HIGH), S::max(low, x));
        let n = S::round(S::mul(c, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fma(n, S::splat(-0.693_359_4), c);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        p = S::fma(p, r, S::splat(1.398_199_9e-3));
        p = S::fma(p, r, S::splat(8.333_452e-3));
        p = S::fma(p, r, S::splat(4.166_579_6e-2));
        p = S::fma(p, r, S::splat(1.666_666_5e-1));
        p = S::fma(p, r, S::splat(0.5));
        let y = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        S::select_lt(x, low, S::zero(), S::mul(y, S::exp2i(n)))
    }
}

/// The logistic function of each lane.
///
/// # Safety
/// The features of `S` must be enabled.
#[inline(always)]
pub unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller enabled the features; no memory is touched.
    unsafe {
        let one = S::splat(1.0);
        S::div(one, S::add(one, exp::<S>(S::sub(S::zero(), x))))
    }
}
