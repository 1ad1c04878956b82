//! Norms and rotations.

use super::{arguments, kernel};

arguments! {
    /// Arguments of [`RmsNorm`].
    RmsNormArgs {
        /// Values of a group.
        width: u32,
        /// Added to the mean square.
        eps: f32,
    }
}

kernel! {
    /// RMS norm of consecutive groups of `width` values, one threadgroup each; `residual` adds `second` first and keeps the sum.
    /// Without it `second` is not read and `sum` not written.
    RmsNorm = "rms_norm" in "norm.h" {
        /// Simdgroups of a threadgroup.
        simds: u32,
        /// Times that a thread loads: the width over `32 * simds * vector`, rounded up.
        each: u32,
        /// Values loaded at once: 4, or 1 where the width is no multiple of 4.
        vector: u32,
        /// Whether `second` is added first.
        residual: bool,
    }
    threads |k| 32 * k.simds;
    shared |k| vec![("float", k.simds as usize)];
    buffers { x: read f32, second: read f32, weight: read f32, sum: write f32, y: write f32 }
    arguments RmsNormArgs
}

impl RmsNorm {
    /// For groups of this width: all of a wide group's values are loaded at once.
    pub fn of(width: usize, residual: bool) -> Self {
        let width = width as u32;
        let vector = if width.is_multiple_of(4) { 4 } else { 1 };
        let simds = match width {
            0..=512 => 1,
            513..=2048 => 8,
            _ => 32,
        };
        Self { simds, each: width.div_ceil(32 * simds * vector).max(1), vector, residual }
    }
}

arguments! {
    /// Arguments of [`Around`].
    AroundArgs {
        /// Values of a row where the rotation happens, whole blocks.
        width: u32,
        /// Values of a row of x.
        x_width: u32,
        /// Values of a row of y.
        y_width: u32,
        /// Rows of y made of one row of x.
        share: u32,
        /// Factor of the rotation, one over the square root of the block.
        norm: f32,
    }
}

kernel! {
    /// What stands before or after a matrix: order, scale and rotation of its inputs, rotation, scale and bias of its outputs, and
    /// the padding of both. Grid `[ceil(width / (128 * max(1, block / 32))), rows of y]`.
    Around = "around" in "hadamard.h" {
        /// Size of a rotation: a power of two up to 1024; 1 does not rotate.
        block: u32,
        /// Outputs rather than inputs.
        output: bool,
        /// Whether there are scales.
        scale: bool,
        /// Whether inputs come in another order.
        order: bool,
        /// Whether a bias is added.
        bias: bool,
        /// Whether `index` says whose scales a row has.
        indexed: bool,
    }
    threads |_| 128;
    shared |_| Vec::new();
    buffers { x: read f32, scales: read f32, biases: read f32, sources: read u32, index: read u32, y: write f32 }
    arguments AroundArgs
}
