//! KV memory, what is stored there, and grouped-query attention over it.

use super::{GpuBackend, GpuBatch, GpuRope, Tensor};
use crate::Slice;
use crate::kernels::{
    Attention, AttentionArgs, AttentionJoin, Element, JoinArgs, PlaceArgs, PlaceHeads, PlaceLatent, PlaceLatentArgs,
    Turn,
};
use marlin_backend::{Error, KvLayout, KvSpec, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A pool of KV blocks: one buffer for each layer, a token's parts beside each other, the scales of bytes behind them.
pub struct GpuKv {
    pub(super) spec: KvSpec,
    pub(super) layers: Vec<Slice<u8>>,
    /// Its own among all pools of the process.
    pub(super) number: u64,
}

/// A token's place in a pool.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// Elements from one token to the next.
    pub stride: usize,
    /// Where its scales begin, in bytes.
    pub scales: usize,
}

impl Slot {
    pub(super) fn of(layout: &KvLayout, element: Element) -> Self {
        let values = layout.values();
        if !element.is_scaled() {
            return Self { stride: values, scales: 0 };
        }
        let vectors = match layout {
            KvLayout::Heads { heads, .. } => 2 * heads,
            KvLayout::Latent { rank, .. } => rank.div_ceil(128) + 1,
        };
        let scales = values.next_multiple_of(4);
        Self { stride: (scales + 4 * vectors).next_multiple_of(16), scales }
    }
}

/// Heads as a kernel takes them: query heads, how many of them share a KV head, values of keys and values.
#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub heads: usize,
    pub share: usize,
    pub key: usize,
    pub value: usize,
    /// Values are the first part of the one key.
    pub latent: bool,
}

/// Norms that heads pass before they turn: weight and epsilon, of queries and of keys.
pub(super) type HeadNorms<'a> = [Option<(&'a Slice<f32>, f32)>; 2];

/// Positions a lane loads ahead; see the kernel.
const AHEAD: usize = 2;

/// Parts of a context, at most.
const MOST_SPLITS: usize = 128;

impl GpuBackend {
    pub(super) fn pool_bytes(&self, spec: &KvSpec) -> usize {
        let Slot { stride, .. } = Slot::of(&spec.layout, self.options.kv);
        spec.layers * spec.blocks * spec.block_size * stride * self.options.kv.bytes()
    }

    pub(super) fn pool(&self, spec: KvSpec) -> Result<GpuKv> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let bytes = self.pool_bytes(&KvSpec { layers: 1, ..spec });
        let layers = (0..spec.layers).map(|_| self.gpu.uninitialised(bytes)).collect::<crate::Result<_>>()?;
        Ok(GpuKv { spec, layers, number: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    pub(super) fn layer<'a>(&self, kv: &'a GpuKv, layer: usize) -> Result<&'a Slice<u8>> {
        kv.layers.get(layer).ok_or_else(|| Error::shape("kv", kv.spec.layers, layer))
    }

    /// Keys and values (of a latent pool: latents and rotated keys) to their slots; before that queries (in place) and keys are
    /// normalised and turned, as far as that is asked for.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn place_heads(
        &self,
        q: Option<&Tensor>,
        [k, v]: [&Tensor; 2],
        norms: HeadNorms,
        rope: Option<&GpuRope>,
        kv: &GpuKv,
        layer: usize,
        batch: &GpuBatch,
    ) -> Result<()> {
        let pool = self.layer(kv, layer)?;
        let (kv_heads, key, value) = match kv.spec.layout {
            KvLayout::Heads { heads, key, value } => (heads, key, value),
            KvLayout::Latent { rank, rope } => (1, rank, rope),
        };
        let each = key.max(value).div_ceil(32) as u32;
        if each > 32 {
            let why = format!("heads of {key} and {value} values; at most 1024");
            return Err(Error::Unsupported { op: "append", why });
        }
        let Slot { stride, scales } = Slot::of(&kv.spec.layout, self.options.kv);
        let heads = q.map_or(0, |q| q.cols / key.max(1));
        let [q_norm, k_norm] = norms;
        let args = PlaceArgs {
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            key: key as u32,
            value: value as u32,
            k_stride: k.cols as u32,
            v_stride: v.cols as u32,
            pairs: rope.map_or(0, |r| r.pairs()) as u32,
            stride: stride as u32,
            scales: scales as u32,
            q_eps: q_norm.map_or(0.0, |n| n.1),
            k_eps: k_norm.map_or(0.0, |n| n.1),
        };
        let kernel = PlaceHeads {
            element: self.options.kv,
            each,
            q_norm: q_norm.is_some(),
            k_norm: k_norm.is_some(),
            rope: rope.map_or(Turn::No, GpuRope::turn),
            latent: matches!(kv.spec.layout, KvLayout::Latent { .. }),
        };
        let table = rope.map(|r| self.turns(r, batch)).transpose()?;
        let unused = self.gpu.uninitialised(1)?;
        let weight = |norm: Option<(&Slice<f32>, f32)>| norm.map_or_else(|| self.none.clone(), |n| n.0.clone());
        kernel.launch(
            &self.gpu,
            [(heads + 2 * kv_heads) as u32, batch.layout.rows as u32, 1],
            q.map_or(&unused, |q| &q.data),
            &self.settled(k)?.data,
            &self.settled(v)?.data,
            &weight(q_norm),
            &weight(k_norm),
            &batch.positions(),
            table.as_ref().unwrap_or(&self.none),
            &batch.slots(),
            pool,
            &args,
        )?;
        Ok(())
    }

    /// The latent, normalised, and the key that follows it, turned, to their slots; `x` is `[rows, rank + 2 * pairs]`.
    pub(super) fn place_latent(
        &self,
        x: &Tensor,
        (weight, eps): (&Slice<f32>, f32),
        rope: &GpuRope,
        kv: &GpuKv,
        layer: usize,
        batch: &GpuBatch,
    ) -> Result<()> {
        let pool = self.layer(kv, layer)?;
        let KvLayout::Latent { rank, .. } = kv.spec.layout else {
            return Err(Error::shape("append_latent", "a pool of latents", "keys and values"));
        };
        let Slot { stride, scales } = Slot::of(&kv.spec.layout, self.options.kv);
        let args = PlaceLatentArgs {
            rank: rank as u32,
            pairs: rope.pairs() as u32,
            stride: stride as u32,
            scales: scales as u32,
            eps,
        };
        let kernel = PlaceLatent { element: self.options.kv, each: x.cols.div_ceil(256) as u32, rope: rope.turn() };
        let table = self.turns(rope, batch)?;
        let groups = [batch.layout.rows as u32, 1, 1];
        let x = self.settled(x)?;
        kernel.launch(&self.gpu, groups, &x.data, weight, &batch.positions(), &table, &batch.slots(), pool, &args)?;
        Ok(())
    }

    /// Attention of `q` over a layer of the pool.
    pub(super) fn attend(
        &self,
        q: &Tensor,
        kv: &GpuKv,
        layer: usize,
        of: Heads,
        scale: f32,
        batch: &GpuBatch,
    ) -> Result<Tensor> {
        let rows = batch.layout.rows;
        if q.rows != rows {
            return Err(Error::shape("attention", format!("{rows} rows"), q.rows));
        }
        let q = self.settled(q)?.data;
        let y = self.uninitialised(rows, of.heads * of.value)?;
        let some = |rows| self.attend_rows(&q, kv, layer, of, scale, batch, rows, &y.data);
        if !self.attend_tiles(&q, kv, layer, of, scale, batch, &y.data)? {
            some(0..rows)?;
        } else {
            batch.rest().into_iter().try_for_each(some)?;
        }
        Ok(y)
    }

    /// Attention of some rows by the kernel that rounds nothing; the context is read in parts where there are too few rows for the
    /// device. `q` and `y` have all rows.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attend_rows(
        &self,
        q: &Slice<f32>,
        kv: &GpuKv,
        layer: usize,
        of: Heads,
        scale: f32,
        batch: &GpuBatch,
        which: Range<usize>,
        y: &Slice<f32>,
    ) -> Result<()> {
        let pool = self.layer(kv, layer)?;
        let Heads { heads, share, key, value, latent } = of;
        let (first, rows) = (which.start, which.len());
        let (q, y) =
            (q.part(first * heads * key, rows * heads * key), y.part(first * heads * value, rows * heads * value));
        let places = batch.places().part(2 * first, 2 * rows);
        let Slot { stride, scales } = Slot::of(&kv.spec.layout, self.options.kv);
        let kv_heads = heads / share;
        let value_base = if latent { 0 } else { kv_heads * key };
        let width = if [key, value, stride, value_base].iter().all(|n| n.is_multiple_of(8)) { 8 } else { 1 };
        let lanes = key.max(value).div_ceil(width).next_power_of_two().min(32);
        let [keys, values] = [key, value].map(|n| n.div_ceil(lanes * width));
        if keys * width > 32 || values * width > 32 {
            let why = format!("heads of {key} and {value} values; at most 1024");
            return Err(Error::Unsupported { op: "attention", why });
        }
        // As many query heads to a threadgroup as its lanes have registers for.
        let together = match (keys + values) * width {
            ..=16 if share > 2 => 4,
            // With many rows, what is read of the pool is what limits.
            ..=40 if share > 2 && rows > 16 => 4,
            ..=40 if share > 1 => 2,
            _ => 1,
        };
        let simds = if together * values * lanes * width > 1024 { 2 } else { 4 };
        let groups = kv_heads * share.div_ceil(together);
        // Enough threadgroups for every core to have some, if each still has something to do.
        let least = simds * (32 / lanes) * AHEAD;
        let wanted = (self.thresholds().attention_groups * self.gpu.device().info().cores as usize)
            .div_ceil(groups * rows.max(1));
        let splits = wanted.min(batch.layout.context.div_ceil(least)).clamp(1, MOST_SPLITS);
        let kernel = Attention {
            element: self.options.kv,
            width: width as u32,
            simds: simds as u32,
            lanes: lanes as u32,
            heads: together as u32,
            keys: keys as u32,
            values: values as u32,
            latent,
            split: splits > 1,
        };
        let args = AttentionArgs {
            heads: heads as u32,
            share: share as u32,
            key: key as u32,
            value: value as u32,
            stride: stride as u32,
            value_base: value_base as u32,
            scales: scales as u32,
            block: kv.spec.block_size as u32,
            splits: splits as u32,
            scale,
        };
        let gpu = &self.gpu;
        let parts = rows * heads * splits;
        let part = if splits > 1 { gpu.uninitialised(parts * value)? } else { y.clone() };
        let state = gpu.uninitialised(if splits > 1 { 2 * parts } else { 1 })?;
        let grid = [groups as u32, splits as u32, rows as u32];
        kernel.launch(gpu, grid, &q, pool, &places, &batch.blocks(), &part, &state, &args)?;
        if splits > 1 {
            let args = JoinArgs { splits: splits as u32, value: value as u32 };
            AttentionJoin {}.launch(
                gpu,
                [(rows * heads) as u32, value.div_ceil(128) as u32, 1],
                &part,
                &state,
                &y,
                &args,
            )?;
        }
        Ok(())
    }
}
