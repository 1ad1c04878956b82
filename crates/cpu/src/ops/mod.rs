//! Everything that is not a product of matrices.

pub mod convert;
