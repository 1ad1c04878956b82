//! Memory of the device, and values in it.

use super::Allocation;
use crate::device::Binding;
use crate::source::Access;
use std::marker::PhantomData;
use std::sync::Arc;

/// Memory of the device. It returns to the pool with the last clone.
#[derive(Clone)]
pub struct Buffer {
    pub(super) allocation: Arc<Allocation>,
    pub(super) bytes: usize,
}

impl Buffer {
    /// Bytes asked for.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it as values of `T`; what remains at the end is left out.
    pub fn slice<T>(&self) -> Slice<T> {
        Slice { buffer: self.clone(), offset: 0, bytes: self.bytes, of: PhantomData }
    }
}

/// Values of `T` in a buffer.
pub struct Slice<T> {
    pub(super) buffer: Buffer,
    pub(super) offset: usize,
    pub(super) bytes: usize,
    pub(super) of: PhantomData<T>,
}

impl<T> Clone for Slice<T> {
    fn clone(&self) -> Self {
        Self { buffer: self.buffer.clone(), offset: self.offset, bytes: self.bytes, of: PhantomData }
    }
}

impl<T> Slice<T> {
    /// Whole values.
    #[allow(clippy::len_without_is_empty)] // nobody asks
    pub fn len(&self) -> usize {
        self.bytes / size_of::<T>()
    }

    /// `len` values from number `from` on, or as many of them as there are.
    pub fn part(&self, from: usize, len: usize) -> Self {
        let from = from.min(self.len());
        let len = len.min(self.len() - from);
        let offset = self.offset + from * size_of::<T>();
        Self { buffer: self.buffer.clone(), offset, bytes: len * size_of::<T>(), of: PhantomData }
    }

    /// The same bytes as values of another type.
    pub fn cast<U>(&self) -> Slice<U> {
        Slice { buffer: self.buffer.clone(), offset: self.offset, bytes: self.bytes, of: PhantomData }
    }

    /// Whether somebody else holds the buffer, too.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.buffer.allocation) > 1
    }

    /// How a kernel is bound to them.
    pub fn binding(&self, access: Access) -> Binding {
        let handle = self.buffer.allocation.handle;
        Binding { handle, offset: self.offset, bytes: self.bytes, access }
    }
}
