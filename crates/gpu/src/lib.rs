//! The GPU: kernels written once, the devices that run them, and the backend made of them.
//!
//! * [`kernels`]: what there is. Bodies lie in `kernels/*.h`, in the subset of C++ that Metal, CUDA (NVRTC) and a host compiler
//!   share; a declaration in Rust gives the entry points of all three and a typed launch function.
//! * [`source`]: how the text of a module is put together for a target: a prelude, the bodies, and the entry points of those
//!   instances that are wanted, nothing else.
//! * [`device`]: memory, compilation, launches: [`Device`] and its implementations.
//! * [`Gpu`]: a device with its pool of buffers and its compiled kernels.
//! * [`select`]: what chips are, and which kernel serves which weights on them.
//! * [`GpuBackend`]: the kernels behind the `Backend` trait; what took a slower path is counted ([`marlin_backend::fallback`]).

#![allow(unsafe_code)]

mod backend;
pub mod device;
mod error;
mod gpu;
pub mod kernels;
pub mod select;
pub mod source;

pub use backend::{GpuBackend, GpuOptions, GpuRecordings, Product, Warmth};
pub use device::Device;
pub use error::{Error, Result};
pub use gpu::{Buffer, Counts, Fetch, Gpu, KernelTime, MemoryStatistics, Recording, Slice};
