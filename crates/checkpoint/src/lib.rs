//! What is on disk, and nothing of what is done with it.
//!
//! A checkpoint becomes named [`Tensor`]s over memory-mapped bytes ([`TensorSource`]); a linear layer's tensors become
//! a [`Weight`] of one of three kinds inside a [`Linear`]. Each kind has a plain reference `dequantize`; only that
//! reference multiplies here, slowly.

mod bytes;
pub mod config;
pub mod container;
mod dtype;
mod error;
mod folder;
pub mod hub;
pub mod modules;
mod open;
mod progress;
mod source;
mod synthetic;
pub mod text;
pub mod weight;
mod write;

pub use bytes::Bytes;
pub use config::{Config, GenerationConfig, RopeConfig, RopeScaling};
pub use container::{INDEX_NAME, Malformed, SINGLE_NAME, Store};
pub use dtype::DType;
pub use error::{Error, Result};
pub use folder::{EmbeddedFiles, Folder, MadeFiles};
pub use hub::Hub;
pub use modules::schemes::scheme_checkpoint;
pub use modules::{Found, LatentProjection, LatentSizes, Modules, Stored};
pub use open::Checkpoint;
pub use progress::Progress;
pub use source::{Tensor, TensorInfo, TensorSource};
pub use synthetic::Synthetic;
pub use weight::{Dense, Grouped, InputTransform, Linear, OutputTransform, Packed, Trellis, Weight};
pub use write::{check_space, header, write_error, write_sharded};
