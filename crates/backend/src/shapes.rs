//! The sizes that a model's blocks have, apart from its weights: what a backend that trusts nobody checks its kernels with.

use crate::blocks::RouterRule;

/// One of each kind of block that a model has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shapes {
    /// Values of a hidden state.
    pub hidden: usize,
    /// Grouped-query attention.
    pub grouped: Vec<GroupedShape>,
    /// Latent attention.
    pub latent: Vec<LatentShape>,
    /// Routers.
    pub routers: Vec<RouterShape>,
}

/// Sizes of grouped-query attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupedShape {
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Whether queries are normalised.
    pub q_norm: bool,
    /// Whether keys are.
    pub k_norm: bool,
}

/// Sizes of latent attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentShape {
    /// Query heads.
    pub heads: usize,
    /// Values of a head's query that do not turn.
    pub nope: usize,
    /// Values that do.
    pub rope: usize,
    /// Values of a head's value.
    pub value: usize,
    /// Values of a latent.
    pub rank: usize,
}

/// Sizes of a router, and its rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterShape {
    /// Experts.
    pub experts: usize,
    /// Whether scores have a bias.
    pub bias: bool,
    /// How it chooses.
    pub rule: RouterRule,
}
