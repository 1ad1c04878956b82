//! Kernels that make one value a thread, 256 threads a group.

use super::{Template, arguments, kernel};

arguments! {
    /// Arguments of kernels over a run of values.
    CountArgs {
        /// Values.
        count: u32,
    }
}

arguments! {
    /// Arguments of kernels over a matrix.
    RowsArgs {
        /// Rows.
        rows: u32,
        /// Values of a row.
        cols: u32,
    }
}

arguments! {
    /// Arguments of [`Columns`].
    ColumnsArgs {
        /// Rows.
        rows: u32,
        /// Columns taken.
        cols: u32,
        /// Columns there are.
        x_cols: u32,
        /// The first one taken.
        from: u32,
    }
}

arguments! {
    /// Arguments of [`Combine`].
    CombineArgs {
        /// Rows.
        rows: u32,
        /// Values of a row.
        cols: u32,
        /// Experts of a row.
        slots: u32,
    }
}

kernel! {
    /// `silu(gate) * up`.
    Swiglu = "swiglu" in "elementwise.h" {}
    threads |_| 256;
    shared |_| Vec::new();
    buffers { gate: read f32, up: read f32, y: write f32 }
    arguments CountArgs
}

kernel! {
    /// `silu(gate) * up`, where rows of `x` are gate and up in turns; `rows` of `y`.
    SwigluPairs = "swiglu_pairs" in "elementwise.h" {}
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: read f32, y: write f32 }
    arguments RowsArgs
}

kernel! {
    /// `x + z`.
    Add = "add" in "elementwise.h" {}
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: read f32, z: read f32, y: write f32 }
    arguments CountArgs
}

kernel! {
    /// Each row of `x` times the sigmoid of its gate.
    Gated = "gated" in "elementwise.h" {}
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: read f32, gate: read f32, y: write f32 }
    arguments RowsArgs
}

kernel! {
    /// A range of columns.
    Columns = "columns" in "elementwise.h" {}
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: read f32, y: write f32 }
    arguments ColumnsArgs
}

kernel! {
    /// Some rows.
    Gather = "gather" in "elementwise.h" {}
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: read f32, index: read u32, y: write f32 }
    arguments RowsArgs
}

kernel! {
    /// The weighted sum of each row's experts, on top of `base` if there is one.
    Combine = "combine" in "elementwise.h" {
        /// Whether `base` is added.
        base: bool,
    }
    threads |_| 256;
    shared |_| Vec::new();
    buffers { y: read f32, weight: read f32, base: read f32, out: write f32 }
    arguments CombineArgs
}

arguments! {
    /// Arguments of [`Rope`].
    RopeArgs {
        /// Rows.
        rows: u32,
        /// Values of a row.
        cols: u32,
        /// Columns of a head.
        group: u32,
        /// Where the rotated ones begin in it.
        offset: u32,
        /// Pairs that turn.
        pairs: u32,
    }
}

kernel! {
    /// Rotary embedding in place; one pair a thread.
    Rope = "rope" in "rope.h" {
        /// Pairs are neighbours rather than halves.
        interleaved: bool,
    }
    threads |_| 256;
    shared |_| Vec::new();
    buffers { x: write f32, positions: read u32, table: read f32 }
    arguments RopeArgs
}

/// What memory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Single precision.
    F32,
    /// Half precision.
    F16,
    /// The upper half of a single.
    Bf16,
    /// Signed bytes with a scale for each vector (KV memory only).
    Int8,
    /// E4M3 bytes with a scale for each vector (KV memory only).
    Fp8,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Int8 | Self::Fp8 => 1,
        }
    }

    /// How far a stored value may be off, relative to itself or, in bytes of int8, to the greatest of its vector.
    pub fn rounding(self) -> f32 {
        match self {
            Self::F32 => 0.0,
            Self::F16 => 1.0 / 2048.0,
            Self::Bf16 | Self::Int8 => 1.0 / 254.0,
            Self::Fp8 => 1.0 / 16.0,
        }
    }

    /// Whether each vector has a scale, an `f32`.
    pub fn is_scaled(self) -> bool {
        self.bytes() == 1
    }
}

impl Template for Element {
    fn cxx(&self) -> String {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "Bf16",
            Self::Int8 => "Int8",
            Self::Fp8 => "Fp8",
        }
        .into()
    }
    fn tag(&self) -> String {
        self.cxx().to_lowercase()
    }
}
