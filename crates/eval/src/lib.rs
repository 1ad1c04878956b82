//! What is measured: perplexity, speed, what a checkpoint weighs and what the machine can do.
//!
//! * [`perplexity`](fn@perplexity): how well a model predicts a text, by one of three [`Protocol`]s.
//! * [`kld`](fn@kld): how far a quantised model's predictions are from the original's.
//! * [`latency`](fn@latency): tokens a second over warm-up and repeats, with [`Summary`] statistics.
//! * [`check`]: whether a fast backend computes what the reference computes.
//! * [`Footprint`]: parameters and bytes, all of them and those one token needs.
//! * [`Breakdown`]: how weights are stored, and in how many bits; [`Matrix`]: their values.
//! * [`machine`]: processor, memory, and the peak memory of this process.

pub mod breakdown;
pub mod check;
mod error;
pub mod footprint;
pub mod kld;
pub mod latency;
pub mod machine;
pub mod ppl;
mod routing;
pub mod stats;
pub mod values;

pub use breakdown::{Breakdown, ModuleLine};
pub use check::Check;
pub use error::{Error, Result};
pub use footprint::Footprint;
pub use kld::{Kld, Side, kld};
pub use latency::{Latency, LatencyOptions, latency};
pub use ppl::{Perplexity, Protocol, Span, perplexity};
pub use stats::Summary;
pub use values::Matrix;
