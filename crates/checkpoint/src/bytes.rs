//! A cheaply cloned range of immutable bytes: part of a file mapping, of a buffer, or of the program itself.

use memmap2::Mmap;
use std::fs::File;
use std::ops::{Deref, Range};
use std::sync::Arc;

#[derive(Clone)]
enum Owner {
    Mapped(Arc<Mapping>),
    Buffer(Arc<Vec<u8>>),
    Static(&'static [u8]),
}

/// A file and its bytes in memory.
pub struct Mapping {
    /// The file, for those who rather read.
    pub file: File,
    /// All of it.
    pub map: Mmap,
}

/// Immutable bytes that live as long as any clone does.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of a mapping.
    pub fn mapped(mapping: Arc<Mapping>) -> Self {
        let range = 0..mapping.map.len();
        Self { owner: Owner::Mapped(mapping), range }
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
        if let Owner::Mapped(mapping) = &self.owner {
            // A refused hint changes nothing but speed.
            let _ = mapping.map.advise_range(memmap2::Advice::WillNeed, self.range.start, self.range.len());
        }
    }

    /// Gives back the memory of the pages that lie wholly within these bytes, where they are mapped: for a reader that
    /// has copied them elsewhere. The bytes stay readable; they would be read from the file again.
    #[allow(unsafe_code)]
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Mapped(mapping) = &self.owner {
            let map = &mapping.map;
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

    /// The part `range` for somebody who goes through it once: where it is in a file it is read into `buffer`, which is
    /// sooner done than mapping every page of it.
    ///
    /// # Panics
    /// If `range` does not lie within the bytes.
    pub fn once<'a>(&'a self, range: Range<usize>, buffer: &'a mut Vec<u8>) -> &'a [u8] {
        #[cfg(unix)]
        if let Owner::Mapped(mapping) = &self.owner {
            use std::os::unix::fs::FileExt;
            let wanted = &self[range.clone()];
            if buffer.len() < wanted.len() {
                buffer.resize(wanted.len(), 0);
            }
            let to = &mut buffer[..wanted.len()];
            let read = mapping.file.read_exact_at(to, (self.range.start + range.start) as u64);
            return if read.is_ok() { to } else { wanted };
        }
        let _ = buffer;
        &self[range]
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
            Owner::Mapped(mapping) => &mapping.map,
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
