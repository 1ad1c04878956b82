//! What a device must be able to do, and what that means.
//!
//! * [`Step`]: one call to a model, a ragged batch of tokens over paged KV memory.
//! * [`Backend`]: primitives that *enqueue* work on opaque tensors (only [`Backend::read`] and its kin wait), and
//!   blocks composed of primitives, which a backend may fuse by overriding.
//! * [`blocks`]: the default bodies of the blocks and the weights they take.
//! * [`Reference`]: every primitive, short, scalar and obviously right; the twin that fast kernels are compared with.
//! * [`fallback`]: counts of what a backend does on slower paths.
//! * [`Deferred`]: a backend that records, executes late and refuses an early read, to keep callers honest.

mod backend;
pub mod blocks;
mod deferred;
mod error;
pub mod fallback;
mod kv;
mod reference;
pub mod sampling;
pub mod shapes;
mod step;

pub use backend::{Backend, Expert, LatentForm, LinearHandle, Observer, Pass, RopeTable};
pub use deferred::Deferred;
pub use error::{Error, Result};
pub use kv::{KvLayout, KvSpec};
pub use reference::Reference;
pub use sampling::{Sample, SampleRow};
pub use step::{Row, SequenceStep, Step, Token};
