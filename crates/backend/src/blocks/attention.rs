//! Grouped-query attention and multi-head latent attention.

use super::{Norm, linear, linears};
use crate::{Backend, Pass, Result};
use marlin_checkpoint::LatentProjection;
use std::sync::Arc;

/// Grouped-query attention (arXiv 2305.13245), with the head norms of Qwen3 where a model has them.
pub struct Attention<B: Backend> {
    /// `input_layernorm`
    pub norm: Norm<B>,
    /// `[heads * head_dim, hidden]`
    pub q_proj: B::Linear,
    /// `[kv_heads * head_dim, hidden]`
    pub k_proj: B::Linear,
    /// `[kv_heads * head_dim, hidden]`
    pub v_proj: B::Linear,
    /// `[hidden, heads * head_dim]`
    pub o_proj: B::Linear,
    /// Norm of each query head.
    pub q_norm: Option<Norm<B>>,
    /// Norm of each key head.
    pub k_norm: Option<Norm<B>>,
    /// Rotation of queries and keys.
    pub rope: Arc<B::Rope>,
    /// Query heads.
    pub heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Factor of the scores.
    pub scale: f32,
}

/// Norm, q/k/v, head norms, rotation, KV append: the queries `[n, heads * head_dim]` of hidden states `[n, hidden]`.
pub fn attention_input<B: Backend>(b: &B, w: &Attention<B>, h: &B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
    let x = w.norm.apply(b, h)?;
    let [mut q, mut k, v] = linears(b, [&w.q_proj, &w.k_proj, &w.v_proj], &x, pass)?;
    if let Some(norm) = &w.q_norm {
        q = norm.apply(b, &q)?;
    }
    if let Some(norm) = &w.k_norm {
        k = norm.apply(b, &k)?;
    }
    let q = b.rope(q, &w.rope, w.head_dim, 0, pass.batch)?;
    let k = b.rope(k, &w.rope, w.head_dim, 0, pass.batch)?;
    b.append(pass.kv, pass.layer, &k, &v, pass.batch)?;
    Ok(q)
}

/// Attention of the queries, output projection, and the residual `h`.
pub fn attention_output<B: Backend>(
    b: &B,
    w: &Attention<B>,
    q: &B::Tensor,
    h: B::Tensor,
    pass: &Pass<B>,
) -> Result<B::Tensor> {
    let o = b.attention(q, pass.kv, pass.layer, w.heads, w.scale, pass.batch)?;
    b.add(h, &linear(b, &w.o_proj, &o, pass)?)
}

/// Multi-head latent attention (arXiv 2405.04434, section 2.1).
pub struct LatentAttention<B: Backend> {
    /// `input_layernorm`
    pub norm: Norm<B>,
    /// `[q_lora_rank, hidden]`
    pub q_a_proj: B::Linear,
    /// Norm of the query latent.
    pub q_a_layernorm: Norm<B>,
    /// `[heads * (nope + rope), q_lora_rank]`
    pub q_b_proj: B::Linear,
    /// `[rank + rope, hidden]`
    pub kv_a_proj_with_mqa: B::Linear,
    /// Norm of the latent's first `rank` values.
    pub kv_a_layernorm: Norm<B>,
    /// From the latent to keys and values.
    pub kv_b_proj: LatentProjection<B::Linear>,
    /// `[hidden, heads * value]`
    pub o_proj: B::Linear,
    /// Rotation of the last values of query heads, and of the shared key.
    pub rope: Arc<B::Rope>,
    /// Query heads.
    pub heads: usize,
    /// Values of a query head that are not rotated.
    pub nope: usize,
    /// Values of a query head, and of the shared key, that are rotated.
    pub rope_dim: usize,
    /// Values of the latent.
    pub rank: usize,
    /// Factor of the scores, `(nope + rope)^-1/2`.
    pub scale: f32,
}

/// Norm, query and latent projections, rotation, append to the latent KV memory: the queries
/// `[n, heads * (nope + rope)]` of hidden states `[n, hidden]`.
pub fn latent_input<B: Backend>(b: &B, w: &LatentAttention<B>, h: &B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
    let x = w.norm.apply(b, h)?;
    let [q_a, kv_a] = linears(b, [&w.q_a_proj, &w.kv_a_proj_with_mqa], &x, pass)?;
    let latent = w.kv_a_layernorm.apply(b, &b.columns(&kv_a, 0, w.rank)?)?;
    if pass.observer.is_some() {
        // Attention uses this matrix in pieces; the observer is shown what is applied to the latent as it is.
        match &w.kv_b_proj {
            LatentProjection::Whole(w) | LatentProjection::Split { v: w, .. } => linear(b, w, &latent, pass)?,
        };
    }
    let key = b.columns(&kv_a, w.rank, w.rank + w.rope_dim)?;
    let key = b.rope(key, &w.rope, w.rope_dim, 0, pass.batch)?;
    b.append_latent(pass.kv, pass.layer, &latent, &key, pass.batch)?;
    let q = linear(b, &w.q_b_proj, &w.q_a_layernorm.apply(b, &q_a)?, pass)?;
    b.rope(q, &w.rope, w.nope + w.rope_dim, w.nope, pass.batch)
}

/// Latent attention of the queries, output projection, and the residual `h`.
pub fn latent_output<B: Backend>(
    b: &B,
    w: &LatentAttention<B>,
    q: &B::Tensor,
    h: B::Tensor,
    pass: &Pass<B>,
) -> Result<B::Tensor> {
    let o = b.latent_attention(
        q,
        w.kv_b_proj.as_ref(),
        pass.kv,
        pass.layer,
        w.heads,
        w.scale,
        pass.latent_form,
        pass.batch,
    )?;
    b.add(h, &linear(b, &w.o_proj, &o, pass)?)
}
