//! Latent attention, and the way into the latent space and out of it.

use super::linear::GpuLinear;
use super::stored::Kind;
use super::tiles::Expansion;
use super::{GpuBackend, GpuBatch, GpuKv, GpuRope, Heads, Tensor};
use crate::Slice;
use crate::kernels::{Element, LatentArgs, LatentIn, LatentOut, Turn, WeightType};
use marlin_backend::{Backend, Error, KvLayout, LatentForm, LinearHandle, Result};
use marlin_checkpoint::LatentProjection;
use std::ops::Range;
use std::sync::PoisonError;

/// A latent projection `[heads * (nope + value), rank]` as one dense matrix.
#[derive(Clone)]
pub(super) struct Projection {
    pub element: Element,
    pub data: Slice<u8>,
}

/// Values of the parts of a head, and heads.
#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    nope: usize,
    rope: usize,
    value: usize,
    rank: usize,
}

impl GpuBackend {
    /// The `[rows, cols]` matrix that a linear multiplies by, by applying it to the unit vectors, row-major.
    fn matrix(&self, linear: &GpuLinear) -> Result<Vec<f32>> {
        let (rows, cols) = (linear.rows(), linear.cols());
        let few = self.thresholds().few_rows;
        let mut matrix = vec![0.0; rows * cols];
        for first in (0..cols).step_by(few) {
            // So few rows at a time that the kernels for them, which round nothing, do it.
            let count = few.min(cols - first);
            let mut units = vec![0.0; count * cols];
            (0..count).for_each(|i| units[i * cols + first + i] = 1.0);
            let y = self.read(&self.apply(linear, &self.write(count, cols, units)?)?)?;
            for (i, column) in y.chunks_exact(rows).enumerate() {
                column.iter().enumerate().for_each(|(r, v)| matrix[r * cols + first + i] = *v);
            }
        }
        Ok(matrix)
    }

    fn projection(
        &self,
        kv_b: LatentProjection<&GpuLinear>,
        [heads, nope, value, rank]: [usize; 4],
    ) -> Result<Projection> {
        let keeper = match kv_b {
            LatentProjection::Whole(w) => w,
            LatentProjection::Split { v, .. } => v,
        };
        let mut kept = keeper.latent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = &*kept {
            return Ok(found.clone());
        }
        let plain = match kv_b {
            LatentProjection::Whole(w) => w.plain().filter(|w| w.bias.is_none()).and_then(|w| match w.stored.kind {
                Kind::Rows { weight: WeightType::Dense { element, .. }, .. } => {
                    Some(Projection { element, data: w.stored.words.cast() })
                }
                _ => None,
            }),
            LatentProjection::Split { .. } => None,
        };
        let projection = match (plain, kv_b) {
            (Some(plain), _) => plain,
            (None, LatentProjection::Whole(w)) => {
                Projection { element: Element::F32, data: self.gpu.upload(&self.matrix(w)?)?.cast() }
            }
            (None, LatentProjection::Split { k, v }) => {
                let (k, v) = (self.matrix(k)?, self.matrix(v)?);
                let mut whole = Vec::with_capacity(heads * (nope + value) * rank);
                for head in 0..heads {
                    whole.extend((0..nope * rank).map(|i| k[(head * rank + i % rank) * nope + i / rank]));
                    whole.extend_from_slice(&v[head * value * rank..(head + 1) * value * rank]);
                }
                Projection { element: Element::F32, data: self.gpu.upload(&whole)?.cast() }
            }
        };
        *kept = Some(projection.clone());
        Ok(projection)
    }

    /// Latent attention: in the latent space, or, for many rows, with keys and values of all heads. The ends of query heads are turned on
    /// the way, with a table.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn latent(
        &self,
        q: &Tensor,
        kv_b: LatentProjection<&GpuLinear>,
        kv: &GpuKv,
        layer: usize,
        heads: usize,
        scale: f32,
        form: LatentForm,
        rope_table: Option<&GpuRope>,
        batch: &GpuBatch,
    ) -> Result<Tensor> {
        let KvLayout::Latent { rank, rope } = kv.spec.layout else {
            return Err(Error::shape("latent_attention", "a pool of latents", "keys and values"));
        };
        let head = q.cols.checked_div(heads).unwrap_or(0);
        let outputs = match kv_b {
            LatentProjection::Whole(w) => {
                w.rows().checked_sub(heads * head.saturating_sub(rope)).filter(|_| w.cols() == rank)
            }
            LatentProjection::Split { k, v } => Some(v.rows())
                .filter(|_| [k.rows(), k.cols(), v.cols()] == [heads * rank, head.saturating_sub(rope), rank]),
        };
        let value = match outputs {
            Some(outputs) if heads > 0 && q.cols == heads * head && head >= rope && outputs.is_multiple_of(heads) => {
                outputs / heads
            }
            _ => {
                let expected = format!("{heads} heads with a rank of {rank} and {rope} rotated values");
                return Err(Error::shape("latent_attention", expected, q.cols));
            }
        };
        let nope = head - rope;
        let projection = self.gpu.in_earnest(|| self.projection(kv_b, [heads, nope, value, rank]))?;
        let (rows, q) = (q.rows, self.settled(q)?.data);
        if rows != batch.layout.rows {
            return Err(Error::shape("latent_attention", batch.layout.rows, rows));
        }
        let y = self.uninitialised(rows, heads * value)?;
        let sizes = Sizes { heads, nope, rope, value, rank };
        let some =
            |rows, y: &Slice<f32>| self.absorbed(&q, &projection, kv, layer, sizes, scale, rope_table, batch, rows, y);
        let of = Heads { heads, share: 1, key: head, value, latent: false };
        let expansion = Expansion { projection: &projection, nope, rope: rope_table };
        if form == LatentForm::Absorbed
            || !self.attend_expanded(&q, kv, layer, of, scale, expansion, batch, &y.data, some)?
        {
            some(0..rows, &y.data)?;
        } else {
            batch.rest().into_iter().try_for_each(|rows| some(rows, &y.data))?;
        }
        Ok(y)
    }

    /// Latent attention of some rows in the latent space; `q` and `y` have all rows.
    #[allow(clippy::too_many_arguments)]
    fn absorbed(
        &self,
        q: &Slice<f32>,
        Projection { element, data }: &Projection,
        kv: &GpuKv,
        layer: usize,
        Sizes { heads, nope, rope, value, rank }: Sizes,
        scale: f32,
        rope_table: Option<&GpuRope>,
        batch: &GpuBatch,
        which: Range<usize>,
        y: &Slice<f32>,
    ) -> Result<()> {
        let (first, rows, element) = (which.start, which.len(), *element);
        let head = nope + rope;
        let q = q.part(first * heads * head, rows * heads * head);
        let positions = batch.positions().part(first, rows);
        let wide = rank + rope;
        let latent = self.uninitialised(batch.layout.rows, heads * wide)?;
        let into = latent.data.part(first * heads * wide, rows * heads * wide);
        let each = (nope + value) as u32;
        let args = LatentArgs {
            heads: heads as u32,
            each,
            first: 0,
            inner: nope as u32,
            rank: rank as u32,
            x_head: head as u32,
            y_head: wide as u32,
            pairs: (rope / 2) as u32,
        };
        let groups = [wide.div_ceil(64) as u32, heads as u32, rows as u32];
        let table = rope_table.map(|r| self.turns(r, batch)).transpose()?;
        let kernel = LatentIn { element, rope: rope_table.map_or(Turn::No, GpuRope::turn) };
        let table = table.as_ref().unwrap_or(&self.none);
        kernel.launch(&self.gpu, groups, &q, data, &positions, table, &into, &args)?;
        let of = Heads { heads, share: heads, key: wide, value: rank, latent: true };
        let found = self.uninitialised(batch.layout.rows, heads * rank)?.data;
        self.attend_rows(&latent.data, kv, layer, of, scale, batch, which, &found)?;
        let args =
            LatentArgs { first: nope as u32, inner: value as u32, x_head: rank as u32, y_head: value as u32, ..args };
        let groups = [value.div_ceil(32) as u32, heads as u32, rows as u32];
        let kernel = LatentOut { element, width: if rank.is_multiple_of(8) { 8 } else { 1 } };
        let found = found.part(first * heads * rank, rows * heads * rank);
        let y = y.part(first * heads * value, rows * heads * value);
        kernel.launch(&self.gpu, groups, &found, data, &y, &args)?;
        Ok(())
    }
}
