//! What a model keeps of a token for later attention, and the pool it is kept in.

/// Values stored for one token in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvLayout {
    /// Grouped-query attention: a key and a value for each KV head.
    Heads {
        /// KV heads.
        heads: usize,
        /// Values of a key.
        key: usize,
        /// Values of a value.
        value: usize,
    },
    /// Multi-head latent attention: one normalised latent and one rotated key shared by all heads (DeepSeek-V2,
    /// arXiv 2405.04434).
    Latent {
        /// Values of the latent.
        rank: usize,
        /// Values of the rotated key.
        rope: usize,
    },
}

impl KvLayout {
    /// Values one token takes in one layer.
    pub fn values(&self) -> usize {
        match *self {
            Self::Heads { heads, key, value } => heads * (key + value),
            Self::Latent { rank, rope } => rank + rope,
        }
    }
}

/// A pool of KV blocks: block `b` of every layer together holds the same `block_size` consecutive tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSpec {
    /// Layers of the model.
    pub layers: usize,
    /// What a token stores in each.
    pub layout: KvLayout,
    /// Tokens in a block, a power of two.
    pub block_size: usize,
    /// Blocks in the pool.
    pub blocks: usize,
}

impl KvSpec {
    /// Values the whole pool holds.
    pub fn values(&self) -> usize {
        self.layers * self.blocks * self.block_size * self.layout.values()
    }
}
