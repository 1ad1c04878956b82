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
        /// Elements of a token in the pool.
        stride: u32,
        /// Where a token's values begin.
        value_base: u32,
        /// Where a token's scales begin, in bytes.
        scales: u32,
        /// Tokens of a block.
        block: u32,
        /// Parts of the context.
        splits: u32,
        /// Factor of the scores.
        scale: f32,
    }
}

kernel! {
    /// Causal attention over a paged pool. `rows` has, for each row, where its sequence's blocks begin in `blocks`, and its
    /// position. Grid `[KV heads * ceil(share / heads), splits, rows]`.
    Attention = "attention" in "attention.h" {
        /// What the pool holds.
        element: Element,
        /// Values that a lane loads at once: 8, or 1 where sizes are no multiples of 8.
        width: u32,
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// Lanes that share a position, a power of two.
        lanes: u32,
        /// Query heads of a threadgroup.
        heads: u32,
        /// Loads of a lane for a key: the key's values over `lanes * width`, rounded up.
        keys: u32,
        /// Loads of a lane for a value.
        values: u32,
        /// Values are a part of the keys.
        latent: bool,
        /// The context is split; [`AttentionJoin`] joins.
        split: bool,
    }
    threads |k| 32 * k.simds;
    shared |k| {
        let line = k.lanes * k.values * k.width;
        vec![("float", (k.simds * k.heads * line) as usize), ("float", (2 * k.simds * k.heads) as usize)]
    };
    buffers { q: read f32, pool: read u8, rows: read u32, blocks: read u32, y: write f32, state: write f32 }
    arguments AttentionArgs
}

arguments! {
    /// Arguments of [`AttentionJoin`].
    JoinArgs {
        /// Parts of the context.
        splits: u32,
        /// Values of a head.
        value: u32,
    }
}

kernel! {
    /// Joins the parts, at most 128, that [`Attention`] made with `split`. Grid `[rows * heads, ceil(value / 128)]`.
    AttentionJoin = "attention_join" in "attention.h" {}
    threads |_| 128;
    shared |_| vec![("float", 128)];
    buffers { part: read f32, state: read f32, y: write f32 }
    arguments JoinArgs
}

arguments! {
    /// Arguments of [`LatentIn`] and [`LatentOut`].
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
        /// Pairs that turn.
        pairs: u32,
    }
}

kernel! {
    /// Queries into the latent space, what remains of them behind, turned. Grid `[ceil(y_head / 64), heads, rows]`.
    LatentIn = "latent_in" in "latent.h" {
        /// What the projection holds.
        element: Element,
        /// How pairs turn.
        rope: Turn,
    }
    threads |_| 256;
    shared |_| vec![("float", 8 * 64)];
    buffers { x: read f32, w: read u8, positions: read u32, table: read f32, y: write f32 }
    arguments LatentArgs
}

kernel! {
    /// What attention found out of the latent space. Grid `[ceil(inner / 32), heads, rows]`.
    LatentOut = "latent_out" in "latent.h" {
        /// What the projection holds.
        element: Element,
        /// Values that a lane loads at once: 8, or 1 where the rank is no multiple of 8.
        width: u32,
    }
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: read f32, w: read u8, y: write f32 }
    arguments LatentArgs
}

/// How pairs of values turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Turn {
    /// They do not.
    No,
    /// Value `i` with value `i + pairs`.
    Halves,
    /// Value `2 i` with value `2 i + 1`.
    Neighbours,
}

impl super::Template for Turn {
    fn cxx(&self) -> String {
        (*self as u32).to_string()
    }
    fn tag(&self) -> String {
        self.cxx()
    }
}

arguments! {
    /// Arguments of [`PlaceHeads`].
    PlaceArgs {
        /// Query heads.
        heads: u32,
        /// KV heads.
        kv_heads: u32,
        /// Values of a key.
        key: u32,
        /// Values of a value.
        value: u32,
        /// Values from one row of k to the next.
        k_stride: u32,
        /// Values from one row of v to the next.
        v_stride: u32,
        /// Pairs that turn.
        pairs: u32,
        /// Elements of a token in the pool.
        stride: u32,
        /// Where a token's scales begin, in bytes.
        scales: u32,
        /// Added to the mean square of queries.
        q_eps: f32,
        /// Added to the mean square of keys.
        k_eps: f32,
    }
}

kernel! {
    /// Norms and rotation of queries (in place) and keys, and keys and values to the pool. Grid `[heads + 2 * kv_heads, rows]`.
    PlaceHeads = "place_heads" in "rope.h" {
        /// What the pool holds.
        element: Element,
        /// A thirty-second of the greatest head, rounded up.
        each: u32,
        /// Queries are normalised.
        q_norm: bool,
        /// Keys are normalised.
        k_norm: bool,
        /// How pairs turn.
        rope: Turn,
        /// The one key is a latent, and the value the rotated key that belongs to it.
        latent: bool,
    }
    threads |_| 32;
    shared |k| vec![("float", 32 * k.each as usize)];
    buffers {
        q: write f32, k: read f32, v: read f32, q_weight: read f32, k_weight: read f32, positions: read u32, table: read f32,
        slots: read u32, pool: write u8
    }
    arguments PlaceArgs
}

arguments! {
    /// Arguments of [`PlaceLatent`].
    PlaceLatentArgs {
        /// Values of the latent.
        rank: u32,
        /// Pairs of the rotated key.
        pairs: u32,
        /// Elements of a token in the pool.
        stride: u32,
        /// Where a token's scales begin, in bytes.
        scales: u32,
        /// Added to the mean square.
        eps: f32,
    }
}

kernel! {
    /// Norm of latents, rotation of keys, both to the pool. Grid `[rows]`.
    PlaceLatent = "place_latent" in "rope.h" {
        /// What the pool holds.
        element: Element,
        /// A 256th of latent and key together, rounded up.
        each: u32,
        /// How pairs turn.
        rope: Turn,
    }
    threads |_| 256;
    shared |k| vec![("float", 8 + 16 * k.each as usize)];
    buffers { x: read f32, weight: read f32, positions: read u32, table: read f32, slots: read u32, pool: write u8 }
    arguments PlaceLatentArgs
}
