//! A matrix as codes and factors, before a format packs it; and rounding to nearest.

use std::sync::{Mutex, PoisonError};

use super::grid::{Factor, Factors, Grid, fit};
use crate::{Compute, Matrix};

/// Codes and factors of a matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Coded {
    /// `[out, in]`, the inputs in their original order.
    pub codes: Vec<u8>,
    /// `[out, groups]`
    pub factors: Vec<Factors>,
    /// Inputs of a group.
    pub group: usize,
    /// The group of each input, where groups are not consecutive inputs.
    pub index: Option<Vec<u32>>,
    /// What a reader computes, `[out, in]`, in the space that was quantised.
    pub decoded: Matrix,
}

impl Coded {
    /// Room for a `[rows, cols]` matrix.
    pub fn empty(rows: usize, cols: usize, group: usize) -> Self {
        Self {
            codes: vec![0; rows * cols],
            factors: vec![Factors::default(); rows * (cols / group)],
            group,
            index: None,
            decoded: Matrix::zeros(rows, cols),
        }
    }

    /// Groups of a row.
    pub fn groups(&self) -> usize {
        self.decoded.cols() / self.group
    }

    /// Some rows at a time, to be filled in independently.
    pub fn panels(&mut self, rows: usize) -> impl Iterator<Item = Panel<'_>> {
        let (cols, groups) = (self.decoded.cols(), self.decoded.cols() / self.group);
        let codes = self.codes.chunks_mut(rows * cols);
        let factors = self.factors.chunks_mut(rows * groups);
        let decoded = self.decoded.data_mut().chunks_mut(rows * cols);
        let parts = codes.zip(factors).zip(decoded).enumerate();
        parts.map(move |(i, ((codes, factors), decoded))| Panel { first: i * rows, codes, factors, decoded })
    }
}

/// Rows of a [`Coded`].
pub(crate) struct Panel<'a> {
    /// The first row.
    pub first: usize,
    pub codes: &'a mut [u8],
    pub factors: &'a mut [Factors],
    pub decoded: &'a mut [f32],
}

/// Does `body` for each of `items`, on all threads.
pub(crate) fn each<T: Send>(compute: &dyn Compute, items: impl Iterator<Item = T>, body: impl Fn(T) + Sync) {
    let items: Vec<Mutex<Option<T>>> = items.map(|item| Mutex::new(Some(item))).collect();
    compute.ranges(items.len(), 1, &|range| {
        for item in &items[range] {
            let item = item.lock().unwrap_or_else(PoisonError::into_inner).take();
            item.into_iter().for_each(&body);
        }
    });
}

/// Rows of a panel: what a task takes at a time.
pub(crate) const PANEL: usize = 32;

/// Each weight to the nearest value of its group.
pub(crate) fn nearest<G: Grid>(
    compute: &dyn Compute,
    grid: &G,
    how: Factor,
    weight: &Matrix,
    importance: Option<&[f32]>,
    group: usize,
) -> Coded {
    let (rows, cols) = (weight.rows(), weight.cols());
    let mut coded = Coded::empty(rows, cols, group);
    each(compute, coded.panels(PANEL), |panel| {
        let rows = panel.codes.chunks_exact_mut(cols).zip(panel.decoded.chunks_exact_mut(cols));
        let rows = rows.zip(panel.factors.chunks_exact_mut(cols / group));
        for (r, ((codes, decoded), factors)) in rows.enumerate() {
            let from = weight.row(panel.first + r).chunks_exact(group);
            let to = codes.chunks_exact_mut(group).zip(decoded.chunks_exact_mut(group));
            for (g, ((from, (codes, decoded)), to)) in from.zip(to).zip(factors).enumerate() {
                let factors = fit(grid, how, from, importance.map(|h| &h[g * group..(g + 1) * group]));
                *to = factors;
                for ((w, code), decoded) in from.iter().zip(codes).zip(decoded) {
                    *code = grid.code(factors, grid.round(factors, *w));
                    *decoded = grid.value(factors, *code);
                }
            }
        }
    });
    coded
}
