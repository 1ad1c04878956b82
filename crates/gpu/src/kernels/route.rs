//! Choosing experts and tokens.

use super::{arguments, kernel};

arguments! {
    /// Arguments of [`Route`].
    RouteArgs {
        /// Experts.
        experts: u32,
        /// Experts of a row, at most 32.
        top_k: u32,
        /// Groups of experts, at most 32.
        groups: u32,
        /// Groups that take part.
        top_groups: u32,
        /// Whether weights are divided by their sum.
        normalise: u32,
        /// Factor of the weights.
        scale: f32,
    }
}

kernel! {
    /// The experts of each row and their weights, by logits. Grid `[rows]`.
    Route = "route" in "route.h" {
        /// A thirty-second of the experts, rounded up.
        each: u32,
        /// Scores are sigmoids, not a softmax.
        sigmoid: bool,
        /// Whether the choice adds a bias.
        bias: bool,
        /// Whether only some groups take part.
        groups: bool,
    }
    threads |_| 32;
    shared |_| Vec::new();
    buffers { logits: read f32, biases: read f32, experts: write u32, both: write u32, weights: write f32 }
    arguments RouteArgs
}

arguments! {
    /// Arguments of [`Argmax`].
    ArgmaxArgs {
        /// Values of a row.
        cols: u32,
        /// How many of them take part.
        count: u32,
    }
}

kernel! {
    /// The place of each row's greatest value. Grid `[rows]`.
    Argmax = "argmax" in "route.h" {
        /// Simdgroups of a threadgroup.
        simds: u32,
    }
    threads |k| 32 * k.simds;
    shared |k| vec![("float", k.simds as usize), ("uint", k.simds as usize)];
    buffers { x: read f32, place: write u32 }
    arguments ArgmaxArgs
}

arguments! {
    /// Arguments of [`SortPairs`] and [`ExpertTiles`].
    SortArgs {
        /// Pairs of a row and an expert.
        pairs: u32,
        /// Matrices to choose from.
        experts: u32,
        /// Tiles there is room for.
        tiles: u32,
    }
}

kernel! {
    /// Pairs in the order of their matrices, and where each matrix's begin; `starts` has one more entry than matrices. Grid
    /// `[experts]`.
    SortPairs = "sort_pairs" in "route.h" {}
    threads |_| 32;
    shared |_| Vec::new();
    buffers { index: read u32, order: write u32, starts: write u32 }
    arguments SortArgs
}

kernel! {
    /// The tiles of 64 pairs or fewer that share a matrix: matrix, first pair, pairs; all ones where there are no more. Grid `[1]`.
    ExpertTiles = "expert_tiles" in "route.h" {}
    threads |_| 256;
    shared |_| vec![("uint", 257)];
    buffers { starts: read u32, tiles: write u32 }
    arguments SortArgs
}
