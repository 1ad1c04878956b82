//! The [`Backend`] trait.

use crate::blocks::{Attention, Head, LatentAttention, Mlp, Moe, RouterRule};
use crate::{KvSpec, Result, Sample, SampleRow, Step, blocks};
use marlin_checkpoint::{LatentProjection, Linear};

/// A linear that a backend holds.
pub trait LinearHandle {
    /// Name of the module in the checkpoint.
    fn name(&self) -> &str;
    /// Input features.
    fn cols(&self) -> usize;
    /// Output features.
    fn rows(&self) -> usize;
}

/// One expert's projections: down( silu(gate x) * up x ).
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[intermediate, hidden]`
    pub gate: Linear,
    /// `[intermediate, hidden]`
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
}

/// Rotary embedding: pair `i` turns by `position * inv_freq[i]` (arXiv 2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeTable {
    /// Radians per position, one for each pair.
    pub inv_freq: Vec<f32>,
    /// Pairs are (2i, 2i + 1) if true, (i, i + d/2) if false.
    pub interleaved: bool,
}

/// Which algebraically equal form of latent attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatentForm {
    /// Whichever is faster for the step.
    Auto,
    /// Queries are taken into the latent space, where attention happens.
    Absorbed,
    /// Keys and values of all heads are computed from the latents.
    Expanded,
}

/// Sees every linear's input and output, expert by expert: Hessians, NaN guards, profiles. Blocks are then computed by
/// their default bodies, and experts may make the backend wait.
pub trait Observer<B: Backend>: Send + Sync {
    /// `linear` has been applied to `input` `[n, cols]` and gave `output` `[n, rows]`.
    fn linear(&self, backend: &B, linear: &B::Linear, input: &B::Tensor, output: &B::Tensor) -> Result<()>;

    /// The router `gate` has sent each row to these experts, with these weights, in the order chosen. Called before the
    /// experts are applied, each to its rows in ascending order.
    fn routing(&self, backend: &B, gate: &B::Linear, choices: &[Vec<(u32, f32)>]) -> Result<()> {
        let _ = (backend, gate, choices);
        Ok(())
    }
}

/// What the layers of one forward pass share.
pub struct Pass<'a, B: Backend> {
    /// The step, prepared by [`Backend::begin`].
    pub batch: &'a B::Batch,
    /// KV memory.
    pub kv: &'a B::Kv,
    /// The layer being computed.
    pub layer: usize,
    /// Which form latent attention takes.
    pub latent_form: LatentForm,
    /// Who watches, if anyone.
    pub observer: Option<&'a dyn Observer<B>>,
}

/// A device that can run models.
///
/// Operations enqueue: they return at once with handles to results that may not exist yet. [`Backend::submit`] says
/// that what has been enqueued may start; only the `read` functions wait. A tensor is a matrix of activations, one row
/// a token, in a precision the backend chooses; `[rows, cols]` below gives its shape. Operations that take a tensor by
/// value may overwrite it when nobody else holds it.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Activations `[rows, cols]`.
    type Tensor: Clone + Send + Sync + 'static;
    /// A parameter of one dimension.
    type Vector: Send + Sync + 'static;
    /// A linear layer's weight.
    type Linear: LinearHandle + Send + Sync + 'static;
    /// The experts of one layer.
    type Experts: Send + Sync + 'static;
    /// A rotary table.
    type Rope: Send + Sync + 'static;
    /// A pool of KV blocks for all layers.
    type Kv: Send + Sync + 'static;
    /// A prepared step.
    type Batch: Send + Sync + 'static;
    /// Experts chosen for each row, with their weights.
    type Routing: Send + Sync + 'static;
    /// Tokens chosen by [`Backend::sample`].
    type Samples: Clone + Send + Sync + 'static;
    /// What a backend remembers of a model's steps, to enqueue them faster; kept by the model.
    type Recordings: Default + Send + Sync + 'static;

    /// What the device is called.
    fn name(&self) -> String;

    /// Whether a step is better enqueued before the one before it has been read: the device computes while the host does
    /// other things, and reading samples waits for their own step only.
    fn pipelines(&self) -> bool {
        false
    }

    /// Whether tokens chosen so can be named by the next step ([`Token::Sampled`](crate::Token)) without being waited for.
    fn keeps(&self, rows: &[SampleRow]) -> bool {
        let _ = rows;
        true
    }

    // Parameters. These may copy, convert and wait.

    /// A parameter vector.
    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector>;
    /// A linear. Its values are checked to be finite.
    fn linear(&self, linear: Linear) -> Result<Self::Linear>;
    /// The experts of a layer, all of the same sizes.
    fn experts(&self, experts: Vec<Expert>) -> Result<Self::Experts>;
    /// A rotary table.
    fn rope_table(&self, table: RopeTable) -> Result<Self::Rope>;
    /// An empty pool of KV blocks.
    fn kv(&self, spec: KvSpec) -> Result<Self::Kv>;
    /// Bytes the pool `spec` takes.
    fn kv_bytes(&self, spec: &KvSpec) -> usize;
    /// Bytes of the memory of its own that a KV pool may still take; `None` if it uses the host's.
    fn free_memory(&self) -> Option<usize> {
        None
    }
    /// Tokens of a prompt that are best computed at once.
    fn prefill_chunk(&self) -> usize {
        512
    }

    // Primitives.

    /// Prepares a step; `previous` are the samples that [`Token::Sampled`](crate::Token) refers to.
    fn begin(&self, step: &Step, kv: &Self::Kv, previous: Option<&Self::Samples>) -> Result<Self::Batch>;
    /// Rows of `table` for the step's tokens: `[tokens, cols of table]`.
    fn embed(&self, table: &Self::Linear, batch: &Self::Batch) -> Result<Self::Tensor>;
    /// RMS norm of every group of `weight.len()` columns: `w * x / sqrt(mean(x^2) + eps)` (arXiv 1910.07467).
    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, eps: f32) -> Result<Self::Tensor>;
    /// Each linear applied to the same input: `x · W^T + bias`.
    fn linears(&self, linears: &[&Self::Linear], x: &Self::Tensor) -> Result<Vec<Self::Tensor>>;
    /// Rotates, in every group of `group` columns, those from `offset` on (as many as the table turns) by the rows'
    /// positions.
    fn rope(
        &self,
        x: Self::Tensor,
        rope: &Self::Rope,
        group: usize,
        offset: usize,
        batch: &Self::Batch,
    ) -> Result<Self::Tensor>;
    /// Columns `from..to`.
    fn columns(&self, x: &Self::Tensor, from: usize, to: usize) -> Result<Self::Tensor>;
    /// Stores the rows' keys `[n, heads * key]` and values `[n, heads * value]` in `layer`.
    fn append(
        &self,
        kv: &Self::Kv,
        layer: usize,
        k: &Self::Tensor,
        v: &Self::Tensor,
        batch: &Self::Batch,
    ) -> Result<()>;
    /// Stores the rows' latents `[n, rank]` and rotated keys `[n, rope]` in `layer`.
    fn append_latent(
        &self,
        kv: &Self::Kv,
        layer: usize,
        latent: &Self::Tensor,
        key: &Self::Tensor,
        batch: &Self::Batch,
    ) -> Result<()>;
    /// Causal attention of queries `[n, heads * key]` over what `layer` stores for their sequences: softmax of
    /// `scale * q·k`, in f32. Query head `h` uses KV head `h / (heads / kv_heads)`. `[n, heads * value]`.
    fn attention(
        &self,
        q: &Self::Tensor,
        kv: &Self::Kv,
        layer: usize,
        heads: usize,
        scale: f32,
        batch: &Self::Batch,
    ) -> Result<Self::Tensor>;
    /// Causal latent attention of queries `[n, heads * (nope + rope)]` with the projection `kv_b`; `[n, heads * value]`.
    #[allow(clippy::too_many_arguments)]
    fn latent_attention(
        &self,
        q: &Self::Tensor,
        kv_b: LatentProjection<&Self::Linear>,
        kv: &Self::Kv,
        layer: usize,
        heads: usize,
        scale: f32,
        form: LatentForm,
        batch: &Self::Batch,
    ) -> Result<Self::Tensor>;
    /// `silu(gate) * up`.
    fn swiglu(&self, gate: Self::Tensor, up: &Self::Tensor) -> Result<Self::Tensor>;
    /// `a + b`.
    fn add(&self, a: Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor>;
    /// Every row of `x` times the sigmoid of the row's `gate` `[n, 1]`.
    fn gated(&self, x: Self::Tensor, gate: &Self::Tensor) -> Result<Self::Tensor>;
    /// The experts each row of `x` goes to, by the logits of `gate` `[experts, cols]` and the choice-only `bias`
    /// `[experts]`; in f32 throughout.
    fn route(
        &self,
        x: &Self::Tensor,
        gate: &Self::Linear,
        bias: Option<&Self::Vector>,
        rule: &RouterRule,
    ) -> Result<Self::Routing>;
    /// Sum over each row's experts, in the order chosen, of weight times expert.
    fn apply_experts(&self, x: &Self::Tensor, experts: &Self::Experts, routing: &Self::Routing)
    -> Result<Self::Tensor>;
    /// The rows whose logits the step wants.
    fn outputs(&self, x: &Self::Tensor, batch: &Self::Batch) -> Result<Self::Tensor>;
    /// One token for each row of `logits`.
    fn sample(&self, logits: &Self::Tensor, rows: &[SampleRow]) -> Result<Self::Samples>;

    // Moving data.

    /// A tensor with these rows.
    fn write(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<Self::Tensor>;
    /// Lets enqueued work start.
    fn submit(&self) -> Result<()>;
    /// Waits for a tensor: row-major values.
    fn read(&self, x: &Self::Tensor) -> Result<Vec<f32>>;
    /// Waits for samples.
    fn read_samples(&self, samples: &Self::Samples) -> Result<Vec<Sample>>;
    /// Waits for a routing: for each row, its experts and weights in the order chosen.
    fn read_routing(&self, routing: &Self::Routing) -> Result<Vec<Vec<(u32, f32)>>>;
    /// The projections of expert `index`, for observation.
    fn expert<'a>(&self, experts: &'a Self::Experts, index: usize) -> [&'a Self::Linear; 3];

    /// What `forward` computes for a step; a backend may write down what that enqueues, and enqueue it again for a step of the
    /// same shape without asking. `forward` must do the same whenever it is called: `recordings` belong to it.
    fn whole<E: From<crate::Error>>(
        &self,
        recordings: &Self::Recordings,
        batch: &Self::Batch,
        kv: &Self::Kv,
        forward: impl Fn(&Self::Batch) -> std::result::Result<Self::Tensor, E>,
    ) -> std::result::Result<Self::Tensor, E> {
        let _ = (recordings, kv);
        forward(batch)
    }

    /// Gets ready for all that `work` asks for, so that nothing has to be compiled when it is asked for in earnest. `work` is called,
    /// perhaps without anything being computed: what it reads has no meaning. `progress` is told how many of how many kernels are there.
    fn rehearse<E: From<crate::Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<(), E>,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> std::result::Result<(), E> {
        let _ = (work, progress);
        Ok(())
    }

    /// Makes sure that what has no weights is computed rightly in such a model; refuses it by the name of what is not.
    fn trust(&self, shapes: &crate::shapes::Shapes) -> Result<()> {
        let _ = shapes;
        Ok(())
    }

    // Blocks; see `blocks` for what they compute.

    /// Norm, q/k/v, head norms, rotation, KV append; gives the queries.
    fn attention_input(&self, w: &Attention<Self>, h: &Self::Tensor, pass: &Pass<Self>) -> Result<Self::Tensor> {
        blocks::attention_input(self, w, h, pass)
    }
    /// Attention, output projection, residual.
    fn attention_output(
        &self,
        w: &Attention<Self>,
        q: &Self::Tensor,
        h: Self::Tensor,
        pass: &Pass<Self>,
    ) -> Result<Self::Tensor> {
        blocks::attention_output(self, w, q, h, pass)
    }
    /// Latent attention's norm, query and latent projections, rotation, KV append; gives the queries.
    fn latent_input(&self, w: &LatentAttention<Self>, h: &Self::Tensor, pass: &Pass<Self>) -> Result<Self::Tensor> {
        blocks::latent_input(self, w, h, pass)
    }
    /// Latent attention, output projection, residual.
    fn latent_output(
        &self,
        w: &LatentAttention<Self>,
        q: &Self::Tensor,
        h: Self::Tensor,
        pass: &Pass<Self>,
    ) -> Result<Self::Tensor> {
        blocks::latent_output(self, w, q, h, pass)
    }
    /// Norm, gate and up, SwiGLU, down, residual.
    fn mlp(&self, w: &Mlp<Self>, h: Self::Tensor, pass: &Pass<Self>) -> Result<Self::Tensor> {
        blocks::mlp(self, w, h, pass)
    }
    /// Norm, router, experts, shared expert, residual.
    fn moe(&self, w: &Moe<Self>, h: Self::Tensor, pass: &Pass<Self>) -> Result<Self::Tensor> {
        blocks::moe(self, w, h, pass)
    }
    /// Wanted rows, final norm, logits.
    fn head(&self, w: &Head<Self>, h: &Self::Tensor, pass: &Pass<Self>) -> Result<Self::Tensor> {
        blocks::head(self, w, h, pass)
    }
}
