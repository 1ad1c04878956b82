//! The ways a GGUF file can be wrong.

const DAMAGED: &str = "the file is damaged or was written wrongly: download or convert it again";

/// Why a GGUF file was refused: one variant for each way it can be malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Other first bytes than `GGUF`.
    #[error("expected the file to begin with \"GGUF\", found \"{found}\"; this is no GGUF file")]
    Magic {
        /// The first bytes.
        found: String,
    },
    /// Written by a big-endian machine.
    #[error(
        "the numbers are byte-swapped (a big-endian GGUF file); only little-endian files can be read: convert the model again"
    )]
    ByteSwapped,
    /// A version that cannot be read.
    #[error("GGUF version {found}; expected 2 or 3: {}",
        if *.found < 2 { "convert the model again with a newer program" } else { "update metal-marlin" })]
    Version {
        /// Version of the file.
        found: u32,
    },
    /// The file ends within something.
    #[error(
        "{what} takes {needed} bytes at byte {at}, but only {left} are left; the file is truncated or damaged: download it again"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it begins.
        at: u64,
        /// Bytes it takes (at least).
        needed: u64,
        /// Bytes to the end of the file.
        left: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what} is not UTF-8 text; {DAMAGED}")]
    NotUtf8 {
        /// What was being read.
        what: String,
    },
    /// A key's value is of an unknown type.
    #[error("key {key:?}: value type {found} is not known (0 to 12 are); {DAMAGED}")]
    ValueType {
        /// The key.
        key: String,
        /// Type id in the file.
        found: u32,
    },
    /// Arrays of arrays of arrays.
    #[error("key {key:?}: arrays are nested more than {limit} deep; {DAMAGED}")]
    Nested {
        /// The key.
        key: String,
        /// The limit.
        limit: usize,
    },
    /// A key occurs twice.
    #[error("key {0:?} is there twice; {DAMAGED}")]
    DuplicateKey(String),
    /// `general.alignment` is no power of two.
    #[error("key \"general.alignment\": expected a power of two, found {found}; {DAMAGED}")]
    Alignment {
        /// Value in the file.
        found: String,
    },
    /// A tensor occurs twice.
    #[error("tensor {0:?} is listed twice; {DAMAGED}")]
    DuplicateTensor(String),
    /// More dimensions than GGML has.
    #[error("tensor {name:?}: expected at most 4 dimensions, found {found}; {DAMAGED}")]
    Dimensions {
        /// The tensor.
        name: String,
        /// Dimensions in the file.
        found: u32,
    },
    /// The product of the dimensions is too large for any memory.
    #[error("tensor {name:?}: dimensions {dims:?} overflow; {DAMAGED}")]
    ShapeOverflow {
        /// The tensor.
        name: String,
        /// The dimensions as written, fastest first.
        dims: Vec<u64>,
    },
    /// An element type that cannot be read.
    #[error(
        "tensor {name:?}: element type {id} ({found}) cannot be read; use a file with other types (Q4_K_M, Q6_K, Q8_0, ...)"
    )]
    ElementType {
        /// The tensor.
        name: String,
        /// Type id in the file.
        id: u32,
        /// What GGML calls it.
        found: &'static str,
    },
    /// Rows of a quantised tensor are no whole blocks.
    #[error("tensor {name:?}: rows of {found} elements are no whole blocks of {block} ({dtype}); {DAMAGED}")]
    PartialBlock {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: crate::DType,
        /// Elements of a block.
        block: usize,
        /// Elements of a row.
        found: u64,
    },
    /// A tensor does not begin at a multiple of the alignment.
    #[error("tensor {name:?}: offset {offset} is no multiple of the alignment {alignment}; {DAMAGED}")]
    Misaligned {
        /// The tensor.
        name: String,
        /// Its offset in the data.
        offset: u64,
        /// The file's alignment.
        alignment: u64,
    },
    /// A tensor ends beyond the file.
    #[error(
        "tensor {name:?} takes bytes {begin} to {end} of the data, but only {available} are there; the file is truncated: download it again"
    )]
    PastEnd {
        /// The tensor.
        name: String,
        /// Its offset in the data.
        begin: u64,
        /// One past its last byte.
        end: u64,
        /// Bytes of data in the file.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("tensors {first:?} and {second:?} overlap at byte {at} of the data; {DAMAGED}")]
    Overlap {
        /// The tensor that begins first.
        first: String,
        /// The tensor that begins inside it.
        second: String,
        /// Where the second begins.
        at: u64,
    },
}
