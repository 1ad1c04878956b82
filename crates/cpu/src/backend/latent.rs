//! Latent attention: absorbed, or expanded where that is less work.

use super::{CpuBackend, CpuBatch, CpuKv, CpuLinear, Tensor, shape};
use crate::Mode;
use crate::attention::{self, Expanded, LatentShape, Sequence, Span};
use crate::grouped::ROWS;
use crate::kernels::Thresholds;
use crate::linear::{self, Job, Out, W};
use marlin_backend::{Error, LatentForm, LinearHandle, Result};
use marlin_checkpoint::LatentProjection;

/// The sizes of a latent attention layer.
struct Sizes {
    heads: usize,
    nope: usize,
    value: usize,
    latent: LatentShape,
}

impl Sizes {
    fn of(q: &Tensor, kv_b: LatentProjection<&CpuLinear>, latent: LatentShape, heads: usize) -> Result<Self> {
        let nope = (q.cols / heads.max(1)).saturating_sub(latent.rope);
        let (up, outputs) = match kv_b {
            LatentProjection::Whole(w) => (w, w.rows().checked_sub(heads * nope)),
            LatentProjection::Split { k, v } => {
                (v, Some(v.rows()).filter(|_| k.rows() == heads * latent.rank && k.cols() == nope))
            }
        };
        let fits = heads > 0 && q.cols == heads * (nope + latent.rope) && up.cols() == latent.rank;
        match outputs {
            Some(outputs) if fits && outputs.is_multiple_of(heads) => {
                Ok(Self { heads, nope, value: outputs / heads, latent })
            }
            _ => {
                let sizes = (latent.rank, latent.rope);
                let expected = format!("{heads} heads with a rank of {} and {} rotated values", sizes.0, sizes.1);
                let found = format!("queries of {}, {} [{}, {}]", q.cols, up.name(), up.rows(), up.cols());
                Err(Error::shape("latent_attention", expected, found))
            }
        }
    }

    /// Whether `rows` queries at the end of `positions` are less work against expanded keys and values. Counted are
    /// multiplications for each position: absorbed queries and values are `rank` wide instead of `nope` and `value`,
    /// while expanding takes a product with `kv_b_proj`.
    fn expand(&self, limits: &Thresholds, rows: usize, positions: usize) -> bool {
        let rank = self.latent.rank;
        let saved = rows * (2 * rank).saturating_sub(self.nope + self.value);
        let few = rows < limits.latent_expand_rows || positions > limits.latent_expand_positions;
        !few && saved > rank * (self.nope + self.value)
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn attention(
    b: &CpuBackend,
    q: &Tensor,
    kv_b: LatentProjection<&CpuLinear>,
    kv: &CpuKv,
    layer: usize,
    heads: usize,
    scale: f32,
    form: LatentForm,
    batch: &CpuBatch,
) -> Result<Tensor> {
    let s = Sizes::of(q, kv_b, kv.latent_shape("latent_attention")?, heads)?;
    let memory = kv.layer(layer)?;
    let mut out = b.buffers.tensor(q.rows, heads * s.value);
    let expand = |span: &Span| match form {
        LatentForm::Absorbed => false,
        LatentForm::Expanded => matches!(kv_b, LatentProjection::Whole(_)),
        // One form for every batch keeps exact results independent of it.
        LatentForm::Auto => {
            let whole = matches!(kv_b, LatentProjection::Whole(_));
            whole && b.mode == Mode::Fast && s.expand(b.cpu.thresholds(), span.rows, span.start + span.rows)
        }
    };
    let seqs = batch.spans.all();
    for run in seqs.chunk_by(|a, b| !expand(&a.span) && !expand(&b.span)) {
        let rows = run[0].span.row..run[run.len() - 1].span.row + run[run.len() - 1].span.rows;
        let queries = &q.values()[rows.start * q.cols..rows.end * q.cols];
        let width = out.cols;
        let results = &mut out.values_mut()[rows.start * width..rows.end * width];
        let local = |seq: &Sequence<'_>| Span { row: seq.span.row - rows.start, ..seq.span };
        if let (LatentProjection::Whole(kv_b), true) = (kv_b, expand(&run[0].span)) {
            expanded(b, &s, queries, kv_b, memory.first.all(), run[0].table, local(&run[0]), scale, results)?;
        } else {
            let seqs: Vec<Sequence<'_>> =
                run.iter().map(|seq| Sequence { span: local(seq), table: seq.table }).collect();
            absorbed(b, &s, queries, kv_b, memory.first.all(), &seqs, rows.len(), scale, results)?;
        }
    }
    Ok(out)
}

#[allow(clippy::too_many_arguments)]
fn absorbed(
    b: &CpuBackend,
    s: &Sizes,
    q: &[f32],
    kv_b: LatentProjection<&CpuLinear>,
    pool: &[u8],
    seqs: &[Sequence<'_>],
    rows: usize,
    scale: f32,
    out: &mut [f32],
) -> Result<()> {
    let LatentShape { rank, rope, .. } = s.latent;
    let mut q_lat = b.buffers.tensor(rows, s.heads * rank);
    let (ld, to) = (s.nope + rope, q_lat.values_mut());
    match kv_b {
        LatentProjection::Whole(w) => {
            linear::per_head_transposed(&b.cpu, q, ld, rows, s.heads, w.whole(b)?, 0, s.nope, to).map_err(shape)?;
        }
        LatentProjection::Split { k, .. } => {
            per_head(b, k, q, ld, rows, s.heads, 0, rank, to)?;
        }
    }
    let mut o_lat = b.buffers.tensor(rows, s.heads * rank);
    let q_pe = &q[s.nope..];
    let o = o_lat.values_mut();
    attention::latent_attention(
        &b.cpu,
        b.mode,
        s.latent,
        pool,
        q_lat.values(),
        q_pe,
        s.nope + rope,
        s.heads,
        seqs,
        scale,
        o,
    )
    .map_err(shape)?;
    let (w, from) = match kv_b {
        LatentProjection::Whole(w) => (w, s.nope),
        LatentProjection::Split { v, .. } => (v, 0),
    };
    per_head(b, w, o_lat.values(), rank, rows, s.heads, from, s.value, out)
}

/// Rows `from..from + n` of each head's part of `w`, applied to that head's vectors.
#[allow(clippy::too_many_arguments)]
fn per_head(
    b: &CpuBackend,
    w: &CpuLinear,
    x: &[f32],
    x_ld: usize,
    rows: usize,
    heads: usize,
    from: usize,
    n: usize,
    out: &mut [f32],
) -> Result<()> {
    match w.tiles() {
        Some(tiles) if from == 0 && w.rows() == heads * n && n.is_multiple_of(2 * ROWS) => {
            let mut scratch = b.scratch();
            let acts = scratch.first();
            linear::per_head_tiles(&b.cpu, b.mode, x, x_ld, rows, heads, tiles, n, acts, out).map_err(shape)
        }
        _ => {
            // Decoding takes the scratch memory too, so it comes first.
            b.note_latent(w, rows);
            let w = w.whole(b)?;
            let mut scratch = b.scratch();
            let acts = scratch.first();
            linear::per_head(&b.cpu, b.mode, x, x_ld, rows, heads, w, from, n, acts, out).map_err(shape)
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn expanded(
    b: &CpuBackend,
    s: &Sizes,
    q: &[f32],
    kv_b: &CpuLinear,
    pool: &[u8],
    table: &[u32],
    span: Span,
    scale: f32,
    out: &mut [f32],
) -> Result<()> {
    let w = kv_b.whole(b)?;
    let LatentShape { rank, block, .. } = s.latent;
    let width = s.latent.width();
    let positions = span.start + span.rows;
    let mut cached = b.buffers.tensor(positions.next_multiple_of(block), width);
    let bytes = s.latent.block_bytes();
    for (to, id) in cached.values_mut().chunks_exact_mut(block * width).zip(table) {
        let from = *id as usize * bytes;
        attention::read_latent(&b.cpu, s.latent, &pool[from..from + bytes], to).map_err(shape)?;
    }
    let per = s.nope + s.value;
    let mut both = b.buffers.tensor(positions, s.heads * per);
    {
        let mut scratch = b.scratch();
        let needs = W::from(w).needs();
        let acts = scratch.first().prepare(&b.cpu, b.mode, needs, cached.values(), positions, rank, width);
        let acts = acts.map_err(shape)?;
        linear::linears(&b.cpu, &[Job::new(acts, w, Out::new(both.values_mut(), s.heads * per))]).map_err(shape)?;
    }
    let expanded = Expanded {
        k: both.values(),
        k_ld: s.heads * per,
        k_head_ld: per,
        k_width: s.nope,
        pe: &cached.values()[rank..],
        pe_ld: width,
        pe_width: s.latent.rope,
        v: &both.values()[s.nope..],
        v_ld: s.heads * per,
        v_head_ld: per,
        v_width: s.value,
    };
    attention::expanded_attention(&b.cpu, b.mode, q, s.heads, &[(span, expanded)], scale, out).map_err(shape)
}
