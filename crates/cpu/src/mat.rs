//! What the kernels take: element types, weight matrices over raw bytes, and the errors of mismatched shapes.

use std::fmt;

/// An element type of weights and of key/value memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }
}

/// How a kernel may round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// All arithmetic in `f32`; the same bits on every [`crate::Level`].
    Exact,
    /// Activations, queries and probabilities may be rounded to `bf16` where the hardware multiplies `bf16`.
    Fast,
}

/// A kernel was given slices or shapes that do not fit together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// The kernel.
    pub op: &'static str,
    /// Which argument, and in what unit.
    pub what: &'static str,
    /// What it had to be (at least, for lengths of memory).
    pub expected: usize,
    /// What it was.
    pub found: usize,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: expected {}, found {}", self.op, self.what, self.expected, self.found)
    }
}

impl std::error::Error for Error {}

/// The result of a kernel.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn same(op: &'static str, what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error { op, what, expected, found }) }
}

pub(crate) fn at_least(op: &'static str, what: &'static str, expected: usize, found: usize) -> Result<()> {
    if found >= expected { Ok(()) } else { Err(Error { op, what, expected, found }) }
}

/// A row-major matrix of weights over bytes of any alignment: `[rows, cols]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    data: &'a [u8],
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl<'a> Mat<'a> {
    /// The matrix `[rows, cols]` at the start of `data`.
    pub fn new(data: &'a [u8], dtype: DType, rows: usize, cols: usize) -> Result<Mat<'a>> {
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size())).unwrap_or(usize::MAX);
        at_least("matrix", "bytes of data", bytes, data.len())?;
        Ok(Mat { data: &data[..bytes], dtype, rows, cols })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: outputs of a linear layer.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: inputs of a linear layer.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The bytes, row after row.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Rows `from..from + rows` as a matrix; a range outside the matrix is an error.
    pub fn slice(&self, from: usize, rows: usize) -> Result<Mat<'a>> {
        at_least("matrix", "rows", from.saturating_add(rows), self.rows)?;
        Mat::new(&self.data[from * self.stride()..], self.dtype, rows, self.cols)
    }

    /// Bytes of a row.
    pub(crate) fn stride(&self) -> usize {
        self.cols * self.dtype.size()
    }
}
