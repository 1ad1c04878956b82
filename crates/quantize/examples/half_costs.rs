//! What `f16` costs in the search for a trellis' codes lose against `f32` ones, on real modules: relative errors of weights and
//! of outputs on the calibration text, both ways.
//!
//! `cargo run --release -p marlin-quantize --example half_costs -- MODEL STATS BITS MODULE...` (STATS of `calibrate`).

use marlin_checkpoint::Checkpoint;
use marlin_checkpoint::weight::Codebook;
use marlin_cpu::linear::Rows;
use marlin_cpu::{Cpu, Mode, encode};
use marlin_models::Architecture;
use marlin_quantize::{Compute, Exl3, Hessian, Matrix, Method, Result, Stats};
use std::ops::Range;
use std::path::Path;

/// The CPU with costs in `f32`.
struct Exact(Cpu);

impl Compute for Exact {
    fn ranges(&self, n: usize, grain: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        self.0.ranges(n, grain, body);
    }

    fn accumulate(&self, hessian: &mut Hessian, x: &[f32], weights: Option<&[f32]>) -> Result<usize> {
        self.0.accumulate(hessian, x, weights)
    }

    fn add_products(&self, factor: f32, a: Rows<'_>, b: Rows<'_>, out: &mut [f32], stride: usize) -> Result<()> {
        self.0.add_products(factor, a, b, out, stride)
    }

    fn encode(&self, codebook: Codebook, bits: usize, targets: &[f32], words: &mut [u16]) -> Result<()> {
        Ok(encode::encode(&self.0, Mode::Exact, codebook, bits, targets, words)?)
    }
}

/// `[|E|^2 / |W|^2, tr(E H E^T) / tr(W H W^T)]` of what `compute` makes of a weight.
fn errors(compute: &dyn Compute, bits: usize, module: &str, weight: &Matrix, hessian: &Hessian) -> Result<[f64; 2]> {
    let found = Exl3::new(bits, Codebook::Mul1)?.quantise(compute, module, weight, Some(hessian))?.decoded;
    let error: Vec<f32> = found.data().iter().zip(weight.data()).map(|(a, b)| a - b).collect();
    let square = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    let energy = |values: &[f32]| -> Result<f64> {
        let mut gram = Hessian::new(hessian.size());
        compute.accumulate(&mut gram, values, None)?;
        Ok(gram.sums().data().iter().zip(hessian.sums().data()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum())
    };
    Ok([square(&error) / square(weight.data()), energy(&error)? / energy(weight.data())?])
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, stats, bits, names @ ..] = args.as_slice() else {
        return Err("expected MODEL STATS BITS MODULE...".into());
    };
    let (checkpoint, stats, bits) =
        (Checkpoint::open(Path::new(model))?, Stats::open(Path::new(stats))?, bits.parse()?);
    let inventory = Architecture::parse(&checkpoint.config)?.inventory();
    let modules = checkpoint.modules()?;
    let (half, exact) = (Cpu::new(0), Exact(Cpu::new(0)));
    let mut ratios = [0.0; 2];
    println!("{bits} bits: errors of weights and outputs with f16 costs | with f32 costs | ratio");
    for name in names {
        let features = inventory.features(name).ok_or_else(|| format!("{name}: no such module"))?;
        let layer = name.split('.').nth(2).and_then(|i| i.parse().ok()).ok_or("a module of a layer is expected")?;
        let weight = Matrix::new(features[0], features[1], modules.linear(name, features)?.build()?.matrix()?)?;
        let hessian = stats.layer(layer)?.hessian(name)?.ok_or_else(|| format!("{name}: not calibrated"))?;
        let a = errors(&half, bits, name, &weight, &hessian)?;
        let b = errors(&exact, bits, name, &weight, &hessian)?;
        let ratio = [a[0] / b[0], a[1] / b[1]];
        ratios.iter_mut().zip(ratio).for_each(|(sum, r)| *sum += r / names.len() as f64);
        println!("{:.6} {:.6} | {:.6} {:.6} | {:.5} {:.5}  {name}", a[0], a[1], b[0], b[1], ratio[0], ratio[1]);
    }
    println!("mean ratio: weights {:.5}, outputs {:.5}", ratios[0], ratios[1]);
    Ok(())
}
