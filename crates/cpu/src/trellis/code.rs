//! Codebooks on vectors of states, and the walk over a tile's windows.

use super::lanes::Lanes;
use marlin_checkpoint::weight::Codebook;

/// The integers that a codebook's values are counted in: value = `step` * (weight - `center` + `rest`).
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// What one integer step is worth.
    pub step: f32,
    /// The whole part of the offset.
    pub center: i32,
    /// The remaining fraction of it.
    pub rest: f32,
}

/// A codebook on 32 states at a time.
pub trait Code: Copy + Send + Sync + 'static {
    /// How [`Code::weights`] counts: exact for 3INST and MCG but for the final rounding to `f16`; likewise for MUL1.
    const STEPS: Steps;
    /// How [`Code::bytes`] counts.
    const BYTE_STEPS: Steps;

    /// Values as 16-bit integers.
    ///
    /// # Safety
    /// The features of `L` must be enabled (as for all methods).
    unsafe fn weights<L: Lanes>(state: L::V) -> L::V;
    /// Values of two vectors as unsigned bytes: of the first in the lower bytes, of the second in the upper ones.
    ///
    /// # Safety
    /// As above.
    unsafe fn bytes<L: Lanes>(first: L::V, second: L::V) -> L::V;
    /// Values as `f16`, as the format defines them bit for bit.
    ///
    /// # Safety
    /// As above.
    unsafe fn values<L: Lanes>(state: L::V) -> L::V;
}

/// The low 32 bits of the product of each state with a constant, as (lower, upper) halves.
#[inline(always)]
unsafe fn product<L: Lanes>(state: L::V, by: u32) -> (L::V, L::V) {
    let (low, high) = (by as u16, (by >> 16) as u16);
    // SAFETY: the caller enabled the features; no memory is touched.
    unsafe { (L::mul_low(state, low), L::add(L::mul_high(state, low), L::mul_low(state, high))) }
}

/// [`Codebook::Mul1`].
#[derive(Clone, Copy)]
pub struct Mul1;

impl Mul1 {
    const BY: u32 = 0x83dc_d12d;
    /// `f16` 0x1eee and 0xc931.
    const K: f32 = 887.0 / 131_072.0;
    const C: f32 = -1329.0 / 128.0;
    /// Where the value is zero, in steps.
    const ZERO: f64 = 1024.0 + Mul1::C as f64 / Mul1::K as f64;
}

// SAFETY comments: the callers enabled the features; no memory is touched.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Code for Mul1 {
    const STEPS: Steps = Steps { step: Mul1::K, center: 510, rest: (Mul1::ZERO + 510.0) as f32 };
    // Two rounded averages make (sum of the bytes) / 4 + 1/2 on average.
    const BYTE_STEPS: Steps =
        Steps { step: 4.0 * Mul1::K, center: 128, rest: ((Mul1::ZERO - 2.0) / 4.0 + 128.0) as f32 };

    #[inline(always)]
    unsafe fn weights<L: Lanes>(state: L::V) -> L::V {
        unsafe {
            let (low, high) = product::<L>(state, Mul1::BY);
            L::byte_sum(low, high)
        }
    }
    #[inline(always)]
    unsafe fn bytes<L: Lanes>(first: L::V, second: L::V) -> L::V {
        unsafe {
            let ((a0, a1), (b0, b1)) = (product::<L>(first, Mul1::BY), product::<L>(second, Mul1::BY));
            let (a, b) = (L::average(a0, a1), L::average(b0, b1));
            // Each with its bytes the other way round: (upper of a, lower of b).
            L::average(L::bytes_of(a, b), L::funnel(b, a, 8))
        }
    }
    #[inline(always)]
    unsafe fn values<L: Lanes>(state: L::V) -> L::V {
        unsafe { L::affine_f16(Self::weights::<L>(state), Mul1::K, Mul1::C) }
    }
}

/// A codebook of two halves: [`Codebook::ThreeInst`] and [`Codebook::Mcg`] by multiplier and addend.
#[derive(Clone, Copy)]
pub struct Halves<const BY: u32, const PLUS: u32>;

/// [`Codebook::ThreeInst`].
pub type ThreeInst = Halves<89_226_354, 64_248_484>;
/// [`Codebook::Mcg`].
pub type Mcg = Halves<0xcbac_1fed, 0>;

impl<const BY: u32, const PLUS: u32> Halves<BY, PLUS> {
    #[inline(always)]
    unsafe fn mixed<L: Lanes>(state: L::V) -> (L::V, L::V) {
        // SAFETY: the caller enabled the features; no memory is touched.
        unsafe {
            let (low, high) = product::<L>(state, BY);
            if PLUS == 0 { (low, high) } else { L::add_wide(low, high, PLUS) }
        }
    }
}

// SAFETY comments: as above.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const BY: u32, const PLUS: u32> Code for Halves<BY, PLUS> {
    // Each half is a multiple of 2^-13 below 2, so that their exact sum fits 16 bits.
    const STEPS: Steps = Steps { step: 1.0 / 8192.0, center: 0, rest: 0.0 };
    const BYTE_STEPS: Steps = Steps { step: 1.0 / 32.0, center: 128, rest: 0.0 };

    #[inline(always)]
    unsafe fn weights<L: Lanes>(state: L::V) -> L::V {
        unsafe {
            let (low, high) = Self::mixed::<L>(state);
            L::add(L::fixed(low), L::fixed(high))
        }
    }
    #[inline(always)]
    unsafe fn bytes<L: Lanes>(first: L::V, second: L::V) -> L::V {
        unsafe {
            // To nearest (no sum comes near the largest integer), and from signed to unsigned.
            let (first, second) = (Self::weights::<L>(first), Self::weights::<L>(second));
            L::upper_bytes(L::add_const(first, 0x8080), L::add_const(second, 0x8080))
        }
    }
    #[inline(always)]
    unsafe fn values<L: Lanes>(state: L::V) -> L::V {
        unsafe {
            let (low, high) = Self::mixed::<L>(state);
            L::add_f16(L::and_xor(low, 0x8fff, 0x3b60), L::and_xor(high, 0x8fff, 0x3b60))
        }
    }
}

/// The steps of [`Code::weights`] of a codebook.
pub fn steps(codebook: Codebook) -> Steps {
    match codebook {
        Codebook::Mul1 => Mul1::STEPS,
        Codebook::Mcg => Mcg::STEPS,
        Codebook::ThreeInst => ThreeInst::STEPS,
    }
}

/// The steps of [`Code::bytes`] of a codebook.
pub fn byte_steps(codebook: Codebook) -> Steps {
    match codebook {
        Codebook::Mul1 => Mul1::BYTE_STEPS,
        Codebook::Mcg => Mcg::BYTE_STEPS,
        Codebook::ThreeInst => ThreeInst::BYTE_STEPS,
    }
}

/// The words of two neighbouring tiles, and for each lane the word before its first.
#[derive(Clone, Copy)]
pub struct Words<L: Lanes, const BITS: usize> {
    words: [L::V; BITS],
    before: L::V,
}

impl<L: Lanes, const BITS: usize> Words<L, BITS> {
    /// Loads `64 * BITS` bytes.
    ///
    /// # Safety
    /// They must be readable and the features of `L` enabled.
    #[inline(always)]
    pub unsafe fn load(p: *const u8) -> Self {
        // SAFETY: the caller's promises.
        unsafe {
            let mut words = [L::load(p); BITS];
            for (i, w) in words.iter_mut().enumerate().skip(1) {
                *w = L::load(p.add(64 * i));
            }
            Words { words, before: L::wrap(words[BITS - 1]) }
        }
    }

    /// The states of code `i` (a constant in 0..16) of every lane.
    ///
    /// # Safety
    /// The features of `L` must be enabled.
    #[inline(always)]
    pub unsafe fn states(&self, i: usize) -> L::V {
        let end = (i + 1) * BITS;
        let (word, bit) = (end / 16, end % 16);
        if bit == 0 {
            return self.words[word - 1];
        }
        let before = if word == 0 { self.before } else { self.words[word - 1] };
        // SAFETY: the features are enabled; `bit` is in 1..=15.
        unsafe { L::funnel(before, self.words[word], bit as u32) }
    }
}

/// Where code `i` of lane s of a tile stands: (input, output) = (`input` + 4 (s % 2), `output` + s / 2).
pub const fn place(i: usize) -> (usize, usize) {
    (2 * (i >> 3) + (i & 1) + 8 * (i >> 1 & 1), 8 * (i >> 2 & 1))
}

/// Calls a macro with each of 0..16: unrolled, so that shifts become immediates.
macro_rules! sixteen {
    ($m:ident) => {
        $m!(0);
        $m!(1);
        $m!(2);
        $m!(3);
        $m!(4);
        $m!(5);
        $m!(6);
        $m!(7);
        $m!(8);
        $m!(9);
        $m!(10);
        $m!(11);
        $m!(12);
        $m!(13);
        $m!(14);
        $m!(15);
    };
}
pub(super) use sixteen;

/// Evaluates an expression with a type and a constant that stand for a codebook and a number of bits:
/// `dispatch!(codebook, bits, C, BITS, run(Kernel::<C, BITS>::new()))`.
macro_rules! dispatch {
    ($codebook:expr, $bits:expr, $C:ident, $BITS:ident, $run:expr) => {{
        use $crate::trellis::code::{Mcg, Mul1, ThreeInst, dispatch};
        match $codebook {
            marlin_checkpoint::weight::Codebook::Mul1 => dispatch!(@bits Mul1, $bits, $C, $BITS, $run),
            marlin_checkpoint::weight::Codebook::Mcg => dispatch!(@bits Mcg, $bits, $C, $BITS, $run),
            marlin_checkpoint::weight::Codebook::ThreeInst => dispatch!(@bits ThreeInst, $bits, $C, $BITS, $run),
        }
    }};
    (@bits $Code:ty, $bits:expr, $C:ident, $BITS:ident, $run:expr) => {
        match $bits {
            1 => dispatch!(@one $Code, 1, $C, $BITS, $run),
            2 => dispatch!(@one $Code, 2, $C, $BITS, $run),
            3 => dispatch!(@one $Code, 3, $C, $BITS, $run),
            4 => dispatch!(@one $Code, 4, $C, $BITS, $run),
            5 => dispatch!(@one $Code, 5, $C, $BITS, $run),
            6 => dispatch!(@one $Code, 6, $C, $BITS, $run),
            7 => dispatch!(@one $Code, 7, $C, $BITS, $run),
            _ => dispatch!(@one $Code, 8, $C, $BITS, $run),
        }
    };
    (@one $Code:ty, $value:literal, $C:ident, $BITS:ident, $run:expr) => {{
        type $C = $Code;
        const $BITS: usize = $value;
        $run
    }};
}
pub(super) use dispatch;
