//! Writes small GGUF files for tests.
#![allow(clippy::unwrap_used)]

use crate::Bytes;

/// A file that is being made.
#[derive(Clone)]
pub(crate) struct Writer {
    pub version: u32,
    pub alignment: usize,
    keys: Vec<Vec<u8>>,
    /// Name, dims fastest first, type id, offset, bytes.
    tensors: Vec<(String, Vec<u64>, u32, u64)>,
    data: Vec<u8>,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

impl Writer {
    pub fn new(architecture: &str) -> Self {
        let empty = Self { version: 3, alignment: 32, keys: vec![], tensors: vec![], data: vec![] };
        empty.text("general.architecture", architecture)
    }

    /// A key with any type and bytes.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.keys.push([&text(key), &kind.to_le_bytes()[..], value].concat());
        self
    }

    pub fn text(self, key: &str, value: &str) -> Self {
        self.raw(key, 8, &text(value))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub fn bool(self, key: &str, value: bool) -> Self {
        self.raw(key, 7, &[u8::from(value)])
    }

    pub fn texts(self, key: &str, values: &[&str]) -> Self {
        let head = [&8u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        let all: Vec<u8> = values.iter().flat_map(|v| text(v)).collect();
        self.raw(key, 9, &[head, all].concat())
    }

    pub fn i32s(self, key: &str, values: &[i32]) -> Self {
        let head = [&5u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.raw(key, 9, &[head, values.iter().flat_map(|v| v.to_le_bytes()).collect()].concat())
    }

    pub fn f32s(self, key: &str, values: &[f32]) -> Self {
        let head = [&6u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.raw(key, 9, &[head, values.iter().flat_map(|v| v.to_le_bytes()).collect()].concat())
    }

    /// A tensor at the next aligned place. `shape` is slowest first.
    pub fn tensor(mut self, name: &str, shape: &[usize], kind: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(self.alignment), 0);
        let offset = self.data.len() as u64;
        self.data.extend_from_slice(data);
        self.listed(name, &shape.iter().rev().map(|&d| d as u64).collect::<Vec<_>>(), kind, offset)
    }

    /// A tensor's entry alone, `dims` fastest first.
    pub fn listed(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), kind, offset));
        self
    }

    /// An f32 tensor of these values.
    pub fn floats(self, name: &str, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Self {
        let data: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        assert_eq!(data.len(), 4 * shape.iter().product::<usize>());
        self.tensor(name, shape, 0, &data)
    }

    /// The header with these counts, without padding.
    pub fn header(&self, tensors: u64, keys: u64) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(tensors.to_le_bytes());
        out.extend(keys.to_le_bytes());
        out.extend(self.keys.concat());
        for (name, dims, kind, offset) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header(self.tensors.len() as u64, self.keys.len() as u64);
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(&self.data);
        out
    }

    pub fn file(&self) -> super::GgufFile {
        super::GgufFile::from_bytes("x.gguf", Bytes::from(self.bytes())).unwrap()
    }
}
