//! Attention of many rows on tensor cores.

use super::{Element, Turn, arguments, kernel};

arguments! {
    /// Arguments of [`ContextHalves`].
    ContextArgs {
        /// KV heads.
        kv_heads: u32,
        /// Values of a key in the pool.
        key: u32,
        /// Values of a value.
        value: u32,
        /// Halves of a key, a multiple of 8.
        wide_key: u32,
        /// Halves of a value, a multiple of 8.
        wide_value: u32,
        /// Elements of a token in the pool.
        stride: u32,
        /// Where a token's values begin.
        value_base: u32,
        /// Where a token's scales begin, in bytes.
        scales: u32,
        /// Tokens of a block.
        block: u32,
        /// Positions of all sequences.
        positions: u32,
        /// Sequences.
        spans: u32,
    }
}

kernel! {
    /// What sequences have of the pool as halves: `keys` `[kv_heads, positions, wide_key]`, `values` likewise. `spans` has for each
    /// sequence its first row, its rows, its first row's position, and the first of its positions. Grid `[positions]`.
    ContextHalves = "context_halves" in "attention_tiles.h" {
        /// What the pool holds.
        element: Element,
        /// Values loaded at once: 8, or 1 where sizes are no multiples of 8.
        width: u32,
        /// Only the latents are wanted.
        latent: bool,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { pool: read u8, rows: read u32, blocks: read u32, spans: read u32, keys: write u32, values: write u32 }
    arguments ContextArgs
}

arguments! {
    /// Arguments of [`ExpandedHalves`].
    ExpandedArgs {
        /// As for heads: `key` with the rotated values.
        c: ContextArgs,
        /// The first position.
        first: u32,
        /// Values of a latent.
        rank: u32,
        /// Values of the rotated key.
        rope: u32,
    }
}

kernel! {
    /// Keys and values of all heads as halves, from what a projection made of latents, `x` `[positions, heads * (nope + value)]`, and the
    /// rotated keys in the pool. Grid `[positions]`.
    ExpandedHalves = "expanded_halves" in "attention_tiles.h" {
        /// What the pool holds.
        element: Element,
        /// Values loaded at once: 8, or 1 where sizes are no multiples of 8.
        width: u32,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers {
        x: read f32, pool: read u8, rows: read u32, blocks: read u32, spans: read u32, keys: write u32, values: write u32
    }
    arguments ExpandedArgs
}

arguments! {
    /// Arguments of [`AttentionTiles`].
    TilesArgs {
        /// KV heads.
        kv_heads: u32,
        /// Query heads that share a KV head.
        share: u32,
        /// Query heads.
        heads: u32,
        /// Values of a query.
        key: u32,
        /// Values of a value.
        value: u32,
        /// Positions of all sequences.
        positions: u32,
        /// Tiles of all sequences.
        tiles: u32,
        /// Pairs of a query that turn.
        pairs: u32,
        /// Factor of the scores, times the logarithm of e to base 2.
        scale: f32,
    }
}

kernel! {
    /// Causal attention of the sequences' rows over keys and values of [`ContextHalves`] or [`ExpandedHalves`]. A tile is
    /// `16 * simds / share` rows of a sequence. Grid `[KV heads * tiles]`.
    AttentionTiles = "attention_tiles" in "attention_tiles.h" {
        /// Halves of a key: 64, 128, 192 or 256.
        key: u32,
        /// Halves of a value, likewise.
        value: u32,
        /// Positions at a time.
        tile: u32,
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// How queries turn.
        rope: Turn,
    }
    threads |k| 32 * k.simds;
    shared |k| vec![("uint", (3 * k.tile * k.key.max(k.value) / 2) as usize)];
    buffers {
        q: read f32, keys: read u32, values: read u32, spans: read u32, positions: read u32, table: read f32, y: write f32
    }
    arguments TilesArgs
}

impl AttentionTiles {
    /// Vectors of queries of a threadgroup.
    pub fn vectors(&self) -> usize {
        16 * self.simds as usize
    }

    /// The kernel for heads of these sizes, if there is one.
    pub fn of(key: usize, value: usize, rope: Turn) -> Option<Self> {
        let [key, value] = [key, value].map(|n| n.next_multiple_of(64) as u32);
        let most = key.max(value);
        (key > 0 && value > 0 && most <= 256).then_some(Self {
            key,
            value,
            tile: if most <= 128 { 64 } else { 32 },
            simds: 4,
            rope,
        })
    }
}
