//! Quantisers of codes with factors: integers and FP4, rounded to nearest or by GPTQ, in the formats of several tools.
//!
//! * [`Format`]: how weights are stored, and what with.
//! * [`Grouped`]: a quantiser: a format, how factors are found, and how codes are.
//! * [`settings`]: what a checkpoint's configuration says of its modules.
//!
//! A grid is what the weights of a group may become; rounding to nearest and GPTQ work on any. MR-GPTQ is GPTQ on inputs
//! rotated by block-Hadamard matrices, with the Hessian rotated alike.

mod coded;
mod float;
mod format;
mod formats;
mod gptq;
mod grid;
mod inputs;
mod integer;
mod settings;
#[cfg(test)]
mod tests;

pub use format::Format;
pub use formats::mlx::stack;
pub use gptq::Order;
pub use grid::{Factor, Rounding};
pub use settings::{Settings, settings};

use coded::Coded;
use float::{Fp4, Scale, global};
use grid::{Grid, largest};
pub(crate) use inputs::{Preparation, Prepared};
use integer::{Affine, Edge, Symmetric};
use marlin_checkpoint::weight::hadamard;

use crate::compute::for_rows;
use crate::{Compute, Error, Hessian, Matrix, Method, Quantised, Result};

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rounder {
    /// Each weight to the nearest value.
    Nearest,
    /// By GPTQ, where there is a Hessian.
    Gptq {
        /// Part of the Hessian's mean diagonal that is added to the diagonal; doubled until the sum has a Cholesky factor.
        damping: f32,
        /// The order of the inputs.
        order: Order,
    },
}

impl Rounder {
    /// GPTQ with the usual damping, inputs in their order.
    pub const GPTQ: Self = Self::Gptq { damping: 0.01, order: Order::Natural };
}

/// A quantiser of codes with factors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grouped {
    /// How the result is stored.
    pub format: Format,
    /// How factors are found.
    pub factor: Factor,
    /// How codes are chosen.
    pub rounder: Rounder,
}

impl Grouped {
    /// Refuses settings that the format does not have, and shapes `[out, in]` that it cannot store.
    pub fn check(&self, module: &str, shape: [usize; 2]) -> Result<()> {
        if let Rounder::Gptq { order, damping } = self.rounder {
            self.format.check_order(order)?;
            if !(0.0..=1.0).contains(&damping) {
                return Err(Error::setting("damping", "0 to 1", damping));
            }
        }
        self.format.check(module, shape)
    }
}

impl Method for Grouped {
    fn name(&self) -> String {
        let Rounder::Gptq { order, damping } = self.rounder else {
            return format!("{}, nearest", self.format.name());
        };
        let order = match order {
            Order::Natural => "",
            Order::Activation => ", act-order",
            Order::ActivationGroups => ", act-order with groups",
        };
        format!("{}, gptq{order}, damping {damping}", self.format.name())
    }

    fn quantise(
        &self,
        compute: &dyn Compute,
        module: &str,
        weight: &Matrix,
        hessian: Option<&Hessian>,
    ) -> Result<Quantised> {
        self.check(module, [weight.rows(), weight.cols()])?;
        if let Some(at) = weight.data().iter().position(|w| !w.is_finite()) {
            let why = format!("weight [{}, {}] is not a finite number", at / weight.cols(), at % weight.cols());
            return Err(Error::Module { module: module.to_owned(), why });
        }
        let job = Job { method: self, compute, module, weight, hessian };
        let quantised = match self.format {
            Format::Gptq { bits, symmetric, .. } => {
                // Loaders of the first version disagree about a zero point of 0, which it would store as -1.
                let coded = job.integers(bits, symmetric, 1.0)?;
                Quantised { tensors: formats::gptq::tensors(&coded, bits), decoded: coded.decoded }
            }
            Format::Packed { bits, symmetric, .. } => {
                let coded = job.integers(bits, symmetric, 0.0)?;
                Quantised { tensors: formats::compressed::integer(&coded, bits, !symmetric), decoded: coded.decoded }
            }
            Format::Mlx { bits, rounding, .. } => {
                let coded = job.run(&Edge { bits, rounding }, None)?;
                Quantised { tensors: formats::mlx::affine(&coded, bits, rounding), decoded: coded.decoded }
            }
            Format::Fp4 { rotation, .. } => {
                let coded = job.run(&Fp4(Scale::F16), rotation)?;
                let tensors = formats::mmfp4::tensors(&coded, rotation);
                Quantised { tensors, decoded: job.rotated(coded.decoded, rotation) }
            }
            Format::Nvfp4 => {
                let global = global(largest(weight.data()));
                let coded = job.run(&Fp4(Scale::E4m3 { global }), None)?;
                Quantised { tensors: formats::compressed::nvfp4(&coded, global), decoded: coded.decoded }
            }
            Format::MlxMxfp4 | Format::Mxfp4 => {
                let coded = job.run(&Fp4(Scale::E8m0), None)?;
                let tensors = match self.format {
                    Format::Mxfp4 => formats::compressed::mxfp4(&coded),
                    _ => formats::mlx::mxfp4(&coded),
                };
                Quantised { tensors, decoded: coded.decoded }
            }
        };
        match quantised.decoded.data().iter().all(|w| w.is_finite()) {
            true => Ok(quantised),
            false => {
                let why = format!("its weights are too large for the factors of {}", self.format.name());
                Err(Error::Module { module: module.to_owned(), why })
            }
        }
    }
}

/// A linear on its way.
struct Job<'a> {
    method: &'a Grouped,
    compute: &'a dyn Compute,
    module: &'a str,
    weight: &'a Matrix,
    hessian: Option<&'a Hessian>,
}

impl Job<'_> {
    fn integers(&self, bits: u32, symmetric: bool, least_zero: f32) -> Result<Coded> {
        let rounding = Rounding::F16;
        match symmetric {
            true => self.run(&Symmetric { bits, rounding }, None),
            false => self.run(&Affine { bits, rounding, least_zero }, None),
        }
    }

    /// Codes on a grid, of inputs rotated by blocks of `rotation`.
    fn run<G: Grid>(&self, grid: &G, rotation: Option<usize>) -> Result<Coded> {
        let Grouped { format, factor, rounder } = *self.method;
        let cols = self.weight.cols();
        let group = format.group(cols);
        let Some(hessian) = self.hessian else {
            let weight = self.rotated(self.weight.clone(), rotation);
            return Ok(coded::nearest(self.compute, grid, factor, &weight, None, group));
        };
        if hessian.size() != cols {
            let why = format!("expected a Hessian of {cols} inputs, found one of {}", hessian.size());
            return Err(Error::Module { module: self.module.to_owned(), why });
        }
        let rotate = |h| match rotation {
            Some(block) => inputs::rotated(self.compute, h, block),
            None => h,
        };
        match rounder {
            Rounder::Nearest => {
                let (h, _) = inputs::normalised(self.module, hessian)?;
                let (h, weight) = (rotate(h), self.rotated(self.weight.clone(), rotation));
                let importance: Vec<f32> = (0..cols).map(|i| h.row(i)[i]).collect();
                Ok(coded::nearest(self.compute, grid, factor, &weight, Some(&importance), group))
            }
            Rounder::Gptq { damping, order } => {
                let prepared = hessian.prepared(Preparation { rotation, damping, order }, || {
                    let (h, dead) = inputs::normalised(self.module, hessian)?;
                    let inputs = inputs::inputs(self.compute, self.module, rotate(h), damping, order)?;
                    Ok(Prepared { dead, inputs })
                })?;
                let mut weight = self.weight.clone();
                if prepared.dead.contains(&true) {
                    for_rows(self.compute, weight.data_mut(), cols, 16, &|_, row| {
                        row.iter_mut().zip(&prepared.dead).filter(|(_, dead)| **dead).for_each(|(w, _)| *w = 0.0);
                    });
                }
                let weight = self.rotated(weight, rotation);
                gptq::gptq(self.compute, grid, factor, &weight, &prepared.inputs, group)
            }
        }
    }

    /// Rows times the block-Hadamard matrix, which is its own inverse.
    fn rotated(&self, mut weight: Matrix, rotation: Option<usize>) -> Matrix {
        if let Some(block) = rotation {
            let cols = weight.cols();
            for_rows(self.compute, weight.data_mut(), cols, 16, &|_, row| hadamard(row, block));
        }
        weight
    }
}
