//! Attention over the pool, one query head and one position at a time.

use super::{Batch, Matrix, Pool, dot, expect_cols};
use crate::{Error, KvLayout, LatentForm, Result};
use marlin_checkpoint::{LatentProjection, Linear};

/// Stores each row's two parts next to each other in the row's slot.
pub(super) fn store(kv: &Pool, layer: usize, parts: [&Matrix; 2], batch: &Batch) -> Result<()> {
    let values = kv.spec.layout.values();
    let mut pool = kv.lock(layer)?;
    for (i, row) in batch.rows.iter().enumerate() {
        let slot = batch.slot(row.sequence, row.position) * values;
        let (a, b) = pool[slot..slot + values].split_at_mut(parts[0].cols);
        a.copy_from_slice(parts[0].row(i));
        b.copy_from_slice(parts[1].row(i));
    }
    Ok(())
}

/// Softmax of the scores, and the sum of the values it weighs.
fn weighted_sum<'a>(scores: Vec<f32>, value: impl Fn(usize) -> &'a [f32], out: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = scores.iter().map(|s| f64::from(s - max).exp()).sum();
    let mut sum = vec![0.0f64; out.len()];
    for (t, score) in scores.iter().enumerate() {
        let p = f64::from(score - max).exp() / total;
        sum.iter_mut().zip(value(t)).for_each(|(sum, v)| *sum += p * f64::from(*v));
    }
    out.iter_mut().zip(sum).for_each(|(out, sum)| *out = sum as f32);
}

pub(super) fn attention(
    q: &Matrix,
    kv: &Pool,
    layer: usize,
    heads: usize,
    scale: f32,
    batch: &Batch,
) -> Result<Matrix> {
    let KvLayout::Heads { heads: kv_heads, key, value } = kv.spec.layout else {
        return Err(Error::shape("attention", "a pool of keys and values", "latents"));
    };
    expect_cols("attention", q, heads * key)?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(Error::shape("attention", format!("heads divisible by {kv_heads}"), heads));
    }
    let pool = kv.lock(layer)?;
    let values = kv.spec.layout.values();
    let mut out = vec![0.0; q.rows * heads * value];
    for (i, row) in batch.rows.iter().enumerate() {
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let slot = |t: usize| batch.slot(row.sequence, t) * values;
            let k = |t: usize| &pool[slot(t) + kv_head * key..][..key];
            let v = |t: usize| &pool[slot(t) + kv_heads * key + kv_head * value..][..value];
            let query = &q.row(i)[head * key..(head + 1) * key];
            let scores = (0..=row.position).map(|t| scale * dot(query, k(t))).collect();
            weighted_sum(scores, v, &mut out[(i * heads + head) * value..][..value]);
        }
    }
    Ok(Matrix::new(heads * value, out))
}

#[allow(clippy::too_many_arguments)]
pub(super) fn latent_attention(
    q: &Matrix,
    kv_b: LatentProjection<&Linear>,
    kv: &Pool,
    layer: usize,
    heads: usize,
    scale: f32,
    form: LatentForm,
    batch: &Batch,
) -> Result<Matrix> {
    let KvLayout::Latent { rank, rope } = kv.spec.layout else {
        return Err(Error::shape("latent_attention", "a pool of latents", "keys and values"));
    };
    if heads == 0 || !q.cols.is_multiple_of(heads) || q.cols / heads < rope {
        return Err(Error::shape("latent_attention", format!("{heads} heads and rank {rank}"), q.cols));
    }
    let nope = q.cols / heads - rope;
    let (value, weight) = projection(kv_b, heads, nope, rank)?;
    let w = |row: usize| &weight[row * rank..(row + 1) * rank];
    let pool = kv.lock(layer)?;
    let mut out = vec![0.0; q.rows * heads * value];
    for (i, row) in batch.rows.iter().enumerate() {
        let slot = |t: usize| batch.slot(row.sequence, t) * (rank + rope);
        let latent = |t: usize| &pool[slot(t)..slot(t) + rank];
        let key = |t: usize| &pool[slot(t) + rank..slot(t) + rank + rope];
        for head in 0..heads {
            let (q_nope, q_rope) = q.row(i)[head * (nope + rope)..(head + 1) * (nope + rope)].split_at(nope);
            let first = head * (nope + value);
            let out = &mut out[(i * heads + head) * value..][..value];
            let positions = 0..=row.position;
            if form == LatentForm::Expanded {
                let keys: Vec<Vec<f32>> =
                    positions.clone().map(|t| (0..nope).map(|n| dot(w(first + n), latent(t))).collect()).collect();
                let values: Vec<Vec<f32>> = positions
                    .clone()
                    .map(|t| (0..value).map(|n| dot(w(first + nope + n), latent(t))).collect())
                    .collect();
                let scores = positions.map(|t| scale * (dot(q_nope, &keys[t]) + dot(q_rope, key(t)))).collect();
                weighted_sum(scores, |t| &values[t], out);
            } else {
                let q_latent: Vec<f32> =
                    (0..rank).map(|r| (0..nope).map(|n| w(first + n)[r] * q_nope[n]).sum()).collect();
                let scores = positions.map(|t| scale * (dot(&q_latent, latent(t)) + dot(q_rope, key(t)))).collect();
                let mut o_latent = vec![0.0; rank];
                weighted_sum(scores, latent, &mut o_latent);
                out.iter_mut().enumerate().for_each(|(n, out)| *out = dot(w(first + nope + n), &o_latent));
            }
        }
    }
    Ok(Matrix::new(heads * value, out))
}

/// Values of a value head, and the projection `[heads * (nope + value), rank]` as one matrix.
fn projection(kv_b: LatentProjection<&Linear>, heads: usize, nope: usize, rank: usize) -> Result<(usize, Vec<f32>)> {
    let [rows, cols] = match kv_b {
        LatentProjection::Whole(w) => [w.out_features().checked_sub(heads * nope).unwrap_or(1), w.in_features()],
        LatentProjection::Split { k, v } if [k.out_features(), k.in_features()] == [heads * rank, nope] => {
            [v.out_features(), v.in_features()]
        }
        LatentProjection::Split { .. } => [1, 0],
    };
    if !rows.is_multiple_of(heads) || cols != rank {
        let expected = format!("a projection of {heads} heads from a rank of {rank}");
        return Err(Error::shape("latent_attention", expected, format!("[{rows}, {cols}]")));
    }
    let value = rows / heads;
    let whole = match kv_b {
        LatentProjection::Whole(w) => w.matrix()?,
        LatentProjection::Split { k, v } => {
            let (k, v) = (k.matrix()?, v.matrix()?);
            let mut whole = Vec::with_capacity(heads * (nope + value) * rank);
            for head in 0..heads {
                whole.extend((0..nope * rank).map(|i| k[(head * rank + i % rank) * nope + i / rank]));
                whole.extend_from_slice(&v[head * value * rank..(head + 1) * value * rank]);
            }
            whole
        }
    };
    Ok((value, whole))
}
