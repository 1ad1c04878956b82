//! Every primitive as plainly as it can be said: f32 (sums in f64), one loop inside another, immediate.

mod attention;
mod experts;

use crate::blocks::RouterRule;
use crate::sampling::choose;
use crate::{
    Backend, Error, Expert, KvLayout, KvSpec, LatentForm, LinearHandle, Result, RopeTable, Row, Sample, SampleRow,
    Step, Token,
};
use marlin_checkpoint::{LatentProjection, Linear};
use std::sync::{Arc, Mutex, PoisonError};

/// The reference backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// Activations of the reference backend.
#[derive(Clone, Debug)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Arc<Vec<f32>>,
}

impl Matrix {
    fn new(cols: usize, data: Vec<f32>) -> Self {
        Self { rows: data.len() / cols.max(1), cols, data: Arc::new(data) }
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.data.chunks_exact(self.cols.max(1))
    }
}

impl LinearHandle for Linear {
    fn name(&self) -> &str {
        &self.name
    }
    fn cols(&self) -> usize {
        self.in_features()
    }
    fn rows(&self) -> usize {
        self.out_features()
    }
}

/// A pool of KV blocks in f32: for each layer `[blocks * block_size, values]`.
pub struct Pool {
    spec: KvSpec,
    layers: Vec<Mutex<Vec<f32>>>,
}

impl Pool {
    fn lock(&self, layer: usize) -> Result<std::sync::MutexGuard<'_, Vec<f32>>> {
        let layer = self.layers.get(layer).ok_or_else(|| Error::shape("kv", self.spec.layers, layer))?;
        Ok(layer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A prepared step.
pub struct Batch {
    step: Step,
    rows: Vec<Row>,
    tokens: Vec<u32>,
    block_size: usize,
}

impl Batch {
    /// Index into the pool of a sequence's position.
    fn slot(&self, sequence: usize, position: usize) -> usize {
        self.step.sequences[sequence].blocks[position / self.block_size] as usize * self.block_size
            + position % self.block_size
    }
}

fn same_shape(op: &'static str, a: &Matrix, b: &Matrix) -> Result<()> {
    if (a.rows, a.cols) == (b.rows, b.cols) {
        return Ok(());
    }
    Err(Error::shape(op, format!("[{}, {}]", a.rows, a.cols), format!("[{}, {}]", b.rows, b.cols)))
}

fn expect_cols(op: &'static str, x: &Matrix, cols: usize) -> Result<()> {
    if x.cols == cols { Ok(()) } else { Err(Error::shape(op, format!("{cols} columns"), x.cols)) }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn apply(linear: &Linear, x: &Matrix) -> Result<Matrix> {
    expect_cols("linear", x, linear.in_features())?;
    if !linear.is_plain() {
        let rows = x.iter().map(|row| Ok(linear.apply(row)?));
        return Ok(Matrix::new(linear.out_features(), rows.collect::<Result<Vec<_>>>()?.concat()));
    }
    let (rows, cols) = (linear.weight.rows(), linear.weight.cols());
    let mut y = vec![0.0; x.rows * rows];
    let mut w = vec![0.0; cols];
    for n in 0..rows {
        linear.weight.dequantize_row(n, &mut w)?;
        let bias = linear.bias.as_ref().map_or(0.0, |bias| bias[n]);
        for m in 0..x.rows {
            y[m * rows + n] = dot(x.row(m), &w) + bias;
        }
    }
    Ok(Matrix { rows: x.rows, cols: rows, data: Arc::new(y) })
}

impl Backend for Reference {
    type Tensor = Matrix;
    type Vector = Vec<f32>;
    type Linear = Linear;
    type Experts = Vec<Expert>;
    type Rope = RopeTable;
    type Kv = Pool;
    type Batch = Batch;
    type Routing = Vec<Vec<(u32, f32)>>;
    type Samples = Arc<Vec<Sample>>;
    type Recordings = ();

    fn name(&self) -> String {
        "reference".into()
    }

    fn vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn linear(&self, linear: Linear) -> Result<Linear> {
        let mut row = vec![0.0; linear.weight.cols()];
        for n in 0..linear.weight.rows() {
            linear.weight.dequantize_row(n, &mut row)?;
            if let Some(k) = row.iter().position(|v| !v.is_finite()) {
                return Err(Error::NotFinite { name: linear.name, index: n * row.len() + k, value: row[k] });
            }
        }
        Ok(linear)
    }

    fn experts(&self, experts: Vec<Expert>) -> Result<Vec<Expert>> {
        let checked =
            |e: Expert| Ok(Expert { gate: self.linear(e.gate)?, up: self.linear(e.up)?, down: self.linear(e.down)? });
        experts.into_iter().map(checked).collect()
    }

    fn rope_table(&self, table: RopeTable) -> Result<RopeTable> {
        Ok(table)
    }

    fn kv(&self, spec: KvSpec) -> Result<Pool> {
        let values = spec.values() / spec.layers.max(1);
        Ok(Pool { spec, layers: (0..spec.layers).map(|_| Mutex::new(vec![0.0; values])).collect() })
    }

    fn kv_bytes(&self, spec: &KvSpec) -> usize {
        spec.values() * 4
    }

    fn begin(&self, step: &Step, kv: &Pool, previous: Option<&Self::Samples>) -> Result<Batch> {
        let samples = previous.map_or(&[][..], |s| s.as_slice());
        step.check(&kv.spec, samples.len())?;
        let id = |token: &Token| match *token {
            Token::Id(id) => id,
            Token::Sampled(row) => samples[row as usize].token,
        };
        Ok(Batch {
            rows: step.rows().collect(),
            tokens: step.tokens.iter().map(id).collect(),
            block_size: kv.spec.block_size,
            step: step.clone(),
        })
    }

    fn embed(&self, table: &Linear, batch: &Batch) -> Result<Matrix> {
        let mut out = vec![0.0; batch.tokens.len() * table.weight.cols()];
        for (row, &token) in out.chunks_exact_mut(table.weight.cols()).zip(&batch.tokens) {
            if token as usize >= table.weight.rows() {
                return Err(Error::shape("embed", format!("token below {}", table.weight.rows()), token));
            }
            table.weight.dequantize_row(token as usize, row)?;
        }
        Ok(Matrix::new(table.weight.cols(), out))
    }

    fn rms_norm(&self, x: &Matrix, weight: &Vec<f32>, eps: f32) -> Result<Matrix> {
        if weight.is_empty() || !x.cols.is_multiple_of(weight.len()) {
            return Err(Error::shape("rms_norm", format!("columns divisible by {}", weight.len()), x.cols));
        }
        let mut out = x.data.to_vec();
        for group in out.chunks_exact_mut(weight.len()) {
            let mean = dot(group, group) / weight.len() as f32;
            let factor = 1.0 / (mean + eps).sqrt();
            group.iter_mut().zip(weight).for_each(|(x, w)| *x *= factor * w);
        }
        Ok(Matrix::new(x.cols, out))
    }

    fn linears(&self, linears: &[&Linear], x: &Matrix) -> Result<Vec<Matrix>> {
        linears.iter().map(|linear| apply(linear, x)).collect()
    }

    fn rope(&self, x: Matrix, rope: &RopeTable, group: usize, offset: usize, batch: &Batch) -> Result<Matrix> {
        let pairs = rope.inv_freq.len();
        if group == 0 || !x.cols.is_multiple_of(group) || offset + 2 * pairs > group || x.rows != batch.rows.len() {
            return Err(Error::shape("rope", format!("groups of {group} from {offset} for {pairs} pairs"), x.cols));
        }
        let mut out = x.data.to_vec();
        for (row, at) in out.chunks_exact_mut(x.cols).zip(&batch.rows) {
            for head in row.chunks_exact_mut(group) {
                for (i, frequency) in rope.inv_freq.iter().enumerate() {
                    let (sin, cos) = (at.position as f32 * frequency).sin_cos();
                    let (a, b) = if rope.interleaved { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
                    let (p, q) = (head[offset + a], head[offset + b]);
                    head[offset + a] = p * cos - q * sin;
                    head[offset + b] = q * cos + p * sin;
                }
            }
        }
        Ok(Matrix::new(x.cols, out))
    }

    fn columns(&self, x: &Matrix, from: usize, to: usize) -> Result<Matrix> {
        if from > to || to > x.cols {
            return Err(Error::shape("columns", format!("{from}..{to} within"), x.cols));
        }
        Ok(Matrix::new(to - from, x.iter().flat_map(|row| &row[from..to]).copied().collect()))
    }

    fn append(&self, kv: &Pool, layer: usize, k: &Matrix, v: &Matrix, batch: &Batch) -> Result<()> {
        let KvLayout::Heads { heads, key, value } = kv.spec.layout else {
            return Err(Error::shape("append", "a pool of keys and values", "latents"));
        };
        expect_cols("append", k, heads * key)?;
        expect_cols("append", v, heads * value)?;
        attention::store(kv, layer, [k, v], batch)
    }

    fn append_latent(&self, kv: &Pool, layer: usize, latent: &Matrix, key: &Matrix, batch: &Batch) -> Result<()> {
        let KvLayout::Latent { rank, rope } = kv.spec.layout else {
            return Err(Error::shape("append_latent", "a pool of latents", "keys and values"));
        };
        expect_cols("append_latent", latent, rank)?;
        expect_cols("append_latent", key, rope)?;
        attention::store(kv, layer, [latent, key], batch)
    }

    fn attention(
        &self,
        q: &Matrix,
        kv: &Pool,
        layer: usize,
        heads: usize,
        scale: f32,
        batch: &Batch,
    ) -> Result<Matrix> {
        attention::attention(q, kv, layer, heads, scale, batch)
    }

    fn latent_attention(
        &self,
        q: &Matrix,
        kv_b: LatentProjection<&Linear>,
        kv: &Pool,
        layer: usize,
        heads: usize,
        scale: f32,
        form: LatentForm,
        batch: &Batch,
    ) -> Result<Matrix> {
        attention::latent_attention(q, kv_b, kv, layer, heads, scale, form, batch)
    }

    fn swiglu(&self, gate: Matrix, up: &Matrix) -> Result<Matrix> {
        same_shape("swiglu", &gate, up)?;
        Ok(Matrix::new(gate.cols, gate.data.iter().zip(up.data.iter()).map(|(g, u)| g * sigmoid(*g) * u).collect()))
    }

    fn add(&self, a: Matrix, b: &Matrix) -> Result<Matrix> {
        same_shape("add", &a, b)?;
        Ok(Matrix::new(a.cols, a.data.iter().zip(b.data.iter()).map(|(a, b)| a + b).collect()))
    }

    fn gated(&self, x: Matrix, gate: &Matrix) -> Result<Matrix> {
        expect_cols("gated", gate, 1)?;
        let rows = x.iter().zip(gate.iter());
        Ok(Matrix::new(x.cols, rows.flat_map(|(row, g)| row.iter().map(move |x| x * sigmoid(g[0]))).collect()))
    }

    fn route(&self, x: &Matrix, gate: &Linear, bias: Option<&Vec<f32>>, rule: &RouterRule) -> Result<Self::Routing> {
        let logits = apply(gate, x)?;
        Ok(logits.iter().map(|row| experts::route(row, bias.map(Vec::as_slice), rule)).collect())
    }

    fn apply_experts(&self, x: &Matrix, experts: &Vec<Expert>, routing: &Self::Routing) -> Result<Matrix> {
        experts::apply_experts(self, x, experts, routing)
    }

    fn outputs(&self, x: &Matrix, batch: &Batch) -> Result<Matrix> {
        Ok(Matrix::new(x.cols, batch.step.outputs.iter().flat_map(|r| x.row(*r as usize)).copied().collect()))
    }

    fn sample(&self, logits: &Matrix, rows: &[SampleRow]) -> Result<Self::Samples> {
        if rows.len() != logits.rows {
            return Err(Error::shape("sample", format!("{} rows", logits.rows), rows.len()));
        }
        Ok(Arc::new(logits.iter().zip(rows).map(|(logits, row)| choose(logits, row)).collect()))
    }

    fn write(&self, rows: usize, cols: usize, values: Vec<f32>) -> Result<Matrix> {
        if values.len() != rows * cols {
            return Err(Error::shape("write", rows * cols, values.len()));
        }
        Ok(Matrix { rows, cols, data: Arc::new(values) })
    }

    fn submit(&self) -> Result<()> {
        Ok(())
    }

    fn read(&self, x: &Matrix) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn read_samples(&self, samples: &Self::Samples) -> Result<Vec<Sample>> {
        Ok(samples.to_vec())
    }

    fn read_routing(&self, routing: &Self::Routing) -> Result<Vec<Vec<(u32, f32)>>> {
        Ok(routing.clone())
    }

    fn expert<'a>(&self, experts: &'a Vec<Expert>, index: usize) -> [&'a Linear; 3] {
        let expert = &experts[index];
        [&expert.gate, &expert.up, &expert.down]
    }
}
