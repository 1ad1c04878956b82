//! A decoder-only language model: `embed`, `layer(i)`, `head` over resident or streamed weights.

use crate::{Architecture, Inventory, Loader, ModelInfo, Report, Result};
use marlin_backend::blocks::{Attention, Head, LatentAttention, Mlp, Moe};
use marlin_backend::shapes::{GroupedShape, LatentShape, RouterShape, Shapes};
use marlin_backend::{Backend, KvLayout, KvSpec, LatentForm, LinearHandle, Observer, Pass};
use marlin_checkpoint::{Checkpoint, Modules};
use std::cell::Cell;
use std::sync::Arc;

/// One decoder layer: `h += self_attn(input_layernorm(h)); h += mlp(post_attention_layernorm(h))`.
pub struct Layer<B: Backend> {
    /// Attention and its norm.
    pub self_attn: SelfAttention<B>,
    /// Feed-forward part and its norm.
    pub mlp: FeedForward<B>,
}

/// Either kind of attention.
pub enum SelfAttention<B: Backend> {
    /// Grouped-query attention.
    Grouped(Box<Attention<B>>),
    /// Multi-head latent attention.
    Latent(Box<LatentAttention<B>>),
}

/// Either kind of feed-forward part.
pub enum FeedForward<B: Backend> {
    /// Every token passes the same weights.
    Dense(Box<Mlp<B>>),
    /// Every token passes some of many experts.
    Sparse(Box<Moe<B>>),
}

impl<B: Backend> From<Attention<B>> for SelfAttention<B> {
    fn from(part: Attention<B>) -> Self {
        Self::Grouped(Box::new(part))
    }
}

impl<B: Backend> From<LatentAttention<B>> for SelfAttention<B> {
    fn from(part: LatentAttention<B>) -> Self {
        Self::Latent(Box::new(part))
    }
}

impl<B: Backend> From<Mlp<B>> for FeedForward<B> {
    fn from(part: Mlp<B>) -> Self {
        Self::Dense(Box::new(part))
    }
}

impl<B: Backend> From<Moe<B>> for FeedForward<B> {
    fn from(part: Moe<B>) -> Self {
        Self::Sparse(Box::new(part))
    }
}

impl<B: Backend> Layer<B> {
    /// Hidden states `[tokens, hidden]` after the layer. `pass.layer` says where in the KV memory its keys go.
    pub fn forward(&self, b: &B, h: B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
        let h = match &self.self_attn {
            SelfAttention::Grouped(w) => {
                let q = b.attention_input(w, &h, pass)?;
                b.attention_output(w, &q, h, pass)?
            }
            SelfAttention::Latent(w) => {
                let q = b.latent_input(w, &h, pass)?;
                b.latent_output(w, &q, h, pass)?
            }
        };
        Ok(match &self.mlp {
            FeedForward::Dense(w) => b.mlp(w, h, pass)?,
            FeedForward::Sparse(w) => b.moe(w, h, pass)?,
        })
    }
}

/// Where a model's layers are while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residency {
    /// All loaded before the first step.
    Resident,
    /// One at a time, loaded whenever it is needed: for passes over more layers than fit in memory.
    Streamed,
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Where layers are kept.
    pub residency: Residency,
    /// Compute with the first layers only; the checkpoint must still be whole.
    pub layers: Option<usize>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { residency: Residency::Resident, layers: None }
    }
}

/// How far loading has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of tensors loaded.
    pub done: u64,
    /// Bytes of all tensors to be loaded.
    pub total: u64,
}

enum Layers<B: Backend> {
    Resident(Vec<Layer<B>>),
    Streamed(Arc<dyn Modules>, Box<Inventory>),
}

/// A loaded model.
pub struct Model<B: Backend> {
    architecture: Architecture,
    info: ModelInfo,
    report: Report,
    embed_tokens: Arc<B::Linear>,
    layers: Layers<B>,
    head: Head<B>,
    recordings: B::Recordings,
}

impl<B: Backend> Model<B> {
    /// Loads the model in `checkpoint`. Before any weight is read the tensors' names and shapes are compared with the
    /// configuration.
    pub fn load(
        b: &B,
        checkpoint: &Checkpoint,
        options: LoadOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        let architecture = Architecture::parse(&checkpoint.config)?;
        let mut info = architecture.info().clone();
        info.layers = options.layers.unwrap_or(info.layers).min(info.layers);
        let inventory = architecture.inventory();
        let modules = checkpoint.modules()?;
        let report = inventory.check(modules.as_ref(), checkpoint.store.as_ref())?;
        let total = report.modules.iter().map(|(_, stored)| stored.bytes).sum();
        let done = Cell::new(0u64);
        let loader = Loader {
            backend: b,
            modules: modules.as_ref(),
            inventory: &inventory,
            taken: &|bytes| done.set(done.get() + bytes),
        };
        let embed_tokens = Arc::new(loader.linear("model.embed_tokens", false)?);
        let layers = match options.residency {
            Residency::Streamed => Layers::Streamed(modules.clone(), Box::new(inventory.clone())),
            Residency::Resident => {
                let mut layers = Vec::with_capacity(info.layers);
                for i in 0..info.layers {
                    progress(Progress { done: done.get(), total });
                    layers.push(architecture.layer(&loader, i)?);
                }
                Layers::Resident(layers)
            }
        };
        let lm_head = match report.modules.iter().any(|(name, _)| name == "lm_head") {
            true => Arc::new(loader.linear("lm_head", false)?),
            false => embed_tokens.clone(),
        };
        let head = Head { norm: loader.norm("model.norm", info.eps)?, lm_head };
        progress(Progress { done: total, total });
        Ok(Self { architecture, info, report, embed_tokens, layers, head, recordings: B::Recordings::default() })
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// What else the checkpoint holds.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The sizes of its blocks, each once; none of what is not resident.
    pub fn shapes(&self) -> Shapes {
        let mut shapes = Shapes { hidden: self.info.hidden, ..Shapes::default() };
        fn add<T: PartialEq>(all: &mut Vec<T>, one: T) {
            if !all.contains(&one) {
                all.push(one);
            }
        }
        let Layers::Resident(layers) = &self.layers else { return shapes };
        for layer in layers {
            match (&layer.self_attn, self.info.kv) {
                (SelfAttention::Grouped(w), KvLayout::Heads { heads: kv_heads, .. }) => {
                    let (q_norm, k_norm) = (w.q_norm.is_some(), w.k_norm.is_some());
                    let (heads, head_dim) = (w.heads, w.head_dim);
                    add(&mut shapes.grouped, GroupedShape { heads, kv_heads, head_dim, q_norm, k_norm });
                }
                (SelfAttention::Latent(w), _) => {
                    let (heads, nope, rope, rank) = (w.heads, w.nope, w.rope_dim, w.rank);
                    let value = w.o_proj.cols() / heads.max(1);
                    add(&mut shapes.latent, LatentShape { heads, nope, rope, value, rank });
                }
                _ => {}
            }
            if let FeedForward::Sparse(w) = &layer.mlp {
                let (experts, bias, rule) = (w.router.gate.rows(), w.router.bias.is_some(), w.router.rule);
                add(&mut shapes.routers, RouterShape { experts, bias, rule });
            }
        }
        shapes
    }

    /// A pool of `blocks` blocks of `block_size` tokens for this model.
    pub fn kv_spec(&self, block_size: usize, blocks: usize) -> KvSpec {
        KvSpec { layers: self.info.layers, layout: self.info.kv, block_size, blocks }
    }

    /// Hidden states `[tokens, hidden]` before the first layer.
    pub fn embed(&self, b: &B, batch: &B::Batch) -> Result<B::Tensor> {
        Ok(b.embed(&self.embed_tokens, batch)?)
    }

    /// Hidden states after layer `pass.layer`.
    pub fn layer(&self, b: &B, h: B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
        self.with_layer(b, pass.layer, |layer| layer.forward(b, h, pass))
    }

    /// Logits `[outputs, vocab]` of hidden states after the last layer.
    pub fn head(&self, b: &B, h: &B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
        Ok(b.head(&self.head, h, pass)?)
    }

    /// Logits `[outputs, vocab]` of a step.
    pub fn forward(
        &self,
        b: &B,
        batch: &B::Batch,
        kv: &B::Kv,
        observer: Option<&dyn Observer<B>>,
    ) -> Result<B::Tensor> {
        let forward = |batch: &B::Batch| {
            let pass = |layer| Pass { batch, kv, layer, latent_form: LatentForm::Auto, observer };
            let mut h = self.embed(b, batch)?;
            for i in 0..self.info.layers {
                h = self.layer(b, h, &pass(i))?;
            }
            self.head(b, &h, &pass(self.info.layers))
        };
        match (&self.layers, observer) {
            (Layers::Resident(_), None) => b.whole(&self.recordings, batch, kv, forward),
            _ => forward(batch),
        }
    }

    /// Hidden states `[outputs, hidden]` as the output projection sees them: the wanted rows of those after the last layer,
    /// normalised.
    pub fn head_input(&self, b: &B, h: &B::Tensor, pass: &Pass<B>) -> Result<B::Tensor> {
        Ok(self.head.norm.apply(b, &b.outputs(h, pass.batch)?)?)
    }

    /// Layer `i` with weights from `modules`, which may be other than those the model was loaded from, for a caller that
    /// takes one layer at a time through many batches.
    pub fn read_layer(&self, b: &B, modules: &dyn Modules, i: usize) -> Result<Layer<B>> {
        let inventory = self.architecture.inventory();
        let loader = Loader { backend: b, modules, inventory: &inventory, taken: &|_| {} };
        self.architecture.layer(&loader, i)
    }

    fn with_layer<T>(&self, b: &B, i: usize, f: impl FnOnce(&Layer<B>) -> Result<T>) -> Result<T> {
        match &self.layers {
            Layers::Resident(layers) => f(&layers[i]),
            Layers::Streamed(modules, inventory) => {
                let loader = Loader { backend: b, modules: modules.as_ref(), inventory, taken: &|_| {} };
                f(&self.architecture.layer(&loader, i)?)
            }
        }
    }
}
