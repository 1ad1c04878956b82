//! Attention over keys and values that have been materialised row by row, as a long prefill of latent attention wants.

use super::rows::{Column, RowSource, Rows};
use super::run::{self, Kind, Part, Problem, Span};
use super::stored::Stored;
use crate::buffer::Shared;
use crate::mat::{Result, at_least};
use crate::{Cpu, DType, Mode};

/// Keys and values of the positions of one sequence, in `f32`: a key is `k_width` values of its own head and
/// `pe_width` values that all heads share.
#[derive(Clone, Copy, Debug)]
pub struct Expanded<'a> {
    /// Key of head h at position p: `k[p * k_ld + h * k_head_ld..][..k_width]`.
    pub k: &'a [f32],
    /// Values from position to position.
    pub k_ld: usize,
    /// Values from head to head.
    pub k_head_ld: usize,
    /// Values of a key of its own head.
    pub k_width: usize,
    /// Shared part at position p: `pe[p * pe_ld..][..pe_width]`.
    pub pe: &'a [f32],
    /// Values from position to position.
    pub pe_ld: usize,
    /// Values that all heads share.
    pub pe_width: usize,
    /// Value of head h at position p: `v[p * v_ld + h * v_head_ld..][..v_width]`.
    pub v: &'a [f32],
    /// Values from position to position.
    pub v_ld: usize,
    /// Values from head to head.
    pub v_head_ld: usize,
    /// Values of a value.
    pub v_width: usize,
}

/// Causal attention of rows q `[heads, k_width + pe_width]` to out `[heads, v_width]`, both without gaps. Each span has
/// the keys and values of its sequence's positions `0..start + rows`. In fast mode queries, keys, values and
/// probabilities are rounded to `bf16` where the hardware multiplies `bf16`.
pub fn expanded_attention(
    cpu: &Cpu,
    mode: Mode,
    q: &[f32],
    heads: usize,
    seqs: &[(Span, Expanded<'_>)],
    scale: f32,
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "expanded attention";
    let Some((_, first)) = seqs.first() else { return Ok(()) };
    let (k_dim, v_dim) = (first.k_width + first.pe_width, first.v_width);
    at_least(OP, "heads", 1, heads)?;
    crate::mat::same(OP, "elements of a key, even", k_dim / 2 * 2, k_dim)?;
    let reach = |n: usize, ld: usize, head_ld: usize, width: usize| {
        if n == 0 || width == 0 { 0 } else { (n - 1) * ld + (heads - 1) * head_ld + width }
    };
    for (span, e) in seqs {
        let rows = span.row.saturating_add(span.rows);
        at_least(OP, "values of the queries", rows * heads * k_dim, q.len())?;
        at_least(OP, "values of the output", rows * heads * v_dim, out.len())?;
        crate::mat::same(OP, "elements of a key", k_dim, e.k_width + e.pe_width)?;
        crate::mat::same(OP, "elements of a value", v_dim, e.v_width)?;
        let n = span.start + span.rows;
        at_least(OP, "values of the keys", reach(n, e.k_ld, e.k_head_ld, e.k_width), e.k.len())?;
        at_least(OP, "values of the shared keys", reach(n, e.pe_ld, 0, e.pe_width), e.pe.len())?;
        at_least(OP, "values of the values", reach(n, e.v_ld, e.v_head_ld, e.v_width), e.v.len())?;
    }
    let pairs = cpu.rounds(mode, DType::Bf16);
    let q = Part { ptr: Shared(q.as_ptr().cast_mut()), row_ld: heads * k_dim, head_ld: k_dim, width: k_dim };
    let problem = Problem {
        q: [q, Part { width: 0, ..q }],
        out: Part { ptr: Shared::of(out), row_ld: heads * v_dim, head_ld: v_dim, width: v_dim },
        kv_heads: heads,
        group: 1,
        scale,
        kind: if pairs { Kind::Dot } else { Kind::Single },
        spans: seqs.iter().map(|s| s.0).collect(),
    };
    run::run(cpu, &problem, RowSource::bytes(k_dim, v_dim), &|s, h| {
        let e = &seqs[s].1;
        let column = |x: &[f32], ld: usize, from: usize, width: usize| Column {
            rows: Rows::Strided { base: x.as_ptr().wrapping_add(from).cast(), ld },
            width,
            stored: Stored::Float(DType::F32),
            grouped: 0,
        };
        RowSource {
            k: [column(e.k, e.k_ld, h * e.k_head_ld, e.k_width), column(e.pe, e.pe_ld, 0, e.pe_width)],
            v: Some(column(e.v, e.v_ld, h * e.v_head_ld, e.v_width)),
            v_dim,
            pairs,
        }
    });
    Ok(())
}
