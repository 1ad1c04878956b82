//! Products of activations and weights.

use super::{Template, WeightArgs, WeightType, arguments, kernel};
use marlin_checkpoint::weight::Codebook;

kernel! {
    /// Rows of a weight as floats: embedding. Grid `[ceil(cols / (128 * chunk)), rows of y]`.
    DecodeRows = "decode_rows" in "weights.h" {
        /// The weight's type.
        weight: WeightType,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { words: read u32, factors: read u8, index: read u32, y: write f32 }
    arguments WeightArgs
}

arguments! {
    /// Arguments of [`Gemv`] and [`Gemm`].
    GemvArgs {
        /// The weight; of experts, one of them.
        w: WeightArgs,
        /// Rows of x.
        batch: u32,
        /// Rows of y made of one row of x, with experts.
        share: u32,
        /// Words of an expert's codes.
        stack_words: u32,
        /// Bytes of an expert's factors.
        stack_factors: u32,
    }
}

kernel! {
    /// A few rows times a weight. Grid `[ceil(outputs / (r * simds)), ceil(batch / m)]`.
    Gemv = "gemv" in "gemv.h" {
        /// The weight's type.
        weight: WeightType,
        /// Rows of x at a time, up to 6.
        m: u32,
        /// Outputs of a simdgroup.
        r: u32,
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// Whether a bias is added.
        bias: bool,
        /// Whether each row has an expert of its own.
        experts: bool,
    }
    threads |k| 32 * k.simds;
    shared |k| {
        let chunk = k.weight.chunk() as usize;
        let (steps, pad) = (if chunk == 32 { 1 } else { 4 }, if chunk == 4 { 0 } else { 4 });
        vec![("float", k.m as usize * (chunk + pad) * 32 * steps)]
    };
    buffers { words: read u32, factors: read u8, biases: read f32, x: read f32, index: read u32, places: read u32, y: write f32 }
    arguments GemvArgs
}

kernel! {
    /// Many rows times a weight. Grid `[ceil(outputs / 64), ceil(batch / 64)]`.
    Gemm = "gemm" in "gemm.h" {
        /// The weight's type.
        weight: WeightType,
        /// Whether a bias is added.
        bias: bool,
    }
    threads |_| 128;
    shared |_| vec![("float", 2 * 64 * 36)];
    buffers { words: read u32, factors: read u8, biases: read f32, x: read f32, y: write f32 }
    arguments GemvArgs
}

arguments! {
    /// Arguments of [`TrellisGemv`] and [`TrellisGemm`].
    TrellisArgs {
        /// Outputs, a multiple of 16.
        rows: u32,
        /// Inputs, a multiple of 16.
        cols: u32,
        /// Rows of x.
        batch: u32,
        /// Rows of y made of one row of x, with experts.
        share: u32,
        /// Words of an expert.
        stack_words: u32,
    }
}

/// A trellis's codebook as a template argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Book(pub Codebook);

impl Template for Book {
    fn cxx(&self) -> String {
        match self.0 {
            Codebook::ThreeInst => "THREE_INST",
            Codebook::Mcg => "MCG",
            Codebook::Mul1 => "MUL1",
        }
        .into()
    }
    fn tag(&self) -> String {
        self.cxx().to_lowercase()
    }
}

kernel! {
    /// A few rows times a trellis. Grid `[ceil(outputs / (16 * tiles)), ceil(batch / m)]`.
    TrellisGemv = "trellis_gemv" in "trellis.h" {
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// The codebook.
        book: Book,
        /// Rows of x at a time.
        m: u32,
        /// Tiles across of a threadgroup.
        tiles: u32,
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// Whether each row has an expert of its own.
        experts: bool,
    }
    threads |k| 32 * k.simds;
    shared |k| vec![("float", (k.simds * k.tiles * k.m * 16) as usize)];
    buffers { words: read u32, x: read f32, index: read u32, places: read u32, y: write f32 }
    arguments TrellisArgs
}

kernel! {
    /// Many rows times a trellis. Grid `[ceil(outputs / 64), ceil(batch / 64)]`.
    TrellisGemm = "trellis_gemm" in "gemm.h" {
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// The codebook.
        book: Book,
    }
    threads |_| 128;
    shared |_| vec![("float", 2 * 64 * 36)];
    buffers { words: read u32, x: read f32, y: write f32 }
    arguments TrellisArgs
}

kernel! {
    /// The same as [`Gemv`] and [`Gemm`], plainly. Grid `[ceil(outputs / 128), batch]`.
    SimpleLinear = "simple_linear" in "simple.h" {
        /// The weight's type.
        weight: WeightType,
        /// Whether a bias is added.
        bias: bool,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { words: read u32, factors: read u8, biases: read f32, x: read f32, y: write f32 }
    arguments GemvArgs
}

kernel! {
    /// The same as [`TrellisGemv`] and [`TrellisGemm`], plainly. Grid `[ceil(outputs / 128), batch]`.
    SimpleTrellis = "simple_trellis" in "simple.h" {
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// The codebook.
        book: Book,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { words: read u32, x: read f32, y: write f32 }
    arguments TrellisArgs
}
