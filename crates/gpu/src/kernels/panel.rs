//! Matrices in half precision, for a library's products of many rows.

use super::{Book, WeightArgs, WeightType, arguments, kernel};

arguments! {
    /// Arguments of [`Largest`].
    LargestArgs {
        /// Values, a multiple of 4.
        count: u32,
        /// Groups.
        groups: u32,
        /// Values of a row, a multiple of 4.
        features: u32,
    }
}

kernel! {
    /// The largest absolute value of each group's share of what is scaled. Grid `[groups]`.
    Largest = "largest" in "panel.h" {
        /// Whether it is.
        scale: bool,
    }
    threads |_| 256;
    shared |_| vec![("float", 8)];
    buffers { x: read f32, scales: read f32, most: write f32 }
    arguments LargestArgs
}

arguments! {
    /// Arguments of [`ToHalves`].
    ToHalvesArgs {
        /// Groups of [`Largest`].
        groups: u32,
        /// Values of a row of x, a multiple of 4.
        features: u32,
        /// Values of a row of y, a multiple of 8.
        width: u32,
        /// What products are multiplied with besides.
        factor: f32,
    }
}

kernel! {
    /// Rows as halves, scaled and rotated, and times a power of two; `factors` are what products with them are multiplied with, and
    /// 0. Grid `[ceil(width / 512), rows]`.
    ToHalves = "to_halves" in "panel.h" {
        /// Size of the rotation: 1 or 128.
        block: u32,
        /// Whether they are scaled.
        scale: bool,
    }
    threads |_| 128;
    shared |_| vec![("float", 4)];
    buffers { x: read f32, scales: read f32, most: read f32, y: write u32, factors: write f32 }
    arguments ToHalvesArgs
}

arguments! {
    /// Arguments of [`PanelRows`].
    PanelArgs {
        /// The weight, of a multiple of 8 columns.
        w: WeightArgs,
        /// The first row.
        first: u32,
        /// What values are multiplied with.
        factor: f32,
    }
}

kernel! {
    /// Some rows of a weight as halves. Grid `[ceil(cols / (128 * chunk)), rows]`.
    PanelRows = "panel_rows" in "panel.h" {
        /// The weight's type.
        weight: WeightType,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { words: read u32, factors: read u8, y: write u32 }
    arguments PanelArgs
}

arguments! {
    /// Arguments of [`PanelTrellis`].
    PanelTrellisArgs {
        /// Outputs of the trellis.
        rows: u32,
        /// Inputs.
        cols: u32,
        /// The first output, a multiple of 16.
        first: u32,
    }
}

kernel! {
    /// Some outputs of a trellis as halves, with their inputs one after another. Grid `[ceil(cols / 256), outputs / 16]`.
    PanelTrellis = "panel_trellis" in "panel.h" {
        /// Bits of a code, 1 to 8.
        bits: u32,
        /// The codebook.
        book: Book,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { words: read u32, y: write u32 }
    arguments PanelTrellisArgs
}
