//! Products of many rows with the matrices that a router chose for them.

use super::{Book, GemvArgs, TrellisArgs, WeightType, kernel};

kernel! {
    /// Tiles of pairs that share a matrix, times it. Grid `[ceil(outputs / 64), tiles]`.
    ExpertGemm = "expert_gemm" in "experts.h" {
        /// The weights' type.
        weight: WeightType,
    }
    threads |_| 128;
    shared |_| vec![("float", 2 * 64 * 36)];
    buffers {
        words: read u32, factors: read u8, x: read f32, order: read u32, tiles: read u32, places: read u32, y: write f32
    }
    arguments GemvArgs
}

kernel! {
    /// The same with trellises.
    ExpertTrellisGemm = "expert_trellis_gemm" in "experts.h" {
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// The codebook.
        book: Book,
    }
    threads |_| 128;
    shared |_| vec![("float", 2 * 64 * 36)];
    buffers { words: read u32, x: read f32, order: read u32, tiles: read u32, places: read u32, y: write f32 }
    arguments TrellisArgs
}
