//! Everything that is not a product of matrices.

pub mod convert;
mod elementwise;
mod norm;
mod rope;
mod router;
mod scan;

pub use convert::{embed, from_f32, to_f32};
pub use elementwise::{add, sigmoid_gate, swiglu};
pub use norm::rms_norm;
pub use rope::{Angles, rope};
pub use router::{Router, route};
pub use scan::first_not_finite;
