//! Causal attention: over paged keys and values, over a paged latent cache, and over materialised keys and values.
//!
//! All of them take a ragged batch - [`Span`]s of consecutive rows, one for each sequence - and give a row the same
//! bits whether it is part of a prefill, a chunk of one, or decoded alone. Softmax is in `f32`. The batch's own keys
//! and values must have been appended before.

mod core;
mod expanded;
mod latent;
mod paged;
#[cfg(target_arch = "x86_64")]
mod row_tiles;
mod rows;
mod run;
mod stored;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;

pub use expanded::{Expanded, expanded_attention};
pub use latent::{LatentShape, append_latent, latent_attention, read_latent};
pub use paged::KvShape;
pub use run::Span;
pub use stored::Stored;

use crate::buffer::Shared;
use crate::mat::{Error, Result, at_least, same};
use crate::{Cpu, DType, Mode};
use half::{bf16, f16};
use paged::PagedSource;
use run::{Kind, Part, Problem};
use stored::SCALE;

/// A sequence of a step: its rows, and the blocks that hold its positions from 0 on.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Its rows in the batch.
    pub span: Span,
    /// Block numbers; position `p` is in block `table[p / block]`.
    pub table: &'a [u32],
}

/// Checks that the spans are inside the batch and the tables name enough blocks of the pool.
fn check(op: &'static str, seqs: &[Sequence<'_>], rows: usize, block: usize, blocks: usize) -> Result<()> {
    for s in seqs {
        let Span { row, rows: count, start } = s.span;
        at_least(op, "rows of the batch", row.saturating_add(count), rows)?;
        let used = start.saturating_add(count).div_ceil(block);
        at_least(op, "blocks of a sequence's table", used, s.table.len())?;
        if let Some(&bad) = s.table[..used].iter().find(|&&b| b as usize >= blocks) {
            return Err(Error { op, what: "block, below those of the pool", expected: blocks, found: bad as usize });
        }
    }
    Ok(())
}

/// The rows that `values` hold: `width` values, `ld` apart.
fn rows_in(op: &'static str, what: &'static str, values: usize, width: usize, ld: usize) -> Result<usize> {
    at_least(op, what, width, ld)?;
    Ok(if values < width || ld == 0 { 0 } else { (values - width) / ld + 1 })
}

unsafe fn put(to: *mut u8, dtype: DType, index: usize, v: f32) {
    // SAFETY: the caller vouches for the element.
    unsafe {
        match dtype {
            DType::F32 => to.add(index * 4).cast::<[u8; 4]>().write(v.to_ne_bytes()),
            DType::F16 => to.add(index * 2).cast::<[u8; 2]>().write(f16::from_f32_const(v).to_bits().to_ne_bytes()),
            DType::Bf16 => to.add(index * 2).cast::<[u8; 2]>().write(bf16::from_f32(v).to_bits().to_ne_bytes()),
        }
    }
}

/// Stores a vector: element `e` at `index(e)`, bytes up to a whole group, and their scale at `scale`.
///
/// # Safety
/// The memory that `index` and `scale` lead to must be valid and nobody else's.
unsafe fn put_vector(
    to: *mut u8,
    stored: Stored,
    values: &[f32],
    padded: usize,
    index: impl Fn(usize) -> usize,
    scale: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match stored {
            Stored::Float(dtype) => values.iter().enumerate().for_each(|(e, x)| put(to, dtype, index(e), *x)),
            Stored::Int8 | Stored::Fp8 => {
                let (factor, inverse) = stored.scale(values);
                values.iter().enumerate().for_each(|(e, x)| to.add(index(e)).write(stored.code(x * inverse)));
                (values.len()..padded).for_each(|e| to.add(index(e)).write(0));
                to.add(scale).cast::<[u8; 4]>().write(factor.to_ne_bytes());
            }
        }
    }
}

/// Stores the batch's keys (with rotary embedding applied) and values: rows of k `[kv_heads * k_dim]`, `k_ld` values
/// apart, rows of v `[kv_heads * v_dim]`, `v_ld` apart.
#[allow(clippy::too_many_arguments)]
pub fn append(
    cpu: &Cpu,
    shape: KvShape,
    k_pool: &mut [u8],
    v_pool: &mut [u8],
    k: &[f32],
    k_ld: usize,
    v: &[f32],
    v_ld: usize,
    seqs: &[Sequence<'_>],
) -> Result<()> {
    const OP: &str = "append to the cache";
    shape.check(OP)?;
    let rows = rows_in(OP, "values from key to key", k.len(), shape.kv_heads * shape.k_dim, k_ld)?.min(rows_in(
        OP,
        "values from value to value",
        v.len(),
        shape.kv_heads * shape.v_dim,
        v_ld,
    )?);
    let blocks = (k_pool.len() / shape.k_block_bytes().max(1)).min(v_pool.len() / shape.v_block_bytes().max(1));
    check(OP, seqs, rows, shape.block, blocks)?;
    let (to_k, to_v) = (Shared::of(k_pool), Shared::of(v_pool));
    for s in seqs {
        // Rows of one block, or one head of them, belong to one task: neighbours may share a cache line.
        let first = s.span.start / shape.block;
        let count = (s.span.start + s.span.rows).div_ceil(shape.block).saturating_sub(first);
        let body = |task: usize| {
            let (b, h) = (first + task / shape.kv_heads, task % shape.kv_heads);
            let from = (b * shape.block).max(s.span.start);
            let to = ((b + 1) * shape.block).min(s.span.start + s.span.rows);
            let block = s.table[b] as usize;
            // SAFETY: `check` compared rows, blocks and pools; tasks have different blocks or heads. Sequences that
            // share a block they write to would race in meaning, but they run one after another.
            unsafe {
                let to_k = { to_k }.0.add((block * shape.kv_heads + h) * shape.k_head_bytes());
                let to_v = { to_v }.0.add((block * shape.kv_heads + h) * shape.v_head_bytes());
                for p in from..to {
                    let (row, t) = (s.span.row + p - s.span.start, p % shape.block);
                    let k = &k[row * k_ld + h * shape.k_dim..][..shape.k_dim];
                    let v = &v[row * v_ld + h * shape.v_dim..][..shape.v_dim];
                    let (ks, vs) = (shape.k_scales() + t * SCALE, shape.v_scales() + t * SCALE);
                    put_vector(to_k, shape.stored, k, shape.k_stored(), |e| shape.k_index(t, e), ks);
                    put_vector(to_v, shape.stored, v, shape.v_dim, |e| shape.v_index(t, e), vs);
                }
            }
        };
        if s.span.rows * shape.kv_heads * shape.k_dim < 16 << 10 {
            (0..count * shape.kv_heads).for_each(body);
        } else {
            cpu.pool.run(count * shape.kv_heads, &body);
        }
    }
    Ok(())
}

/// Causal grouped-query attention: rows of q and out are `[heads, k_dim]` and `[heads, v_dim]`, `q_ld` and `out_ld`
/// values apart; query head `h` uses key/value head `h / (heads / kv_heads)`.
#[allow(clippy::too_many_arguments)]
pub fn attention(
    cpu: &Cpu,
    mode: Mode,
    shape: KvShape,
    k_pool: &[u8],
    v_pool: &[u8],
    q: &[f32],
    q_ld: usize,
    heads: usize,
    seqs: &[Sequence<'_>],
    scale: f32,
    out: &mut [f32],
    out_ld: usize,
) -> Result<()> {
    const OP: &str = "attention";
    shape.check(OP)?;
    let group = heads / shape.kv_heads;
    same(OP, "query heads, a multiple of the key/value heads", group.max(1) * shape.kv_heads, heads)?;
    let rows = rows_in(OP, "values from query row to query row", q.len(), heads * shape.k_dim, q_ld)?.min(rows_in(
        OP,
        "values from output row to output row",
        out.len(),
        heads * shape.v_dim,
        out_ld,
    )?);
    let blocks = (k_pool.len() / shape.k_block_bytes().max(1)).min(v_pool.len() / shape.v_block_bytes().max(1));
    check(OP, seqs, rows, shape.block, blocks)?;
    let q = Part { ptr: Shared(q.as_ptr().cast_mut()), row_ld: q_ld, head_ld: shape.k_dim, width: shape.k_dim };
    let problem = Problem {
        q: [q, Part { width: 0, ..q }],
        out: Part { ptr: Shared::of(out), row_ld: out_ld, head_ld: shape.v_dim, width: shape.v_dim },
        kv_heads: shape.kv_heads,
        group,
        scale,
        kind: Kind::of(shape.stored, cpu.rounds(mode, DType::Bf16)),
        spans: seqs.iter().map(|s| s.span).collect(),
    };
    run::run(cpu, &problem, PagedSource::bytes(&shape), &|s, head| PagedSource {
        shape,
        k: k_pool.as_ptr(),
        v: v_pool.as_ptr(),
        table: seqs[s].table,
        head,
    });
    Ok(())
}
