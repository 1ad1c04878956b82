//! One file for each way of storing a module in safetensors.

mod dense;

use super::{Found, Part};
use crate::{Config, Result};

/// Looks for the module of `[out, in]` features in `part`. `None` if its tensors are not this scheme's; an error if they
/// are and something is wrong with them. What the tensors do not say (bits, group size) is in the configuration.
pub type Scheme = fn(part: &Part, features: [usize; 2], config: &Config) -> Result<Option<Found>>;

/// Every scheme, in the order in which they are tried.
pub const SCHEMES: [Scheme; 1] = [dense::find];
