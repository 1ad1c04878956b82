//! The space in which a matrix is coded: signs, scales and rotations that make its weights look alike.
//!
//! `W = diag(sv) R X R diag(su)` `[out, in]`, with `R` the block-diagonal Hadamard rotation of 128, its own inverse.

use super::BLOCK;
use crate::compute::for_rows;
use crate::{Compute, Matrix};
use half::f16;
use marlin_checkpoint::weight::hadamard;

/// What the weights' standard deviation is brought to, and the sign that EXL3 gives the inputs' scales.
const SPREAD: f64 = -1.243_710_88;
/// The scale of a channel of zeros while its weights are divided by it.
const NOTHING: f32 = 0.1;

/// Scales, signs included.
pub struct Space {
    /// Of inputs, padding included.
    pub inputs: Vec<f32>,
    /// Of outputs, padding included.
    pub outputs: Vec<f32>,
    /// Which outputs have weights at all.
    alive: Vec<bool>,
}

/// Signs that depend on a module's name alone.
struct Signs(u64);

impl Signs {
    fn new(module: &str) -> Self {
        // FNV-1a.
        Self(module.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)))
    }

    /// The next sign, by SplitMix64.
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) >> 63 == 1 { -1.0 } else { 1.0 }
    }
}

fn rms(values: impl ExactSizeIterator<Item = f32>) -> f64 {
    let n = values.len();
    (values.map(|v| f64::from(v) * f64::from(v)).sum::<f64>() / n as f64).sqrt()
}

impl Space {
    /// The space of a weight `[out, in]`, and the weight in it, padded with zeros to multiples of 128.
    pub fn of(compute: &dyn Compute, module: &str, weight: &Matrix) -> (Self, Matrix) {
        let [out, inputs] = [weight.rows(), weight.cols()];
        let [rows, cols] = [out, inputs].map(|n| n.next_multiple_of(BLOCK));
        let mut x = Matrix::zeros(rows, cols);
        for_rows(compute, x.data_mut(), cols, 16, &|r, row| {
            if r < out {
                row[..inputs].copy_from_slice(weight.row(r));
            }
        });
        let mut signs = Signs::new(module);
        let mut su: Vec<f32> = (0..cols).map(|_| signs.next()).collect();
        let mut sv: Vec<f32> = (0..rows).map(|_| signs.next()).collect();

        // Outputs that are as strong as others.
        let strength: Vec<f64> = (0..rows).map(|r| rms(x.row(r)[..inputs].iter().copied())).collect();
        let mean = strength.iter().sum::<f64>() / out as f64;
        let alive: Vec<bool> = strength.iter().map(|s| *s > 0.0).collect();
        for (sv, s) in sv.iter_mut().zip(&strength) {
            *sv *= if *s > 0.0 { (s / mean) as f32 } else { NOTHING };
        }
        for_rows(compute, x.data_mut(), cols, 16, &|r, row| row.iter_mut().for_each(|v| *v /= sv[r]));
        rotate_outputs(compute, &mut x);

        // Inputs likewise.
        let mut squares = vec![0.0f64; cols];
        for r in 0..rows {
            squares.iter_mut().zip(x.row(r)).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
        }
        for (su, square) in su.iter_mut().zip(squares) {
            let strength = (square / rows as f64).sqrt();
            *su *= (if strength > 0.0 { strength / SPREAD } else { f64::from(NOTHING) / SPREAD }) as f32;
        }
        for_rows(compute, x.data_mut(), cols, 16, &|_, row| {
            row.iter_mut().zip(&su).for_each(|(v, s)| *v /= s);
            hadamard(row, BLOCK);
        });
        (Self { inputs: su, outputs: sv, alive }, x)
    }

    /// Makes the scales of inputs `factor` times as large.
    pub fn scale_inputs(&mut self, factor: f32) {
        self.inputs.iter_mut().for_each(|s| *s *= factor);
    }

    /// Moves a power of two from the outputs' scales, which are about one, to the inputs' where these would leave the range in
    /// which `f16` is precise.
    pub fn balance(&mut self) {
        const LEAST: f32 = 1.0 / 256.0;
        const MOST: i32 = 10;
        let most = self.inputs.iter().fold(0.0f32, |most, s| most.max(s.abs()));
        if most > 0.0 && most < LEAST {
            let factor = 2.0f32.powi(((LEAST / most).log2().ceil() as i32).min(MOST));
            self.inputs.iter_mut().for_each(|s| *s *= factor);
            self.outputs.iter_mut().for_each(|s| *s /= factor);
        }
    }

    /// The scales as EXL3 stores them: of inputs and of outputs. Outputs without weights get zero, and so do inputs'
    /// scales too small for `f16`; one that is too large is an error.
    pub fn stored(&self) -> Result<(Vec<f16>, Vec<f16>), String> {
        let narrow = |side: &str, values: &[f32]| -> Result<Vec<f16>, String> {
            let stored: Vec<f16> = values.iter().map(|v| f16::from_f32(*v)).collect();
            match stored.iter().position(|v| !v.is_finite()) {
                Some(at) => Err(format!("the scale of {side} {at} is {}, too large for EXL3's f16", values[at])),
                None => Ok(stored),
            }
        };
        let mut outputs = narrow("output", &self.outputs)?;
        outputs.iter_mut().zip(&self.alive).filter(|(_, alive)| !**alive).for_each(|(s, _)| *s = f16::ZERO);
        Ok((narrow("input", &self.inputs)?, outputs))
    }

    /// Undoes the rotations of coded weights.
    pub fn turn_back(compute: &dyn Compute, x: &mut Matrix) {
        let cols = x.cols();
        for_rows(compute, x.data_mut(), cols, 16, &|_, row| hadamard(row, BLOCK));
        rotate_outputs(compute, x);
    }

    /// Turns coded weights, their rotations undone, into those of the original space, as a reader of EXL3 would.
    pub fn scale(compute: &dyn Compute, x: &mut Matrix, suh: &[f16], svh: &[f16]) {
        let cols = x.cols();
        for_rows(compute, x.data_mut(), cols, 16, &|r, row| {
            let output = svh[r].to_f32();
            row.iter_mut().zip(suh).for_each(|(v, input)| *v *= input.to_f32() * output);
        });
    }
}

/// Rotates each 128 rows: the same additions for all columns.
fn rotate_outputs(compute: &dyn Compute, x: &mut Matrix) {
    let cols = x.cols();
    let norm = (1.0 / (BLOCK as f64).sqrt()) as f32;
    for_rows(compute, x.data_mut(), BLOCK * cols, 1, &|_, rows| {
        let mut stride = cols;
        while stride < rows.len() {
            for pair in rows.chunks_exact_mut(2 * stride) {
                let (low, high) = pair.split_at_mut(stride);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            stride *= 2;
        }
        rows.iter_mut().for_each(|v| *v *= norm);
    });
}
