//! Element types a container may store.

use std::fmt;

/// Element type of a stored tensor: safetensors' plain types, and GGML's blocks of elements that share factors.
#[allow(missing_docs)] // each variant is its own definition
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    F8E8M0,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
    Iq4Xs,
    Mxfp4,
}

/// Type, name, elements of a block, bytes of a block.
type Row = (DType, &'static str, usize, usize);

impl DType {
    const TABLE: [Row; 29] = [
        (Self::F64, "F64", 1, 8),
        (Self::F32, "F32", 1, 4),
        (Self::F16, "F16", 1, 2),
        (Self::BF16, "BF16", 1, 2),
        (Self::F8E4M3, "F8_E4M3", 1, 1),
        (Self::F8E5M2, "F8_E5M2", 1, 1),
        (Self::F8E8M0, "F8_E8M0", 1, 1),
        (Self::I64, "I64", 1, 8),
        (Self::I32, "I32", 1, 4),
        (Self::I16, "I16", 1, 2),
        (Self::I8, "I8", 1, 1),
        (Self::U64, "U64", 1, 8),
        (Self::U32, "U32", 1, 4),
        (Self::U16, "U16", 1, 2),
        (Self::U8, "U8", 1, 1),
        (Self::Bool, "BOOL", 1, 1),
        (Self::Q4_0, "Q4_0", 32, 18),
        (Self::Q4_1, "Q4_1", 32, 20),
        (Self::Q5_0, "Q5_0", 32, 22),
        (Self::Q5_1, "Q5_1", 32, 24),
        (Self::Q8_0, "Q8_0", 32, 34),
        (Self::Q2K, "Q2_K", 256, 84),
        (Self::Q3K, "Q3_K", 256, 110),
        (Self::Q4K, "Q4_K", 256, 144),
        (Self::Q5K, "Q5_K", 256, 176),
        (Self::Q6K, "Q6_K", 256, 210),
        (Self::Iq4Nl, "IQ4_NL", 32, 18),
        (Self::Iq4Xs, "IQ4_XS", 256, 136),
        (Self::Mxfp4, "MXFP4", 32, 17),
    ];

    fn row(self) -> &'static Row {
        &Self::TABLE[self as usize]
    }

    /// Elements of a block: 1 for plain types. A tensor's last dimension is whole blocks.
    pub fn block(self) -> usize {
        self.row().2
    }

    /// Bytes of a block: of one element for plain types.
    pub fn size(self) -> usize {
        self.row().3
    }

    /// Bytes of `elements` elements, which are whole blocks.
    pub fn bytes(self, elements: usize) -> usize {
        elements / self.block() * self.size()
    }

    /// The name as safetensors or GGML writes it, such as `BF16` or `Q4_K`.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The plain type that safetensors calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::TABLE.iter().find(|row| row.1 == name && !row.0.is_block()).map(|row| row.0)
    }

    /// Whether values are floating-point numbers of 16 bits or more.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::BF16)
    }

    /// Whether the type is one of GGML's blocks.
    pub fn is_block(self) -> bool {
        self.block() > 1
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::DType;

    #[test]
    fn table_is_in_declaration_order() {
        for (i, row) in DType::TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, i);
            // Blocks are no types of safetensors.
            assert_eq!(DType::from_name(row.1), (row.2 == 1).then_some(row.0));
        }
    }

    #[test]
    fn bytes_of_blocks() {
        assert_eq!((DType::BF16.bytes(3), DType::Q4K.bytes(512), DType::Q8_0.bytes(96)), (6, 288, 102));
    }
}
