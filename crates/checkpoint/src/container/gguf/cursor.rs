//! Reading numbers and texts one after another, each checked against the bytes that are left.

use std::fmt::Display;

use super::Malformed;

/// A place in a file.
pub(super) struct Cursor<'a> {
    file: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a [u8], at: usize) -> Self {
        Self { file, at }
    }

    /// Bytes before the place.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Refuses to go on unless `count` things of at least `least` bytes each can be there; `what` is read.
    pub fn room(&self, count: u64, least: u64, what: impl Display) -> Result<(), Malformed> {
        let left = (self.file.len() - self.at) as u64;
        let needed = count.saturating_mul(least);
        if needed <= left {
            return Ok(());
        }
        Err(Malformed::Truncated { what: what.to_string(), at: self.at as u64, needed, left })
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: u64, what: impl Display) -> Result<&'a [u8], Malformed> {
        self.room(count, 1, what)?;
        // It fits into the file, whose length is a usize.
        let bytes = &self.file[self.at..self.at + count as usize];
        self.at += bytes.len();
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: impl Display) -> Result<[u8; N], Malformed> {
        let bytes = self.bytes(N as u64, what)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    pub fn u32(&mut self, what: impl Display) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: impl Display) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length and so many bytes of UTF-8.
    pub fn text(&mut self, what: impl Display) -> Result<&'a str, Malformed> {
        let length = self.u64(&what)?;
        let bytes = self.bytes(length, &what)?;
        std::str::from_utf8(bytes).map_err(|_| Malformed::NotUtf8 { what: what.to_string() })
    }
}
