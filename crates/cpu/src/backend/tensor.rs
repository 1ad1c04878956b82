//! Activations, in buffers that are used again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Free memory kept for later, in values.
const KEPT: usize = 32 << 20;

/// Buffers that no tensor uses at the moment, by capacity.
#[derive(Default)]
struct Free {
    buffers: BTreeMap<usize, Vec<Vec<f32>>>,
    values: usize,
}

/// Where tensors get their memory from and give it back to.
#[derive(Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Free>>);

impl Buffers {
    /// A tensor whose values are whatever was there before.
    pub fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        let n = rows * cols;
        let mut values = self.take(n).unwrap_or_else(|| Vec::with_capacity(n.next_multiple_of(1024)));
        values.resize(n, 0.0);
        Tensor { rows, cols, data: Arc::new(Owned { values, home: self.clone() }) }
    }

    /// The smallest free buffer that holds `n` values and wastes at most as many again.
    fn take(&self, n: usize) -> Option<Vec<f32>> {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (&capacity, buffers) = free.buffers.range_mut(n..=(2 * n).max(1024)).next()?;
        let buffer = buffers.pop()?;
        if buffers.is_empty() {
            free.buffers.remove(&capacity);
        }
        free.values -= capacity;
        Some(buffer)
    }

    fn give(&self, buffer: Vec<f32>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let capacity = buffer.capacity();
        if capacity > 0 && free.values + capacity <= KEPT {
            free.values += capacity;
            free.buffers.entry(capacity).or_default().push(buffer);
        }
    }
}

struct Owned {
    values: Vec<f32>,
    home: Buffers,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.values));
    }
}

/// Activations `[rows, cols]` in f32.
#[derive(Clone)]
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    data: Arc<Owned>,
}

impl Tensor {
    /// The values, row after row.
    pub(super) fn values(&self) -> &[f32] {
        &self.data.values
    }

    /// The values to be changed; copied first if another tensor shares them.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        if Arc::get_mut(&mut self.data).is_none() {
            let mut copy = self.data.home.clone().tensor(self.rows, self.cols);
            copy.fresh().copy_from_slice(self.values());
            *self = copy;
        }
        self.fresh()
    }

    /// The values of a tensor that nobody shares.
    fn fresh(&mut self) -> &mut [f32] {
        match Arc::get_mut(&mut self.data) {
            Some(owned) => &mut owned.values,
            None => &mut [],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_shared_values_are_copied() {
        let buffers = Buffers::default();
        let mut a = buffers.tensor(2, 3);
        a.values_mut().fill(1.0);
        let b = a.clone();
        a.values_mut()[0] = 2.0;
        assert_eq!((a.values()[0], b.values()[0]), (2.0, 1.0));
        let address = a.values().as_ptr();
        drop(a);
        assert_eq!(buffers.tensor(3, 2).values().as_ptr(), address);
    }
}
