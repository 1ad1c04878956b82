//! Scratch memory: aligned, reused, never read before it is written.

use memmap2::MmapMut;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::ptr::NonNull;

/// Bytes on a cache line's boundary; growing does not keep the contents.
pub(crate) struct Buffer {
    ptr: NonNull<u8>,
    cap: usize,
}

// SAFETY: the buffer owns its memory, and access goes through `&mut` or raw pointers whose users synchronise.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

const ALIGN: usize = 64;

impl Buffer {
    pub(crate) const fn new() -> Buffer {
        Buffer { ptr: NonNull::dangling(), cap: 0 }
    }

    /// A pointer to at least `bytes` initialised bytes of unspecified value.
    pub(crate) fn reserve(&mut self, bytes: usize) -> *mut u8 {
        if bytes > self.cap {
            self.release();
            let cap = bytes.next_multiple_of(4096);
            // SAFETY: `cap` is not zero and the alignment is a power of two.
            unsafe {
                let layout = Layout::from_size_align_unchecked(cap, ALIGN);
                let Some(ptr) = NonNull::new(alloc(layout)) else { handle_alloc_error(layout) };
                ptr.as_ptr().write_bytes(0, cap);
                self.ptr = ptr;
            }
            self.cap = cap;
        }
        self.ptr.as_ptr()
    }

    pub(crate) fn ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }

    fn release(&mut self) {
        if self.cap > 0 {
            // SAFETY: allocated in `reserve` with this layout.
            unsafe { dealloc(self.ptr.as_ptr(), Layout::from_size_align_unchecked(self.cap, ALIGN)) }
            self.cap = 0;
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

thread_local! {
    static SCRATCH: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
    static SHARED: RefCell<Buffer> = const { RefCell::new(Buffer::new()) };
}

/// Lends this thread's scratch memory of at least `bytes`; a nested loan gets memory of its own.
pub(crate) fn scratch<R>(bytes: usize, f: impl FnOnce(*mut u8) -> R) -> R {
    SCRATCH.with(|s| lend(s, bytes, f))
}

/// The same of other memory: for what tasks leave for each other, while each has scratch memory of its own.
pub(crate) fn shared_scratch<R>(bytes: usize, f: impl FnOnce(*mut u8) -> R) -> R {
    SHARED.with(|s| lend(s, bytes, f))
}

fn lend<R>(buffer: &RefCell<Buffer>, bytes: usize, f: impl FnOnce(*mut u8) -> R) -> R {
    match buffer.try_borrow_mut() {
        Ok(mut b) => f(b.reserve(bytes)),
        Err(_) => f(Buffer::new().reserve(bytes)),
    }
}

/// Zeroed memory of whole pages, large ones where the system has them; pages exist from their first use on.
pub(crate) struct Pages(MmapMut);

impl Pages {
    pub(crate) fn new(what: &'static str, bytes: usize) -> marlin_backend::Result<Pages> {
        let refused = |_| marlin_backend::Error::OutOfMemory { what: what.into(), bytes };
        let map = MmapMut::map_anon(bytes.max(1)).map_err(refused)?;
        #[cfg(target_os = "linux")]
        if bytes >= 4 << 20 {
            // A refused hint changes nothing but speed.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Pages(map))
    }

    /// All of it; at least one byte.
    pub(crate) fn all(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn all_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// A pointer that tasks of one region share, each writing a part of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(pub(crate) *mut T);

// SAFETY: a plain address; those who follow it see to it that tasks touch different elements.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn of(slice: &mut [T]) -> Shared<T> {
        Shared(slice.as_mut_ptr())
    }

    /// The elements from `from`, `len` of them.
    ///
    /// # Safety
    /// They must be inside the slice this was made from, still borrowed, and no other task may touch them.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part<'a>(self, from: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), len) }
    }
}
