//! The formats, and what each can hold.

use super::gptq::Order;
use super::grid::Rounding;
use crate::{Error, Result};

/// How the quantised weights of a linear are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// GPTQ, version 1: integers with F16 factors (AutoGPTQ, GPTQModel, auto-round, vLLM).
    Gptq {
        /// 2, 3, 4 or 8.
        bits: u32,
        /// Whether the zero point is fixed at half the range.
        symmetric: bool,
        /// Inputs of a group; all if `None`.
        group: Option<usize>,
    },
    /// compressed-tensors' "pack-quantized": integers with F16 factors (llm-compressor, vLLM).
    Packed {
        /// 2 to 8.
        bits: u32,
        /// Whether the zero point is fixed at half the range.
        symmetric: bool,
        /// Inputs of a group; all if `None`.
        group: Option<usize>,
    },
    /// MLX's mode "affine": integers with a factor and a bias.
    Mlx {
        /// 2, 3, 4, 5, 6 or 8.
        bits: u32,
        /// 32, 64 or 128.
        group: usize,
        /// Type of factors and biases, which is the type that MLX computes in.
        rounding: Rounding,
    },
    /// MLX's mode "mxfp4".
    MlxMxfp4,
    /// Our own FP4: E2M1 with F16 factors.
    Fp4 {
        /// Inputs of a group, 16 to 256.
        group: usize,
        /// Inputs that are rotated together, a power of two, if any.
        rotation: Option<usize>,
    },
    /// compressed-tensors' NVFP4: E2M1 in groups of 16 with E4M3 factors.
    Nvfp4,
    /// compressed-tensors' MXFP4: E2M1 in groups of 32 with factors that are powers of two.
    Mxfp4,
}

impl Format {
    /// Its name with its settings: `gptq 4 bits g128`.
    pub fn name(&self) -> String {
        let integers = |name: &str, bits: u32, symmetric: bool, group: Option<usize>| {
            let group = group.map_or("channel".to_owned(), |g| format!("g{g}"));
            format!("{name} {bits} bits {group}{}", if symmetric { "" } else { " asymmetric" })
        };
        match *self {
            Self::Gptq { bits, symmetric, group } => integers("gptq", bits, symmetric, group),
            Self::Packed { bits, symmetric, group } => integers("pack-quantized", bits, symmetric, group),
            Self::Mlx { bits, group, .. } => format!("mlx {bits} bits g{group}"),
            Self::MlxMxfp4 => "mlx mxfp4".to_owned(),
            Self::Fp4 { group, rotation: None } => format!("fp4 g{group}"),
            Self::Fp4 { group, rotation: Some(block) } => format!("fp4 g{group} rotated by {block}"),
            Self::Nvfp4 => "nvfp4".to_owned(),
            Self::Mxfp4 => "mxfp4".to_owned(),
        }
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        match *self {
            Self::Gptq { bits, .. } | Self::Packed { bits, .. } | Self::Mlx { bits, .. } => bits,
            Self::MlxMxfp4 | Self::Fp4 { .. } | Self::Nvfp4 | Self::Mxfp4 => 4,
        }
    }

    /// Inputs of a group, of `cols` inputs.
    pub fn group(&self, cols: usize) -> usize {
        match *self {
            Self::Gptq { group, .. } | Self::Packed { group, .. } => group.unwrap_or(cols),
            Self::Mlx { group, .. } | Self::Fp4 { group, .. } => group,
            Self::MlxMxfp4 | Self::Mxfp4 => 32,
            Self::Nvfp4 => 16,
        }
    }

    /// Refuses settings that the format does not have, and shapes `[out, in]` that it cannot store.
    pub fn check(&self, module: &str, [rows, cols]: [usize; 2]) -> Result<()> {
        let widths: &[u32] = match self {
            Self::Gptq { .. } => &[2, 3, 4, 8],
            Self::Packed { .. } => &[2, 3, 4, 5, 6, 7, 8],
            Self::Mlx { .. } => &[2, 3, 4, 5, 6, 8],
            _ => &[4],
        };
        if !widths.contains(&self.bits()) {
            return Err(Error::setting("bits", format!("one of {widths:?} ({})", self.name()), self.bits()));
        }
        let group = self.group(cols);
        let sizes = match self {
            Self::Mlx { .. } => matches!(group, 32 | 64 | 128),
            Self::Fp4 { .. } => (16..=256).contains(&group) && group.is_multiple_of(8),
            _ => group > 0,
        };
        if !sizes {
            let expected = match self {
                Self::Mlx { .. } => "32, 64 or 128",
                Self::Fp4 { .. } => "16 to 256, a multiple of 8",
                _ => "at least 1",
            };
            return Err(Error::setting("group", format!("{expected} ({})", self.name()), group));
        }
        let refuse = |why: String| Err(Error::Module { module: module.to_owned(), why });
        if rows == 0 || cols == 0 {
            return refuse(format!("expected a matrix with some weights, found [{rows}, {cols}]"));
        }
        if !cols.is_multiple_of(group) {
            return refuse(format!(
                "groups of {group} do not divide its {cols} inputs; choose a group size that does, or leave the module as it is"
            ));
        }
        let bits = self.bits() as usize;
        let whole = |n: usize| (n * bits).is_multiple_of(32);
        let words = match self {
            Self::Gptq { .. } => whole(rows) && whole(cols),
            Self::Mlx { .. } | Self::MlxMxfp4 | Self::Fp4 { .. } => whole(cols),
            Self::Packed { .. } | Self::Nvfp4 | Self::Mxfp4 => true,
        };
        if !words {
            return refuse(format!(
                "[{rows}, {cols}] codes of {bits} bits are no whole 32-bit words, which {} needs; leave the module as it is",
                self.name()
            ));
        }
        if let Self::Fp4 { rotation: Some(block), .. } = *self
            && !(block.is_power_of_two() && cols.is_multiple_of(block))
        {
            return refuse(format!("a rotation of {block} is no power of two that divides its {cols} inputs"));
        }
        Ok(())
    }

    /// Refuses an order of inputs whose groups the format cannot store.
    pub fn check_order(&self, order: Order) -> Result<()> {
        // compressed-tensors had an index once, and has given it up.
        if order == Order::ActivationGroups && !matches!(self, Self::Gptq { .. }) {
            let expected = format!("an order with static groups, as {} has no index of groups", self.name());
            return Err(Error::setting("order", expected, "groups by activation"));
        }
        Ok(())
    }

    /// Bits that a `[out, in]` matrix takes, everything included, if it [can be stored](Self::check).
    pub fn stored_bits(&self, [rows, cols]: [usize; 2]) -> u64 {
        let (n, groups) = ((rows * cols) as u64, (rows * (cols / self.group(cols).max(1))) as u64);
        let bits = u64::from(self.bits());
        let packed = |n: usize| 32 * (n as u64 * bits).div_ceil(32);
        match *self {
            Self::Gptq { .. } => n * bits + groups * (16 + bits) + 32 * cols as u64,
            Self::Packed { symmetric, .. } => {
                let zeros = if symmetric { 0 } else { groups / rows.max(1) as u64 * packed(rows) };
                rows as u64 * packed(cols) + 16 * groups + zeros + 128
            }
            Self::Mlx { .. } => n * bits + 32 * groups,
            Self::Fp4 { rotation, .. } => n * bits + 16 * groups + if rotation.is_some() { 64 } else { 32 },
            Self::Nvfp4 => n * bits + 8 * groups + 32,
            Self::MlxMxfp4 | Self::Mxfp4 => n * bits + 8 * groups,
        }
    }
}
