//! Steps, KV memory, attention over it, and the samples that a step may begin with.

use super::{GpuBackend, Tensor};
use crate::Slice;
use crate::kernels::{AppendArgs, Attention, AttentionArgs, KvAppend};
use marlin_backend::fallback::Reason;
use marlin_backend::{Backend, Error, KvSpec, Result, Sample, SampleRow, Step, Token, sampling};
use std::sync::{Arc, OnceLock};

/// A pool of KV blocks: one buffer for each layer, a token's parts beside each other.
pub struct GpuKv {
    pub(super) spec: KvSpec,
    pub(super) layers: Vec<Slice<u8>>,
}

/// A prepared step.
pub struct GpuBatch {
    pub(super) rows: usize,
    pub(super) greatest: usize,
    pub(super) tokens: Slice<u32>,
    pub(super) positions: Slice<u32>,
    /// For each row where its sequence's blocks begin in `blocks`, and its position.
    pub(super) places: Slice<u32>,
    pub(super) blocks: Slice<u32>,
    pub(super) slots: Slice<u32>,
    pub(super) outputs: Slice<u32>,
}

/// Tokens chosen when somebody first wants to know.
#[derive(Clone)]
pub struct GpuSamples(pub(super) Arc<Choice>);

pub(super) struct Choice {
    pub(super) logits: Tensor,
    pub(super) rows: Vec<SampleRow>,
    pub(super) chosen: OnceLock<Vec<Sample>>,
}

impl GpuBackend {
    /// Prepares a step: its tables in one upload.
    pub(super) fn prepare_step(&self, step: &Step, kv: &GpuKv, previous: Option<&GpuSamples>) -> Result<GpuBatch> {
        let needs = step.tokens.iter().any(|t| matches!(t, Token::Sampled(_)));
        let samples = match previous {
            Some(samples) if needs => {
                if samples.0.chosen.get().is_none() {
                    self.count(Reason::SampledOnCpu, "sample", samples.0.rows.len(), [0, 0]);
                }
                self.choose(samples)?
            }
            _ => Vec::new(),
        };
        step.check(&kv.spec, if needs { samples.len() } else { 0 })?;
        let size = kv.spec.block_size;
        let id = |t: &Token| match *t {
            Token::Id(id) => id,
            Token::Sampled(row) => samples[row as usize].token,
        };
        let mut starts = Vec::new();
        let mut blocks: Vec<u32> = Vec::new();
        for s in &step.sequences {
            starts.push(blocks.len() as u32);
            blocks.extend(&s.blocks);
        }
        let rows: Vec<_> = step.rows().collect();
        let slot = |r: &marlin_backend::Row| {
            step.sequences[r.sequence].blocks[r.position / size] * size as u32 + (r.position % size) as u32
        };
        // One upload for all tables.
        let tokens: Vec<u32> = step.tokens.iter().map(id).collect();
        let positions: Vec<u32> = rows.iter().map(|r| r.position as u32).collect();
        let places: Vec<u32> = rows.iter().flat_map(|r| [starts[r.sequence], r.position as u32]).collect();
        let slots: Vec<u32> = rows.iter().map(slot).collect();
        let tables = [&tokens, &positions, &places, &blocks, &slots, &step.outputs];
        let mut all = Vec::new();
        let mut parts = Vec::new();
        for table in tables {
            parts.push((all.len(), table.len()));
            all.extend(table);
            all.resize(all.len().next_multiple_of(64), 0);
        }
        let all = self.gpu.upload(&all)?;
        let part = |i: usize| all.part(parts[i].0, parts[i].1);
        let greatest = rows.iter().map(|r| r.position).max().unwrap_or(0);
        Ok(GpuBatch {
            rows: rows.len(),
            greatest,
            tokens: part(0),
            positions: part(1),
            places: part(2),
            blocks: part(3),
            slots: part(4),
            outputs: part(5),
        })
    }

    pub(super) fn store(&self, kv: &GpuKv, layer: usize, [a, b]: [&Tensor; 2], batch: &GpuBatch) -> Result<()> {
        let pool = kv.layers.get(layer).ok_or_else(|| Error::shape("kv", kv.spec.layers, layer))?;
        let values = a.cols + b.cols;
        let args = AppendArgs { rows: batch.rows as u32, first: a.cols as u32, second: b.cols as u32, base: 0 };
        let groups = [(batch.rows * values).div_ceil(256) as u32, 1, 1];
        KvAppend { element: self.options.kv }.launch(&self.gpu, groups, &a.data, &b.data, &batch.slots, pool, &args)?;
        Ok(())
    }

    /// Attention over a pool; `[heads, share, key, value]`: query heads, how many of them share a KV head, sizes.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn attend(
        &self,
        q: &Tensor,
        kv: &GpuKv,
        layer: usize,
        [heads, share, key, value]: [usize; 4],
        value_base: usize,
        scale: f32,
        batch: &GpuBatch,
    ) -> Result<Tensor> {
        let pool = kv.layers.get(layer).ok_or_else(|| Error::shape("kv", kv.spec.layers, layer))?;
        if q.rows != batch.rows {
            return Err(Error::shape("attention", format!("{} rows", batch.rows), q.rows));
        }
        // Lanes hold 32 values of each at most: larger heads have no kernel.
        let (keys, values) = (key.div_ceil(32) as u32, value.div_ceil(32) as u32);
        if keys > 32 || values > 32 {
            return Err(Error::Unsupported {
                op: "attention",
                why: format!("heads of {key} and {value} values; at most 1024"),
            });
        }
        let y = self.uninitialised(q.rows, heads * value)?;
        let args = AttentionArgs {
            heads: heads as u32,
            share: share as u32,
            key: key as u32,
            value: value as u32,
            stride: kv.spec.layout.values() as u32,
            value_base: value_base as u32,
            block: kv.spec.block_size as u32,
            base: 0,
            scale,
        };
        let simds = if values > 24 { 4 } else { 8 };
        let kernel = Attention { element: self.options.kv, simds, keys, values };
        let groups = [heads as u32, q.rows as u32, 1];
        kernel.launch(&self.gpu, groups, &q.data, pool, &batch.places, &batch.blocks, &y.data, &args)?;
        Ok(y)
    }

    /// The tokens chosen; waits for the logits the first time.
    pub(super) fn choose(&self, samples: &GpuSamples) -> Result<Vec<Sample>> {
        let Choice { logits, rows, chosen } = &*samples.0;
        if let Some(chosen) = chosen.get() {
            return Ok(chosen.clone());
        }
        let values = self.read(logits)?;
        let pick = |(values, row): (&[f32], &SampleRow)| sampling::choose(values, row);
        let found = values.chunks_exact(logits.cols.max(1)).zip(rows).map(pick).collect();
        Ok(chosen.get_or_init(|| found).clone())
    }
}
