//! Who is in the batch.
//!
//! * [`BlockPool`]: a fixed pool of KV blocks with reference counts, and the prefix cache over them.
//! * [`Sequence`]: a request's tokens and the blocks that hold what has been computed of them.
//! * [`Scheduler`]: continuous batching over plain data: which tokens of which sequences come next.
//! * [`Generation`]: what one request makes of its tokens: text, stop strings, the end.
//! * [`Engine`]: the above with a model and a backend: requests in, events out; and scoring of given tokens. On backends that gain
//!   by it, a step is enqueued before the one before it is read; [`Stats`] tells what forced others to wait ([`Wait`]).
//!
//! Only the engine knows that there is a device; everything else is tested without one.

// So that tests in here share helpers with those outside.
#[cfg(test)]
extern crate self as marlin_engine;

mod block_pool;
mod engine;
mod error;
mod generation;
mod options;
mod request;
mod scheduler;
mod score;
mod sequence;
mod stats;
mod stop;
mod warm;

pub use block_pool::{BlockPool, Chain, PoolStats};
pub use engine::{Completion, Engine};
pub use error::{Error, Result};
pub use generation::Generation;
pub use options::{EngineOptions, KvSizing};
pub use request::{Event, FinishReason, Finished, Request, RequestId, Sampling, TokenEvent, Usage};
pub use scheduler::{Item, Limits, Plan, Scheduler};
pub use score::{LogitRows, Window, log_probability};
pub use sequence::Sequence;
pub use stats::{Stats, Wait, Waits};
pub use stop::StopMatcher;
