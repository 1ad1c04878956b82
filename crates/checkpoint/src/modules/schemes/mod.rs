//! One file for each way of storing a module in safetensors.

mod awq;
mod changed;
mod claim;
mod columns;
mod compressed;
mod dense;
mod exl3;
mod fp8;
pub(super) mod gpt_oss;
mod gptq;
mod mlx;
pub(super) mod mmfp4;
mod modelopt;
mod refused;
mod synthesis;

pub use synthesis::scheme_checkpoint;

use super::{Found, Part};
use crate::{Config, Result};

/// Looks for the module of `[out, in]` features in `part`. `None` if its tensors are not this scheme's; an error if they
/// are and something is wrong with them. What the tensors do not say (bits, group size) is in the configuration.
pub type Scheme = fn(part: &Part, features: [usize; 2], config: &Config) -> Result<Option<Found>>;

/// Every scheme, in the order in which they are tried. Tensors that only one scheme has come first.
pub const SCHEMES: [Scheme; 10] = [
    exl3::find,
    refused::find,
    gptq::find,
    awq::find,
    compressed::find,
    modelopt::find,
    fp8::find,
    mlx::find,
    mmfp4::find,
    dense::find,
];

/// Ends of the names of tensors that only scale activations or the KV cache when those are quantised too, which they are
/// not here: weights mean the same without them.
const ACTIVATIONS: [&str; 12] = [
    ".input_scale",
    ".input_global_scale",
    ".input_zero_point",
    ".activation_scale",
    ".output_scale",
    ".q_scale",
    ".k_scale",
    ".v_scale",
    ".k_zero_point",
    ".v_zero_point",
    ".kv_scale",
    ".prob_scale",
];

/// Whether a tensor is about quantised activations only.
pub(super) fn only_activations(tensor: &str) -> bool {
    ACTIVATIONS.iter().any(|end| tensor.ends_with(end))
}
