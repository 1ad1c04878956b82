//! Every primitive but products with weights (those are compared when weights are loaded) on a device that has just been opened,
//! against the reference: sizes that are no multiples of anything, several sequences, every rule of routing.

use super::GpuBackend;
use marlin_backend::blocks::{Attention, LatentAttention, Mlp, Norm, RouterRule, Scoring};
use marlin_backend::shapes::Shapes;
use marlin_backend::{
    Backend, Error, Expert, KvLayout, KvSpec, LatentForm, Pass, Reference, Result, RopeTable, SampleRow, SequenceStep,
    Step, Token,
};
use marlin_checkpoint::{
    DType, Dense, InputTransform, LatentProjection, Linear, OutputTransform, Tensor, TensorInfo, Weight,
};
use std::sync::Arc;

/// The name of weights that are made up here.
pub(super) const NAME: &str = "self-check";

/// Greatest difference, relative to the largest value, that is taken for rounding.
const LIMIT: f32 = 1e-3;

/// Refuses a device of which a primitive does not do what the reference does.
pub(super) fn primitives(b: &GpuBackend) -> Result<()> {
    agree(b, &all(b)?, &all(&Reference)?)
}

/// The same at the sizes of a model.
pub(super) fn model_primitives(b: &GpuBackend, shapes: &Shapes) -> Result<()> {
    agree(b, &model(b, shapes)?, &model(&Reference, shapes)?)
}

/// What primitives give, by their names.
type Found = Vec<(&'static str, Vec<f32>)>;

fn agree(b: &GpuBackend, found: &Found, expected: &Found) -> Result<()> {
    for ((name, found), (_, expected)) in found.iter().zip(expected) {
        let scale = expected.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        // The reference's KV memory rounds nothing.
        let limit = match *name {
            // Tensor cores round to halves.
            n if n.starts_with("the model's") && !b.options.exact => LIMIT + 5.0 * b.options.kv.rounding().max(4e-3),
            n if n.ends_with("attention") => LIMIT + 5.0 * b.options.kv.rounding(),
            // Several products one after another, of inputs rounded to halves.
            "mlp" => 5.0 * LIMIT,
            _ => LIMIT,
        };
        // Written so that NaN fails.
        let good = |a: f32, b: f32| (a - b).abs() <= limit * scale;
        let wrong = found.iter().zip(expected).position(|(a, b)| !good(*a, *b));
        if found.len() != expected.len() || wrong.is_some() {
            let at = wrong.map_or_else(String::new, |i| format!(" (value {i} is {}, not {})", found[i], expected[i]));
            let name = format!("{}: {name} does not compute what the reference computes{at}", b.name());
            return Err(Error::Device(name));
        }
    }
    Ok(())
}

/// Numbers in [-1, 1) from a linear congruence.
struct Numbers(u32);

impl Numbers {
    fn many(&mut self, n: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn dense(&mut self, rows: usize, cols: usize) -> Result<Linear> {
        let data = self.many(rows * cols).into_iter().flat_map(f32::to_le_bytes).collect();
        Self::linear(DType::F32, rows, cols, data)
    }

    fn bf16(&mut self, rows: usize, cols: usize) -> Result<Linear> {
        let data =
            self.many(rows * cols).into_iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect();
        Self::linear(DType::BF16, rows, cols, data)
    }

    fn linear(dtype: DType, rows: usize, cols: usize, data: Vec<u8>) -> Result<Linear> {
        let info = TensorInfo { name: NAME.into(), dtype, shape: vec![rows, cols] };
        Ok(Linear::new(NAME, Weight::Dense(Dense::new(Tensor { info, data: data.into() })?), None))
    }
}

/// What each primitive gives.
pub(super) fn all<B: Backend>(b: &B) -> Result<Found> {
    let mut numbers = Numbers(1);
    let mut found = Vec::new();
    for (rows, cols, width) in [(3, 130, 65), (2, 1000, 1000)] {
        let (x, y) = (numbers.many(rows * cols), numbers.many(rows * cols));
        let (weight, gate) = (b.vector(numbers.many(width))?, b.write(rows, 1, numbers.many(rows))?);
        let (x, y) = (b.write(rows, cols, x)?, b.write(rows, cols, y)?);
        found.push(("rms_norm", b.read(&b.rms_norm(&x, &weight, 1e-5)?)?));
        found.push(("swiglu", b.read(&b.swiglu(x.clone(), &y)?)?));
        found.push(("add", b.read(&b.add(x.clone(), &y)?)?));
        found.push(("gated", b.read(&b.gated(x.clone(), &gate)?)?));
        found.push(("columns", b.read(&b.columns(&x, 3, cols - 1)?)?));
    }
    let before = Step {
        tokens: vec![Token::Id(0); 21],
        sequences: vec![SequenceStep { cached: 0, len: 21, blocks: vec![3, 0] }],
        outputs: Vec::new(),
    };
    let step = Step {
        tokens: [3, 1, 4, 1].map(Token::Id).to_vec(),
        sequences: vec![
            SequenceStep { cached: 21, len: 1, blocks: vec![3, 0] },
            SequenceStep { cached: 0, len: 3, blocks: vec![2] },
        ],
        outputs: vec![0, 3],
    };
    let spec = |layout| KvSpec { layers: 1, layout, block_size: 16, blocks: 4 };
    let (heads, shared, key, value) = (4, 2, 40, 24);
    let kv = b.kv(spec(KvLayout::Heads { heads: shared, key, value }))?;
    let (first, second) = (b.begin(&before, &kv, None)?, b.begin(&step, &kv, None)?);
    let embedded = b.embed(&b.linear(numbers.dense(6, 33)?)?, &second)?;
    found.push(("embed", b.read(&b.outputs(&embedded, &second)?)?));
    for interleaved in [false, true] {
        let rope = b.rope_table(RopeTable { inv_freq: vec![1.0, 0.2, 0.01], interleaved })?;
        found.push(("rope", b.read(&b.rope(b.write(4, 20, numbers.many(80))?, &rope, 10, 1, &second)?)?));
    }
    for (rows, batch) in [(21, &first), (4, &second)] {
        let k = b.write(rows, shared * key, numbers.many(rows * shared * key))?;
        let v = b.write(rows, shared * value, numbers.many(rows * shared * value))?;
        b.append(&kv, 0, &k, &v, batch)?;
    }
    let q = b.write(4, heads * key, numbers.many(4 * heads * key))?;
    found.push(("attention", b.read(&b.attention(&q, &kv, 0, heads, 0.3, &second)?)?));
    let (nope, rope, value, rank) = (16, 8, 12, 40);
    let kv = b.kv(spec(KvLayout::Latent { rank, rope }))?;
    for (rows, batch) in [(21, &first), (4, &second)] {
        let latent = b.write(rows, rank, numbers.many(rows * rank))?;
        b.append_latent(&kv, 0, &latent, &b.write(rows, rope, numbers.many(rows * rope))?, batch)?;
    }
    let kv_b = b.linear(numbers.dense(heads * (nope + value), rank)?)?;
    let q = b.write(4, heads * (nope + rope), numbers.many(4 * heads * (nope + rope)))?;
    let y =
        b.latent_attention(&q, LatentProjection::Whole(&kv_b), &kv, 0, heads, 0.1, LatentForm::Absorbed, &second)?;
    found.push(("latent_attention", b.read(&y)?));
    let experts = 12;
    let gate = b.linear(numbers.dense(experts, 20)?)?;
    let bias = b.vector(numbers.many(experts))?;
    let mut all = Vec::new();
    for _ in 0..experts {
        all.push(Expert { gate: numbers.dense(9, 20)?, up: numbers.dense(9, 20)?, down: numbers.dense(20, 9)? });
    }
    let experts_held = b.experts(all)?;
    let x = b.write(5, 20, numbers.many(100))?;
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        for (groups, top_groups) in [(1, 1), (4, 2)] {
            let rule = RouterRule { scoring, top_k: 3, normalise: true, scale: 1.5, groups, top_groups };
            let routing = b.route(&x, &gate, Some(&bias), &rule)?;
            let choices = b.read_routing(&routing)?;
            found.push(("route", choices.into_iter().flatten().flat_map(|(e, w)| [e as f32, w]).collect()));
            found.push(("apply_experts", b.read(&b.apply_experts(&x, &experts_held, &routing)?)?));
        }
    }
    found.push(("mlp", rotated(b, &mut Numbers(2))?));
    // Many rows, which are sorted by their experts; then what blocks fuse, and the token chosen.
    let x = b.write(60, 20, numbers.many(1200))?;
    let rule =
        RouterRule { scoring: Scoring::Sigmoid, top_k: 3, normalise: true, scale: 1.0, groups: 1, top_groups: 1 };
    let routing = b.route(&x, &gate, None, &rule)?;
    found.push(("apply_experts to many rows", b.read(&b.apply_experts(&x, &experts_held, &routing)?)?));
    found.extend(fused(b, &mut numbers)?);
    let greedy = || SampleRow::greedy(1500);
    let drawn = |seed| SampleRow { temperature: 0.3, seed, ..greedy() };
    let kinds = [
        vec![greedy(), greedy()],
        vec![
            drawn(1),
            SampleRow { top_k: 30, ..drawn(2) },
            SampleRow { top_k: 90, top_p: 0.8, min_p: 0.1, ..drawn(3) },
        ],
        vec![greedy(), SampleRow { top_p: 0.9, ..drawn(4) }, SampleRow { min_p: 0.2, ..drawn(5) }],
    ];
    for rows in kinds {
        let samples = b.sample(&b.write(rows.len(), 1600, numbers.many(rows.len() * 1600))?, &rows)?;
        b.submit()?;
        // Margins may be narrower than the reference's.
        let samples = b.read_samples(&samples)?;
        found.push(("sample", samples.iter().flat_map(|s| [s.token as f32, s.logprob]).collect()));
    }
    Ok(found)
}

/// Two MLPs with rotations around their matrices, of many rows.
fn rotated<B: Backend>(b: &B, numbers: &mut Numbers) -> Result<Vec<f32>> {
    let (rows, hidden, inner) = (20, 128, 256);
    let linear = |rows, cols, n: &mut Numbers| {
        let mut scale = |len| Some(n.many(len).into());
        let input = InputTransform::Hadamard { scale: scale(cols), block: 128 };
        let output = OutputTransform::Hadamard { scale: scale(rows), block: 128 };
        b.linear(n.dense(rows, cols)?.with_transforms(input, output)?)
    };
    let mut h = b.write(rows, hidden, numbers.many(rows * hidden))?;
    let spec = KvSpec { layers: 1, layout: KvLayout::Latent { rank: 8, rope: 8 }, block_size: 16, blocks: 2 };
    let kv = b.kv(spec)?;
    let sequences = vec![SequenceStep { cached: 0, len: rows, blocks: vec![0, 1] }];
    let batch = b.begin(&Step { tokens: vec![Token::Id(0); rows], sequences, outputs: Vec::new() }, &kv, None)?;
    let pass = Pass { batch: &batch, kv: &kv, layer: 0, latent_form: LatentForm::Auto, observer: None };
    for _ in 0..2 {
        let mlp = Mlp {
            norm: Norm { weight: b.vector(numbers.many(hidden))?, eps: 1e-5 },
            gate_proj: linear(inner, hidden, numbers)?,
            up_proj: linear(inner, hidden, numbers)?,
            down_proj: linear(hidden, inner, numbers)?,
        };
        h = b.mlp(&mlp, h, &pass)?;
    }
    b.read(&h)
}

/// What has no weights of its own, at the sizes of a model, with few inputs.
pub(super) fn model<B: Backend>(b: &B, shapes: &Shapes) -> Result<Found> {
    /// Inputs of projections.
    const INPUTS: usize = 12;
    let mut numbers = Numbers(2);
    let mut found = Vec::new();
    let hidden = shapes.hidden;
    let norm = Norm { weight: b.vector(numbers.many(hidden))?, eps: 1e-5 };
    let (x, y) = (b.write(2, hidden, numbers.many(2 * hidden))?, b.write(2, hidden, numbers.many(2 * hidden))?);
    found.push(("rms_norm", b.read(&norm.apply(b, &x)?)?));
    let sum = b.add(x, &y)?;
    found.push(("rms_norm", b.read(&norm.apply(b, &sum)?)?));
    found.push(("add", b.read(&sum)?));
    let spec = |layout| KvSpec { layers: 1, layout, block_size: 16, blocks: 2 };
    let rope = |pairs: usize, interleaved| {
        let inv_freq = (0..pairs).map(|i| 0.8f32.powi(i as i32)).collect();
        Ok::<_, Error>(Arc::new(b.rope_table(RopeTable { inv_freq, interleaved })?))
    };
    // More rows than kernels for a few take, a few, one.
    let steps = [(0, 17), (17, 3), (20, 1)];
    let begin = |kv: &B::Kv, (cached, len): (usize, usize)| {
        let sequences = vec![SequenceStep { cached, len, blocks: vec![1, 0] }];
        b.begin(&Step { tokens: vec![Token::Id(0); len], sequences, outputs: Vec::new() }, kv, None)
    };
    for s in &shapes.grouped {
        let (dim, mut head_norm) = (s.head_dim, |wanted: bool| {
            let weight = numbers.many(s.head_dim);
            wanted.then(|| Ok::<_, Error>(Norm { weight: b.vector(weight)?, eps: 1e-5 })).transpose()
        });
        let (q_norm, k_norm) = (head_norm(s.q_norm)?, head_norm(s.k_norm)?);
        let block = Attention {
            norm: Norm { weight: b.vector(numbers.many(INPUTS))?, eps: 1e-5 },
            q_proj: b.linear(numbers.dense(s.heads * dim, INPUTS)?)?,
            k_proj: b.linear(numbers.dense(s.kv_heads * dim, INPUTS)?)?,
            v_proj: b.linear(numbers.dense(s.kv_heads * dim, INPUTS)?)?,
            o_proj: b.linear(numbers.dense(INPUTS, s.heads * dim)?)?,
            q_norm,
            k_norm,
            rope: rope(dim / 2, false)?,
            heads: s.heads,
            head_dim: dim,
            scale: 0.1,
        };
        let kv = b.kv(spec(KvLayout::Heads { heads: s.kv_heads, key: dim, value: dim }))?;
        for step in steps {
            let batch = begin(&kv, step)?;
            let pass = Pass { batch: &batch, kv: &kv, layer: 0, latent_form: LatentForm::Absorbed, observer: None };
            let h = b.write(step.1, INPUTS, numbers.many(step.1 * INPUTS))?;
            let q = b.attention_input(&block, &h, &pass)?;
            found.push(("the model's attention", b.read(&b.attention_output(&block, &q, h, &pass)?)?));
        }
    }
    for s in &shapes.latent {
        let wide = s.nope + s.rope;
        let block = LatentAttention {
            norm: Norm { weight: b.vector(numbers.many(INPUTS))?, eps: 1e-5 },
            q_a_proj: b.linear(numbers.dense(INPUTS, INPUTS)?)?,
            q_a_layernorm: Norm { weight: b.vector(numbers.many(INPUTS))?, eps: 1e-5 },
            q_b_proj: b.linear(numbers.dense(s.heads * wide, INPUTS)?)?,
            kv_a_proj_with_mqa: b.linear(numbers.dense(s.rank + s.rope, INPUTS)?)?,
            kv_a_layernorm: Norm { weight: b.vector(numbers.many(s.rank))?, eps: 1e-5 },
            kv_b_proj: LatentProjection::Whole(b.linear(numbers.bf16(s.heads * (s.nope + s.value), s.rank)?)?),
            o_proj: b.linear(numbers.dense(INPUTS, s.heads * s.value)?)?,
            rope: rope(s.rope / 2, true)?,
            heads: s.heads,
            nope: s.nope,
            rope_dim: s.rope,
            rank: s.rank,
            scale: 0.02,
        };
        let kv = b.kv(spec(KvLayout::Latent { rank: s.rank, rope: s.rope }))?;
        for step in steps {
            let batch = begin(&kv, step)?;
            let pass = Pass { batch: &batch, kv: &kv, layer: 0, latent_form: LatentForm::Absorbed, observer: None };
            let h = b.write(step.1, INPUTS, numbers.many(step.1 * INPUTS))?;
            let q = b.latent_input(&block, &h, &pass)?;
            found.push(("the model's latent attention", b.read(&b.latent_output(&block, &q, h, &pass)?)?));
        }
    }
    for s in &shapes.routers {
        // As many as a vector of halves has.
        const INPUTS: usize = 8;
        let gate = b.linear(numbers.bf16(s.experts, INPUTS)?)?;
        let bias = if s.bias { Some(b.vector(numbers.many(s.experts))?) } else { None };
        for rows in [1, 17] {
            let x = b.write(rows, INPUTS, numbers.many(rows * INPUTS))?;
            let choices = b.read_routing(&b.route(&x, &gate, bias.as_ref(), &s.rule)?)?;
            found.push(("route", choices.into_iter().flatten().flat_map(|(e, w)| [e as f32, w]).collect()));
        }
    }
    Ok(found)
}

/// The attention blocks: twenty tokens of a sequence, then one more.
fn fused<B: Backend>(b: &B, numbers: &mut Numbers) -> Result<Found> {
    let (hidden, heads, kv_heads, dim) = (36, 4, 2, 40);
    let (nope, rope_dim, value, rank, q_rank) = (16, 8, 12, 40, 24);
    let mut linear = |rows, cols| b.linear(numbers.dense(rows, cols)?);
    let (q_proj, o_proj) = (linear(heads * dim, hidden)?, linear(hidden, heads * dim)?);
    let (k_proj, v_proj) = (linear(kv_heads * dim, hidden)?, linear(kv_heads * dim, hidden)?);
    let (q_a_proj, q_b_proj) = (linear(q_rank, hidden)?, linear(heads * (nope + rope_dim), q_rank)?);
    let (kv_a, kv_b) = (linear(rank + rope_dim, hidden)?, linear(heads * (nope + value), rank)?);
    let latent_o = linear(hidden, heads * value)?;
    let mut norm = |width| Ok::<_, Error>(Norm { weight: b.vector(numbers.many(width))?, eps: 1e-5 });
    let rope = |pairs: usize, interleaved| {
        let inv_freq = (0..pairs).map(|i| 0.8f32.powi(i as i32)).collect();
        Ok::<_, Error>(Arc::new(b.rope_table(RopeTable { inv_freq, interleaved })?))
    };
    let grouped = Attention {
        norm: norm(hidden)?,
        q_proj,
        k_proj,
        v_proj,
        o_proj,
        q_norm: Some(norm(dim)?),
        k_norm: Some(norm(dim)?),
        rope: rope(dim / 2, false)?,
        heads,
        head_dim: dim,
        scale: 0.2,
    };
    let latent = LatentAttention {
        norm: norm(hidden)?,
        q_a_proj,
        q_a_layernorm: norm(q_rank)?,
        q_b_proj,
        kv_a_proj_with_mqa: kv_a,
        kv_a_layernorm: norm(rank)?,
        kv_b_proj: LatentProjection::Whole(kv_b),
        o_proj: latent_o,
        rope: rope(rope_dim / 2, true)?,
        heads,
        nope,
        rope_dim,
        rank,
        scale: 0.2,
    };
    let last = norm(hidden)?;
    let spec = |layout| KvSpec { layers: 1, layout, block_size: 16, blocks: 2 };
    let kv = b.kv(spec(KvLayout::Heads { heads: kv_heads, key: dim, value: dim }))?;
    let latents = b.kv(spec(KvLayout::Latent { rank, rope: rope_dim }))?;
    let mut found = Vec::new();
    for (cached, len) in [(0, 20), (20, 1)] {
        let sequences = vec![SequenceStep { cached, len, blocks: vec![1, 0] }];
        let step = Step { tokens: vec![Token::Id(0); len], sequences, outputs: Vec::new() };
        let h = b.write(len, hidden, numbers.many(len * hidden))?;
        let batch = b.begin(&step, &kv, None)?;
        let pass = Pass { batch: &batch, kv: &kv, layer: 0, latent_form: LatentForm::Absorbed, observer: None };
        let q = b.attention_input(&grouped, &h, &pass)?;
        let y = b.attention_output(&grouped, &q, h.clone(), &pass)?;
        // The norm takes the residual with it.
        found.push(("a block of attention", b.read(&last.apply(b, &y)?)?));
        found.push(("a block of attention", b.read(&y)?));
        let batch = b.begin(&step, &latents, None)?;
        let pass = Pass { batch: &batch, kv: &latents, ..pass };
        let q = b.latent_input(&latent, &h, &pass)?;
        found.push(("a block of latent attention", b.read(&b.latent_output(&latent, &q, h, &pass)?)?));
    }
    Ok(found)
}
