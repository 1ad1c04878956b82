//! From a checkpoint to a smaller one that is as good as can be.
//!
//! * [`Hessian`]: what calibration knows of a linear's inputs.
//! * [`Method`]: a quantiser: a weight and its Hessian in, the tensors of a format out.
//! * [`grouped`]: integers and FP4, rounded to nearest or by GPTQ, in the formats of several tools.
//! * [`linalg`]: factors and inverses of Hessians.
//! * [`planner`]: which module gets how many bits.
//! * [`Bench`]: what single changes do to predictions, measured, so that damages of a plan are what they mean.
//! * [`Exl3`]: the trellis quantiser.
//! * [`Compute`]: the heavy inner loops, for a device to take over.
//! * [`calibrate`](fn@calibrate): Hessians of every linear on a text, layer by layer ([`Stats`]).
//! * [`Apply`]: a checkpoint, a method for each module, and a new checkpoint, resumable.
//! * [`report`]: a page that compares checkpoints with their original.
//! * [`Fingerprint`]: what a checkpoint answers, and whether it still does.

mod apply;
mod bits;
mod calibrate;
mod compute;
mod damage;
mod dense;
mod error;
mod files;
mod fingerprint;
pub mod grouped;
mod hessian;
mod identity;
pub mod linalg;
mod matrix;
mod measure;
mod method;
pub mod planner;
mod recipe;
mod refine;
pub mod report;
mod roles;
mod trellis;

pub use apply::{
    Additions, Apply, Calibration, Describe, Entry, ModuleReport, Outcome, Planned, REPORT, Report, check_output,
};
pub use bits::Bits;
pub use calibrate::{
    About, ExpertInputs, LayerStats, Moments, Progress, Routed, Samples, Sampling, Stats, Watch, calibrate,
};
pub use compute::Compute;
pub use damage::{Probe, probe};
pub use dense::Dense;
pub use error::{Error, Result};
pub use fingerprint::{FileHash, Fingerprint, Verdict};
pub use hessian::Hessian;
pub use identity::identity;
pub use matrix::Matrix;
pub use measure::{Bench, Effect, Trial};
pub use method::{Method, Quantised, Written};
pub use recipe::{Choice, Recipe, Target};
pub use refine::spearman;
pub use roles::Role;
pub use trellis::Exl3;
