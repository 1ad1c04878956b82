//! Attention.

use super::{Element, arguments, kernel};

arguments! {
    /// Arguments of [`Attention`].
    AttentionArgs {
        /// Query heads.
        heads: u32,
        /// Query heads that share a KV head.
        share: u32,
        /// Values of a key.
        key: u32,
        /// Values of a value.
        value: u32,
        /// Values of a token in the pool.
        stride: u32,
        /// Where a token's values begin.
        value_base: u32,
        /// Tokens of a block.
        block: u32,
        /// Where the layer begins in the pool, in values.
        base: u32,
        /// Factor of the scores.
        scale: f32,
    }
}

kernel! {
    /// Causal attention over a paged pool. `rows` has, for each row, where its sequence's blocks begin in `blocks`, and its
    /// position. Grid `[heads, rows]`.
    Attention = "attention" in "attention.h" {
        /// What the pool holds.
        element: Element,
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// A thirty-second of a key's values, rounded up.
        keys: u32,
        /// A thirty-second of a value's values, rounded up.
        values: u32,
    }
    threads |k| 32 * k.simds;
    shared |k| vec![("float", (32 * k.simds * k.values) as usize), ("float", 2 * k.simds as usize)];
    buffers { q: read f32, pool: read u8, rows: read u32, blocks: read u32, y: write f32 }
    arguments AttentionArgs
}

arguments! {
    /// Arguments of [`LatentProject`].
    LatentArgs {
        /// Query heads.
        heads: u32,
        /// Rows of the projection that a head has.
        each: u32,
        /// The first of them used here.
        first: u32,
        /// How many are used.
        inner: u32,
        /// Values of the latent.
        rank: u32,
        /// Values of a head of x.
        x_head: u32,
        /// Values of a head of y.
        y_head: u32,
    }
}

kernel! {
    /// Queries into the latent space (`transposed`; grid `[ceil(y_head / 256), heads, rows]`), or what attention found there out
    /// of it (grid `[ceil(inner / 8), heads, rows]`).
    LatentProject = "latent_project" in "attention.h" {
        /// What the projection holds.
        element: Element,
        /// Into the latent space.
        transposed: bool,
    }
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: read f32, w: read u8, y: write f32 }
    arguments LatentArgs
}
