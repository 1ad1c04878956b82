//! Multi-head latent attention over its cache, in the absorbed form.

use super::rows::{Column, GROUP, RowSource, Rows};
use super::run::{self, Kind, Part, Problem};
use super::stored::{SCALE, Stored};
use super::{Sequence, check, put_vector, rows_in};
use crate::buffer::Shared;
use crate::mat::{Error, Result, at_least, same};
use crate::simd::{self, Kernel, Simd};
use crate::{Cpu, DType, Mode};

/// The shape of one layer's latent cache: blocks of `[block][rank + rope]` back to back.
///
/// Bytes have scales: at the end of a block `[block]` times one `f32` for every 128 elements of the latent and one for
/// the rotated key, whose values are of another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Elements of the latent, which is both key and value.
    pub rank: usize,
    /// Elements of the rotated key that all heads share.
    pub rope: usize,
    /// Tokens of a block.
    pub block: usize,
    /// Element type.
    pub stored: Stored,
}

impl LatentShape {
    /// Elements of a token.
    pub fn width(&self) -> usize {
        self.rank + self.rope
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        self.block * (self.width() * self.stored.size() + self.scales() * SCALE)
    }

    /// Scales of a token.
    pub fn scales(&self) -> usize {
        if self.stored.scaled() { self.rank.div_ceil(GROUP) + usize::from(self.rope > 0) } else { 0 }
    }

    fn column<'a>(&self, base: *const u8, table: &'a [u32]) -> Column<'a> {
        let rows = Rows::Paged { base, ld: self.width(), block: self.block, scales: self.scales(), table };
        Column { rows, width: self.width(), stored: self.stored, grouped: self.rank }
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
            let (block, t) = (s.table[p / shape.block] as usize, p % shape.block);
            let c = &c[row * c_ld..][..shape.rank];
            let pe = if shape.rope > 0 { &pe[row * pe_ld..][..shape.rope] } else { &[] };
            let to = &mut pool[block * shape.block_bytes()..][..shape.block_bytes()];
            let scale = shape.block * shape.width() * shape.stored.size() + t * shape.scales() * SCALE;
            // Floats need no groups, and take them all the same.
            for (group, values) in c.chunks(GROUP).chain(pe.chunks(shape.rope.max(1))).enumerate() {
                let at = t * shape.width() + if group * GROUP < shape.rank { group * GROUP } else { shape.rank };
                let index = |e: usize| at + e;
                // SAFETY: the token's elements and scales are inside its block.
                unsafe {
                    put_vector(to.as_mut_ptr(), shape.stored, values, 0, index, scale + group * SCALE);
                }
            }
        }
    }
    Ok(())
}

/// The tokens of one block, as rows of `rank + rope` values.
pub fn read_latent(cpu: &Cpu, shape: LatentShape, block: &[u8], to: &mut [f32]) -> Result<()> {
    const OP: &str = "reading the latent cache";
    shape.check(OP)?;
    same(OP, "bytes of a block", shape.block_bytes(), block.len())?;
    same(OP, "values", shape.block * shape.width(), to.len())?;
    let kernel = Read { column: shape.column(block.as_ptr(), &[0]), rows: shape.block, to: to.as_mut_ptr() };
    // SAFETY: the lengths were compared.
    unsafe { simd::run(cpu.level, kernel) };
    Ok(())
}

struct Read<'a> {
    column: Column<'a>,
    rows: usize,
    to: *mut f32,
}

impl Kernel for Read<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for t in 0..self.rows {
            // SAFETY: the fields' promises; a row ends where its elements do.
            unsafe { self.column.row::<S>(t, false, self.to.add(t * self.column.width).cast()) }
        }
    }
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
    // Bytes are widened to whatever is multiplied.
    let dot = cpu.rounds(mode, DType::Bf16);
    let pairs = shape.stored == Stored::Float(DType::Bf16) || dot && shape.stored.scaled();
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
        kind: if pairs { Kind::of(DType::Bf16.into(), dot) } else { Kind::Single },
        spans: seqs.iter().map(|s| s.span).collect(),
    };
    run::run(cpu, &problem, RowSource::bytes(shape.width(), shape.rank), &|s, _| {
        let k = shape.column(pool.as_ptr(), seqs[s].table);
        RowSource { k: [k, Column { width: 0, ..k }], v: None, v_dim: shape.rank, pairs }
    });
    Ok(())
}
