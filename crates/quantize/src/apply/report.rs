//! What quantising did to each module.

use serde::{Deserialize, Serialize};

use crate::{Compute, Hessian, Matrix, Result};

/// One quantised module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// Its name.
    pub module: String,
    /// The method, with its settings.
    pub method: String,
    /// `[out, in]`
    pub shape: [usize; 2],
    /// Stored bits for each weight, everything included.
    pub bits: f64,
    /// Squared error of the weights through the squared weights.
    pub nmse: f64,
    /// Squared error of the outputs on the calibration text through the squared outputs: tr(E H E^T) / tr(W H W^T).
    pub proxy: Option<f64>,
    /// Largest error of a weight.
    pub max_error: f32,
    /// Tokens that the Hessian is over.
    pub tokens: Option<f64>,
}

impl ModuleReport {
    /// Compares a module's `weight` with what a reader will `decoded` of `stored` bits.
    pub(crate) fn of(
        compute: &dyn Compute,
        module: &str,
        method: String,
        weight: &Matrix,
        decoded: &Matrix,
        stored: u64,
        hessian: Option<&Hessian>,
    ) -> Result<Self> {
        let ratio = |a: f64, b: f64| if a == 0.0 { 0.0 } else { a / b };
        let proxy = |error: &[f32], h: &Hessian| -> Result<f64> {
            Ok(ratio(energy(compute, error, h)?, energy(compute, weight.data(), h)?))
        };
        let error: Vec<f32> = weight.data().iter().zip(decoded.data()).map(|(w, d)| w - d).collect();
        let square = |values: &[f32]| values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        let shape = [weight.rows(), weight.cols()];
        Ok(Self {
            module: module.to_owned(),
            method,
            shape,
            bits: stored as f64 / (shape[0] * shape[1]).max(1) as f64,
            nmse: ratio(square(&error), square(weight.data())),
            proxy: hessian.map(|h| proxy(&error, h)).transpose()?,
            max_error: error.iter().fold(0.0, |m, e| m.max(e.abs())),
            tokens: hessian.map(Hessian::tokens),
        })
    }
}

/// tr(M H M^T) of a matrix `[rows, in]`, as the product of M^T M with H.
pub(crate) fn energy(compute: &dyn Compute, matrix: &[f32], hessian: &Hessian) -> Result<f64> {
    let mut gram = Hessian::new(hessian.size());
    compute.accumulate(&mut gram, matrix, None)?;
    Ok(gram.sums().data().iter().zip(hessian.sums().data()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
}

/// A whole checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What it was made from.
    pub model: String,
    /// How, as the command said.
    pub how: serde_json::Value,
    /// Weights of quantised modules.
    pub weights: u64,
    /// Stored bits for each of them.
    pub bits: f64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Every quantised module.
    pub modules: Vec<ModuleReport>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use marlin_cpu::Cpu;

    /// W = [[1, 2], [3, -1]], decoded [[1, 1], [3, 0]], H = [[2, 1], [1, 3]]: E = [[0, 1], [0, -1]],
    /// tr(E H E^T) = 3 + 3, tr(W H W^T) = (2 + 4 + 12) + (18 - 6 + 3).
    #[test]
    fn errors_by_hand() {
        let matrix = |v: [f32; 4]| Matrix::new(2, 2, v.to_vec()).unwrap();
        let hessian = Hessian::from_sums(matrix([2.0, 1.0, 1.0, 3.0]), 5.0).unwrap();
        let (w, d) = (matrix([1.0, 2.0, 3.0, -1.0]), matrix([1.0, 1.0, 3.0, 0.0]));
        let cpu = Cpu::new(1);
        let report = ModuleReport::of(&cpu, "m", "x".into(), &w, &d, 10, Some(&hessian)).unwrap();
        assert_eq!((report.bits, report.max_error, report.tokens), (2.5, 1.0, Some(5.0)));
        assert!((report.nmse - 2.0 / 15.0).abs() < 1e-12);
        assert!((report.proxy.unwrap() - 6.0 / 33.0).abs() < 1e-6);
        let same = ModuleReport::of(&cpu, "m", "x".into(), &w, &w, 10, Some(&hessian)).unwrap();
        assert_eq!(same.proxy, Some(0.0));
    }
}
