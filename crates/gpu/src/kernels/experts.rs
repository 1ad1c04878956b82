//! Products of many rows with the matrices that a router chose for them.

use super::{Book, GemvArgs, TrellisArgs, WeightType, arguments, kernel};

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

/// Pairs that share a matrix in a tile at most.
pub const TILE_PAIRS: usize = 64;

arguments! {
    /// Arguments of [`PairHalves`].
    PairArgs {
        /// Values of a row of x, a multiple of 4.
        features: u32,
        /// Inputs of a matrix, with its padding.
        width: u32,
        /// Pairs that one row of x has.
        share: u32,
        /// What products are multiplied with besides.
        factor: f32,
    }
}

kernel! {
    /// Inputs of pairs in the order of their matrices, as halves, `ceil(width / 128) * 64` words each, and what products with them are to be
    /// multiplied with. Grid `[pairs]`.
    PairHalves = "pair_halves" in "expert_mma.h" {
        /// Size of the rotation: 1 or 128.
        block: u32,
        /// Whether they are scaled.
        scale: bool,
        /// Whether a pair's input is a gate's row and, after its SiLU, what that is for.
        gated: bool,
        /// Whether of eight blocks of 16 those of even number come first.
        spread: bool,
    }
    threads |_| 256;
    shared |_| vec![("float", 8)];
    buffers { x: read f32, scales: read f32, index: read u32, order: read u32, y: write u32, factors: write f32 }
    arguments PairArgs
}

arguments! {
    /// Arguments of [`ExpertTrellisMma`].
    ExpertTrellisArgs {
        /// One of the trellises.
        t: TrellisArgs,
        /// Values of a row of y.
        outputs: u32,
    }
}

/// Words of threadgroup memory of [`ExpertTrellisMma`] and [`ExpertRowsMma`].
const MMA_SHARED: usize = 2 * TILE_PAIRS * 68;

kernel! {
    /// Tiles of pairs that share a trellis, times it, by tensor cores, with what stands behind it. Grid `[ceil(outputs / 256), tiles]`.
    ExpertTrellisMma = "expert_trellis_mma" in "expert_mma.h" {
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// The codebook.
        book: Book,
        /// Size of the outputs' rotation: 1 or 128.
        block: u32,
        /// Whether outputs are scaled.
        scale: bool,
    }
    threads |_| 256;
    shared |_| vec![("uint", MMA_SHARED)];
    buffers {
        words: read u32, x: read u32, row_factors: read f32, order: read u32, tiles: read u32, places: read u32,
        scale_out: read f32, y: write f32
    }
    arguments ExpertTrellisArgs
}

kernel! {
    /// The same with matrices whose rows are stored one after another.
    ExpertRowsMma = "expert_rows_mma" in "expert_mma.h" {
        /// The weights' type.
        weight: WeightType,
    }
    threads |_| 256;
    shared |_| vec![("uint", MMA_SHARED)];
    buffers {
        words: read u32, factors: read u8, x: read u32, row_factors: read f32, order: read u32, tiles: read u32,
        places: read u32, y: write f32
    }
    arguments GemvArgs
}
