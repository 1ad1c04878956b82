//! One readable file for each architecture, generic over [`Backend`](marlin_backend::Backend).
//!
//! A model is `embed`, then `layer(i)` for every layer, then `head`. It says what happens to a batch in the backend's
//! blocks and never waits for a result. Names of fields and tensors are the checkpoint's.

mod architecture;
mod error;
mod glm4_moe_lite;
mod guard;
mod inventory;
mod llama;
mod loader;
mod model;
mod parts;
mod published;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;

pub use architecture::{Architecture, ModelInfo};
pub use error::{Error, Result};
pub use guard::NanGuard;
pub use inventory::{Inventory, Report};
pub use loader::Loader;
pub use model::{Layer, LoadOptions, Model, Progress, Residency};
pub use published::{PUBLISHED, Published, formula_checkpoint, published};
