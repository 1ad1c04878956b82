//! Latent attention in the latent space.

use super::linear::GpuLinear;
use super::product::FEW_ROWS;
use super::stored::Kind;
use super::{GpuBackend, GpuBatch, GpuKv, GpuRope, Heads, Tensor};
use crate::Slice;
use crate::kernels::{Element, LatentArgs, LatentIn, LatentOut, Turn, WeightType};
use marlin_backend::{Backend, Error, KvLayout, LinearHandle, Result};
use marlin_checkpoint::LatentProjection;
use std::sync::PoisonError;

/// A latent projection `[heads * (nope + value), rank]` as one dense matrix.
#[derive(Clone)]
pub(super) struct Projection {
    element: Element,
    data: Slice<u8>,
}

impl GpuBackend {
    /// The `[rows, cols]` matrix that a linear multiplies by, by applying it to the unit vectors, row-major.
    fn matrix(&self, linear: &GpuLinear) -> Result<Vec<f32>> {
        let (rows, cols) = (linear.rows(), linear.cols());
        let mut matrix = vec![0.0; rows * cols];
        for first in (0..cols).step_by(FEW_ROWS) {
            // So few rows at a time that the kernels for them, which round nothing, do it.
            let count = FEW_ROWS.min(cols - first);
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

    /// Latent attention in the latent space; the ends of query heads are turned on the way there, with a table.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn latent(
        &self,
        q: &Tensor,
        kv_b: LatentProjection<&GpuLinear>,
        kv: &GpuKv,
        layer: usize,
        heads: usize,
        scale: f32,
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
        let Projection { element, data } = self.projection(kv_b, [heads, nope, value, rank])?;
        let wide = rank + rope;
        let latent = self.uninitialised(q.rows, heads * wide)?;
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
        let groups = [wide.div_ceil(64) as u32, heads as u32, q.rows as u32];
        let table = rope_table.map(|r| self.turns(r, batch)).transpose()?;
        let kernel = LatentIn { element, rope: rope_table.map_or(Turn::No, GpuRope::turn) };
        let q = self.settled(q)?;
        let table = table.as_ref().unwrap_or(&self.none);
        kernel.launch(&self.gpu, groups, &q.data, &data, &batch.positions(), table, &latent.data, &args)?;
        let of = Heads { heads, share: heads, key: wide, value: rank, latent: true };
        let found = self.attend(&latent, kv, layer, of, scale, batch)?;
        let y = self.uninitialised(q.rows, heads * value)?;
        let args =
            LatentArgs { first: nope as u32, inner: value as u32, x_head: rank as u32, y_head: value as u32, ..args };
        let groups = [value.div_ceil(32) as u32, heads as u32, q.rows as u32];
        let kernel = LatentOut { element, width: if rank.is_multiple_of(8) { 8 } else { 1 } };
        kernel.launch(&self.gpu, groups, &found.data, &data, &y.data, &args)?;
        Ok(y)
    }
}
