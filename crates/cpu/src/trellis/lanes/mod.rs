//! One vocabulary of thirty-two 16-bit lanes, spoken by every instruction set: what decoding a trellis needs.
//!
//! Lanes 0..16 belong to one tile and lanes 16..32 to the tile of the next sixteen outputs, see
//! [`layout`](super::layout). Sixteen 32-bit lanes ([`Lanes::A`]) accumulate pairs of them.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_512;

use super::acts::nearest;
use crate::Level;

/// Which implementation of [`Lanes`] to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, as wide as the compiler makes it.
    Portable,
    /// AVX2.
    Avx2,
    /// AVX-512 with VBMI2 (funnel shifts of words) and VNNI (dot products of words and bytes).
    Avx512,
}

impl Isa {
    /// The best implementation within a level. AVX-512 without VBMI2 or VNNI counts as AVX2.
    pub fn of(level: Level) -> Isa {
        match level {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx
                if is_x86_feature_detected!("avx512vbmi2") && is_x86_feature_detected!("avx512vnni") =>
            {
                Isa::Avx512
            }
            Level::Avx2 | Level::Avx512 | Level::Avx512Bf16 | Level::Amx => Isa::Avx2,
            Level::Scalar | Level::Neon | Level::NeonBf16 => Isa::Portable,
        }
    }

    /// Whether it multiplies unsigned with signed bytes ([`Lanes::dot_bytes`]) at full speed.
    pub fn has_bytes(self) -> bool {
        self == Isa::Avx512
    }

    /// Whether it has registers enough to decode and multiply at once ([`run_wide`]).
    pub fn is_wide(self) -> bool {
        self == Isa::Avx512
    }
}

/// Thirty-two lanes of 16 bits.
///
/// # Safety
/// Every method may only be called where the features of [`Lanes::ISA`] are enabled, and pointers must be valid for
/// what the method names; no alignment is needed.
#[allow(clippy::missing_safety_doc)]
pub trait Lanes: Copy + Send + Sync + 'static {
    /// Thirty-two 16-bit lanes.
    type V: Copy;
    /// Sixteen 32-bit lanes.
    type A: Copy;
    /// The implementation: `run(L::ISA, kernel)` calls a kernel as a function of its own.
    const ISA: Isa;

    /// Loads 64 bytes.
    unsafe fn load(p: *const u8) -> Self::V;
    /// Stores 64 bytes.
    unsafe fn store(p: *mut u8, v: Self::V);
    /// Lane i of each half from lane i - 1, lane 0 from lane 15.
    unsafe fn wrap(v: Self::V) -> Self::V;
    /// The upper 16 bits of `high:low << n`, for a constant n in 1..=15.
    unsafe fn funnel(high: Self::V, low: Self::V, n: u32) -> Self::V;
    /// The lower halves of the unsigned products with a constant.
    unsafe fn mul_low(a: Self::V, c: u16) -> Self::V;
    /// The upper halves of the unsigned products with a constant.
    unsafe fn mul_high(a: Self::V, c: u16) -> Self::V;
    /// Sums.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Sums with a constant.
    unsafe fn add_const(a: Self::V, c: u16) -> Self::V;
    /// `high:low + c`, lane by lane, as (low, high).
    unsafe fn add_wide(low: Self::V, high: Self::V, c: u32) -> (Self::V, Self::V);
    /// `(a & mask) ^ flip`.
    unsafe fn and_xor(a: Self::V, mask: u16, flip: u16) -> Self::V;
    /// The sums of the four bytes of each `high:low`.
    unsafe fn byte_sum(low: Self::V, high: Self::V) -> Self::V;
    /// `(a + b + 1) >> 1`, byte by byte.
    unsafe fn average(a: Self::V, b: Self::V) -> Self::V;
    /// Lower bytes of `low`, upper bytes of `high`.
    unsafe fn bytes_of(low: Self::V, high: Self::V) -> Self::V;
    /// Upper bytes of `low` as lower bytes, upper bytes of `high`.
    unsafe fn upper_bytes(low: Self::V, high: Self::V) -> Self::V;
    /// `f16` of the form `(x & 0x8fff) ^ 0x3b60` (magnitudes from 1/8 to 2) as fixed point with 13 fractional bits.
    unsafe fn fixed(x: Self::V) -> Self::V;
    /// `f16` bits of `(1024 + v) * k + c`, rounded once, for v up to 1023 and a product and sum that are exact in `f32`.
    unsafe fn affine_f16(v: Self::V, k: f32, c: f32) -> Self::V;
    /// Sums of `f16`, rounded once.
    unsafe fn add_f16(a: Self::V, b: Self::V) -> Self::V;

    /// The same value in sixteen lanes.
    unsafe fn splat(v: i32) -> Self::A;
    /// Adds to lane i `w[2 i] * pair[0] + w[2 i + 1] * pair[1]`, all signed.
    unsafe fn dot(acc: Self::A, w: Self::V, pair: *const i16) -> Self::A;
    /// Adds to lane i the products of its four unsigned bytes with four signed ones.
    unsafe fn dot_bytes(acc: Self::A, w: Self::V, x: *const i8) -> Self::A;
    /// `out[i] += acc[i] * scale`, sixteen values.
    unsafe fn flush(acc: Self::A, scale: f32, out: *mut f32);
    /// Stores the even and odd lanes of the first half to `to[0]`, `to[1]`, of the second to `to[2]`, `to[3]`: eight
    /// 16-bit values each.
    unsafe fn store_split(v: Self::V, to: [*mut u16; 4]);
    /// As [`Lanes::store_split`] for 32-bit values, each a lane of `low` and the same lane of `high`: 32 bytes each.
    unsafe fn store_split_zip(low: Self::V, high: Self::V, to: [*mut u8; 4]);
    /// The largest and the sum of the magnitudes of tiles of sixteen activations; the sum is not finite where any of them
    /// is not.
    #[inline(always)]
    unsafe fn measure(x: &[f32]) -> (f32, f32) {
        let (mut most, mut sum) = ([0.0f32; 16], [0.0f32; 16]);
        for x in x.as_chunks::<16>().0 {
            for l in 0..16 {
                let v = x[l].abs();
                most[l] = if v > most[l] { v } else { most[l] };
                sum[l] += v;
            }
        }
        for half in [8, 4, 2, 1] {
            for l in 0..half {
                most[l] = if most[l + half] > most[l] { most[l + half] } else { most[l] };
                sum[l] += sum[l + half];
            }
        }
        (most[0], sum[0])
    }
    /// Rounds tiles of sixteen activations, times `inverse`, to 8 bits; returns the sum of the integers.
    #[inline(always)]
    unsafe fn round8(x: &[f32], inverse: f32, to: *mut u8) -> i32 {
        let mut sum = 0;
        for (t, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let q = x.map(|x| nearest(x * inverse));
            sum += q.into_iter().sum::<i32>();
            // SAFETY: the caller gives room for as many bytes.
            unsafe { to.add(16 * t).cast::<[i8; 16]>().write_unaligned(q.map(|q| q as i8)) }
        }
        sum
    }
    /// Rounds tiles of sixteen activations, times `inverse`, to 16 bits in the order of [`pair`](super::acts::pair);
    /// returns the sum of the integers.
    #[inline(always)]
    unsafe fn round16(x: &[f32], inverse: f32, to: *mut u8) -> i32 {
        let mut sum = 0;
        for (t, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let q = x.map(|x| nearest(x * inverse));
            sum += q.into_iter().sum::<i32>();
            let pairs: [[i16; 2]; 8] = std::array::from_fn(|d| {
                let input = (d & 3) | (d >> 2 << 3);
                [q[input] as i16, q[input + 4] as i16]
            });
            // SAFETY: the caller gives room for as many 16-bit values.
            unsafe { to.add(32 * t).cast::<[[i16; 2]; 8]>().write_unaligned(pairs) }
        }
        sum
    }
    /// Hints that the cache line at `p` is wanted soon; any address is allowed.
    unsafe fn prefetch(_p: *const u8) {}
}

/// Something to run with an implementation of [`Lanes`].
pub trait LanesKernel {
    /// What it returns.
    type Out;
    /// The body, inlined into a function with the features of `L`.
    ///
    /// # Safety
    /// The features of `L` must be available, and whatever the kernel's fields promise must hold.
    unsafe fn run<L: Lanes>(self) -> Self::Out;
}

/// Runs a kernel.
///
/// # Safety
/// Whatever the kernel's fields promise must hold, and the machine must have the features of `isa`.
#[inline]
pub unsafe fn run<K: LanesKernel>(isa: Isa, kernel: K) -> K::Out {
    // SAFETY: the caller's promises.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => x86_512::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => x86::run(kernel),
            _ => kernel.run::<portable::Portable>(),
        }
    }
}

/// Runs a kernel that is only built for the implementation that [`Isa::is_wide`] names.
///
/// # Safety
/// As for [`run`], with such an implementation.
#[inline]
pub unsafe fn run_wide<K: LanesKernel>(kernel: K) -> K::Out {
    // SAFETY: the caller's promises.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        x86_512::run(kernel)
    }
    // SAFETY: as above; no implementation is wide here, so this is never called.
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        kernel.run::<portable::Portable>()
    }
}
