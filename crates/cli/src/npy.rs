//! NumPy's file format, version 1.0: a header in ASCII, then row-major little-endian values.

use std::io::{Result, Write};

/// Writes a float32 matrix row by row.
pub struct Writer<W: Write> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Begins a matrix of this many rows and columns.
    pub fn new(mut out: W, rows: usize, cols: usize) -> Result<Self> {
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {cols}), }}");
        // Magic, version and length take 10 bytes; data begin at a multiple of 64.
        let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
        header.extend(std::iter::repeat_n(' ', padded - header.len() - 1));
        header.push('\n');
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&(header.len() as u16).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        Ok(Self { out })
    }

    /// More values.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        let mut bytes = Vec::with_capacity(4 * values.len().min(1 << 16));
        for part in values.chunks(1 << 16) {
            bytes.clear();
            part.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
            self.out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Everything has been pushed.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_as_numpy_writes_it() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, 2, 3).unwrap();
        writer.push(&[1.0, 2.0, 3.0]).unwrap();
        writer.push(&[4.0, 5.0, 6.0]).unwrap();
        writer.finish().unwrap();
        assert_eq!(&file[..10], b"\x93NUMPY\x01\x00\x76\x00");
        assert!(file[10..128].starts_with(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }"));
        assert_eq!((file[127], file.len()), (b'\n', 128 + 24));
        assert_eq!(&file[128..132], &1.0f32.to_le_bytes());
    }
}
