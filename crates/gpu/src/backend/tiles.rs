//! Attention of many rows with tensor cores: what sequences have of the pool is written as halves, and tiles of rows pass over it.

use super::attend::Slot;
use super::halves::product_factor;
use super::latent::Projection;
use super::stored::{Kind, Stored};
use super::{GpuBackend, GpuBatch, GpuKv, GpuRope, Heads};
use crate::kernels::*;
use crate::{Result, Slice};
use marlin_backend::fallback::Reason;
use std::ops::Range;
use std::sync::PoisonError;

/// Values that a projection of latents makes at a time, at most.
const EXPANDED: usize = 64 << 20;

/// Positions of a product with latents are a multiple of this, so that the library sees few different sizes.
const STEP: usize = 64;

/// Rows that are compared with the other kernel.
const COMPARED: usize = 32;

/// Greatest difference from it that is taken for rounding, relative to the largest value: scores of a hundred are off by a
/// fiftieth.
const LIMIT: f32 = 2e-2;

/// Keys and values of all heads and sequences.
struct Context {
    keys: Slice<u32>,
    values: Slice<u32>,
    args: ContextArgs,
}

/// What a latent's projection makes of it.
#[derive(Clone, Copy)]
pub(super) struct Expansion<'a> {
    pub projection: &'a Projection,
    /// Values of a head's key that come from the latent.
    pub nope: usize,
    /// Turns what remains of queries.
    pub rope: Option<&'a GpuRope>,
}

/// A kernel that has been compared with the one that rounds nothing, or has not.
pub(super) type Compared = std::collections::HashMap<(AttentionTiles, bool), bool>;

impl GpuBackend {
    /// Whether such heads have a kernel, which has not been found wrong.
    fn tiles(&self, kernel: Option<AttentionTiles>, share: usize, latent: bool) -> Option<AttentionTiles> {
        let wrong = |k: &AttentionTiles| {
            self.compared.lock().unwrap_or_else(PoisonError::into_inner).get(&(*k, latent)) == Some(&false)
        };
        let able = !self.options.exact && self.gpu.device().target().has_tensor_cores();
        kernel.filter(|k| able && share <= k.vectors() && !wrong(k))
    }

    /// Attention of the rows of all spans; false if that is not how it is computed here.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attend_tiles(
        &self,
        q: &Slice<f32>,
        kv: &GpuKv,
        layer: usize,
        of: Heads,
        scale: f32,
        batch: &GpuBatch,
        y: &Slice<f32>,
    ) -> marlin_backend::Result<bool> {
        let Some(kernel) = self.tiles(AttentionTiles::of(of.key, of.value, Turn::No), of.share, false) else {
            return Ok(false);
        };
        let plain = |rows: Range<usize>, y: &Slice<f32>| self.attend_rows(q, kv, layer, of, scale, batch, rows, y);
        let pool = self.layer(kv, layer)?;
        let tiles = || {
            let context = self.heads(kv, pool, of, batch, kernel)?;
            self.pass(q, kernel, of, scale, None, batch, &context, y)
        };
        self.first_compared((kernel, false), of.heads * of.value, batch, y, tiles, plain)
    }

    /// Latent attention of the rows of all spans, with keys and values of all heads; false if that is not how it is computed here. `of`
    /// are the heads as they are then.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attend_expanded(
        &self,
        q: &Slice<f32>,
        kv: &GpuKv,
        layer: usize,
        of: Heads,
        scale: f32,
        expansion: Expansion,
        batch: &GpuBatch,
        y: &Slice<f32>,
        plain: impl Fn(Range<usize>, &Slice<f32>) -> marlin_backend::Result<()>,
    ) -> marlin_backend::Result<bool> {
        let turn = expansion.rope.map_or(Turn::No, GpuRope::turn);
        let kernel = self.tiles(AttentionTiles::of(of.key, of.value, turn), of.share, true);
        let Some(kernel) = kernel.filter(|_| expansion.nope.is_multiple_of(8)) else { return Ok(false) };
        let Some(stored) = expansion.projection.stored(of.heads * (expansion.nope + of.value)) else {
            return Ok(false);
        };
        if !self.multiplies(&stored.kind) {
            return Ok(false);
        }
        let pool = self.layer(kv, layer)?;
        let tiles = || {
            let context = self.expanded(kv, pool, of, &stored, expansion.nope, batch, kernel)?;
            self.pass(q, kernel, of, scale, expansion.rope, batch, &context, y)
        };
        self.first_compared((kernel, true), of.heads * of.value, batch, y, tiles, plain)
    }

    /// Computes the rows of all spans with `tiles`, unless there are none or memory is short. The first time the last rows are
    /// compared with what `plain` makes of them.
    fn first_compared(
        &self,
        kernel: (AttentionTiles, bool),
        cols: usize,
        batch: &GpuBatch,
        y: &Slice<f32>,
        tiles: impl Fn() -> Result<()>,
        plain: impl Fn(Range<usize>, &Slice<f32>) -> marlin_backend::Result<()>,
    ) -> marlin_backend::Result<bool> {
        let Some(span) = batch.spans.last() else { return Ok(false) };
        let wrong = |reason| {
            self.count(reason, &kernel.0.name(), batch.layout.rows, [0, 0]);
            self.compared.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel, false);
            Ok(false)
        };
        match tiles() {
            Ok(()) => {}
            Err(crate::Error::OutOfMemory { .. }) => return Ok(false),
            Err(crate::Error::Compile { .. }) => return wrong(Reason::KernelCompileFailed),
            Err(crate::Error::Launch { .. }) => return wrong(Reason::SelfCheckFailed),
            Err(error) => return Err(error.into()),
        }
        if self.compared.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&kernel) {
            return Ok(true);
        }
        let end = span.first + span.rows;
        let rows = end - span.rows.min(COMPARED)..end;
        let (from, len) = (rows.start * cols, rows.len() * cols);
        let found = self.gpu.read(&y.part(from, len))?;
        let other = self.gpu.uninitialised::<f32>(y.len())?;
        plain(rows, &other)?;
        let expected = self.gpu.read(&other.part(from, len))?;
        let most = expected.iter().fold(0.0f32, |m, v| if v.is_finite() { m.max(v.abs()) } else { f32::NAN });
        if most.is_nan() || most == 0.0 {
            return Ok(true); // says nothing
        }
        // False for NaN.
        if !found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= LIMIT * most) {
            return wrong(Reason::SelfCheckFailed);
        }
        self.compared.lock().unwrap_or_else(PoisonError::into_inner).insert(kernel, true);
        Ok(true)
    }

    fn context(&self, kv: &GpuKv, of: Heads, batch: &GpuBatch, kernel: AttentionTiles) -> Result<Context> {
        let Slot { stride, scales } = Slot::of(&kv.spec.layout, self.options.kv);
        let (kv_heads, positions) = (of.heads / of.share, batch.spans.iter().map(|s| s.positions).sum::<usize>());
        // Not more than half of what is left, for a device may give less than it seems to have.
        let bytes = 2 * kv_heads * positions * (kernel.key + kernel.value) as usize;
        let (active, cap) = (self.gpu.memory().active, self.options.memory);
        if bytes > cap.saturating_sub(active) / 2 {
            return Err(crate::Error::OutOfMemory { bytes, active, cap });
        }
        let halves = |wide: u32| self.gpu.uninitialised::<u32>(kv_heads * positions * wide as usize / 2);
        let args = ContextArgs {
            kv_heads: kv_heads as u32,
            key: of.key as u32,
            value: of.value as u32,
            wide_key: kernel.key,
            wide_value: kernel.value,
            stride: stride as u32,
            value_base: (kv_heads * of.key) as u32,
            scales: scales as u32,
            block: kv.spec.block_size as u32,
            positions: positions as u32,
            spans: batch.spans.len() as u32,
        };
        Ok(Context { keys: halves(kernel.key)?, values: halves(kernel.value)?, args })
    }

    /// Keys and values as the pool has them.
    fn heads(
        &self,
        kv: &GpuKv,
        pool: &Slice<u8>,
        of: Heads,
        batch: &GpuBatch,
        kernel: AttentionTiles,
    ) -> Result<Context> {
        let c = self.context(kv, of, batch, kernel)?;
        let width = width(&[c.args.key, c.args.value, c.args.stride, c.args.value_base]);
        let gather = ContextHalves { element: self.options.kv, width, latent: false };
        let groups = [c.args.positions, 1, 1];
        let (rows, blocks, spans) = (batch.places(), batch.blocks(), batch.span_table());
        gather.launch(&self.gpu, groups, pool, &rows, &blocks, &spans, &c.keys, &c.values, &c.args)?;
        Ok(c)
    }

    /// Keys and values that a projection makes of latents.
    #[allow(clippy::too_many_arguments)]
    fn expanded(
        &self,
        kv: &GpuKv,
        pool: &Slice<u8>,
        of: Heads,
        projection: &Stored,
        nope: usize,
        batch: &GpuBatch,
        kernel: AttentionTiles,
    ) -> Result<Context> {
        let gpu = &self.gpu;
        let (rows, blocks, spans) = (batch.places(), batch.blocks(), batch.span_table());
        let c = self.context(kv, of, batch, kernel)?;
        let (positions, made) = (c.args.positions as usize, projection.kind.rows());
        let rank = projection.kind.cols();
        let padded = positions.next_multiple_of(STEP);
        let latents = gpu.uninitialised::<u32>(padded * rank / 2)?;
        let args = ContextArgs { kv_heads: 1, key: rank as u32, wide_key: rank as u32, ..c.args };
        let gather = ContextHalves { element: self.options.kv, width: width(&[args.key, args.stride]), latent: true };
        let unused = gpu.uninitialised(1)?;
        gather.launch(gpu, [c.args.positions, 1, 1], pool, &rows, &blocks, &spans, &latents, &unused, &args)?;
        let factors = gpu.upload(&[product_factor(&projection.kind), 0.0])?;
        let rope = of.key - nope;
        let each = (EXPANDED / made / STEP * STEP).max(STEP);
        let args = ExpandedArgs { c: c.args, first: 0, rank: rank as u32, rope: rope as u32 };
        let place = ExpandedHalves {
            element: self.options.kv,
            width: width(&[nope as u32, rope as u32, c.args.value, c.args.stride, args.rank]),
        };
        for first in (0..positions).step_by(each) {
            let batch = each.min(padded - first);
            let x =
                self.multiply_halves(projection, &latents.part(first * rank / 2, batch * rank / 2), &factors, batch)?;
            let (args, groups) =
                (ExpandedArgs { first: first as u32, ..args }, [batch.min(positions - first) as u32, 1, 1]);
            place.launch(gpu, groups, &x, pool, &rows, &blocks, &spans, &c.keys, &c.values, &args)?;
        }
        Ok(c)
    }

    #[allow(clippy::too_many_arguments)]
    fn pass(
        &self,
        q: &Slice<f32>,
        kernel: AttentionTiles,
        of: Heads,
        scale: f32,
        rope: Option<&GpuRope>,
        batch: &GpuBatch,
        context: &Context,
        y: &Slice<f32>,
    ) -> Result<()> {
        let per = kernel.vectors() / of.share;
        let tiles: usize = batch.spans.iter().map(|s| s.rows.div_ceil(per)).sum();
        let args = TilesArgs {
            kv_heads: context.args.kv_heads,
            share: of.share as u32,
            heads: of.heads as u32,
            key: of.key as u32,
            value: of.value as u32,
            positions: context.args.positions,
            tiles: tiles as u32,
            pairs: rope.map_or(0, GpuRope::pairs) as u32,
            scale: scale * std::f32::consts::LOG2_E,
        };
        let table = rope.map(|r| self.turns(r, batch)).transpose()?;
        let table = table.as_ref().unwrap_or(&self.none);
        let groups = [args.kv_heads * args.tiles, 1, 1];
        let (spans, positions) = (batch.span_table(), batch.positions());
        kernel.launch(&self.gpu, groups, q, &context.keys, &context.values, &spans, &positions, table, y, &args)
    }
}

/// Values that are loaded at once where these numbers are all multiples of 8, or not.
fn width(sizes: &[u32]) -> u32 {
    if sizes.iter().all(|n| n.is_multiple_of(8)) { 8 } else { 1 }
}

impl Projection {
    /// The projection of `rows` outputs as a weight.
    fn stored(&self, rows: usize) -> Option<Stored> {
        let cols = self.data.len() / self.element.bytes() / rows.max(1);
        let vector = (cols * self.element.bytes()).is_multiple_of(16);
        let weight = WeightType::Dense { element: self.element, vector };
        let args = WeightArgs { rows: rows as u32, cols: cols as u32, ..WeightArgs::default() };
        let kind = Kind::Rows { weight, args };
        (cols > 0).then(|| Stored { kind, words: self.data.cast(), factors: self.data.clone() })
    }
}
