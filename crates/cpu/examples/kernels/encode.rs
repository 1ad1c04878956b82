//! How fast codes of a trellis are found, on one core.

use super::{best, clock};
use marlin_checkpoint::weight::Codebook;
use marlin_cpu::encode::{TILE, encode};
use marlin_cpu::{Cpu, Level, Result};

/// Costs of ways that the two passes of the search compute for a weight.
const WAYS: f64 = 2.0 * 65_536.0;

/// Weights a second of one core by bits, against the plain floor: five vector operations for each sixteen ways, two of
/// them a cycle.
pub fn search(level: Level) -> Result<()> {
    let cpu = Cpu::with_level(1, level);
    let (hz, tiles) = (clock(), 4);
    let floor = hz * 2.0 * 16.0 / 5.0 / WAYS;
    println!("encode: {level}, {:.2} GHz by a chain of shifts; floor {:.3} M weights/s", hz / 1e9, floor / 1e6);
    // Sums of four numbers of a linear congruence, about Gaussian.
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state as f32 / u32::MAX as f32 - 0.5
    };
    let targets: Vec<f32> = (0..tiles * TILE).map(|_| 1.7 * (next() + next() + next() + next())).collect();
    let mut words = vec![0; targets.len()];
    for bits in 1..=8 {
        let runs = if level < Level::Avx2 { 1 } else { 60 };
        let t = best(runs, || encode(&cpu, Codebook::Mul1, bits, &targets, &mut words))?;
        let rate = targets.len() as f64 / t;
        println!(
            "encode {bits} bits: {:.3} M weights/s, {:.0}% of the floor's rate, {:.1} G ways/s, {:.1} hours for 8.2 G weights on two cores",
            rate / 1e6,
            100.0 * rate / floor,
            rate * WAYS / 1e9,
            8.2e9 / rate / 2.0 / 3600.0
        );
    }
    Ok(())
}
