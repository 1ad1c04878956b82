//! Plans against brute force, and files of plans.

mod files;
mod limits;
mod optimal;

use super::{Choice, Module};

/// Random numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn unit(&mut self) -> f64 {
        self.below(1 << 30) as f64 / (1u64 << 30) as f64
    }
}

/// A module whose damage falls by four with each bit.
fn module(name: &str, weights: u64, sensitivity: f64, bits: &[u32]) -> Module {
    let choice =
        |b: &u32| Choice { bits: *b, stored: weights * u64::from(*b), damage: sensitivity * 0.25f64.powi(*b as i32) };
    Module { name: name.to_owned(), weights, choices: bits.iter().map(choice).collect() }
}

/// Layers of experts of `gate`, `up` and `down`, some hit much more often than others.
fn experts(layers: usize, count: usize, bits: &[u32], seed: u64) -> Vec<Module> {
    let mut random = Random(seed);
    let mut modules = Vec::new();
    for layer in 0..layers {
        for e in 0..count {
            let often = 0.01 + random.unit().powi(3);
            for (part, weight) in [("gate_proj", 1.0), ("up_proj", 1.0), ("down_proj", 3.0)] {
                let name = format!("model.layers.{layer}.mlp.experts.{e}.{part}");
                modules.push(module(&name, 96, often * weight * (0.7 + 0.6 * random.unit()), bits));
            }
        }
    }
    modules
}
