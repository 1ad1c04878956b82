//! KV memory: one allocation for each layer, zeroed by the system when first touched, in large pages where it has them:
//! attention walks from block to block, and would look up a small page for every few lines.

use super::{Tensor, shape};
use crate::attention::{self, KvShape, LatentShape, Sequence, Span, Stored};
use crate::buffer::Pages;
use crate::{Cpu, Mode};
use marlin_backend::{Error, KvLayout, KvSpec, Result, Step};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The sequences of a step: rows and blocks.
pub(super) struct Spans(Vec<(Span, Vec<u32>)>);

impl Spans {
    pub fn new(step: &Step) -> Self {
        let mut row = 0;
        let span = |s: &marlin_backend::SequenceStep| {
            let span = Span { row, rows: s.len, start: s.cached };
            row += s.len;
            (span, s.blocks.clone())
        };
        Self(step.sequences.iter().map(span).collect())
    }

    /// As the kernels take them.
    pub fn all(&self) -> Vec<Sequence<'_>> {
        self.0.iter().map(|(span, table)| Sequence { span: *span, table }).collect()
    }
}

/// Keys and values, or latents, of one layer.
pub(super) struct Layer {
    /// Keys, or latents with their rotated keys.
    pub first: Pages,
    /// Values.
    second: Pages,
}

/// The shape of every layer's memory.
enum Shape {
    Heads(KvShape),
    Latent(LatentShape),
}

fn shape_of(spec: &KvSpec, stored: Stored) -> Shape {
    let block = spec.block_size;
    match spec.layout {
        KvLayout::Heads { heads, key, value } => {
            Shape::Heads(KvShape { kv_heads: heads, k_dim: key, v_dim: value, block, stored })
        }
        KvLayout::Latent { rank, rope } => Shape::Latent(LatentShape { rank, rope, block, stored }),
    }
}

/// Bytes of a block of one layer: keys (or latents), and values.
fn block_bytes(spec: &KvSpec, stored: Stored) -> (usize, usize) {
    match shape_of(spec, stored) {
        Shape::Heads(shape) => (shape.k_block_bytes(), shape.v_block_bytes()),
        Shape::Latent(shape) => (shape.block_bytes(), 0),
    }
}

/// Bytes of a whole pool, scales included.
pub(super) fn bytes(spec: &KvSpec, stored: Stored) -> usize {
    let (first, second) = block_bytes(spec, stored);
    spec.layers * spec.blocks * (first + second)
}

/// A pool of KV blocks.
pub struct CpuKv {
    spec: KvSpec,
    stored: Stored,
    layers: Vec<Mutex<Layer>>,
}

impl CpuKv {
    pub(super) fn new(spec: KvSpec, stored: Stored) -> Result<Self> {
        let (first, second) = block_bytes(&spec, stored);
        let zeroed = |bytes: usize| Pages::new("KV memory of a layer", spec.blocks.saturating_mul(bytes));
        let layer = |_| Ok(Mutex::new(Layer { first: zeroed(first)?, second: zeroed(second)? }));
        Ok(Self { spec, stored, layers: (0..spec.layers).map(layer).collect::<Result<_>>()? })
    }

    pub(super) fn spec(&self) -> &KvSpec {
        &self.spec
    }

    pub(super) fn layer(&self, layer: usize) -> Result<MutexGuard<'_, Layer>> {
        let layer = self
            .layers
            .get(layer)
            .ok_or_else(|| Error::shape("kv", format!("a layer below {}", self.spec.layers), layer))?;
        Ok(layer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn kv_shape(&self, op: &'static str) -> Result<KvShape> {
        match shape_of(&self.spec, self.stored) {
            Shape::Heads(shape) => Ok(shape),
            Shape::Latent(_) => Err(Error::shape(op, "a pool of keys and values", "latents")),
        }
    }

    pub(super) fn latent_shape(&self, op: &'static str) -> Result<LatentShape> {
        match shape_of(&self.spec, self.stored) {
            Shape::Latent(shape) => Ok(shape),
            Shape::Heads(_) => Err(Error::shape(op, "a pool of latents", "keys and values")),
        }
    }

    /// Values of a key and of a value.
    pub(super) fn heads(&self, op: &'static str) -> Result<(usize, usize)> {
        self.kv_shape(op).map(|s| (s.k_dim, s.v_dim))
    }

    pub(super) fn append(&self, cpu: &Cpu, layer: usize, k: &Tensor, v: &Tensor, spans: &Spans) -> Result<()> {
        let kv = self.kv_shape("append")?;
        let mut memory = self.layer(layer)?;
        let Layer { first, second } = &mut *memory;
        attention::append(
            cpu,
            kv,
            first.all_mut(),
            second.all_mut(),
            k.values(),
            k.cols,
            v.values(),
            v.cols,
            &spans.all(),
        )
        .map_err(shape)
    }

    pub(super) fn append_latent(&self, layer: usize, latent: &Tensor, key: &Tensor, spans: &Spans) -> Result<()> {
        let kv = self.latent_shape("append_latent")?;
        let mut memory = self.layer(layer)?;
        let (c, pe) = (latent.values(), key.values());
        attention::append_latent(kv, memory.first.all_mut(), c, latent.cols, pe, key.cols, &spans.all()).map_err(shape)
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn attention(
        &self,
        cpu: &Cpu,
        mode: Mode,
        layer: usize,
        q: &Tensor,
        heads: usize,
        scale: f32,
        spans: &Spans,
        out: &mut Tensor,
    ) -> Result<()> {
        let kv = self.kv_shape("attention")?;
        let memory = self.layer(layer)?;
        let (cols, seqs) = (out.cols, spans.all());
        let (k, v) = (memory.first.all(), memory.second.all());
        attention::attention(cpu, mode, kv, k, v, q.values(), q.cols, heads, &seqs, scale, out.values_mut(), cols)
            .map_err(shape)
    }
}
