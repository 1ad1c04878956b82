//! Memory of re-laid weights: parts of large mappings, one after another, so that small matrices lie in huge pages too
//! and no page is wasted between them. With pages of 4 KiB a matrix-vector product of FP4 codes is a tenth slower.

use crate::buffer::Shared;
use marlin_backend::{Error, Result};
use memmap2::MmapMut;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Bytes of a mapping that several weights share; pages exist from their first use on.
const CHUNK: usize = 64 << 20;
/// What mappings begin at a multiple of.
const HUGE: usize = 2 << 20;
/// What each weight begins at a multiple of.
const LINE: usize = 64;

struct Chunk {
    // Kept for its `Drop`; reached through `base` alone.
    map: MmapMut,
    base: Shared<u8>,
    len: usize,
}

impl Chunk {
    fn new(len: usize) -> std::io::Result<Chunk> {
        let mut map = MmapMut::map_anon(len + HUGE)?;
        let skipped = map.as_ptr().align_offset(HUGE);
        #[cfg(target_os = "linux")]
        // A refused hint changes nothing but speed.
        let _ = map.advise(memmap2::Advice::HugePage);
        let base = Shared(map.as_mut_ptr().wrapping_add(skipped));
        Ok(Chunk { map, base, len })
    }
}

/// The mapping that the next weight goes to, if anybody still has a part of it, and the bytes of it that are taken.
static CURRENT: Mutex<(Weak<Chunk>, usize)> = Mutex::new((Weak::new(), 0));

/// Bytes on a cache line's boundary that their maker fills before anyone reads them; zero at first.
pub(crate) struct Memory {
    chunk: Arc<Chunk>,
    from: usize,
    len: usize,
}

impl Memory {
    /// `bytes` bytes for a weight.
    pub(crate) fn new(bytes: usize) -> Result<Memory> {
        let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, from) = match current.0.upgrade() {
            Some(chunk) if chunk.len - current.1 >= bytes => (chunk, current.1),
            _ => {
                let refused = |_| Error::OutOfMemory { what: "a weight".into(), bytes };
                (Arc::new(Chunk::new(bytes.max(CHUNK)).map_err(refused)?), 0)
            }
        };
        *current = (Arc::downgrade(&chunk), (from + bytes).next_multiple_of(LINE).min(chunk.len));
        Ok(Memory { chunk, from, len: bytes })
    }

    /// Where it begins.
    pub(crate) fn ptr(&self) -> *mut u8 {
        self.chunk.base.0.wrapping_add(self.from)
    }
}

impl Drop for Memory {
    /// Gives whole pages back to the system while others keep the mapping.
    fn drop(&mut self) {
        #[cfg(unix)]
        {
            const PAGE: usize = 16 << 10;
            let skipped = self.chunk.base.0 as usize - self.chunk.map.as_ptr() as usize;
            let from = (skipped + self.from).next_multiple_of(PAGE);
            let to = (skipped + self.from + self.len) / PAGE * PAGE;
            if from < to {
                // SAFETY: these pages are within the mapping and nobody's but ours; nobody reads them again.
                let _ = unsafe {
                    self.chunk.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from)
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(memory: &Memory) -> &[u8] {
        // SAFETY: the memory is as long, and nobody writes.
        unsafe { std::slice::from_raw_parts(memory.ptr(), memory.len) }
    }

    fn fill(memory: &Memory, value: u8) {
        // SAFETY: the memory is ours.
        unsafe { memory.ptr().write_bytes(value, memory.len) }
    }

    #[test]
    fn parts_do_not_overlap_and_outlive_each_other() {
        let sizes = [1, 63, 64, 65, 5000, 1 << 20, CHUNK + 1, 3 << 20, 0, 40 << 20, 40 << 20];
        let mut all: Vec<Memory> = sizes.iter().map(|n| Memory::new(*n).unwrap()).collect();
        for (i, memory) in all.iter().enumerate() {
            assert_eq!(memory.ptr() as usize % LINE, 0);
            assert!(bytes(memory).iter().all(|b| *b == 0), "zero at first");
            fill(memory, i as u8 + 1);
        }
        for gone in [6, 3, 1] {
            all.remove(gone);
        }
        let kept = [1, 3, 5, 6, 8, 9, 10, 11];
        for (memory, value) in all.iter().zip(kept) {
            assert!(bytes(memory).iter().all(|b| *b == value));
        }
        let more = Memory::new(1 << 20).unwrap();
        assert!(bytes(&more).iter().all(|b| *b == 0));
        drop(all);
        fill(&more, 7);
        assert!(bytes(&more).iter().all(|b| *b == 7));
    }
}
