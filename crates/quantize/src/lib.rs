//! From a checkpoint to a smaller one that is as good as can be.
//!
//! * [`Hessian`]: what calibration knows of a linear's inputs.
//! * [`Method`]: a quantiser: a weight and its Hessian in, the tensors of a format out.
//! * [`linalg`]: factors and inverses of Hessians.
//! * [`Exl3`]: the trellis quantiser.
//! * [`Compute`]: the heavy inner loops, for a device to take over.

mod compute;
mod error;
mod hessian;
pub mod linalg;
mod matrix;
mod method;
mod trellis;

pub use compute::Compute;
pub use error::{Error, Result};
pub use hessian::Hessian;
pub use matrix::Matrix;
pub use method::{Method, Quantised, Written};
pub use trellis::Exl3;
