//! Matrices in half precision, for a library's products of many rows.

use super::{Book, WeightArgs, WeightType, arguments, kernel};

/// Simdgroups of a group that has a row of `width` values, and how many times four of them a thread has.
fn shape(width: usize) -> [u32; 2] {
    let blocks = width.div_ceil(128).max(1);
    let simds = blocks.div_ceil(4).min(32);
    [simds as u32, blocks.div_ceil(simds) as u32]
}

arguments! {
    /// Arguments of [`ToHalves`] and [`SwigluToHalves`].
    ToHalvesArgs {
        /// Values of a row of x, a multiple of 4.
        features: u32,
        /// Values of a row of y, a multiple of 8.
        width: u32,
        /// Whether values are scaled (for [`SwigluToHalves`] those that it reads, too).
        scaled: u32,
        /// What products are multiplied with besides.
        factor: f32,
    }
}

kernel! {
    /// Rows as halves, scaled and rotated, and each times a power of two; `factors` are what products with them are multiplied with.
    /// Grid `[rows]`.
    ToHalves = "to_halves" in "panel.h" {
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// Times that a thread has four values.
        each: u32,
        /// Size of the rotation: 1 or 128.
        block: u32,
    }
    threads |k| 32 * k.simds;
    shared |k| vec![("float", k.simds as usize)];
    buffers { x: read f32, scales: read f32, y: write u32, factors: write f32 }
    arguments ToHalvesArgs
}

impl ToHalves {
    /// For rows of this width.
    pub fn of(width: usize, block: u32) -> Self {
        let [simds, each] = shape(width);
        Self { simds, each, block }
    }
}

/// What is added before a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Second {
    /// Nothing.
    No,
    /// Values.
    Values,
    /// Products of halves, still to be finished.
    Products,
}

impl super::Template for Second {
    fn cxx(&self) -> String {
        (*self as u32).to_string()
    }
    fn tag(&self) -> String {
        self.cxx()
    }
}

arguments! {
    /// Arguments of [`NormToHalves`].
    NormToHalvesArgs {
        /// Rows.
        rows: u32,
        /// Values of a row, a multiple of 8.
        width: u32,
        /// Whether outputs are scaled.
        scaled: u32,
        /// Whether products that are added are.
        second_scaled: u32,
        /// Added to the mean square.
        eps: f32,
        /// What products with the first output are multiplied with besides.
        factor0: f32,
        /// With the second.
        factor1: f32,
        /// With the third.
        factor2: f32,
    }
}

kernel! {
    /// RMS norm of rows of `x`, to which `second` is added first, as inputs of one to three linears: `y` `[outputs, rows, width]`, `factors`
    /// `[outputs, rows]`. The sum is written, too, if something is added. Grid `[rows]`.
    NormToHalves = "norm_to_halves" in "panel.h" {
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// Times that a thread has four values.
        each: u32,
        /// Size of all rotations: 1 or 128.
        block: u32,
        /// What is added.
        second: Second,
        /// Linears: 1 to 3.
        outputs: u32,
    }
    threads |k| 32 * k.simds;
    shared |k| vec![("float", k.simds as usize)];
    buffers {
        x: read f32, added: read f32, added_factors: read f32, added_scales: read f32, weight: read f32, scales0: read f32,
        scales1: read f32, scales2: read f32, sum: write f32, y: write u32, factors: write f32
    }
    arguments NormToHalvesArgs
}

impl NormToHalves {
    /// For rows of this width.
    pub fn of(width: usize, block: u32, second: Second, outputs: usize) -> Self {
        let [simds, each] = shape(width);
        Self { simds, each, block, second, outputs: outputs as u32 }
    }
}

kernel! {
    /// `silu(gate) * up` of products of halves, still to be finished, as a linear's input. Grid `[rows]`.
    SwigluToHalves = "swiglu_to_halves" in "panel.h" {
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// Times that a thread has four values.
        each: u32,
        /// Size of all rotations: 1 or 128.
        block: u32,
    }
    threads |k| 32 * k.simds;
    shared |k| vec![("float", k.simds as usize)];
    buffers {
        gate: read f32, up: read f32, gate_factors: read f32, up_factors: read f32, gate_scales: read f32, up_scales: read f32,
        scales: read f32, y: write u32, factors: write f32
    }
    arguments ToHalvesArgs
}

impl SwigluToHalves {
    /// For rows of this width.
    pub fn of(width: usize, block: u32) -> Self {
        let [simds, each] = shape(width);
        Self { simds, each, block }
    }
}

arguments! {
    /// Arguments of [`FinishProducts`].
    FinishArgs {
        /// Values of a row of x, a multiple of 8.
        width: u32,
        /// Values of a row of y, at most as many.
        features: u32,
        /// Whether they are scaled.
        scaled: u32,
    }
}

kernel! {
    /// Products of halves times their rows' factors, rotated, scaled, and a bias added. Grid `[ceil(width / 512), rows]`.
    FinishProducts = "finish_products" in "panel.h" {
        /// Size of the rotation: 1 or 128.
        block: u32,
        /// Whether there is a bias.
        bias: bool,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { x: read f32, factors: read f32, scales: read f32, biases: read f32, y: write f32 }
    arguments FinishArgs
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
