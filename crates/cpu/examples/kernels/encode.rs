//! How fast codes of a trellis are found, on one core.

use super::{best, clock};
use marlin_checkpoint::weight::Codebook;
use marlin_cpu::encode::{HALF_BITS, TILE, encode};
use marlin_cpu::{Cpu, Level, Mode, Result};

/// Costs of ways that the plain algorithm computes for a weight in its two passes, and those that ours does in one of half
/// as many steps more than a tile has.
const WAYS: [f64; 2] = [2.0 * 65_536.0, 1.5 * 65_536.0];

/// Weights a second of one core by bits, codebook and mode, against two floors: the plain algorithm's, five vector operations for
/// sixteen ways, and ours, three for a vector of them; with two operations a cycle.
pub fn search(level: Level) -> Result<()> {
    let cpu = Cpu::with_level(1, level);
    let (hz, tiles) = (clock(), 32);
    // Registers of narrow levels hold fewer lanes.
    let narrow = match level {
        Level::Scalar => 16.0,
        Level::Avx2 => 2.0,
        Level::Neon | Level::NeonBf16 => 4.0,
        _ => 1.0,
    };
    let floor = |lanes: f64, operations: f64, ways: f64| hz * 2.0 * lanes / narrow / operations / ways;
    let plain = floor(16.0, 5.0, WAYS[0]);
    println!("encode: {level}, {:.2} GHz by a chain of shifts; plain floor {:.3} M weights/s", hz / 1e9, plain / 1e6);
    // Sums of four numbers of a linear congruence, about Gaussian.
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let targets: Vec<f32> = (0..tiles * TILE).map(|_| 1.7 * (next() + next() + next() + next())).collect();
    let mut words = vec![0; targets.len()];
    for bits in 1..=8 {
        for (codebook, name) in [(Codebook::Mul1, "mul1"), (Codebook::ThreeInst, "3inst"), (Codebook::Mcg, "mcg")] {
            for (mode, lanes) in [(Mode::Exact, 16.0), (Mode::Fast, 32.0)] {
                if mode == Mode::Fast && !(bits <= HALF_BITS && level.has_f16()) {
                    continue;
                }
                let runs = if level < Level::Avx2 { 1 } else { 5 };
                let t = best(runs, || encode(&cpu, mode, codebook, bits, &targets, &mut words))?;
                let rate = targets.len() as f64 / t;
                println!(
                    "encode {bits} bits {name} f{}: {:.3} M weights/s, {:.2} x the plain floor, {:.0}% of ours, {:.1} hours for 8.2 G weights on two cores",
                    512.0 / lanes,
                    rate / 1e6,
                    rate / plain,
                    100.0 * rate / floor(lanes, 3.0, WAYS[1]),
                    8.2e9 / rate / 2.0 / 3600.0
                );
            }
        }
    }
    Ok(())
}
