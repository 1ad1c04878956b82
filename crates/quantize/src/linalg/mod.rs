//! Factors and inverses of symmetric positive matrices: `f32` storage, `f64` inside blocks, products by
//! [`Compute::add_products`](crate::Compute::add_products). Results do not depend on the number of threads.

mod block_ldl;
mod cholesky;
mod inverse;
#[cfg(test)]
mod tests;

pub use block_ldl::block_ldl;
pub use cholesky::{NotPositive, cholesky};
pub use inverse::{inverse, inverse_transposed};

/// Rows and columns that are factored at a time.
const BLOCK: usize = 128;

/// A small square matrix in `f64`, row after row.
struct Square {
    size: usize,
    data: Vec<f64>,
}

impl Square {
    /// The lower triangle of the first `size` rows of `width` values from column `at` on; zeros above.
    fn lower(data: &[f32], width: usize, at: usize, size: usize) -> Self {
        let mut square = Self { size, data: vec![0.0; size * size] };
        for (r, row) in data.chunks(width).take(size).enumerate() {
            for (to, from) in square.data[r * size..=r * size + r].iter_mut().zip(&row[at..]) {
                *to = f64::from(*from);
            }
        }
        square
    }

    fn at(&self, r: usize, c: usize) -> f64 {
        self.data[r * self.size + c]
    }

    /// Replaces a lower triangle by its Cholesky factor, or names the first pivot that is not positive.
    fn cholesky(&mut self) -> Result<(), usize> {
        let n = self.size;
        for c in 0..n {
            let sum: f64 = self.data[c * n..c * n + c].iter().map(|v| v * v).sum();
            let pivot = self.at(c, c) - sum;
            if !(pivot > 0.0 && pivot.is_finite()) {
                return Err(c);
            }
            let root = pivot.sqrt();
            self.data[c * n + c] = root;
            for r in c + 1..n {
                let sum: f64 = (0..c).map(|k| self.at(r, k) * self.at(c, k)).sum();
                self.data[r * n + c] = (self.at(r, c) - sum) / root;
            }
        }
        Ok(())
    }

    /// The inverse of a lower triangle.
    fn inverse_of_lower(&self) -> Self {
        let n = self.size;
        let mut inverse = Self { size: n, data: vec![0.0; n * n] };
        for c in 0..n {
            for r in c..n {
                let sum: f64 = (c..r).map(|k| self.at(r, k) * inverse.at(k, c)).sum();
                let unit = if r == c { 1.0 } else { 0.0 };
                inverse.data[r * n + c] = (unit - sum) / self.at(r, r);
            }
        }
        inverse
    }

    fn to_f32(&self) -> Vec<f32> {
        self.data.iter().map(|v| *v as f32).collect()
    }
}
