//! EXL3: 1 to 8 bits a weight, coded by a walk through the states of a trellis.
//!
//! The method is QTIP's (Tseng, Sun, Hou, De Sa: "QTIP: Quantization with Trellises and Incoherence Processing", 2024) in
//! the form and with the format of EXL3 (exllamav3):
//!
//! 1. *Incoherence* (`space`): random signs, scales of inputs and outputs, and Hadamard rotations of 128 on both sides make
//!    the weights of any matrix look like independent Gaussians of one variance.
//! 2. *Scale* (`scale`): the factor that brings them closest to the codebook's values, by coding a sample of tiles.
//! 3. *LDLQ* (`ldlq`): sixteen inputs at a time from the last to the first, each with what the errors made so far can still
//!    be balanced by, which the Hessian in the rotated space says.
//! 4. *Viterbi* ([`Compute::encode`]): tiles of 16 x 16 weights, each a closed walk.
//! 5. *Fit* (`fit`): the scales that fit the codes best, by least squares.
//!
//! Without a Hessian, or with one that has seen nothing, step 3 codes all inputs on their own, and step 5 is left out.

mod fit;
mod ldlq;
mod pack;
mod scale;
mod space;
#[cfg(test)]
mod tests;

use crate::{Compute, Error, Hessian, Matrix, Method, Quantised, Result, Written};
use half::f16;
use marlin_checkpoint::DType;
use marlin_checkpoint::weight::Codebook;
use space::Space;

/// Inputs, and outputs, of a tile.
const TILE: usize = 16;
/// Weights of a tile.
const AREA: usize = TILE * TILE;
/// Inputs, and outputs, that are rotated together, and to a multiple of which both are padded.
const BLOCK: usize = 128;

/// The EXL3 quantiser.
#[derive(Clone, Debug)]
pub struct Exl3 {
    bits: usize,
    codebook: Codebook,
    values: Vec<f32>,
}

impl Exl3 {
    /// With `bits` bits a weight (1 to 8) and a codebook; exllamav3 writes [`Codebook::Mul1`] today.
    pub fn new(bits: usize, codebook: Codebook) -> Result<Self> {
        if !(1..=8).contains(&bits) {
            return Err(Error::setting("EXL3 bits", "1 to 8, whole", bits));
        }
        let values = (0..=u16::MAX).map(|word| codebook.value(word).to_f32()).collect();
        Ok(Self { bits, codebook, values })
    }

    /// Bits of a weight.
    pub fn bits(&self) -> usize {
        self.bits
    }

    /// Asks for rotations of `block` inputs and outputs. EXL3 has no field for it: every reader rotates 128 of each, and
    /// anything else is an error.
    pub fn rotation(self, block: usize) -> Result<Self> {
        match block {
            BLOCK => Ok(self),
            _ => Err(Error::setting(
                "EXL3 rotation",
                "128, which every reader of EXL3 applies to inputs and outputs (for no or other rotations choose a format of groups)",
                block,
            )),
        }
    }

    /// The tensor that names the codebook, but for the oldest one.
    fn marker(&self) -> Option<Written> {
        let (suffix, multiplier) = match self.codebook {
            Codebook::ThreeInst => return None,
            Codebook::Mcg => ("mcg", 0xcbac_1fedu32),
            Codebook::Mul1 => ("mul1", 0x83dc_d12d),
        };
        let data = multiplier.to_le_bytes().to_vec();
        Some(Written { suffix: suffix.into(), dtype: DType::I32, shape: Vec::new(), data })
    }
}

/// A vector of scales as it is stored.
fn halves(suffix: &str, values: &[f16]) -> Written {
    let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Written { suffix: suffix.into(), dtype: DType::F16, shape: vec![values.len()], data }
}

impl Method for Exl3 {
    fn name(&self) -> String {
        let codebook = match self.codebook {
            Codebook::ThreeInst => "3inst",
            Codebook::Mcg => "mcg",
            Codebook::Mul1 => "mul1",
        };
        format!("exl3 {} bits {codebook}", self.bits)
    }

    fn quantise(
        &self,
        compute: &dyn Compute,
        module: &str,
        weight: &Matrix,
        hessian: Option<&Hessian>,
    ) -> Result<Quantised> {
        let refuse = |why: String| Error::Module { module: module.into(), why };
        let [out, inputs] = [weight.rows(), weight.cols()];
        if out == 0 || inputs == 0 {
            return Err(refuse(format!("a weight of {out} x {inputs} has nothing to quantise")));
        }
        if let Some(at) = weight.data().iter().position(|v| !v.is_finite()) {
            let (value, row, col) = (weight.data()[at], at / inputs, at % inputs);
            return Err(refuse(format!("the weight at [{row}, {col}] is {value}; repair the checkpoint")));
        }
        if let Some(hessian) = hessian {
            if hessian.size() != inputs {
                return Err(refuse(format!("expected a Hessian of {inputs} inputs, found {}", hessian.size())));
            }
            if let Some(at) = hessian.sums().data().iter().position(|v| !v.is_finite()) {
                let (value, row, col) = (hessian.sums().data()[at], at / inputs, at % inputs);
                return Err(refuse(format!("the Hessian at [{row}, {col}] is {value}; calibrate again")));
            }
        }

        let (mut space, mut regular) = Space::of(compute, module, weight);
        let scale = scale::search(compute, self, &regular)?;
        space.scale_inputs(1.0 / scale);
        space.balance();
        regular.data_mut().iter_mut().for_each(|w| *w *= scale);
        let feedback = match hessian {
            Some(hessian) => ldlq::feedback(compute, module, &space, hessian)?,
            None => None,
        };
        let (trellis, mut coded) = ldlq::encode(compute, self, regular, feedback.as_ref())?;
        Space::turn_back(compute, &mut coded);
        if let (Some(hessian), true) = (hessian, feedback.is_some()) {
            drop(feedback);
            fit::fit(compute, &mut space, weight, &coded, hessian)?;
        }
        let (suh, svh) = space.stored().map_err(refuse)?;
        Space::scale(compute, &mut coded, &suh, &svh);

        let [down, across] = [coded.cols() / TILE, coded.rows() / TILE];
        let shape = vec![down, across, TILE * self.bits];
        let data = trellis.into_iter().flat_map(u16::to_le_bytes).collect();
        let trellis = Written { suffix: "trellis".into(), dtype: DType::I16, shape, data };
        let mut tensors = vec![trellis, halves("suh", &suh), halves("svh", &svh)];
        tensors.extend(self.marker());
        let decoded = if [coded.rows(), coded.cols()] == [out, inputs] {
            coded
        } else {
            Matrix::new(out, inputs, (0..out).flat_map(|row| &coded.row(row)[..inputs]).copied().collect())?
        };
        Ok(Quantised { tensors, decoded })
    }
}
