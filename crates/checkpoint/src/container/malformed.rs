//! The ways a safetensors file can be wrong.

/// Why a safetensors file was refused: one variant for each way it can be malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the eight bytes that give the header's length.
    #[error(
        "the file has {found} bytes, too few for a safetensors header (at least 10); it is truncated or not safetensors: download it again"
    )]
    TooShort {
        /// Bytes in the file.
        found: u64,
    },
    /// The header claims to be larger than any real header.
    #[error("the header claims {found} bytes, more than the limit of {limit}; this is not a safetensors file")]
    HeaderTooLarge {
        /// Length the file claims.
        found: u64,
        /// The limit.
        limit: u64,
    },
    /// The header does not fit into the file.
    #[error("the header claims {claimed} bytes, but only {found} follow; the file is truncated: download it again")]
    HeaderTruncated {
        /// Length the file claims.
        claimed: u64,
        /// Bytes after the length field.
        found: u64,
    },
    /// The header is not UTF-8.
    #[error("the header is not UTF-8 (byte {at} of it is wrong); the file is damaged: download it again")]
    NotUtf8 {
        /// Offset of the first bad byte in the header.
        at: usize,
    },
    /// The header does not begin with `{`.
    #[error("the header does not begin with '{{'; this is not a safetensors file")]
    NotAnObject,
    /// The header is no JSON object of tensors.
    #[error("the header cannot be read: {0}; the file is damaged or was written wrongly: download or convert it again")]
    Json(String),
    /// A name occurs twice.
    #[error("tensor {0:?} is listed twice; the file is damaged or was written wrongly: download or convert it again")]
    DuplicateName(String),
    /// An element type that is unknown here.
    #[error("tensor {name:?}: element type {dtype:?} is not known; update metal-marlin or convert the tensor")]
    UnknownDType {
        /// The tensor.
        name: String,
        /// The type as written.
        dtype: String,
    },
    /// The product of the dimensions is too large for any memory.
    #[error(
        "tensor {name:?}: shape {shape:?} overflows; the file is damaged or was written wrongly: download or convert it again"
    )]
    ShapeOverflow {
        /// The tensor.
        name: String,
        /// The shape as written.
        shape: Vec<u64>,
    },
    /// The end lies before the beginning.
    #[error(
        "tensor {name:?}: data offsets [{begin}, {end}] run backwards; the file is damaged or was written wrongly: download or convert it again"
    )]
    OffsetsReversed {
        /// The tensor.
        name: String,
        /// First byte.
        begin: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Type and shape ask for another number of bytes than the offsets give.
    #[error(
        "tensor {name:?}: {dtype} {shape:?} takes {expected} bytes, but its data offsets span {found}; the file is damaged or was written wrongly: download or convert it again"
    )]
    SizeMismatch {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: &'static str,
        /// Its shape.
        shape: Vec<usize>,
        /// Bytes that type and shape take.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
    },
    /// A tensor ends beyond the file.
    #[error(
        "tensor {name:?} ends at byte {end} of the data, but only {available} bytes are there; the file is truncated: download it again"
    )]
    PastEnd {
        /// The tensor.
        name: String,
        /// One past its last byte.
        end: u64,
        /// Bytes after the header.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error(
        "tensors {first:?} and {second:?} overlap at byte {at} of the data; the file is damaged or was written wrongly: download or convert it again"
    )]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
        /// Where the second begins.
        at: u64,
    },
    /// Bytes that belong to no tensor lie before one.
    #[error(
        "bytes {begin} to {end} of the data, before tensor {name:?}, belong to no tensor; the file is damaged or was written wrongly: download or convert it again"
    )]
    Gap {
        /// The tensor after the gap.
        name: String,
        /// Where the gap begins.
        begin: u64,
        /// Where it ends.
        end: u64,
    },
    /// Bytes follow the last tensor.
    #[error(
        "{count} bytes follow the last tensor; the header does not belong to this file: download or convert it again"
    )]
    TrailingBytes {
        /// How many.
        count: u64,
    },
}
