//! KV memory: one allocation for each layer, zeroed by the system when first touched.

use super::{Tensor, shape};
use crate::attention::{self, KvShape, LatentShape, Sequence, Span};
use crate::{Cpu, DType, Mode};
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
    pub first: Vec<u8>,
    /// Values.
    second: Vec<u8>,
}

/// A pool of KV blocks.
pub struct CpuKv {
    spec: KvSpec,
    dtype: DType,
    layers: Vec<Mutex<Layer>>,
}

impl CpuKv {
    pub(super) fn new(spec: KvSpec, dtype: DType) -> Result<Self> {
        let tokens = spec.blocks.checked_mul(spec.block_size);
        let bytes =
            |values: usize| tokens.and_then(|t| t.checked_mul(values)?.checked_mul(dtype.size())).unwrap_or(usize::MAX);
        let (first, second) = match spec.layout {
            KvLayout::Heads { heads, key, value } => (bytes(heads * key), bytes(heads * value)),
            KvLayout::Latent { rank, rope } => (bytes(rank + rope), 0),
        };
        let zeroed = |bytes: usize| {
            // Asked for first, so that too much is an error; `vec!` then takes zero pages, which cost nothing until used.
            Vec::<u8>::new()
                .try_reserve_exact(bytes)
                .map_err(|_| Error::OutOfMemory { what: "KV memory of a layer".into(), bytes })
                .map(|()| vec![0u8; bytes])
        };
        let layer = |_| Ok(Mutex::new(Layer { first: zeroed(first)?, second: zeroed(second)? }));
        Ok(Self { spec, dtype, layers: (0..spec.layers).map(layer).collect::<Result<_>>()? })
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
        match self.spec.layout {
            KvLayout::Heads { heads, key, value } => Ok(KvShape {
                kv_heads: heads,
                k_dim: key,
                v_dim: value,
                block: self.spec.block_size,
                dtype: self.dtype,
            }),
            KvLayout::Latent { .. } => Err(Error::shape(op, "a pool of keys and values", "latents")),
        }
    }

    pub(super) fn latent_shape(&self, op: &'static str) -> Result<LatentShape> {
        match self.spec.layout {
            KvLayout::Latent { rank, rope } => {
                Ok(LatentShape { rank, rope, block: self.spec.block_size, dtype: self.dtype })
            }
            KvLayout::Heads { .. } => Err(Error::shape(op, "a pool of latents", "keys and values")),
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
        attention::append(cpu, kv, first, second, k.values(), k.cols, v.values(), v.cols, &spans.all()).map_err(shape)
    }

    pub(super) fn append_latent(&self, layer: usize, latent: &Tensor, key: &Tensor, spans: &Spans) -> Result<()> {
        let kv = self.latent_shape("append_latent")?;
        let mut memory = self.layer(layer)?;
        let (c, pe) = (latent.values(), key.values());
        attention::append_latent(kv, &mut memory.first, c, latent.cols, pe, key.cols, &spans.all()).map_err(shape)
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
        let (k, v) = (&memory.first, &memory.second);
        attention::attention(cpu, mode, kv, k, v, q.values(), q.cols, heads, &seqs, scale, out.values_mut(), cols)
            .map_err(shape)
    }
}
