//! What happens to the vector before and after a matrix.

use std::sync::Arc;

use crate::{Error, Result};

/// Applied to a linear layer's input.
#[derive(Clone, Debug, Default)]
pub enum InputTransform {
    /// Nothing.
    #[default]
    None,
    /// `x'[j] = x[order[j]]`: columns were stored in another order (GPTQ's act-order).
    Permutation(Arc<[u32]>),
    /// `x' = blockH(x * scale)`: each `block` consecutive values, scaled, then rotated.
    Hadamard {
        /// Factor of each input, before the rotation.
        scale: Option<Arc<[f32]>>,
        /// Size of the rotation, a power of two.
        block: usize,
    },
}

/// Applied to a linear layer's output, before the bias.
#[derive(Clone, Debug, Default)]
pub enum OutputTransform {
    /// Nothing.
    #[default]
    None,
    /// `y' = blockH(y) * scale`: each `block` consecutive values rotated, then scaled.
    Hadamard {
        /// Factor of each output, after the rotation.
        scale: Option<Arc<[f32]>>,
        /// Size of the rotation, a power of two.
        block: usize,
    },
}

impl InputTransform {
    /// Whether it can precede a matrix of `cols` columns.
    pub(super) fn check(&self, name: &str, cols: usize) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Permutation(order) => {
                let mut seen = vec![false; cols];
                let good = order.len() == cols
                    && order
                        .iter()
                        .all(|&i| seen.get_mut(i as usize).is_some_and(|seen| !std::mem::replace(seen, true)));
                let why = || format!("expected an order of {cols} inputs, found {} entries that are none", order.len());
                good.then_some(()).ok_or_else(|| Error::invalid(name, why()))
            }
            Self::Hadamard { scale, block } => check(name, "input", scale.as_deref(), *block, cols),
        }
    }

    /// Transforms `x` in place.
    pub fn apply(&self, x: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Permutation(order) => {
                let from = x.to_vec();
                x.iter_mut().zip(order.iter()).for_each(|(x, &i)| *x = from[i as usize]);
            }
            Self::Hadamard { scale, block } => {
                multiply(x, scale.as_deref());
                hadamard(x, *block);
            }
        }
    }

    /// Turns a row of the matrix into the row that gives the same product with the input as it is.
    pub fn fold(&self, row: &mut [f32]) {
        match self {
            Self::None => {}
            Self::Permutation(order) => {
                let from = row.to_vec();
                from.iter().zip(order.iter()).for_each(|(w, &i)| row[i as usize] = *w);
            }
            Self::Hadamard { scale, block } => {
                hadamard(row, *block);
                multiply(row, scale.as_deref());
            }
        }
    }
}

impl OutputTransform {
    /// Whether it can follow a matrix of `rows` rows.
    pub(super) fn check(&self, name: &str, rows: usize) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Hadamard { scale, block } => check(name, "output", scale.as_deref(), *block, rows),
        }
    }

    /// Transforms `y` in place.
    pub fn apply(&self, y: &mut [f32]) {
        if let Self::Hadamard { scale, block } = self {
            hadamard(y, *block);
            multiply(y, scale.as_deref());
        }
    }
}

fn check(name: &str, side: &str, scale: Option<&[f32]>, block: usize, size: usize) -> Result<()> {
    if !block.is_power_of_two() || !size.is_multiple_of(block) {
        let why = format!("{side} rotation of {block} does not divide {size} (and must be a power of two)");
        return Err(Error::invalid(name, why));
    }
    match scale {
        Some(scale) if scale.len() != size => {
            Err(Error::invalid(name, format!("expected {size} {side} scales, found {}", scale.len())))
        }
        _ => Ok(()),
    }
}

fn multiply(x: &mut [f32], scale: Option<&[f32]>) {
    if let Some(scale) = scale {
        x.iter_mut().zip(scale).for_each(|(x, s)| *x *= s);
    }
}

/// Multiplies each `block` consecutive values by the natural-order Hadamard matrix over sqrt(block), its own inverse. `block` is a power of
/// two; what is left over after the last whole block stays as it is.
pub fn hadamard(x: &mut [f32], block: usize) {
    let norm = (1.0 / (block as f64).sqrt()) as f32;
    for x in x.chunks_exact_mut(block.max(1)) {
        let mut stride = 1;
        while stride < block {
            for pair in x.chunks_exact_mut(2 * stride) {
                let (low, high) = pair.split_at_mut(stride);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            stride *= 2;
        }
        x.iter_mut().for_each(|x| *x *= norm);
    }
}
