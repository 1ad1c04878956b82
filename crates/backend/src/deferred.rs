//! A backend that records what it is asked, executes it when told to, and refuses to be read before.

use crate::blocks::RouterRule;
use crate::{Backend, Error, Expert, KvSpec, LatentForm, LinearHandle, Result, RopeTable, Sample, SampleRow, Step};
use marlin_checkpoint::{LatentProjection, Linear};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

type Work<B> = Box<dyn FnOnce(&B) -> Result<()> + Send>;

/// Records operations and hands them to `inner` in [`Backend::submit`]; an operation that fails makes `submit` fail.
/// Reading anything that has not been executed is [`Error::EarlyRead`].
///
/// Models and engines tested on it cannot come to depend on results being there at once.
pub struct Deferred<B: Backend> {
    inner: Arc<B>,
    recorded: Mutex<Vec<Work<B>>>,
    operations: Mutex<usize>,
}

/// A result that exists once its work has been executed.
pub struct Later<T>(Arc<OnceLock<T>>);

impl<T> Clone for Later<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Later<T> {
    fn get(&self, op: &'static str) -> Result<&T> {
        self.0.get().ok_or(Error::EarlyRead(op))
    }
}

/// A linear of the inner backend.
pub struct Shared<T>(Arc<T>);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: LinearHandle> LinearHandle for Shared<T> {
    fn name(&self) -> &str {
        self.0.name()
    }
    fn cols(&self) -> usize {
        self.0.cols()
    }
    fn rows(&self) -> usize {
        self.0.rows()
    }
}

/// The experts of the inner backend, and each of them on its own for observation.
pub struct DeferredExperts<B: Backend> {
    together: Shared<B::Experts>,
    each: Vec<[Shared<B::Linear>; 3]>,
}

/// Routing that exists later.
pub struct DeferredRouting<B: Backend>(Later<B::Routing>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backend> Deferred<B> {
    /// Wraps a backend.
    pub fn new(inner: B) -> Self {
        Self { inner: Arc::new(inner), recorded: Mutex::default(), operations: Mutex::new(0) }
    }

    /// Operations executed so far.
    pub fn executed(&self) -> usize {
        *lock(&self.operations)
    }

    /// Operations recorded and not yet executed.
    pub fn pending(&self) -> usize {
        lock(&self.recorded).len()
    }

    fn later<T: Send + Sync + 'static>(&self, work: impl FnOnce(&B) -> Result<T> + Send + 'static) -> Later<T> {
        let slot = Later(Arc::new(OnceLock::new()));
        let result = slot.clone();
        lock(&self.recorded).push(Box::new(move |b| {
            let value = work(b)?;
            result.0.set(value).map_err(|_| Error::Device("an operation ran twice".into()))
        }));
        slot
    }
}

impl<B: Backend> Backend for Deferred<B> {
    type Tensor = Later<B::Tensor>;
    type Vector = Shared<B::Vector>;
    type Linear = Shared<B::Linear>;
    type Experts = DeferredExperts<B>;
    type Rope = Shared<B::Rope>;
    type Kv = Shared<B::Kv>;
    type Batch = Later<B::Batch>;
    type Routing = DeferredRouting<B>;
    type Samples = Later<B::Samples>;
    type Recordings = ();

    fn name(&self) -> String {
        format!("deferred {}", self.inner.name())
    }

    fn pipelines(&self) -> bool {
        self.inner.pipelines()
    }

    fn keeps(&self, rows: &[SampleRow]) -> bool {
        self.inner.keeps(rows)
    }

    fn vector(&self, values: Vec<f32>) -> Result<Self::Vector> {
        Ok(Shared(Arc::new(self.inner.vector(values)?)))
    }

    fn linear(&self, linear: Linear) -> Result<Self::Linear> {
        Ok(Shared(Arc::new(self.inner.linear(linear)?)))
    }

    fn experts(&self, experts: Vec<Expert>) -> Result<Self::Experts> {
        let one = |linear: &Linear| self.linear(linear.clone());
        let each = experts.iter().map(|e| Ok([one(&e.gate)?, one(&e.up)?, one(&e.down)?])).collect::<Result<_>>()?;
        Ok(DeferredExperts { together: Shared(Arc::new(self.inner.experts(experts)?)), each })
    }

    fn rope_table(&self, table: RopeTable) -> Result<Self::Rope> {
        Ok(Shared(Arc::new(self.inner.rope_table(table)?)))
    }

    fn kv(&self, spec: KvSpec) -> Result<Self::Kv> {
        Ok(Shared(Arc::new(self.inner.kv(spec)?)))
    }

    fn kv_bytes(&self, spec: &KvSpec) -> usize {
        self.inner.kv_bytes(spec)
    }

    fn free_memory(&self) -> Option<usize> {
        self.inner.free_memory()
    }

    fn prefill_chunk(&self) -> usize {
        self.inner.prefill_chunk()
    }

    fn begin(&self, step: &Step, kv: &Self::Kv, previous: Option<&Self::Samples>) -> Result<Self::Batch> {
        let (step, kv, previous) = (step.clone(), kv.clone(), previous.cloned());
        Ok(self.later(move |b| {
            let previous = previous.as_ref().map(|p| p.get("begin")).transpose()?;
            b.begin(&step, &kv.0, previous)
        }))
    }

    fn embed(&self, table: &Self::Linear, batch: &Self::Batch) -> Result<Self::Tensor> {
        let (table, batch) = (table.clone(), batch.clone());
        Ok(self.later(move |b| b.embed(&table.0, batch.get("embed")?)))
    }

    fn rms_norm(&self, x: &Self::Tensor, weight: &Self::Vector, eps: f32) -> Result<Self::Tensor> {
        let (x, weight) = (x.clone(), weight.clone());
        Ok(self.later(move |b| b.rms_norm(x.get("rms_norm")?, &weight.0, eps)))
    }

    fn linears(&self, linears: &[&Self::Linear], x: &Self::Tensor) -> Result<Vec<Self::Tensor>> {
        let one = |linear: &&Self::Linear| {
            let (linear, x) = (Shared::clone(linear), x.clone());
            self.later(move |b| {
                b.linears(&[&linear.0], x.get("linear")?)?.pop().ok_or_else(|| Error::shape("linears", 1, 0))
            })
        };
        Ok(linears.iter().map(one).collect())
    }

    fn rope(
        &self,
        x: Self::Tensor,
        rope: &Self::Rope,
        group: usize,
        offset: usize,
        batch: &Self::Batch,
    ) -> Result<Self::Tensor> {
        let (rope, batch) = (rope.clone(), batch.clone());
        Ok(self.later(move |b| b.rope(x.get("rope")?.clone(), &rope.0, group, offset, batch.get("rope")?)))
    }

    fn columns(&self, x: &Self::Tensor, from: usize, to: usize) -> Result<Self::Tensor> {
        let x = x.clone();
        Ok(self.later(move |b| b.columns(x.get("columns")?, from, to)))
    }

    fn append(
        &self,
        kv: &Self::Kv,
        layer: usize,
        k: &Self::Tensor,
        v: &Self::Tensor,
        batch: &Self::Batch,
    ) -> Result<()> {
        let (kv, k, v, batch) = (kv.clone(), k.clone(), v.clone(), batch.clone());
        self.later(move |b| b.append(&kv.0, layer, k.get("append")?, v.get("append")?, batch.get("append")?));
        Ok(())
    }

    fn append_latent(
        &self,
        kv: &Self::Kv,
        layer: usize,
        latent: &Self::Tensor,
        key: &Self::Tensor,
        batch: &Self::Batch,
    ) -> Result<()> {
        let (kv, latent, key, batch) = (kv.clone(), latent.clone(), key.clone(), batch.clone());
        let op = "append_latent";
        self.later(move |b| b.append_latent(&kv.0, layer, latent.get(op)?, key.get(op)?, batch.get(op)?));
        Ok(())
    }

    fn attention(
        &self,
        q: &Self::Tensor,
        kv: &Self::Kv,
        layer: usize,
        heads: usize,
        scale: f32,
        batch: &Self::Batch,
    ) -> Result<Self::Tensor> {
        let (q, kv, batch) = (q.clone(), kv.clone(), batch.clone());
        let op = "attention";
        Ok(self.later(move |b| b.attention(q.get(op)?, &kv.0, layer, heads, scale, batch.get(op)?)))
    }

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
    ) -> Result<Self::Tensor> {
        let (q, kv_b, kv, batch) = (q.clone(), kv_b.map(Clone::clone), kv.clone(), batch.clone());
        let op = "latent_attention";
        Ok(self.later(move |b| {
            let kv_b = kv_b.as_ref().map(|shared| &*shared.0);
            b.latent_attention(q.get(op)?, kv_b, &kv.0, layer, heads, scale, form, batch.get(op)?)
        }))
    }

    fn swiglu(&self, gate: Self::Tensor, up: &Self::Tensor) -> Result<Self::Tensor> {
        let up = up.clone();
        Ok(self.later(move |b| b.swiglu(gate.get("swiglu")?.clone(), up.get("swiglu")?)))
    }

    fn add(&self, a: Self::Tensor, b: &Self::Tensor) -> Result<Self::Tensor> {
        let other = b.clone();
        Ok(self.later(move |b| b.add(a.get("add")?.clone(), other.get("add")?)))
    }

    fn gated(&self, x: Self::Tensor, gate: &Self::Tensor) -> Result<Self::Tensor> {
        let gate = gate.clone();
        Ok(self.later(move |b| b.gated(x.get("gated")?.clone(), gate.get("gated")?)))
    }

    fn route(
        &self,
        x: &Self::Tensor,
        gate: &Self::Linear,
        bias: Option<&Self::Vector>,
        rule: &RouterRule,
    ) -> Result<Self::Routing> {
        let (x, gate, bias, rule) = (x.clone(), gate.clone(), bias.cloned(), *rule);
        Ok(DeferredRouting(
            self.later(move |b| b.route(x.get("route")?, &gate.0, bias.as_ref().map(|bias| bias.0.as_ref()), &rule)),
        ))
    }

    fn apply_experts(
        &self,
        x: &Self::Tensor,
        experts: &Self::Experts,
        routing: &Self::Routing,
    ) -> Result<Self::Tensor> {
        let (x, experts, routing) = (x.clone(), experts.together.clone(), routing.0.clone());
        let op = "apply_experts";
        Ok(self.later(move |b| b.apply_experts(x.get(op)?, &experts.0, routing.get(op)?)))
    }

    fn outputs(&self, x: &Self::Tensor, batch: &Self::Batch) -> Result<Self::Tensor> {
        let (x, batch) = (x.clone(), batch.clone());
        Ok(self.later(move |b| b.outputs(x.get("outputs")?, batch.get("outputs")?)))
    }

    fn sample(&self, logits: &Self::Tensor, rows: &[SampleRow]) -> Result<Self::Samples> {
        let (logits, rows) = (logits.clone(), rows.to_vec());
        Ok(self.later(move |b| b.sample(logits.get("sample")?, &rows)))
    }

    fn write(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<Self::Tensor> {
        Ok(self.later(move |b| b.write(rows, cols, values)))
    }

    fn submit(&self) -> Result<()> {
        let work = std::mem::take(&mut *lock(&self.recorded));
        for operation in work {
            *lock(&self.operations) += 1;
            operation(&self.inner)?;
        }
        self.inner.submit()
    }

    fn read(&self, x: &Self::Tensor) -> Result<Vec<f32>> {
        self.inner.read(x.get("read")?)
    }

    fn read_samples(&self, samples: &Self::Samples) -> Result<Vec<Sample>> {
        self.inner.read_samples(samples.get("read_samples")?)
    }

    fn read_routing(&self, routing: &Self::Routing) -> Result<Vec<Vec<(u32, f32)>>> {
        self.inner.read_routing(routing.0.get("read_routing")?)
    }

    fn expert<'a>(&self, experts: &'a Self::Experts, index: usize) -> [&'a Self::Linear; 3] {
        experts.each[index].each_ref()
    }
}
