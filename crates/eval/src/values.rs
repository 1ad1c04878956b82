//! The values of a checkpoint's modules, some rows at a time, and what can be said about them.

use marlin_checkpoint::{Found, LatentProjection, LatentSizes, Linear, Modules, OutputTransform, Result, Tensor};
use marlin_cpu::Pool;
use marlin_models::Inventory;
use serde::Serialize;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Values of a panel: rows are read in panels of about this many.
const PANEL: usize = 1 << 20;

/// A module as a matrix (a vector is one row), readable row by row.
pub struct Matrix {
    /// How it is stored, for people: the schemes of its parts.
    pub stored: Vec<marlin_checkpoint::Stored>,
    rows: usize,
    cols: usize,
    from: Source,
}

enum Source {
    Linear(Box<Linear>),
    Values(Vec<f32>),
}

impl Matrix {
    /// The module, or whole vector, called `name` in the checkpoint's `modules`. `None` if the architecture declares no
    /// such module.
    pub fn find(inventory: &Inventory, modules: &dyn Modules, name: &str) -> Result<Option<Self>> {
        if let Some(sizes) = inventory.sizes(name) {
            return Self::latent(modules.latent(name, sizes)?, sizes).map(Some);
        }
        if let Some([rows, cols]) = inventory.features(name) {
            let found = modules.linear(name, [rows, cols])?;
            return Ok(Some(Self::of(found.build()?, vec![found.stored])));
        }
        let Some(len) = inventory.length(name) else { return Ok(None) };
        let found: Found<Tensor> = modules.vector(name, len)?;
        let values = found.build()?.to_f32()?;
        Ok(Some(Self { stored: vec![found.stored], rows: 1, cols: len, from: Source::Values(values) }))
    }

    fn of(linear: Linear, stored: Vec<marlin_checkpoint::Stored>) -> Self {
        let (rows, cols) = (linear.out_features(), linear.in_features());
        Self { stored, rows, cols, from: Source::Linear(Box::new(linear)) }
    }

    /// Either form of a latent projection as `[heads * (nope + value), rank]`.
    fn latent(found: LatentProjection<Found>, sizes: LatentSizes) -> Result<Self> {
        let stored = found.matrices().map(|f| f.stored.clone()).collect();
        let LatentSizes { heads, nope, value, rank } = sizes;
        let (k, v) = match found {
            LatentProjection::Whole(w) => return Ok(Self::of(w.build()?, stored)),
            LatentProjection::Split { k, v } => (k.build()?.matrix()?, v.build()?.matrix()?),
        };
        let rows = heads * (nope + value);
        let mut values = vec![0.0; rows * rank];
        for h in 0..heads {
            let head = &mut values[h * (nope + value) * rank..][..(nope + value) * rank];
            for (r, row) in head[..nope * rank].chunks_exact_mut(rank).enumerate() {
                row.iter_mut().enumerate().for_each(|(c, to)| *to = k[(h * rank + c) * nope + r]);
            }
            head[nope * rank..].copy_from_slice(&v[h * value * rank..][..value * rank]);
        }
        Ok(Self { stored, rows, cols: rank, from: Source::Values(values) })
    }

    /// Outputs; 1 for a vector.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs; the length of a vector.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Panels begin at multiples of this many rows: rows that an output rotation mixes are decoded together.
    fn granule(&self) -> usize {
        match &self.from {
            Source::Linear(linear) => match linear.output() {
                OutputTransform::None => 1,
                OutputTransform::Hadamard { block, .. } => (*block).max(1),
            },
            Source::Values(_) => 1,
        }
    }

    /// Values of `rows`, transforms folded in.
    pub fn panel(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let linear = match &self.from {
            Source::Values(values) => return Ok(values[rows.start * self.cols..rows.end * self.cols].to_vec()),
            Source::Linear(linear) => linear,
        };
        let (granule, width) = (self.granule(), linear.weight.cols());
        let first = rows.start / granule * granule;
        let last = rows.end.next_multiple_of(granule).min(linear.weight.rows());
        let mut decoded = vec![0.0; (last - first) * width];
        for (r, row) in decoded.chunks_exact_mut(width.max(1)).enumerate() {
            linear.weight.dequantize_row(first + r, row)?;
            linear.input().fold(row);
        }
        if let OutputTransform::Hadamard { scale, block } = linear.output() {
            let scale = scale.as_ref().map(|scale| scale[first..last].into());
            let output = OutputTransform::Hadamard { scale, block: *block };
            let mut column = vec![0.0; last - first];
            for c in 0..width {
                column.iter_mut().enumerate().for_each(|(r, v)| *v = decoded[r * width + c]);
                output.apply(&mut column);
                column.iter().enumerate().for_each(|(r, v)| decoded[r * width + c] = *v);
            }
        }
        let mut out = Vec::with_capacity(rows.len() * self.cols);
        for r in rows {
            out.extend_from_slice(&decoded[(r - first) * width..][..self.cols]);
        }
        Ok(out)
    }

    /// Rows of each panel, for a walk in which `other` granules begin panels too.
    fn step(&self, other: usize) -> usize {
        let granule = self.granule().max(other);
        (PANEL / self.cols.max(1)).max(1).next_multiple_of(granule)
    }

    /// Minimum, maximum, mean and deviation of all values.
    pub fn statistics(&self, pool: &Pool) -> Result<Statistics> {
        let step = self.step(1);
        let parts = panels(pool, self.rows, step, &|rows| Ok(Sums::of(&self.panel(rows)?)))?;
        Ok(parts.into_iter().fold(Sums::default(), Sums::with).finish())
    }

    /// How far `other`, of the same shape, is from this.
    pub fn difference(&self, other: &Self, pool: &Pool) -> Result<Difference> {
        let step = self.step(other.granule());
        let parts =
            panels(pool, self.rows, step, &|rows| Ok(Difference::of(&self.panel(rows.clone())?, &other.panel(rows)?)))?;
        Ok(parts.into_iter().fold(Difference::default(), Difference::with))
    }
}

/// `f` of each `step` of `rows` rows, in order, computed by all threads.
fn panels<T: Send>(
    pool: &Pool,
    rows: usize,
    step: usize,
    f: &(dyn Fn(Range<usize>) -> Result<T> + Sync),
) -> Result<Vec<T>> {
    let results: Vec<Mutex<Option<Result<T>>>> = (0..rows.div_ceil(step)).map(|_| Mutex::new(None)).collect();
    pool.run(results.len(), &|i| {
        let found = f(i * step..((i + 1) * step).min(rows));
        *results[i].lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    });
    results.into_iter().filter_map(|r| r.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// What is said about the values of one module.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// The least.
    pub min: f32,
    /// The greatest.
    pub max: f32,
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Values that are infinite or no numbers; the rest of the figures leave them out.
    pub not_finite: u64,
}

#[derive(Clone, Copy)]
struct Sums {
    min: f32,
    max: f32,
    sum: f64,
    squares: f64,
    count: u64,
    not_finite: u64,
}

impl Default for Sums {
    fn default() -> Self {
        Self { min: f32::INFINITY, max: f32::NEG_INFINITY, sum: 0.0, squares: 0.0, count: 0, not_finite: 0 }
    }
}

impl Sums {
    fn of(values: &[f32]) -> Self {
        let mut sums = Self::default();
        for &v in values {
            if !v.is_finite() {
                sums.not_finite += 1;
                continue;
            }
            (sums.min, sums.max) = (sums.min.min(v), sums.max.max(v));
            sums.sum += f64::from(v);
            sums.squares += f64::from(v) * f64::from(v);
            sums.count += 1;
        }
        sums
    }

    fn with(self, other: Self) -> Self {
        Self {
            min: self.min.min(other.min),
            max: self.max.max(other.max),
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
            count: self.count + other.count,
            not_finite: self.not_finite + other.not_finite,
        }
    }

    fn finish(self) -> Statistics {
        let count = self.count.max(1) as f64;
        let mean = self.sum / count;
        let std = (self.squares / count - mean * mean).max(0.0).sqrt();
        let (min, max) = if self.count == 0 { (0.0, 0.0) } else { (self.min, self.max) };
        Statistics { min, max, mean, std, not_finite: self.not_finite }
    }
}

/// Sums over the values `a` and `b` of two modules, and what follows from them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Difference {
    /// Sum of a².
    a: f64,
    /// Sum of b².
    b: f64,
    /// Sum of a b.
    product: f64,
    /// Sum of (a - b)².
    apart: f64,
    /// The greatest |a - b|.
    most: f64,
}

/// The greater; what is no number stays so.
fn most(a: f64, b: f64) -> f64 {
    if a.is_nan() || a >= b { a } else { b }
}

impl Difference {
    fn of(a: &[f32], b: &[f32]) -> Self {
        let mut sums = Self::default();
        for (a, b) in a.iter().zip(b) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            let apart = a - b;
            sums.a += a * a;
            sums.b += b * b;
            sums.product += a * b;
            sums.apart += apart * apart;
            sums.most = most(sums.most, apart.abs());
        }
        sums
    }

    /// Both together.
    pub fn with(self, other: Self) -> Self {
        Self {
            a: self.a + other.a,
            b: self.b + other.b,
            product: self.product + other.product,
            apart: self.apart + other.apart,
            most: most(self.most, other.most),
        }
    }

    /// ||a - b|| / ||a||
    pub fn relative_rms(&self) -> f64 {
        if self.apart == 0.0 { 0.0 } else { (self.apart / self.a).sqrt() }
    }

    /// The greatest |a - b|.
    pub fn max_abs(&self) -> f64 {
        self.most
    }

    /// a b / (||a|| ||b||); 1 where both are zero.
    pub fn cosine(&self) -> f64 {
        if self.a == 0.0 && self.b == 0.0 { 1.0 } else { self.product / (self.a * self.b).sqrt() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use marlin_checkpoint::{Dense, InputTransform, Weight};

    fn plain(values: Vec<f32>, rows: usize) -> Matrix {
        let cols = values.len() / rows;
        Matrix { stored: Vec::new(), rows, cols, from: Source::Values(values) }
    }

    #[test]
    fn figures_are_those_of_a_calculator() {
        let pool = Pool::new(2);
        let a = plain(vec![1.0, 2.0, 3.0, 4.0], 2);
        let found = a.statistics(&pool).unwrap();
        assert_eq!((found.min, found.max, found.mean, found.not_finite), (1.0, 4.0, 2.5, 0));
        assert!((found.std - 1.25f64.sqrt()).abs() < 1e-12);
        let b = plain(vec![1.0, 2.0, 3.0, 3.0], 2);
        let found = a.difference(&b, &pool).unwrap();
        assert!((found.relative_rms() - (1.0f64 / 30.0).sqrt()).abs() < 1e-12);
        assert_eq!(found.max_abs(), 1.0);
        assert!((found.cosine() - 26.0 / (30.0f64 * 23.0).sqrt()).abs() < 1e-12);
        let bad = plain(vec![f32::NAN, 1.0], 1);
        assert_eq!(bad.statistics(&pool).unwrap().not_finite, 1);
        assert!(bad.difference(&bad, &pool).unwrap().max_abs().is_nan());
    }

    /// Panels of a rotated, padded layer are those of the whole matrix.
    #[test]
    fn rotations_are_folded_panel_by_panel() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 11) as f32) - 5.0).collect();
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let info = marlin_checkpoint::TensorInfo {
            name: "w".into(),
            dtype: marlin_checkpoint::DType::F32,
            shape: vec![16, 4],
        };
        let dense = Dense::new(Tensor { data: data.into(), info }).unwrap();
        let scale: Vec<f32> = (0..16).map(|i| 1.0 + i as f32).collect();
        let output = OutputTransform::Hadamard { scale: Some(scale.into()), block: 4 };
        let input = InputTransform::Hadamard { scale: None, block: 2 };
        let linear = Linear::new("w", Weight::Dense(dense), None).with_transforms(input, output).unwrap();
        let linear = linear.with_features([14, 3]).unwrap();
        let whole = linear.matrix().unwrap();
        let matrix = Matrix::of(linear, Vec::new());
        for rows in [0..14, 5..7, 13..14, 2..12] {
            assert_eq!(matrix.panel(rows.clone()).unwrap(), whole[rows.start * 3..rows.end * 3]);
        }
    }
}
