//! Multi-head latent attention over its cache, in the absorbed form.

use super::rows::{Column, RowSource, Rows};
use super::run::{self, Kind, Part, Problem};
use super::{Sequence, check, put, rows_in};
use crate::buffer::Shared;
use crate::mat::{Error, Result, at_least};
use crate::{Cpu, DType, Mode};

/// The shape of one layer's latent cache: blocks of `[block][rank + rope]` back to back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Elements of the latent, which is both key and value.
    pub rank: usize,
    /// Elements of the rotated key that all heads share.
    pub rope: usize,
    /// Tokens of a block.
    pub block: usize,
    /// Element type.
    pub dtype: DType,
}

impl LatentShape {
    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.rank + self.rope
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block * self.width() * self.dtype.size()
    }

    fn check(&self, op: &'static str) -> Result<()> {
        at_least(op, "tokens of a block", 1, self.block)?;
        if !self.width().is_multiple_of(2) {
            let found = self.width();
            return Err(Error { op, what: "elements of a token, even", expected: found + 1, found });
        }
        Ok(())
    }
}

/// Stores the batch's latents (rows of `rank` values, `c_ld` apart) and rotated keys (rows of `rope`, `pe_ld` apart).
#[allow(clippy::too_many_arguments)]
pub fn append_latent(
    shape: LatentShape,
    pool: &mut [u8],
    c: &[f32],
    c_ld: usize,
    pe: &[f32],
    pe_ld: usize,
    seqs: &[Sequence<'_>],
) -> Result<()> {
    const OP: &str = "append to the latent cache";
    shape.check(OP)?;
    let mut rows = rows_in(OP, "values from latent to latent", c.len(), shape.rank, c_ld)?;
    if shape.rope > 0 {
        rows = rows.min(rows_in(OP, "values from rotated key to rotated key", pe.len(), shape.rope, pe_ld)?);
    }
    check(OP, seqs, rows, shape.block, pool.len() / shape.block_bytes())?;
    for s in seqs {
        for i in 0..s.span.rows {
            let (p, row) = (s.span.start + i, s.span.row + i);
            let at = (s.table[p / shape.block] as usize * shape.block + p % shape.block) * shape.width();
            let c = &c[row * c_ld..][..shape.rank];
            let pe = if shape.rope > 0 { &pe[row * pe_ld..][..shape.rope] } else { &[] };
            for (e, x) in c.iter().chain(pe).enumerate() {
                // SAFETY: `check` compared the table with the pool.
                unsafe { put(pool.as_mut_ptr(), shape.dtype, at + e, *x) }
            }
        }
    }
    Ok(())
}

/// Causal absorbed attention: score = (q_lat . c + q_pe . k_pe) * scale, out = sum of probability * c.
///
/// q_lat `[rows, heads, rank]`; q_pe `[rows, heads]` vectors of `rope` values, `pe_head_ld` values from head to head
/// and `heads * pe_head_ld` from row to row; out `[rows, heads, rank]`.
#[allow(clippy::too_many_arguments)]
pub fn latent_attention(
    cpu: &Cpu,
    mode: Mode,
    shape: LatentShape,
    pool: &[u8],
    q_lat: &[f32],
    q_pe: &[f32],
    pe_head_ld: usize,
    heads: usize,
    seqs: &[Sequence<'_>],
    scale: f32,
    out: &mut [f32],
) -> Result<()> {
    const OP: &str = "latent attention";
    shape.check(OP)?;
    at_least(OP, "heads", 1, heads)?;
    let wide = heads * shape.rank;
    at_least(OP, "values from head to head of q_pe", shape.rope, pe_head_ld)?;
    let mut rows = (q_lat.len() / wide.max(1)).min(out.len() / wide.max(1));
    if shape.rope > 0 {
        let width = (heads - 1) * pe_head_ld + shape.rope;
        rows = rows.min(rows_in(OP, "values of q_pe", q_pe.len(), width, heads * pe_head_ld)?);
    }
    check(OP, seqs, rows, shape.block, pool.len() / shape.block_bytes())?;
    let dot = cpu.rounds(mode, shape.dtype);
    let pairs = shape.dtype == DType::Bf16;
    let q_pe = Shared(q_pe.as_ptr().cast_mut());
    let q_lat = Shared(q_lat.as_ptr().cast_mut());
    let problem = Problem {
        q: [
            Part { ptr: q_lat, row_ld: wide, head_ld: shape.rank, width: shape.rank },
            Part { ptr: q_pe, row_ld: heads * pe_head_ld, head_ld: pe_head_ld, width: shape.rope },
        ],
        out: Part { ptr: Shared::of(out), row_ld: wide, head_ld: shape.rank, width: shape.rank },
        kv_heads: 1,
        group: heads,
        scale,
        kind: if pairs { Kind::of(DType::Bf16, dot) } else { Kind::Single },
        spans: seqs.iter().map(|s| s.span).collect(),
    };
    run::run(cpu, &problem, RowSource::bytes(shape.width(), shape.rank), &|s, _| {
        let rows = Rows::Paged { base: pool.as_ptr(), ld: shape.width(), block: shape.block, table: seqs[s].table };
        let k = Column { rows, width: shape.width(), dtype: shape.dtype };
        RowSource { k: [k, Column { width: 0, ..k }], v: None, v_dim: shape.rank, pairs }
    });
    Ok(())
}
