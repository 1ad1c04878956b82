//! [`GpuBackend`]: the kernels behind the [`Backend`] trait. Activations are f32. Operations enqueue on the device's queue; only
//! reading waits, and what has no kernel (counted, see [`marlin_backend::fallback`]).

mod attend;
mod batch;
mod check;
mod decide;
mod expert_tensor;
mod experts;
mod halves;
mod latent;
mod linear;
mod product;
mod record;
mod samples;
mod stored;
mod stream;
mod tensor;
mod tiles;
mod warm;

pub(crate) use halves::fits_library;
pub(crate) use product::{gemv, rows_at_a_time, trellis_gemv};
pub(crate) use stored::{Kind, packed_kind};
pub(crate) use stream::streamed;

pub use attend::GpuKv;
use attend::Heads;
pub use batch::GpuBatch;
pub use experts::GpuExperts;
pub use linear::GpuLinear;
pub use record::GpuRecordings;
pub use samples::GpuSamples;
pub use tensor::Tensor;
pub use warm::{Product, Warmth};

use crate::kernels::{
    Columns, ColumnsArgs, CountArgs, DecodeRows, Element, Gated, Gather, Rope, RopeArgs, Route, RouteArgs, RowsArgs,
    Swiglu, Turn,
};
use crate::select::Thresholds;
use crate::{Device, Gpu, Slice};
use decide::{Decision, Rung};
use halves::Panels;
use linear::OnDevice;
use marlin_backend::blocks::{self, Attention, LatentAttention, Mlp, Moe, Norm, RouterRule, Scoring};
use marlin_backend::fallback::{Fallback, Fallbacks, Reason};
use marlin_backend::{
    Backend, Error, Expert, KvLayout, KvSpec, LatentForm, LinearHandle, Pass, Result, RopeTable, Sample, SampleRow,
    Step,
};
use marlin_checkpoint::{LatentProjection, Linear};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use stored::Stored;
use stream::Scratch;
use tiles::Compared;

/// Free memory with which long prompts are computed 2,048 tokens at a time.
const ROOMY: usize = 6 << 30;

/// How a [`GpuBackend`] computes.
#[derive(Clone, Copy, Debug)]
pub struct GpuOptions {
    /// What KV memory holds.
    pub kv: Element,
    /// Bytes of the device's memory that may be in use.
    pub memory: usize,
    /// Threads of the CPU, for what no kernel does; 0 takes the physical cores.
    pub threads: usize,
    /// Decoding steps are recorded and replayed, where the device can.
    pub record: bool,
    /// Products are computed with f32 inputs and sums only: no tensor cores with inputs of 16 bits, which may send a token to
    /// other experts where routers nearly tie.
    pub exact: bool,
}

/// Experts chosen for each row.
pub struct GpuRouting {
    rows: usize,
    slots: usize,
    experts: Slice<u32>,
    /// Each expert twice: the numbers of its gate and of its up projection among both.
    both: Slice<u32>,
    weights: Slice<f32>,
}

/// A rotary table; cosines and sines of positions are made as they are needed.
pub struct GpuRope {
    table: RopeTable,
    /// By positions; none is given up, for a recording may read it. Each is twice as long as the one before.
    turns: Mutex<Vec<(usize, Slice<f32>)>>,
}

impl GpuRope {
    fn pairs(&self) -> usize {
        self.table.inv_freq.len()
    }

    fn turn(&self) -> Turn {
        if self.table.interleaved { Turn::Neighbours } else { Turn::Halves }
    }
}

/// A parameter vector.
pub struct GpuVector {
    len: usize,
    data: Slice<f32>,
}

/// The backend of a GPU.
pub struct GpuBackend {
    gpu: Gpu,
    options: GpuOptions,
    thresholds: Mutex<Thresholds>,
    cpu: linear::Cpu,
    /// How each kind and size of weight is computed, with the first module that is such.
    plan: Mutex<HashMap<String, (String, Decision)>>,
    fallbacks: Fallbacks,
    /// Kernels that have been got ready.
    wanted: Mutex<BTreeSet<String>>,
    /// What kernels are bound to that read nothing there.
    none: Slice<f32>,
    /// 1 and 0.
    one: Slice<f32>,
    scratch: Mutex<Scratch>,
    panels: Mutex<Option<Panels>>,
    compared: Mutex<Compared>,
}

impl GpuBackend {
    /// The backend of `device`, every primitive of which has been compared with the reference. The device is refused, by the
    /// name of the primitive, if one of them computes something else.
    pub fn open(device: Arc<dyn Device>, options: GpuOptions) -> Result<Self> {
        let backend = Self::new(device, options)?;
        backend.check_primitives()?;
        Ok(backend)
    }

    /// The same without looking. Products with weights are compared when they are loaded in any case.
    pub fn new(device: Arc<dyn Device>, options: GpuOptions) -> crate::Result<Self> {
        let gpu = Gpu::new(device, options.memory);
        let fixed = gpu.upload(&[0.0f32, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0])?;
        let (none, one) = (fixed.part(0, 4), fixed.part(4, 2));
        let scratch = Mutex::new(Scratch::new(&gpu)?);
        let (plan, fallbacks, wanted) = (Mutex::default(), Fallbacks::default(), Mutex::default());
        let (cpu, panels, compared) = (OnceLock::new(), Mutex::default(), Mutex::default());
        let thresholds = Mutex::new(Thresholds::of(gpu.device().info()));
        Ok(Self { gpu, options, thresholds, cpu, plan, fallbacks, wanted, none, one, scratch, panels, compared })
    }

    /// The device with its memory.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The numbers at which one kernel takes over from another.
    pub fn thresholds(&self) -> Thresholds {
        *self.thresholds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other thresholds from now on, to compare them; those it had are the device's own. Steps that were recorded keep theirs.
    pub fn set_thresholds(&self, thresholds: Thresholds) {
        *self.thresholds.lock().unwrap_or_else(PoisonError::into_inner) = thresholds.within_limits();
    }

    /// What took a slower path.
    pub fn fallbacks(&self) -> &Fallbacks {
        &self.fallbacks
    }

    fn count(&self, reason: Reason, module: &str, batch: usize, [top_k, experts]: [usize; 2]) {
        if self.gpu.is_rehearsing() {
            return;
        }
        self.fallbacks.note(Fallback { reason, module: module.to_owned(), batch, top_k, experts });
    }

    /// Bytes a second that a kernel reads and writes, over `bytes` of memory.
    pub fn bytes_per_second(&self, bytes: usize) -> crate::Result<f64> {
        let count = CountArgs { count: (bytes / 8).clamp(1, 1 << 30) as u32 };
        let (x, y) = (self.gpu.uninitialised(count.count as usize)?, self.gpu.uninitialised(count.count as usize)?);
        let mut best = f64::INFINITY;
        for _ in 0..4 {
            const LAUNCHES: usize = 8;
            self.gpu.device().wait()?;
            let began = std::time::Instant::now();
            for _ in 0..LAUNCHES {
                crate::kernels::Add {}.launch(&self.gpu, [count.count.div_ceil(256), 1, 1], &x, &x, &y, &count)?;
            }
            self.gpu.device().wait()?;
            best = best.min(began.elapsed().as_secs_f64() / LAUNCHES as f64);
        }
        Ok(8.0 * f64::from(count.count) / best)
    }

    fn uninitialised(&self, rows: usize, cols: usize) -> crate::Result<Tensor> {
        Ok(Tensor::of(rows, cols, self.gpu.uninitialised(rows * cols)?))
    }

    /// Cosines and sines of every position that a step may have.
    fn turns(&self, rope: &GpuRope, batch: &GpuBatch) -> crate::Result<Slice<f32>> {
        if self.gpu.is_rehearsing() {
            return Ok(self.none.clone());
        }
        let wanted = batch.layout.context;
        let mut turns = rope.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, table)) = turns.iter().find(|(positions, _)| *positions >= wanted) {
            return Ok(table.clone());
        }
        let turn = |p: usize| {
            rope.table.inv_freq.iter().flat_map(move |f| {
                let (sine, cosine) = (p as f32 * f).sin_cos();
                [cosine, sine]
            })
        };
        let values: Vec<f32> = (0..wanted).flat_map(turn).collect();
        let table = self.gpu.upload(&values)?;
        turns.push((wanted, table.clone()));
        Ok(table)
    }

    /// One thread a value of a new tensor.
    fn each(&self, rows: usize, cols: usize) -> crate::Result<(Tensor, [u32; 3])> {
        let y = self.uninitialised(rows, cols)?;
        Ok((y, [(rows * cols).div_ceil(256) as u32, 1, 1]))
    }

    /// The norm of `h` through linears.
    fn normed_linears(&self, norm: &Norm<Self>, h: &Tensor, linears: &[&GpuLinear]) -> Result<Vec<Tensor>> {
        let many: Option<Vec<_>> = linears.iter().map(|l| self.many(l, h.rows)).collect();
        let found = match &many {
            Some(many) => self.normed_halves(h, &norm.weight.data, norm.eps, many)?,
            None => None,
        };
        let (Some(many), Some(halves)) = (many, found) else { return self.linears(linears, &norm.apply(self, h)?) };
        let each = many
            .into_iter()
            .zip(halves)
            .zip(linears)
            .map(|((w, x), l)| Ok(Tensor::of(h.rows, l.rows, self.finished(&self.products(w, &x)?)?)));
        each.collect()
    }

    /// `h` and a linear of `x`.
    fn added(&self, h: Tensor, linear: &GpuLinear, x: &Tensor) -> Result<Tensor> {
        let Some(many) = self.many(linear, x.rows).filter(|_| x.cols == linear.cols) else {
            return self.add(h, &self.apply(linear, x)?);
        };
        let x = self.settled(x)?;
        Ok(self.onto(&h, many, &self.to_halves(many, &x.data, x.rows)?)?)
    }

    fn same(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
        if (a.rows, a.cols) == (b.rows, b.cols) {
            return Ok(());
        }
        Err(Error::shape(op, format!("[{}, {}]", a.rows, a.cols), format!("[{}, {}]", b.rows, b.cols)))
    }
}

impl Backend for GpuBackend {
    type Tensor = Tensor;
    type Vector = GpuVector;
    type Linear = GpuLinear;
    type Experts = GpuExperts;
    type Rope = GpuRope;
    type Kv = GpuKv;
    type Batch = GpuBatch;
    type Routing = GpuRouting;
    type Samples = GpuSamples;
    type Recordings = GpuRecordings;

    fn name(&self) -> String {
        let info = self.gpu.device().info();
        format!("{} ({}, driver {})", info.name, info.architecture, info.driver)
    }

    fn pipelines(&self) -> bool {
        true
    }

    fn keeps(&self, rows: &[SampleRow]) -> bool {
        self.keeps_samples(rows)
    }

    fn vector(&self, values: Vec<f32>) -> Result<GpuVector> {
        Ok(GpuVector { len: values.len(), data: self.gpu.upload(&values)? })
    }

    fn linear(&self, linear: Linear) -> Result<GpuLinear> {
        self.load(linear)
    }

    fn experts(&self, experts: Vec<Expert>) -> Result<GpuExperts> {
        self.load_experts(experts)
    }

    fn rope_table(&self, table: RopeTable) -> Result<GpuRope> {
        Ok(GpuRope { table, turns: Mutex::default() })
    }

    fn kv(&self, spec: KvSpec) -> Result<GpuKv> {
        self.pool(spec)
    }

    fn kv_bytes(&self, spec: &KvSpec) -> usize {
        self.pool_bytes(spec)
    }

    fn free_memory(&self) -> Option<usize> {
        let memory = self.gpu.memory();
        let allowed = self.options.memory.saturating_sub(memory.active);
        Some(self.gpu.device().free_memory().map_or(allowed, |free| allowed.min(free + memory.cached)))
    }

    /// The library's products are the faster the more rows they have, and panels are decoded once for all of them.
    fn prefill_chunk(&self) -> usize {
        let roomy = self.free_memory().is_some_and(|free| free >= ROOMY);
        if roomy && !self.options.exact && self.gpu.device().multiplies() { 2048 } else { 512 }
    }

    fn begin(&self, step: &Step, kv: &GpuKv, previous: Option<&GpuSamples>) -> Result<GpuBatch> {
        self.prepare_step(step, kv, previous)
    }

    fn embed(&self, table: &GpuLinear, batch: &GpuBatch) -> Result<Tensor> {
        let rows = batch.layout.rows;
        let y = self.uninitialised(rows, table.cols())?;
        let unsupported = |why: String| Err(Error::Unsupported { op: "embed", why });
        let Some(OnDevice { stored, .. }) = table.plain() else {
            return unsupported(format!("{} is not a plain matrix on the GPU", table.name()));
        };
        let Kind::Rows { weight, args } = stored.kind else {
            return unsupported("a trellis has no rows to look up".into());
        };
        let groups = [args.cols.div_ceil(128 * weight.chunk()), rows as u32, 1];
        let Stored { words, factors, .. } = stored;
        DecodeRows { weight }.launch(&self.gpu, groups, words, factors, &batch.tokens(), &y.data, &args)?;
        Ok(y)
    }

    fn rms_norm(&self, x: &Tensor, weight: &GpuVector, eps: f32) -> Result<Tensor> {
        if weight.len == 0 || !x.cols.is_multiple_of(weight.len) {
            return Err(Error::shape("rms_norm", format!("columns divisible by {}", weight.len), x.cols));
        }
        Ok(self.normed(x, &weight.data, weight.len, eps)?)
    }

    fn linears(&self, linears: &[&GpuLinear], x: &Tensor) -> Result<Vec<Tensor>> {
        linears.iter().map(|linear| self.apply(linear, x)).collect()
    }

    fn rope(&self, x: Tensor, rope: &GpuRope, group: usize, offset: usize, batch: &GpuBatch) -> Result<Tensor> {
        let pairs = rope.pairs();
        if group == 0 || !x.cols.is_multiple_of(group) || offset + 2 * pairs > group || x.rows != batch.layout.rows {
            return Err(Error::shape("rope", format!("groups of {group} from {offset} for {pairs} pairs"), x.cols));
        }
        let table = self.turns(rope, batch)?;
        let args = RopeArgs {
            rows: x.rows as u32,
            cols: x.cols as u32,
            group: group as u32,
            offset: offset as u32,
            pairs: pairs as u32,
        };
        let groups = [(x.rows * (x.cols / group) * pairs).div_ceil(256) as u32, 1, 1];
        // The caller has given the tensor away, but may hold a clone: then it is rotated in a copy.
        let x = if x.addend.is_some() { self.settled(&x)? } else { x };
        let x = if x.data.is_shared() { self.columns(&x, 0, x.cols)? } else { x };
        let kernel = Rope { interleaved: rope.table.interleaved };
        kernel.launch(&self.gpu, groups, &x.data, &batch.positions(), &table, &args)?;
        Ok(x)
    }

    fn columns(&self, x: &Tensor, from: usize, to: usize) -> Result<Tensor> {
        if from > to || to > x.cols {
            return Err(Error::shape("columns", format!("{from}..{to} within"), x.cols));
        }
        let x = self.settled(x)?;
        let (y, groups) = self.each(x.rows, to - from)?;
        let args = ColumnsArgs { rows: x.rows as u32, cols: y.cols as u32, x_cols: x.cols as u32, from: from as u32 };
        Columns {}.launch(&self.gpu, groups, &x.data, &y.data, &args)?;
        Ok(y)
    }

    fn append(&self, kv: &GpuKv, layer: usize, k: &Tensor, v: &Tensor, batch: &GpuBatch) -> Result<()> {
        let KvLayout::Heads { heads, key, value } = kv.spec.layout else {
            return Err(Error::shape("append", "a pool of keys and values", "latents"));
        };
        if [k.cols, v.cols, k.rows, v.rows] != [heads * key, heads * value, batch.layout.rows, batch.layout.rows] {
            return Err(Error::shape(
                "append",
                format!("[{}, {}]", heads * key, heads * value),
                format!("[{}, {}]", k.cols, v.cols),
            ));
        }
        self.place_heads(None, [k, v], [None, None], None, kv, layer, batch)
    }

    fn append_latent(&self, kv: &GpuKv, layer: usize, latent: &Tensor, key: &Tensor, batch: &GpuBatch) -> Result<()> {
        let KvLayout::Latent { rank, rope } = kv.spec.layout else {
            return Err(Error::shape("append_latent", "a pool of latents", "keys and values"));
        };
        if [latent.cols, key.cols, latent.rows, key.rows] != [rank, rope, batch.layout.rows, batch.layout.rows] {
            return Err(Error::shape(
                "append_latent",
                format!("[{rank}, {rope}]"),
                format!("[{}, {}]", latent.cols, key.cols),
            ));
        }
        self.place_heads(None, [latent, key], [None, None], None, kv, layer, batch)
    }

    fn attention(
        &self,
        q: &Tensor,
        kv: &GpuKv,
        layer: usize,
        heads: usize,
        scale: f32,
        batch: &GpuBatch,
    ) -> Result<Tensor> {
        let KvLayout::Heads { heads: kv_heads, key, value } = kv.spec.layout else {
            return Err(Error::shape("attention", "a pool of keys and values", "latents"));
        };
        if q.cols != heads * key || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::shape("attention", format!("{heads} heads of {key}, {kv_heads} KV heads"), q.cols));
        }
        let of = Heads { heads, share: heads / kv_heads, key, value, latent: false };
        self.attend(q, kv, layer, of, scale, batch)
    }

    fn latent_attention(
        &self,
        q: &Tensor,
        kv_b: LatentProjection<&GpuLinear>,
        kv: &GpuKv,
        layer: usize,
        heads: usize,
        scale: f32,
        form: LatentForm,
        batch: &GpuBatch,
    ) -> Result<Tensor> {
        self.latent(q, kv_b, kv, layer, heads, scale, form, None, batch)
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        Self::same("swiglu", &gate, up)?;
        let (gate, up) = (self.settled(&gate)?, self.settled(up)?);
        let (y, groups) = self.each(gate.rows, gate.cols)?;
        let args = CountArgs { count: (gate.rows * gate.cols) as u32 };
        Swiglu {}.launch(&self.gpu, groups, &gate.data, &up.data, &y.data, &args)?;
        Ok(y)
    }

    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        Self::same("add", &a, b)?;
        Ok(self.settled(&a)?.plus(tensor::Second::Values(self.settled(b)?.data)))
    }

    fn gated(&self, x: Tensor, gate: &Tensor) -> Result<Tensor> {
        if (gate.rows, gate.cols) != (x.rows, 1) {
            return Err(Error::shape("gated", format!("[{}, 1]", x.rows), format!("[{}, {}]", gate.rows, gate.cols)));
        }
        let (x, gate) = (self.settled(&x)?, self.settled(gate)?);
        let (y, groups) = self.each(x.rows, x.cols)?;
        let args = RowsArgs { rows: x.rows as u32, cols: x.cols as u32 };
        Gated {}.launch(&self.gpu, groups, &x.data, &gate.data, &y.data, &args)?;
        Ok(y)
    }

    fn route(&self, x: &Tensor, gate: &GpuLinear, bias: Option<&GpuVector>, rule: &RouterRule) -> Result<GpuRouting> {
        let experts = gate.rows();
        let good = rule.top_k <= 32.min(experts) && rule.groups <= 32 && experts <= 1024 && rule.top_k > 0;
        if !good || (rule.groups > 1 && !experts.is_multiple_of(rule.groups)) || bias.is_some_and(|b| b.len != experts)
        {
            let why = format!("{} of {experts} experts in {} groups", rule.top_k, rule.groups);
            return Err(Error::Unsupported { op: "route", why });
        }
        let x = &self.settled(x)?;
        // A choice between experts must not turn on rounding, so logits are computed by the kernels that round nothing.
        let logits = match gate.plain() {
            Some(OnDevice { stored, bias, decision, .. })
                if x.rows > self.thresholds().few_rows && x.cols == gate.cols() =>
            {
                self.product(stored, bias.as_ref(), &x.data, x.rows, decision.rung.max(Rung::Simple))?
            }
            _ => self.apply(gate, x)?.data,
        };
        let routing = GpuRouting {
            rows: x.rows,
            slots: rule.top_k,
            experts: self.gpu.uninitialised(x.rows * rule.top_k)?,
            both: self.gpu.uninitialised(2 * x.rows * rule.top_k)?,
            weights: self.gpu.uninitialised(x.rows * rule.top_k)?,
        };
        let kernel = Route {
            each: experts.div_ceil(32) as u32,
            sigmoid: rule.scoring == Scoring::Sigmoid,
            bias: bias.is_some(),
            groups: rule.groups > 1,
        };
        let args = RouteArgs {
            experts: experts as u32,
            top_k: rule.top_k as u32,
            groups: rule.groups as u32,
            top_groups: rule.top_groups as u32,
            normalise: u32::from(rule.normalise),
            scale: rule.scale,
        };
        let biases = bias.map_or(&self.none, |b| &b.data);
        let GpuRouting { experts, both, weights, .. } = &routing;
        kernel.launch(&self.gpu, [x.rows as u32, 1, 1], &logits, biases, experts, both, weights, &args)?;
        Ok(routing)
    }

    fn apply_experts(&self, x: &Tensor, experts: &GpuExperts, routing: &GpuRouting) -> Result<Tensor> {
        self.mix(x, experts, routing, None)
    }

    fn outputs(&self, x: &Tensor, batch: &GpuBatch) -> Result<Tensor> {
        if batch.layout.all {
            return Ok(x.clone());
        }
        let x = self.settled(x)?;
        let (y, groups) = self.each(batch.layout.outputs, x.cols)?;
        let args = RowsArgs { rows: y.rows as u32, cols: x.cols as u32 };
        Gather {}.launch(&self.gpu, groups, &x.data, &batch.outputs(), &y.data, &args)?;
        Ok(y)
    }

    fn sample(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<GpuSamples> {
        if rows.len() != logits.rows {
            return Err(Error::shape("sample", format!("{} rows", logits.rows), rows.len()));
        }
        self.sampled(logits, rows)
    }

    fn write(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<Tensor> {
        if values.len() != rows * cols {
            return Err(Error::shape("write", rows * cols, values.len()));
        }
        Ok(Tensor::of(rows, cols, self.gpu.upload(&values)?))
    }

    fn submit(&self) -> Result<()> {
        Ok(self.gpu.device().submit()?)
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(self.gpu.read(&self.settled(x)?.data)?)
    }

    fn read_samples(&self, samples: &GpuSamples) -> Result<Vec<Sample>> {
        self.choose(samples)
    }

    fn read_routing(&self, routing: &GpuRouting) -> Result<Vec<Vec<(u32, f32)>>> {
        let (experts, weights) = (self.gpu.read(&routing.experts)?, self.gpu.read(&routing.weights)?);
        let rows = experts.chunks_exact(routing.slots.max(1)).zip(weights.chunks_exact(routing.slots.max(1)));
        Ok(rows.map(|(e, w)| e.iter().copied().zip(w.iter().copied()).collect()).collect())
    }

    fn expert<'a>(&self, experts: &'a GpuExperts, index: usize) -> [&'a GpuLinear; 3] {
        experts.linears(index)
    }

    fn whole<E: From<Error>>(
        &self,
        recordings: &GpuRecordings,
        batch: &GpuBatch,
        kv: &GpuKv,
        forward: impl Fn(&GpuBatch) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Tensor, E> {
        self.replayed(recordings, batch, kv, forward)
    }

    fn rehearse<E: From<Error>>(
        &self,
        work: impl FnOnce() -> std::result::Result<(), E>,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> std::result::Result<(), E> {
        self.warm(work, progress)
    }

    fn trust(&self, shapes: &marlin_backend::shapes::Shapes) -> Result<()> {
        self.check_model(shapes)
    }

    /// As the default block; head norms, rotation and the way to the pool in one kernel.
    fn attention_input(&self, w: &Attention<Self>, h: &Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        let KvLayout::Heads { heads: kv_heads, key, value } = pass.kv.spec.layout else {
            return Err(Error::shape("append", "a pool of keys and values", "latents"));
        };
        let norms = [&w.q_norm, &w.k_norm];
        let usual = norms.iter().all(|n| n.as_ref().is_none_or(|n| n.weight.len == key));
        if pass.observer.is_some() || !usual || key != w.head_dim || 2 * w.rope.pairs() > key {
            return blocks::attention_input(self, w, h, pass);
        }
        let found = self.normed_linears(&w.norm, h, &[&w.q_proj, &w.k_proj, &w.v_proj])?;
        let [q, k, v] = &found[..] else { return Err(Error::shape("linears", 3, found.len())) };
        if [q.cols, k.cols, v.cols] != [w.heads * key, kv_heads * key, kv_heads * value] {
            let expected = format!("{} heads and {kv_heads} KV heads of {key}", w.heads);
            return Err(Error::shape("attention_input", expected, format!("{}, {}, {}", q.cols, k.cols, v.cols)));
        }
        let norms = norms.map(|n| n.as_ref().map(|n| (&n.weight.data, n.eps)));
        let q = self.settled(q)?;
        self.place_heads(Some(&q), [k, v], norms, Some(&w.rope), pass.kv, pass.layer, pass.batch)?;
        Ok(q)
    }

    /// As the default block, but the latent's norm, its key's rotation and the way to the pool are one kernel, and the queries are
    /// not yet turned: [`Self::latent_output`] does that.
    fn latent_input(&self, w: &LatentAttention<Self>, h: &Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        if pass.observer.is_some() || w.kv_a_layernorm.weight.len != w.rank || 2 * w.rope.pairs() != w.rope_dim {
            return blocks::latent_input(self, w, h, pass);
        }
        let found = self.normed_linears(&w.norm, h, &[&w.q_a_proj, &w.kv_a_proj_with_mqa])?;
        let [q_a, kv_a] = &found[..] else { return Err(Error::shape("linears", 2, found.len())) };
        if kv_a.cols != w.rank + w.rope_dim {
            return Err(Error::shape("latent_input", w.rank + w.rope_dim, kv_a.cols));
        }
        let norm = (&w.kv_a_layernorm.weight.data, w.kv_a_layernorm.eps);
        self.place_latent(kv_a, norm, &w.rope, pass.kv, pass.layer, pass.batch)?;
        let mut q = self.normed_linears(&w.q_a_layernorm, q_a, &[&w.q_b_proj])?;
        q.pop().ok_or_else(|| Error::shape("linears", 1, 0))
    }

    fn attention_output(&self, w: &Attention<Self>, q: &Tensor, h: Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        if pass.observer.is_some() {
            return blocks::attention_output(self, w, q, h, pass);
        }
        let o = self.attention(q, pass.kv, pass.layer, w.heads, w.scale, pass.batch)?;
        self.added(h, &w.o_proj, &o)
    }

    fn latent_output(&self, w: &LatentAttention<Self>, q: &Tensor, h: Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        if pass.observer.is_some() || w.kv_a_layernorm.weight.len != w.rank || 2 * w.rope.pairs() != w.rope_dim {
            return blocks::latent_output(self, w, q, h, pass);
        }
        let kv_b = w.kv_b_proj.as_ref();
        let (kv, form) = (pass.kv, pass.latent_form);
        let o = self.latent(q, kv_b, kv, pass.layer, w.heads, w.scale, form, Some(&w.rope), pass.batch)?;
        self.added(h, &w.o_proj, &o)
    }

    /// As the default block; what gate and up give goes to the inputs of down without a stop.
    fn mlp(&self, w: &Mlp<Self>, h: Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        let all = [&w.gate_proj, &w.up_proj, &w.down_proj].map(|l| self.many(l, h.rows));
        let ([Some(gate), Some(up), Some(down)], None) = (all, pass.observer) else {
            return blocks::mlp(self, w, h, pass);
        };
        let Some(x) = self.normed_halves(&h, &w.norm.weight.data, w.norm.eps, &[gate, up])? else {
            return blocks::mlp(self, w, h, pass);
        };
        let inner = [self.products(gate, &x[0])?, self.products(up, &x[1])?];
        drop(x);
        if let Some(inner) = self.swiglu_halves(&inner[0], &inner[1], down)? {
            return Ok(self.onto(&h, down, &inner)?);
        }
        let [gate, up] = inner.map(|p| self.finished(&p));
        let of = |y| Tensor::of(h.rows, w.gate_proj.rows, y);
        let inner = self.swiglu(of(gate?), &of(up?))?;
        self.added(h, &w.down_proj, &inner)
    }

    /// As the default block, with the residual added by the kernel that sums the experts up.
    fn moe(&self, w: &Moe<Self>, h: Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        if pass.observer.is_some() {
            return blocks::moe(self, w, h, pass);
        }
        let x = w.norm.apply(self, &h)?;
        let routing = self.route(&x, &w.router.gate, w.router.bias.as_ref(), &w.router.rule)?;
        let h = self.mix(&x, &w.experts, &routing, Some(&h))?;
        let Some(shared) = &w.shared else { return Ok(h) };
        let inner = self.swiglu(self.apply(&shared.gate_proj, &x)?, &self.apply(&shared.up_proj, &x)?)?;
        match &shared.gate {
            None => self.added(h, &shared.down_proj, &inner),
            Some(gate) => {
                let y = self.apply(&shared.down_proj, &inner)?;
                self.add(h, &self.gated(y, &self.apply(gate, &x)?)?)
            }
        }
    }
}
