//! Finding the codes of an EXL3 trellis: for the 256 weights of a tile, the closed walk through the 16-bit states whose
//! values come closest to them.
//!
//! The walk through a circle of states is found by two passes of the Viterbi algorithm, as QTIP (Tseng et al. 2024) and
//! EXL3 do: one around position 0 with free ends, which settles the state there, and one that starts and ends in it.
//! A pass computes 65,536 costs a step: a subtraction, a fused multiply-add and a minimum for each sixteen of them
//! (`step`), with costs in an order that makes every load a vector or a scalar for all lanes (`layout`). Nothing is noted
//! on the way: the costs of all states are kept every few steps, and the way back computes again which of the few ways
//! that lead to its state was the cheapest (`search`).
//!
//! Costs are `f32`. Results are those of the plain algorithm (`tests`) bit for bit on every level: of equal ways the one
//! from the lowest state.

mod layout;
mod search;
mod step;
#[cfg(test)]
mod tests;

pub use search::TILE;

use crate::buffer::{Shared, scratch};
use crate::mat::{at_least, same};
use crate::simd;
use crate::{Cpu, Error, Result};
use layout::Layout;
use marlin_checkpoint::weight::Codebook;
use search::{Forward, Pass, Rooms, back, cheapest};
use std::sync::OnceLock;
use step::TILES;

/// Steps before and after position 0 in the first pass: once around.
const LEAD: usize = TILE / 2;

/// The codebook in the order of the search, made once.
fn layout(codebook: Codebook, bits: usize) -> &'static Layout {
    static LAYOUTS: [[OnceLock<Layout>; 8]; 3] = [const { [const { OnceLock::new() }; 8] }; 3];
    let book = match codebook {
        Codebook::ThreeInst => 0,
        Codebook::Mcg => 1,
        Codebook::Mul1 => 2,
    };
    LAYOUTS[book][bits - 1].get_or_init(|| Layout::new(codebook, bits))
}

/// Finds the 16-bit words whose values are closest to `targets`: tiles of 256 weights in the order of the stream, each a
/// closed walk, `words[i] = words[i - 1] << bits | symbol` around the tile. Targets that are not numbers are an error.
pub fn encode(cpu: &Cpu, codebook: Codebook, bits: usize, targets: &[f32], words: &mut [u16]) -> Result<()> {
    const OP: &str = "trellis encoding";
    if !(1..=8).contains(&bits) {
        return Err(Error { op: OP, what: "bits, 1 to 8", expected: 8, found: bits });
    }
    let (tiles, rest) = targets.as_chunks::<TILE>();
    same(OP, "weights beyond the last whole tile", 0, rest.len())?;
    at_least(OP, "words", targets.len(), words.len())?;
    if let Some(at) = targets.iter().position(|v| !v.is_finite()) {
        return Err(Error { op: OP, what: "finite targets", expected: targets.len(), found: at });
    }
    let layout = layout(codebook, bits);
    let words = Shared::of(words);
    cpu.pool().run(tiles.len().div_ceil(TILES), &|group| {
        let first = group * TILES;
        // Where tiles are wanting, the last is searched several times.
        let group: [usize; TILES] = std::array::from_fn(|i| (first + i).min(tiles.len() - 1));
        let targets = group.map(|tile| &tiles[tile]);
        scratch(4 * Rooms::values(layout), |memory| {
            let rooms = Rooms::new(layout, memory.cast());
            // SAFETY: the level is one that the machine has; the rooms are as large as the layout asks for.
            let ways = unsafe { search(cpu, layout, rooms, targets) };
            for (tile, way) in group.into_iter().zip(ways).take(tiles.len() - first) {
                // SAFETY: there are as many words as targets, and each tile belongs to one task.
                unsafe { words.part(tile * TILE, TILE) }.copy_from_slice(&way);
            }
        });
    });
    Ok(())
}

/// The words of tiles side by side.
///
/// # Safety
/// The rooms have the memory that they need, and the machine has the level.
unsafe fn search(cpu: &Cpu, layout: &Layout, rooms: Rooms, targets: [&[f32; TILE]; TILES]) -> [[u16; TILE]; TILES] {
    let mut ways = [[0; TILE]; TILES];
    let mut start = [0; TILES];
    // SAFETY: the caller's promises; each pass is run before the way back through it.
    unsafe {
        let pass = Pass::around(LEAD);
        simd::run(cpu.level(), Forward { layout, rooms, pass, targets, start: None });
        for tile in 0..TILES {
            let end = cheapest(layout, rooms, pass, tile);
            start[tile] = back(layout, rooms, pass, tile, targets[tile], end, |_, _| {});
        }
        let pass = Pass::whole();
        simd::run(cpu.level(), Forward { layout, rooms, pass, targets, start: Some(start) });
        for tile in 0..TILES {
            back(layout, rooms, pass, tile, targets[tile], start[tile], |at, word| ways[tile][at] = word);
        }
    }
    ways
}
