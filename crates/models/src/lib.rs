//! One readable file for each architecture, generic over [`Backend`](marlin_backend::Backend).
//!
//! A model is `embed`, then `layer(i)` for every layer, then `head`. It says what happens to a batch in the backend's
//! blocks and never waits for a result. Names of fields and tensors are the checkpoint's.

mod error;
mod model;

pub use error::{Error, Result};
pub use model::{Model, ModelInfo};
