//! Matrices of f32, row after row.

use crate::{Error, Result};
use marlin_cpu::linear::Rows;
use std::ops::Range;

/// A matrix `[rows, cols]`. Weights are `[out, in]`, as transformers stores them.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Matrix {
    /// The matrix of these values, row after row.
    pub fn new(rows: usize, cols: usize, data: Vec<f32>) -> Result<Self> {
        if rows.checked_mul(cols) != Some(data.len()) {
            return Err(Error::setting("matrix", format!("{rows} x {cols} values"), data.len()));
        }
        Ok(Self { rows, cols, data })
    }

    /// Zeros.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// All values.
    pub fn data(&self) -> &[f32] {
        &self.data
    }

    /// All values, to be changed.
    pub fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }

    /// Row `i`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// Row `i`, to be changed.
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.cols..(i + 1) * self.cols]
    }

    /// The part of `rows` and `cols`, for products.
    pub fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Rows<'_> {
        let data = if rows.is_empty() { &[] } else { &self.data[rows.start * self.cols + cols.start..] };
        Rows { data, rows: rows.len(), cols: cols.len(), stride: self.cols }
    }

    /// The values alone.
    pub fn into_data(self) -> Vec<f32> {
        self.data
    }

    /// The matrix with rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        const BLOCK: usize = 32;
        let mut out = Self::zeros(self.cols, self.rows);
        for r0 in (0..self.rows).step_by(BLOCK) {
            for c0 in (0..self.cols).step_by(BLOCK) {
                for r in r0..(r0 + BLOCK).min(self.rows) {
                    for c in c0..(c0 + BLOCK).min(self.cols) {
                        out.data[c * self.rows + r] = self.data[r * self.cols + c];
                    }
                }
            }
        }
        out
    }
}
