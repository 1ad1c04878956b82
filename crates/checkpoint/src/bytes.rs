//! A cheaply cloned range of immutable bytes: part of a file mapping, of a buffer, or of the program itself.

use memmap2::Mmap;
use std::ops::{Deref, Range};
use std::sync::Arc;

#[derive(Clone)]
enum Owner {
    Mapped(Arc<Mmap>),
    Buffer(Arc<Vec<u8>>),
    Static(&'static [u8]),
}

/// Immutable bytes that live as long as any clone does.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of a mapping.
    pub fn mapped(map: Arc<Mmap>) -> Self {
        let range = 0..map.len();
        Self { owner: Owner::Mapped(map), range }
    }

    /// Bytes built into the program.
    pub fn from_static(bytes: &'static [u8]) -> Self {
        Self { owner: Owner::Static(bytes), range: 0..bytes.len() }
    }

    /// The part `range` of these bytes, or `None` if it does not lie within them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        (range.start <= range.end && range.end <= self.len()).then(|| Self {
            owner: self.owner.clone(),
            range: self.range.start + range.start..self.range.start + range.end,
        })
    }

    /// Asks the system to read the bytes ahead, where they are mapped. Only ever a hint.
    pub fn prefetch(&self) {
        #[cfg(unix)]
        if let Owner::Mapped(map) = &self.owner {
            // A refused hint changes nothing but speed.
            let _ = map.advise_range(memmap2::Advice::WillNeed, self.range.start, self.range.len());
        }
    }

    /// Gives back the memory of the pages that lie wholly within these bytes, where they are mapped: for a reader that
    /// has copied them elsewhere. The bytes stay readable; they would be read from the file again.
    #[allow(unsafe_code)]
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Mapped(map) = &self.owner {
            const PAGE: usize = 1 << 14; // the largest page of the systems we run on
            let first = self.range.start.next_multiple_of(PAGE);
            let last = if self.range.end == map.len() { map.len() } else { self.range.end / PAGE * PAGE };
            if first < last {
                // SAFETY: the mapping is read-only and of a file, so dropped pages are read again from that file with the
                // same contents; nothing can be lost.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, first, last - first) };
            }
        }
    }

    /// Whether the bytes come from a file mapping (so that dropping their pages loses nothing).
    pub fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Mapped(_))
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Owner::Buffer(Arc::new(bytes)), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::Mapped(map) => map,
            Owner::Buffer(bytes) => bytes,
            Owner::Static(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}
