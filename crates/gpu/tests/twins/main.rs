//! Every primitive of the GPU backend against its reference twin: on the simulated GPU, in several orders of its threads, or,
//! where `MARLIN_TEST_DEVICE` is `cuda`, on the GPU that is there.
#![allow(clippy::unwrap_used, clippy::panic)] // a failing test may panic

mod blocks;
mod device;
mod draw;
mod faults;
mod kernels;
mod numbers;
mod step;
mod tiles;
mod weights;
