//! [`GpuBackend`]: the kernels behind the [`Backend`] trait. Activations are f32. Operations enqueue on the device's queue; only
//! reading waits, and what has no kernel (counted, see [`marlin_backend::fallback`]).

mod batch;
mod check;
mod decide;
mod experts;
mod halves;
mod latent;
mod linear;
mod product;
mod stored;
mod stream;

use batch::Choice;
pub use batch::{GpuBatch, GpuKv, GpuSamples};
pub use experts::GpuExperts;
pub use linear::GpuLinear;

use crate::kernels::*;
use crate::{Device, Gpu, Slice};
use decide::{Decision, Rung};
use halves::Panels;
use linear::OnDevice;
use marlin_backend::blocks::{self, Moe, RouterRule, Scoring};
use marlin_backend::fallback::{Fallback, Fallbacks, Reason};
use marlin_backend::{
    Backend, Error, Expert, KvLayout, KvSpec, LatentForm, LinearHandle, Pass, Result, RopeTable, Sample, SampleRow,
    Step,
};
use marlin_checkpoint::{LatentProjection, Linear};
use product::FEW_ROWS;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use stored::{Kind, Stored};
use stream::Scratch;

/// How a [`GpuBackend`] computes.
#[derive(Clone, Copy, Debug)]
pub struct GpuOptions {
    /// What KV memory holds.
    pub kv: Element,
    /// Bytes of the device's memory that may be in use.
    pub memory: usize,
    /// Threads of the CPU, for what no kernel does; 0 takes the physical cores.
    pub threads: usize,
}

/// Activations on the device.
#[derive(Clone)]
pub struct Tensor {
    rows: usize,
    cols: usize,
    data: Slice<f32>,
}

/// Experts chosen for each row.
pub struct GpuRouting {
    rows: usize,
    slots: usize,
    experts: Slice<u32>,
    weights: Slice<f32>,
}

/// A rotary table; cosines and sines of positions are made as they are needed.
pub struct GpuRope {
    table: RopeTable,
    turns: Mutex<Option<(usize, Slice<f32>)>>,
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
    cpu: linear::Cpu,
    plan: Mutex<HashMap<String, Decision>>,
    fallbacks: Fallbacks,
    /// What kernels are bound to that read nothing there.
    none: Slice<f32>,
    scratch: Mutex<Scratch>,
    panels: Mutex<Option<Panels>>,
}

impl GpuBackend {
    /// The backend of `device`, every primitive of which has been compared with the reference. The device is refused, by the
    /// name of the primitive, if one of them computes something else.
    pub fn open(device: Arc<dyn Device>, options: GpuOptions) -> Result<Self> {
        let backend = Self::new(device, options)?;
        check::primitives(&backend)?;
        Ok(backend)
    }

    /// The same without looking. Products with weights are compared when they are loaded in any case.
    pub fn new(device: Arc<dyn Device>, options: GpuOptions) -> crate::Result<Self> {
        let gpu = Gpu::new(device, options.memory);
        let none = gpu.upload(&[0.0f32; 4])?;
        let scratch = Mutex::new(Scratch::new(&gpu)?);
        let (plan, fallbacks) = (Mutex::default(), Fallbacks::default());
        Ok(Self { gpu, options, cpu: OnceLock::new(), plan, fallbacks, none, scratch, panels: Mutex::default() })
    }

    /// The device with its memory.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What took a slower path.
    pub fn fallbacks(&self) -> &Fallbacks {
        &self.fallbacks
    }

    fn count(&self, reason: Reason, module: &str, batch: usize, [top_k, experts]: [usize; 2]) {
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
                Add {}.launch(&self.gpu, [count.count.div_ceil(256), 1, 1], &x, &x, &y, &count)?;
            }
            self.gpu.device().wait()?;
            best = best.min(began.elapsed().as_secs_f64() / LAUNCHES as f64);
        }
        Ok(8.0 * f64::from(count.count) / best)
    }

    fn uninitialised(&self, rows: usize, cols: usize) -> crate::Result<Tensor> {
        Ok(Tensor { rows, cols, data: self.gpu.uninitialised(rows * cols)? })
    }

    /// One thread a value of a new tensor.
    fn each(&self, rows: usize, cols: usize) -> crate::Result<(Tensor, [u32; 3])> {
        let y = self.uninitialised(rows, cols)?;
        Ok((y, [(rows * cols).div_ceil(256) as u32, 1, 1]))
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

    fn name(&self) -> String {
        let info = self.gpu.device().info();
        format!("{} ({}, driver {})", info.name, info.architecture, info.driver)
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
        let bytes = spec.values() / spec.layers.max(1) * self.options.kv.bytes();
        let layers = (0..spec.layers).map(|_| self.gpu.uninitialised(bytes)).collect::<crate::Result<_>>()?;
        Ok(GpuKv { spec, layers })
    }

    fn kv_bytes(&self, spec: &KvSpec) -> usize {
        spec.values() * self.options.kv.bytes()
    }

    fn begin(&self, step: &Step, kv: &GpuKv, previous: Option<&GpuSamples>) -> Result<GpuBatch> {
        self.prepare_step(step, kv, previous)
    }

    fn embed(&self, table: &GpuLinear, batch: &GpuBatch) -> Result<Tensor> {
        let y = self.uninitialised(batch.rows, table.cols())?;
        let unsupported = |why: String| Err(Error::Unsupported { op: "embed", why });
        let Some(OnDevice { stored, .. }) = table.plain() else {
            return unsupported(format!("{} is not a plain matrix on the GPU", table.name()));
        };
        let Kind::Rows { weight, args } = stored.kind else {
            return unsupported("a trellis has no rows to look up".into());
        };
        let groups = [args.cols.div_ceil(128 * weight.chunk()), batch.rows as u32, 1];
        let Stored { words, factors, .. } = stored;
        DecodeRows { weight }.launch(&self.gpu, groups, words, factors, &batch.tokens, &y.data, &args)?;
        Ok(y)
    }

    fn rms_norm(&self, x: &Tensor, weight: &GpuVector, eps: f32) -> Result<Tensor> {
        if weight.len == 0 || !x.cols.is_multiple_of(weight.len) {
            return Err(Error::shape("rms_norm", format!("columns divisible by {}", weight.len), x.cols));
        }
        let y = self.uninitialised(x.rows, x.cols)?;
        let simds = if weight.len <= 512 { 1 } else { 8 };
        let args = RmsNormArgs { width: weight.len as u32, eps };
        let groups = [(x.rows * (x.cols / weight.len)) as u32, 1, 1];
        let kernel = RmsNorm { simds, residual: false };
        let unused = self.gpu.uninitialised(1)?;
        kernel.launch(&self.gpu, groups, &x.data, &self.none, &weight.data, &unused, &y.data, &args)?;
        Ok(y)
    }

    fn linears(&self, linears: &[&GpuLinear], x: &Tensor) -> Result<Vec<Tensor>> {
        linears.iter().map(|linear| self.apply(linear, x)).collect()
    }

    fn rope(&self, x: Tensor, rope: &GpuRope, group: usize, offset: usize, batch: &GpuBatch) -> Result<Tensor> {
        let pairs = rope.table.inv_freq.len();
        if group == 0 || !x.cols.is_multiple_of(group) || offset + 2 * pairs > group || x.rows != batch.rows {
            return Err(Error::shape("rope", format!("groups of {group} from {offset} for {pairs} pairs"), x.cols));
        }
        let mut turns = rope.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let table = match &*turns {
            Some((positions, table)) if *positions > batch.greatest => table.clone(),
            _ => {
                let positions = (batch.greatest + 1).next_power_of_two().max(256);
                let turn = |p: usize| {
                    rope.table.inv_freq.iter().flat_map(move |f| {
                        let (sine, cosine) = (p as f32 * f).sin_cos();
                        [cosine, sine]
                    })
                };
                let values: Vec<f32> = (0..positions).flat_map(turn).collect();
                let table = self.gpu.upload(&values)?;
                *turns = Some((positions, table.clone()));
                table
            }
        };
        let args = RopeArgs {
            rows: x.rows as u32,
            cols: x.cols as u32,
            group: group as u32,
            offset: offset as u32,
            pairs: pairs as u32,
        };
        let groups = [(x.rows * (x.cols / group) * pairs).div_ceil(256) as u32, 1, 1];
        // The caller has given the tensor away, but may hold a clone: then it is rotated in a copy.
        let x = if x.data.is_shared() { self.columns(&x, 0, x.cols)? } else { x };
        Rope { interleaved: rope.table.interleaved }.launch(
            &self.gpu,
            groups,
            &x.data,
            &batch.positions,
            &table,
            &args,
        )?;
        Ok(x)
    }

    fn columns(&self, x: &Tensor, from: usize, to: usize) -> Result<Tensor> {
        if from > to || to > x.cols {
            return Err(Error::shape("columns", format!("{from}..{to} within"), x.cols));
        }
        let (y, groups) = self.each(x.rows, to - from)?;
        let args = ColumnsArgs { rows: x.rows as u32, cols: y.cols as u32, x_cols: x.cols as u32, from: from as u32 };
        Columns {}.launch(&self.gpu, groups, &x.data, &y.data, &args)?;
        Ok(y)
    }

    fn append(&self, kv: &GpuKv, layer: usize, k: &Tensor, v: &Tensor, batch: &GpuBatch) -> Result<()> {
        let KvLayout::Heads { heads, key, value } = kv.spec.layout else {
            return Err(Error::shape("append", "a pool of keys and values", "latents"));
        };
        if [k.cols, v.cols, k.rows, v.rows] != [heads * key, heads * value, batch.rows, batch.rows] {
            return Err(Error::shape(
                "append",
                format!("[{}, {}]", heads * key, heads * value),
                format!("[{}, {}]", k.cols, v.cols),
            ));
        }
        self.store(kv, layer, [k, v], batch)
    }

    fn append_latent(&self, kv: &GpuKv, layer: usize, latent: &Tensor, key: &Tensor, batch: &GpuBatch) -> Result<()> {
        let KvLayout::Latent { rank, rope } = kv.spec.layout else {
            return Err(Error::shape("append_latent", "a pool of latents", "keys and values"));
        };
        if [latent.cols, key.cols, latent.rows, key.rows] != [rank, rope, batch.rows, batch.rows] {
            return Err(Error::shape(
                "append_latent",
                format!("[{rank}, {rope}]"),
                format!("[{}, {}]", latent.cols, key.cols),
            ));
        }
        self.store(kv, layer, [latent, key], batch)
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
        self.attend(q, kv, layer, [heads, heads / kv_heads, key, value], kv_heads * key, scale, batch)
    }

    fn latent_attention(
        &self,
        q: &Tensor,
        kv_b: LatentProjection<&GpuLinear>,
        kv: &GpuKv,
        layer: usize,
        heads: usize,
        scale: f32,
        _: LatentForm,
        batch: &GpuBatch,
    ) -> Result<Tensor> {
        self.latent(q, kv_b, kv, layer, heads, scale, batch)
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        Self::same("swiglu", &gate, up)?;
        let (y, groups) = self.each(gate.rows, gate.cols)?;
        let args = CountArgs { count: (gate.rows * gate.cols) as u32 };
        Swiglu {}.launch(&self.gpu, groups, &gate.data, &up.data, &y.data, &args)?;
        Ok(y)
    }

    fn add(&self, a: Tensor, b: &Tensor) -> Result<Tensor> {
        Self::same("add", &a, b)?;
        let (y, groups) = self.each(a.rows, a.cols)?;
        let args = CountArgs { count: (a.rows * a.cols) as u32 };
        Add {}.launch(&self.gpu, groups, &a.data, &b.data, &y.data, &args)?;
        Ok(y)
    }

    fn gated(&self, x: Tensor, gate: &Tensor) -> Result<Tensor> {
        if (gate.rows, gate.cols) != (x.rows, 1) {
            return Err(Error::shape("gated", format!("[{}, 1]", x.rows), format!("[{}, {}]", gate.rows, gate.cols)));
        }
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
        // A choice between experts must not turn on rounding, so logits are computed by the kernels that round nothing.
        let logits = match gate.plain() {
            Some(OnDevice { stored, bias, decision, .. }) if x.rows > FEW_ROWS && x.cols == gate.cols() => {
                self.product(stored, bias.as_ref(), &x.data, x.rows, decision.rung.max(Rung::Simple))?
            }
            _ => self.apply(gate, x)?.data,
        };
        let routing = GpuRouting {
            rows: x.rows,
            slots: rule.top_k,
            experts: self.gpu.uninitialised(x.rows * rule.top_k)?,
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
        kernel.launch(&self.gpu, [x.rows as u32, 1, 1], &logits, biases, &routing.experts, &routing.weights, &args)?;
        Ok(routing)
    }

    fn apply_experts(&self, x: &Tensor, experts: &GpuExperts, routing: &GpuRouting) -> Result<Tensor> {
        self.mix(x, experts, routing, None)
    }

    fn outputs(&self, x: &Tensor, batch: &GpuBatch) -> Result<Tensor> {
        let (y, groups) = self.each(batch.outputs.len(), x.cols)?;
        let args = RowsArgs { rows: y.rows as u32, cols: x.cols as u32 };
        Gather {}.launch(&self.gpu, groups, &x.data, &batch.outputs, &y.data, &args)?;
        Ok(y)
    }

    fn sample(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<GpuSamples> {
        if rows.len() != logits.rows {
            return Err(Error::shape("sample", format!("{} rows", logits.rows), rows.len()));
        }
        Ok(GpuSamples(Arc::new(Choice { logits: logits.clone(), rows: rows.to_vec(), chosen: OnceLock::new() })))
    }

    fn write(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<Tensor> {
        if values.len() != rows * cols {
            return Err(Error::shape("write", rows * cols, values.len()));
        }
        Ok(Tensor { rows, cols, data: self.gpu.upload(&values)? })
    }

    fn submit(&self) -> Result<()> {
        Ok(self.gpu.device().submit()?)
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(self.gpu.read(&x.data)?)
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
        let y = self.apply(&shared.down_proj, &inner)?;
        match &shared.gate {
            None => self.add(h, &y),
            Some(gate) => self.add(h, &self.gated(y, &self.apply(gate, &x)?)?),
        }
    }
}
