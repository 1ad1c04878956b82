//! EXL3: each weight is a 16-bit window into a bit stream, looked up in a computed codebook.
//!
//! Stored as tiles of 16 inputs x 16 outputs, each a circular stream of 256 codes of `bits` bits. In memory exactly as on
//! disk (`[cols / 16, rows / 16, 16 * bits]` little-endian u16), so the mapping is used without a copy. The rotations that
//! belong to the format are [`InputTransform`](super::InputTransform) and [`OutputTransform`](super::OutputTransform).

use half::f16;

use crate::{Bytes, DType, Error, Result, Tensor};

/// Inputs, and outputs, of a tile.
pub const TILE: usize = 16;

/// The function from 16-bit states to values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codebook {
    /// Sum of two halves of a linear congruence; the oldest.
    ThreeInst,
    /// The same with another multiplier and no constant.
    Mcg,
    /// Sum of the four bytes of a product.
    Mul1,
}

impl Codebook {
    /// The value of `state`; the arithmetic is f16's, each step rounded once.
    pub fn value(self, state: u16) -> f16 {
        let s = u32::from(state);
        let halves = |x: u32| {
            let y = (x & 0x8fff_8fff) ^ 0x3b60_3b60;
            // The f32 sum of two f16 has enough bits for rounding it to f16 to be the correctly rounded sum.
            f16::from_f32(f16::from_bits(y as u16).to_f32() + f16::from_bits((y >> 16) as u16).to_f32())
        };
        match self {
            Self::ThreeInst => halves(s.wrapping_mul(89_226_354).wrapping_add(64_248_484)),
            Self::Mcg => halves(s.wrapping_mul(0xcbac_1fed)),
            Self::Mul1 => {
                let sum: u16 = s.wrapping_mul(0x83dc_d12d).to_le_bytes().into_iter().map(u16::from).sum();
                let h = f16::from_bits(0x6400 + sum).to_f32();
                let (k, c) = (f16::from_bits(0x1eee).to_f32(), f16::from_bits(0xc931).to_f32());
                // Product and sum are exact in f32 (22 and 20 bits), so this is one rounding, as the fused f16 operation has.
                f16::from_f32(h * k + c)
            }
        }
    }
}

/// A matrix of trellis codes.
#[derive(Clone, Debug)]
pub struct Trellis {
    rows: usize,
    cols: usize,
    bits: usize,
    codebook: Codebook,
    words: Bytes,
}

impl Trellis {
    /// From a stored `trellis` tensor: I16 (or U16) `[inputs / 16, outputs / 16, 16 * bits]`.
    pub fn new(tensor: Tensor, codebook: Codebook) -> Result<Self> {
        let Tensor { info, data } = tensor;
        if !matches!(info.dtype, DType::I16 | DType::U16) {
            return Err(Error::DType { name: info.name, expected: "I16 or U16", found: info.dtype });
        }
        let refuse = |why: String| Err(Error::invalid(format!("tensor {:?}", info.name), why));
        let &[down, across, words] = info.shape.as_slice() else {
            return refuse(format!("expected [inputs / 16, outputs / 16, 16 x bits], found {:?}", info.shape));
        };
        if words % TILE != 0 || !(1..=8).contains(&(words / TILE)) {
            return refuse(format!("expected 16 to 128 words for each tile, a multiple of 16, found {words}"));
        }
        if data.len() != info.bytes() {
            return refuse(format!("expected {} bytes, found {}", info.bytes(), data.len()));
        }
        Ok(Self { rows: across * TILE, cols: down * TILE, bits: words / TILE, codebook, words: data })
    }

    /// Output features, padding included.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features, padding included.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bits of a code, 1 to 8.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// The codebook.
    pub fn codebook(&self) -> Codebook {
        self.codebook
    }

    /// All tiles: for each 16 inputs, for each 16 outputs, `32 * bits` bytes.
    pub fn words(&self) -> &Bytes {
        &self.words
    }

    /// The bytes of the tile of inputs `16 * down..` and outputs `16 * across..`.
    pub fn tile(&self, down: usize, across: usize) -> &[u8] {
        let size = 2 * TILE * self.bits;
        &self.words[(down * (self.rows / TILE) + across) * size..][..size]
    }

    pub(super) fn dequantize_row(&self, row: usize, out: &mut [f32]) {
        for (down, out) in out.chunks_exact_mut(TILE).enumerate() {
            let tile = self.tile(down, row / TILE);
            for (input, out) in out.iter_mut().enumerate() {
                *out = self.codebook.value(state(tile, self.bits, position(input, row % TILE))).to_f32();
            }
        }
    }
}

/// The window of code `t` (0..256) of a tile: the 16 bits of its stream that end with the code's own, circularly.
pub fn state(tile: &[u8], bits: usize, t: usize) -> u16 {
    // The stream is the u32 words, most significant bit first.
    let word = |i: usize| {
        let at = 4 * (i % (8 * bits));
        u64::from(u32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]))
    };
    let begin = t * bits + bits + 256 * bits - 16;
    let end = begin + 16;
    let (first, last) = (begin / 32, (end - 1) / 32);
    ((word(first) << 32 | word(last)) >> ((last + 1) * 32 - end)) as u16
}

/// Where in the stream the code of `(input, output)` of a tile stands: the order of a tensor core's operand.
pub fn position(input: usize, output: usize) -> usize {
    let lane = (output & 7) << 2 | (input & 7) >> 1;
    8 * lane + 4 * (output >> 3) + 2 * (input >> 3) + (input & 1)
}
