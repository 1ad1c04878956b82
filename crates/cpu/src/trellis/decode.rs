//! Decoding into panels, for products with many rows.

use super::code::{Code, Words, dispatch, place, sixteen};
use super::lanes::{self, Isa, Lanes, LanesKernel};
use super::layout::TrellisMat;
use crate::buffer::scratch;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, Simd};
use crate::{Cpu, Error, Result};
use std::marker::PhantomData;
use std::ops::Range;

/// What a panel is made of.
#[derive(Clone, Copy)]
pub enum Form {
    /// [`Code::weights`] in the order of decoding: `[tiles, 16 codes, 32 lanes]` of 16 bits.
    Words,
    /// [`Code::bytes`]: `[inputs / 4, 16 outputs, 4 inputs]` bytes for each of the two tiles of outputs.
    Bytes,
    /// `f16` bits: `[inputs, 16 outputs]` for each of the two tiles of outputs.
    Halves,
}

/// Decodes `tiles` tiles of inputs of two tiles of outputs.
#[derive(Clone, Copy)]
pub struct Decode {
    pub form: Form,
    pub words: *const u8,
    pub tiles: usize,
    /// The panels of the two tiles of outputs; the second is not used by [`Form::Words`].
    pub to: [*mut u8; 2],
    /// Bytes from vector to vector of a panel of bytes, and from input to input of one of halves.
    pub ld: usize,
}

/// [`Decode`] to one form for a codebook and a number of bits, a function of its own.
struct WordsOf<C, const BITS: usize>(Decode, PhantomData<C>);
struct BytesOf<C, const BITS: usize>(Decode, PhantomData<C>);
struct HalvesOf<C, const BITS: usize>(Decode, PhantomData<C>);

impl<C: Code, const BITS: usize> LanesKernel for WordsOf<C, BITS> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the fields' promises.
        unsafe {
            for t in 0..self.0.tiles {
                let w = Words::<L, BITS>::load(self.0.words.add(64 * BITS * t));
                let to = self.0.to[0].add(t * 1024);
                macro_rules! code {
                    ($i:literal) => {
                        L::store(to.add(64 * $i), C::weights::<L>(w.states($i)))
                    };
                }
                sixteen!(code);
            }
        }
    }
}

impl<C: Code, const BITS: usize> LanesKernel for BytesOf<C, BITS> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Decode { words, tiles, to, ld, .. } = self.0;
        // SAFETY: the fields' promises.
        unsafe {
            for t in 0..tiles {
                let w = Words::<L, BITS>::load(words.add(64 * BITS * t));
                // Codes i, i + 1 are inputs c, c + 1 of a segment and i + 8, i + 9 the next two.
                macro_rules! four {
                    ($i:literal) => {{
                        let first = C::bytes::<L>(w.states($i), w.states($i + 1));
                        let second = C::bytes::<L>(w.states($i + 8), w.states($i + 9));
                        let (input, output) = place($i);
                        let at = (4 * t + input / 4) * ld + 4 * output;
                        let (a, b) = (to[0].add(at), to[1].add(at));
                        L::store_split_zip(first, second, [a, a.add(ld), b, b.add(ld)]);
                    }};
                }
                four!(0);
                four!(2);
                four!(4);
                four!(6);
            }
        }
    }
}

impl<C: Code, const BITS: usize> LanesKernel for HalvesOf<C, BITS> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Decode { words, tiles, to, ld, .. } = self.0;
        // SAFETY: the fields' promises.
        unsafe {
            for t in 0..tiles {
                let w = Words::<L, BITS>::load(words.add(64 * BITS * t));
                macro_rules! code {
                    ($i:literal) => {{
                        let (input, output) = place($i);
                        let at = (16 * t + input) * ld + 2 * output;
                        let (a, b) = (to[0].add(at), to[1].add(at));
                        let v = C::values::<L>(w.states($i));
                        L::store_split(v, [a.cast(), a.add(4 * ld).cast(), b.cast(), b.add(4 * ld).cast()]);
                    }};
                }
                sixteen!(code);
            }
        }
    }
}

impl Decode {
    /// Runs it for the codebook and bits of a matrix.
    ///
    /// # Safety
    /// The fields' promises, and the machine has the features of `isa`.
    pub unsafe fn run(self, isa: Isa, mat: &TrellisMat) {
        let (book, bits) = (mat.codebook(), mat.bits());
        // SAFETY: the caller's promise.
        unsafe {
            match self.form {
                Form::Words => {
                    dispatch!(book, bits, C, BITS, lanes::run(isa, WordsOf::<C, BITS>(self, PhantomData)))
                }
                Form::Bytes => {
                    dispatch!(book, bits, C, BITS, lanes::run(isa, BytesOf::<C, BITS>(self, PhantomData)))
                }
                Form::Halves => {
                    dispatch!(book, bits, C, BITS, lanes::run(isa, HalvesOf::<C, BITS>(self, PhantomData)))
                }
            }
        }
    }
}

/// Bytes of weights: value = `step` * (byte - `zero`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ByteScale {
    /// What a step is worth.
    pub step: f32,
    /// The byte (and fraction) that stands for zero; near 128.
    pub zero: f32,
}

impl TrellisMat {
    /// What the bytes of [`TrellisMat::decode_panel_u8`] mean.
    pub fn byte_scale(&self) -> ByteScale {
        let steps = super::code::byte_steps(self.codebook());
        ByteScale { step: steps.step, zero: steps.center as f32 - steps.rest }
    }

    fn check_panel(&self, pair: usize, inputs: &Range<usize>, found: [usize; 2], each: usize) -> Result<()> {
        const OP: &str = "panel of a trellis";
        if pair >= self.pairs() {
            return Err(Error { op: OP, what: "pair, below the pairs of tiles", expected: self.pairs(), found: pair });
        }
        at_least(OP, "end of the inputs", inputs.start, inputs.end)?;
        at_least(OP, "columns", inputs.end, self.cols())?;
        same(OP, "first input, a multiple of 16", inputs.start / 16 * 16, inputs.start)?;
        same(OP, "inputs, a multiple of 16", inputs.len() / 16 * 16, inputs.len())?;
        found.into_iter().try_for_each(|found| at_least(OP, "elements of a panel", inputs.len() * each, found))
    }

    /// Outputs `32 pair..32 pair + 16` and the next 16, `inputs` (from and to multiples of 16), as unsigned bytes
    /// `[inputs / 4, 16 outputs, 4 inputs]`; [`TrellisMat::byte_scale`] says what they are worth.
    pub fn decode_panel_u8(&self, cpu: &Cpu, pair: usize, inputs: Range<usize>, to: [&mut [u8]; 2]) -> Result<()> {
        self.check_panel(pair, &inputs, [to[0].len(), to[1].len()], 16)?;
        let to = to.map(|to| to.as_mut_ptr());
        let words = self.words(pair, inputs.start / 16);
        let decode = Decode { form: Form::Bytes, words, tiles: inputs.len() / 16, to, ld: 64 };
        // SAFETY: the range is inside the matrix and the panels have room.
        unsafe { decode.run(Isa::of(cpu.level), self) };
        Ok(())
    }

    /// The same as `f16` bits, exactly: `[inputs, 16 outputs]`.
    pub fn decode_panel_f16(&self, cpu: &Cpu, pair: usize, inputs: Range<usize>, to: [&mut [u16]; 2]) -> Result<()> {
        self.check_panel(pair, &inputs, [to[0].len(), to[1].len()], 16)?;
        let to = to.map(|to| to.as_mut_ptr().cast());
        let words = self.words(pair, inputs.start / 16);
        let decode = Decode { form: Form::Halves, words, tiles: inputs.len() / 16, to, ld: 32 };
        // SAFETY: as above.
        unsafe { decode.run(Isa::of(cpu.level), self) };
        Ok(())
    }

    /// The same as `f32`, exactly: `[inputs, 16 outputs]`.
    pub fn decode_panel_f32(&self, cpu: &Cpu, pair: usize, inputs: Range<usize>, to: [&mut [f32]; 2]) -> Result<()> {
        self.check_panel(pair, &inputs, [to[0].len(), to[1].len()], 16)?;
        let to = to.map(|to| to.as_mut_ptr().cast());
        // SAFETY: the panels have room.
        unsafe { self.widened(cpu, pair, inputs, to, false) };
        Ok(())
    }

    /// The same rounded to `bf16`, in pairs of inputs: `[inputs / 2, 16 outputs, 2 inputs]`.
    pub fn decode_panel_bf16(&self, cpu: &Cpu, pair: usize, inputs: Range<usize>, to: [&mut [u16]; 2]) -> Result<()> {
        self.check_panel(pair, &inputs, [to[0].len(), to[1].len()], 16)?;
        let to = to.map(|to| to.as_mut_ptr().cast());
        // SAFETY: the panels have room.
        unsafe { self.widened(cpu, pair, inputs, to, true) };
        Ok(())
    }

    unsafe fn widened(&self, cpu: &Cpu, pair: usize, inputs: Range<usize>, to: [*mut u8; 2], bf16: bool) {
        let (k, words) = (inputs.len(), self.words(pair, inputs.start / 16));
        scratch(k * 64, |side| {
            // SAFETY: the caller has checked the range and the room; the scratch holds both panels.
            unsafe {
                let halves = [side, side.add(k * 32)];
                Decode { form: Form::Halves, words, tiles: k / 16, to: halves, ld: 32 }.run(Isa::of(cpu.level), self);
                for (from, to) in halves.into_iter().zip(to) {
                    simd::run(cpu.level, Widen { from, to, k, bf16 });
                }
            }
        });
    }
}

/// A panel of halves to `f32`, or to pairs of `bf16`.
struct Widen {
    from: *const u8,
    to: *mut u8,
    k: usize,
    bf16: bool,
}

impl Kernel for Widen {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: k rows of sixteen on both sides; k is even.
        unsafe {
            if !self.bf16 {
                for i in 0..self.k {
                    S::store(self.to.add(64 * i).cast(), S::load_f16(self.from.add(32 * i)));
                }
                return;
            }
            for i in (0..self.k).step_by(2) {
                let mut rows = [[0u8; 32]; 2];
                for (j, row) in rows.iter_mut().enumerate() {
                    S::store_bf16(row.as_mut_ptr(), S::load_f16(self.from.add(32 * (i + j))));
                }
                S::zip(rows[0].as_ptr(), rows[1].as_ptr(), self.to.add(32 * i));
            }
        }
    }
}
