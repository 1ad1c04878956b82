//! [`CpuBackend`]: the kernels behind the [`Backend`] trait.
//!
//! Operations are computed at once, in the caller's thread and the pool's. Residuals are added by the kernel that makes
//! their second term, and gate, up and SwiGLU are one region; everything else follows the default blocks.

mod batch;
mod kv;
mod latent;
mod products;
mod slower;
mod tensor;
mod weights;

pub use batch::CpuBatch;
pub use kv::CpuKv;
pub use tensor::Tensor;
pub use weights::CpuLinear;
pub(crate) use weights::rotation;

use crate::attention::Stored;
use crate::linear::{ActsBuf, ExpertsBuf};
use crate::ops::{self, RopeStyle};
use crate::trellis::TrellisActsBuf;
use crate::{Cpu, DType, Level, Mode};
use marlin_backend::blocks::{self, Attention, LatentAttention, Mlp, Moe, RouterRule, Scoring};
use marlin_backend::fallback::Fallbacks;
use marlin_backend::{
    Backend, Error, Expert, KvSpec, LatentForm, LinearHandle, Pass, Result, RopeTable, Sample, SampleRow, Step,
    sampling,
};
use marlin_checkpoint::{LatentProjection, Linear};
use std::sync::{Arc, Mutex, OnceLock};
use tensor::Buffers;

/// What KV memory stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvType {
    /// f32 in exact mode, else bf16.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// The upper half of a single.
    Bf16,
    /// Half precision.
    F16,
    /// Signed bytes; a key, a value, or 128 values of a latent share a scale.
    Int8,
    /// E4M3 bytes, scaled likewise.
    Fp8,
}

impl KvType {
    /// Every type.
    pub const ALL: [KvType; 6] = [KvType::Auto, KvType::F32, KvType::Bf16, KvType::F16, KvType::Int8, KvType::Fp8];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            KvType::Auto => "auto",
            KvType::F32 => "f32",
            KvType::Bf16 => "bf16",
            KvType::F16 => "f16",
            KvType::Int8 => "int8",
            KvType::Fp8 => "fp8",
        }
    }
}

/// How a [`CpuBackend`] computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads; 0 takes the physical cores.
    pub threads: usize,
    /// f32 arithmetic throughout, and KV memory in f32 unless `kv` says otherwise. Results then do not depend on the
    /// batch, the chunking or the number of threads, bit for bit.
    pub exact: bool,
    /// What KV memory stores.
    pub kv: KvType,
}

/// The CPU as a backend.
pub struct CpuBackend {
    cpu: Cpu,
    mode: Mode,
    kv_stored: Stored,
    buffers: Buffers,
    scratch: Mutex<Scratch>,
    fallbacks: Fallbacks,
}

/// Memory that operations need while they run.
#[derive(Default)]
struct Scratch {
    /// For inputs as they are, then for inputs that a layer changes.
    acts: Vec<ActsBuf>,
    trellis: Vec<TrellisActsBuf>,
    experts: ExpertsBuf,
}

impl Scratch {
    fn first(&mut self) -> &mut ActsBuf {
        if self.acts.is_empty() {
            self.acts.push(ActsBuf::default());
        }
        &mut self.acts[0]
    }
}

/// Experts and weights of every row, `slots` of each.
pub struct CpuRouting {
    experts: Vec<u32>,
    weights: Vec<f32>,
    slots: usize,
}

/// A layer's experts: gate, up, down.
pub struct CpuExperts(Vec<[CpuLinear; 3]>);

/// An error of a kernel as one of the backend.
fn shape(error: crate::Error) -> Error {
    Error::shape(error.op, format!("{} {}", error.what, error.expected), error.found)
}

fn expect(op: &'static str, what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::shape(op, format!("{expected} {what}"), found)) }
}

impl CpuBackend {
    /// The CPU at its highest level of SIMD (or the one that the environment variable `MARLIN_SIMD` names).
    pub fn new(options: CpuOptions) -> Self {
        Self::on(Cpu::new(options.threads), options)
    }

    /// The same on a given pool and level; `options.threads` is not used.
    pub fn on(cpu: Cpu, options: CpuOptions) -> Self {
        let kv_stored = match options.kv {
            KvType::Auto if options.exact => DType::F32.into(),
            KvType::Auto | KvType::Bf16 => DType::Bf16.into(),
            KvType::F32 => DType::F32.into(),
            KvType::F16 => DType::F16.into(),
            KvType::Int8 => Stored::Int8,
            KvType::Fp8 => Stored::Fp8,
        };
        let mode = if options.exact { Mode::Exact } else { Mode::Fast };
        Self {
            cpu,
            mode,
            kv_stored,
            buffers: Buffers::default(),
            scratch: Mutex::default(),
            fallbacks: Fallbacks::default(),
        }
    }

    /// Threads and instruction set.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// The instruction set in use.
    pub fn level(&self) -> Level {
        self.cpu.level()
    }
}

impl Backend for CpuBackend {
    type Tensor = Tensor;
    type Vector = Vec<f32>;
    type Linear = CpuLinear;
    type Experts = CpuExperts;
    type Rope = Arc<RopeTable>;
    type Kv = CpuKv;
    type Batch = CpuBatch;
    type Routing = CpuRouting;
    type Samples = Arc<Vec<Sample>>;
    type Recordings = ();

    fn name(&self) -> String {
        format!("cpu ({:?}, {} threads)", self.cpu.level(), self.cpu.pool().threads())
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn linear(&self, linear: Linear) -> Result<CpuLinear> {
        CpuLinear::new(self, linear)
    }

    fn experts(&self, experts: Vec<Expert>) -> Result<CpuExperts> {
        let load = |e: Expert| Ok([self.linear(e.gate)?, self.linear(e.up)?, self.linear(e.down)?]);
        Ok(CpuExperts(experts.into_iter().map(load).collect::<Result<_>>()?))
    }

    fn rope_table(&self, table: RopeTable) -> Result<Arc<RopeTable>> {
        Ok(Arc::new(table))
    }

    fn kv(&self, spec: KvSpec) -> Result<CpuKv> {
        CpuKv::new(spec, self.kv_stored)
    }

    fn kv_bytes(&self, spec: &KvSpec) -> usize {
        kv::bytes(spec, self.kv_stored)
    }

    fn begin(&self, step: &Step, kv: &CpuKv, previous: Option<&Self::Samples>) -> Result<CpuBatch> {
        let samples = previous.map_or(&[][..], |s| s.as_slice());
        step.check(kv.spec(), samples.len())?;
        Ok(CpuBatch::new(step, samples))
    }

    fn embed(&self, table: &CpuLinear, batch: &CpuBatch) -> Result<Tensor> {
        let mut out = self.buffers.tensor(batch.tokens.len(), table.cols());
        table.embed(self, &batch.tokens, &mut out)?;
        Ok(out)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Vec<f32>, eps: f32) -> Result<Tensor> {
        if weight.is_empty() || !x.cols.is_multiple_of(weight.len()) {
            return Err(Error::shape("rms_norm", format!("columns divisible by {}", weight.len()), x.cols));
        }
        let mut out = self.buffers.tensor(x.rows, x.cols);
        let width = weight.len();
        let groups = x.values().len() / width;
        ops::rms_norm(&self.cpu, x.values(), width, groups, weight, eps, out.values_mut(), width).map_err(shape)?;
        Ok(out)
    }

    fn linears(&self, linears: &[&CpuLinear], x: &Tensor) -> Result<Vec<Tensor>> {
        self.apply(self.mode, linears, x)
    }

    fn rope(
        &self,
        mut x: Tensor,
        rope: &Arc<RopeTable>,
        group: usize,
        offset: usize,
        batch: &CpuBatch,
    ) -> Result<Tensor> {
        let pairs = rope.inv_freq.len();
        if group == 0 || !x.cols.is_multiple_of(group) || offset + 2 * pairs > group || x.rows != batch.rows.len() {
            return Err(Error::shape("rope", format!("groups of {group} from {offset} for {pairs} pairs"), x.cols));
        }
        let angles = batch.angles(&self.cpu, rope);
        let cols = x.cols;
        let style = if rope.interleaved { RopeStyle::Interleaved } else { RopeStyle::HalfSplit };
        let angles = ops::Angles { cos: &angles.cos, sin: &angles.sin, half: pairs };
        let heads = &mut x.values_mut()[offset..];
        ops::rope(&self.cpu, style, angles, &batch.rows, heads, cols, cols / group, group).map_err(shape)?;
        Ok(x)
    }

    fn columns(&self, x: &Tensor, from: usize, to: usize) -> Result<Tensor> {
        if from > to || to > x.cols {
            return Err(Error::shape("columns", format!("{from}..{to} within"), x.cols));
        }
        let mut out = self.buffers.tensor(x.rows, to - from);
        if to > from {
            let rows = x.values().chunks_exact(x.cols);
            out.values_mut()
                .chunks_exact_mut(to - from)
                .zip(rows)
                .for_each(|(out, row)| out.copy_from_slice(&row[from..to]));
        }
        Ok(out)
    }

    fn append(&self, kv: &CpuKv, layer: usize, k: &Tensor, v: &Tensor, batch: &CpuBatch) -> Result<()> {
        kv.append(&self.cpu, layer, k, v, &batch.spans)
    }

    fn append_latent(&self, kv: &CpuKv, layer: usize, latent: &Tensor, key: &Tensor, batch: &CpuBatch) -> Result<()> {
        kv.append_latent(layer, latent, key, &batch.spans)
    }

    fn attention(
        &self,
        q: &Tensor,
        kv: &CpuKv,
        layer: usize,
        heads: usize,
        scale: f32,
        batch: &CpuBatch,
    ) -> Result<Tensor> {
        let (width, value) = kv.heads("attention")?;
        expect("attention", "columns", heads * width, q.cols)?;
        let mut out = self.buffers.tensor(q.rows, heads * value);
        kv.attention(&self.cpu, self.mode, layer, q, heads, scale, &batch.spans, &mut out)?;
        Ok(out)
    }

    fn latent_attention(
        &self,
        q: &Tensor,
        kv_b: LatentProjection<&CpuLinear>,
        kv: &CpuKv,
        layer: usize,
        heads: usize,
        scale: f32,
        form: LatentForm,
        batch: &CpuBatch,
    ) -> Result<Tensor> {
        latent::attention(self, q, kv_b, kv, layer, heads, scale, form, batch)
    }

    fn swiglu(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        let mut out = self.buffers.tensor(gate.rows, gate.cols);
        ops::swiglu(&self.cpu, gate.values(), up.values(), out.values_mut()).map_err(shape)?;
        Ok(out)
    }

    fn add(&self, mut a: Tensor, b: &Tensor) -> Result<Tensor> {
        ops::add(&self.cpu, b.values(), a.values_mut()).map_err(shape)?;
        Ok(a)
    }

    fn gated(&self, x: Tensor, gate: &Tensor) -> Result<Tensor> {
        let mut out = self.buffers.tensor(x.rows, x.cols);
        out.values_mut().fill(0.0);
        self.add_gated(x, gate, out)
    }

    fn route(&self, x: &Tensor, gate: &CpuLinear, bias: Option<&Vec<f32>>, rule: &RouterRule) -> Result<CpuRouting> {
        let logits = self.apply(Mode::Exact, &[gate], x)?.pop().ok_or_else(|| Error::shape("route", 1, 0))?;
        let router = ops::Router {
            score: match rule.scoring {
                Scoring::Sigmoid => ops::Score::Sigmoid,
                Scoring::Softmax => ops::Score::Softmax,
            },
            bias: bias.map(Vec::as_slice),
            k: rule.top_k,
            normalise: rule.normalise,
            scale: rule.scale,
            groups: rule.groups,
            top_groups: rule.top_groups,
        };
        let slots = rule.top_k;
        let (mut experts, mut weights) = (vec![0; x.rows * slots], vec![0.0; x.rows * slots]);
        ops::route(&self.cpu, router, logits.values(), logits.cols, &mut experts, &mut weights).map_err(shape)?;
        Ok(CpuRouting { experts, weights, slots })
    }

    fn apply_experts(&self, x: &Tensor, experts: &CpuExperts, routing: &CpuRouting) -> Result<Tensor> {
        let out = self.buffers.tensor(x.rows, x.cols);
        self.experts_into(x, experts, routing, false, out)
    }

    fn outputs(&self, x: &Tensor, batch: &CpuBatch) -> Result<Tensor> {
        let mut out = self.buffers.tensor(batch.outputs.len(), x.cols);
        for (to, row) in out.values_mut().chunks_exact_mut(x.cols.max(1)).zip(&batch.outputs) {
            let from = *row as usize * x.cols;
            to.copy_from_slice(&x.values()[from..from + x.cols]);
        }
        Ok(out)
    }

    fn sample(&self, logits: &Tensor, rows: &[SampleRow]) -> Result<Self::Samples> {
        expect("sample", "rows", logits.rows, rows.len())?;
        let row = |i: usize| sampling::choose(&logits.values()[i * logits.cols..(i + 1) * logits.cols], &rows[i]);
        let slots: Vec<OnceLock<Sample>> = rows.iter().map(|_| OnceLock::new()).collect();
        self.cpu.pool().run(rows.len(), &|i| {
            slots[i].get_or_init(|| row(i));
        });
        Ok(Arc::new(slots.into_iter().enumerate().map(|(i, s)| s.into_inner().unwrap_or_else(|| row(i))).collect()))
    }

    fn write(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<Tensor> {
        expect("write", "values", rows * cols, values.len())?;
        let mut out = self.buffers.tensor(rows, cols);
        out.values_mut().copy_from_slice(&values);
        Ok(out)
    }

    fn submit(&self) -> Result<()> {
        Ok(())
    }

    fn read(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.values().to_vec())
    }

    fn read_samples(&self, samples: &Self::Samples) -> Result<Vec<Sample>> {
        Ok(samples.to_vec())
    }

    fn read_routing(&self, routing: &CpuRouting) -> Result<Vec<Vec<(u32, f32)>>> {
        let rows = routing.experts.chunks_exact(routing.slots).zip(routing.weights.chunks_exact(routing.slots));
        Ok(rows.map(|(e, w)| e.iter().copied().zip(w.iter().copied()).collect()).collect())
    }

    fn expert<'a>(&self, experts: &'a CpuExperts, index: usize) -> [&'a CpuLinear; 3] {
        experts.0[index].each_ref()
    }

    fn attention_output(&self, w: &Attention<Self>, q: &Tensor, h: Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        if pass.observer.is_some() {
            return blocks::attention_output(self, w, q, h, pass);
        }
        let o = self.attention(q, pass.kv, pass.layer, w.heads, w.scale, pass.batch)?;
        self.residual(&w.o_proj, &o, h)
    }

    fn latent_output(&self, w: &LatentAttention<Self>, q: &Tensor, h: Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        if pass.observer.is_some() {
            return blocks::latent_output(self, w, q, h, pass);
        }
        let (heads, form) = (w.heads, pass.latent_form);
        let o =
            self.latent_attention(q, w.kv_b_proj.as_ref(), pass.kv, pass.layer, heads, w.scale, form, pass.batch)?;
        self.residual(&w.o_proj, &o, h)
    }

    fn mlp(&self, w: &Mlp<Self>, h: Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        if pass.observer.is_some() {
            return blocks::mlp(self, w, h, pass);
        }
        let x = w.norm.apply(self, &h)?;
        let inner = self.gate_up(&w.gate_proj, &w.up_proj, &x)?;
        self.residual(&w.down_proj, &inner, h)
    }

    fn moe(&self, w: &Moe<Self>, h: Tensor, pass: &Pass<Self>) -> Result<Tensor> {
        if pass.observer.is_some() {
            return blocks::moe(self, w, h, pass);
        }
        let x = w.norm.apply(self, &h)?;
        let routing = self.route(&x, &w.router.gate, w.router.bias.as_ref(), &w.router.rule)?;
        let h = self.experts_into(&x, &w.experts, &routing, true, h)?;
        let Some(shared) = &w.shared else { return Ok(h) };
        let inner = self.gate_up(&shared.gate_proj, &shared.up_proj, &x)?;
        match &shared.gate {
            None => self.residual(&shared.down_proj, &inner, h),
            Some(gate) => {
                let y = self.one(&shared.down_proj, &inner)?;
                let gate = self.one(gate, &x)?;
                self.add_gated(y, &gate, h)
            }
        }
    }
}
