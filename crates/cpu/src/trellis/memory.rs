//! Memory of a weight: on a cache line's boundary, in huge pages where it is large, not touched before it is filled.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

const LINE: usize = 64;
const HUGE: usize = 2 << 20;

/// Bytes that their maker fills before anyone reads them.
pub struct Memory {
    ptr: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned, and only read once its maker has filled it.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` bytes of no particular value (at least one is allocated).
    pub fn new(bytes: usize) -> Memory {
        let align = if bytes >= 2 * HUGE { HUGE } else { LINE };
        let Ok(layout) = Layout::from_size_align(bytes.max(1), align) else {
            handle_alloc_error(Layout::new::<u8>());
        };
        // SAFETY: the size is not zero.
        let Some(ptr) = NonNull::new(unsafe { alloc(layout) }) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if align == HUGE {
            // SAFETY: advice about our own allocation; a refusal changes nothing.
            unsafe {
                libc::madvise(ptr.as_ptr().cast(), bytes / HUGE * HUGE, libc::MADV_HUGEPAGE);
            }
        }
        Memory { ptr, layout }
    }

    /// Where it begins.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) }
    }
}
