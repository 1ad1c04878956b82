//! What the tests share: random numbers, inputs that are correlated, and a checkpoint in memory.

mod formats;
mod gptq;
mod noise;
mod settings;

use std::collections::HashMap;
use std::sync::Arc;

use marlin_checkpoint::modules::HuggingFace;
use marlin_checkpoint::{Config, Error, Modules, Result, Tensor, TensorInfo, TensorSource};
use serde_json::Value;

use crate::{Hessian, Matrix, Quantised};

/// Normal numbers (Box-Muller over a linear congruence).
pub(super) struct Normal(pub u64);

impl Normal {
    pub fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub fn next(&mut self) -> f32 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.uniform()).cos()) as f32
    }

    pub fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        Matrix::new(rows, cols, (0..rows * cols).map(|_| self.next()).collect()).unwrap()
    }

    /// Inputs of which each resembles the one before, some ten times as large as others.
    pub fn inputs(&mut self, tokens: usize, size: usize) -> Matrix {
        let scales: Vec<f32> = (0..size).map(|i| if (i * 7) % 16 == 3 { 10.0 } else { 1.0 }).collect();
        let mut x = self.matrix(tokens, size);
        for t in 0..tokens {
            let row = x.row_mut(t);
            for i in 1..size {
                row[i] = 0.9 * row[i - 1] + 0.436 * row[i];
            }
            row.iter_mut().zip(&scales).for_each(|(v, s)| *v *= s);
        }
        x
    }
}

pub(super) fn hessian(x: &Matrix) -> Hessian {
    let n = x.cols();
    let mut sums = vec![0.0f64; n * n];
    for t in 0..x.rows() {
        let row = x.row(t);
        for i in 0..n {
            for j in 0..n {
                sums[i * n + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    let sums = Matrix::new(n, n, sums.into_iter().map(|v| v as f32).collect()).unwrap();
    Hessian::from_sums(sums, x.rows() as f64).unwrap()
}

/// `tr(E H E^T)`
pub(super) fn loss(weight: &Matrix, decoded: &Matrix, hessian: &Hessian) -> f64 {
    let n = weight.cols();
    let mut sum = 0.0;
    for r in 0..weight.rows() {
        let e: Vec<f64> = weight.row(r).iter().zip(decoded.row(r)).map(|(a, b)| f64::from(a - b)).collect();
        for i in 0..n {
            let h = hessian.sums().row(i);
            sum += e[i] * e.iter().zip(h).map(|(e, h)| e * f64::from(*h)).sum::<f64>();
        }
    }
    sum
}

/// Tensors in memory.
struct Memory {
    infos: Vec<TensorInfo>,
    data: HashMap<String, Tensor>,
}

impl TensorSource for Memory {
    fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        let missing = || Error::MissingTensor { name: name.to_owned(), within: self.describe() };
        self.data.get(name).cloned().ok_or_else(missing)
    }

    fn contains(&self, name: &str) -> bool {
        self.data.contains_key(name)
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

/// The module as our reader of checkpoints has it: its scheme's name and its matrix.
pub(super) fn read(module: &str, quantised: &Quantised, config: &Value) -> (String, Vec<f32>) {
    let tensors = quantised.tensors.iter().map(|t| {
        let info = TensorInfo { name: format!("{module}.{}", t.suffix), dtype: t.dtype, shape: t.shape.clone() };
        assert_eq!(info.bytes(), t.data.len(), "{info:?}");
        Tensor { info, data: t.data.clone().into() }
    });
    let data: HashMap<String, Tensor> = tensors.map(|t| (t.info.name.clone(), t)).collect();
    let infos = data.values().map(|t| t.info.clone()).collect();
    let config = Config::object("config.json", &config.to_string()).unwrap();
    let modules = HuggingFace::new(Arc::new(Memory { infos, data }), config);
    let found = modules.linear(module, [quantised.decoded.rows(), quantised.decoded.cols()]).unwrap();
    assert_eq!(found.stored.tensors.len(), quantised.tensors.len(), "{module}");
    (found.stored.scheme.to_owned(), found.build().unwrap().matrix().unwrap())
}
