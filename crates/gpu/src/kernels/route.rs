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
    buffers { logits: read f32, biases: read f32, experts: write u32, weights: write f32 }
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
