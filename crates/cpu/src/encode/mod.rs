//! Finding the codes of an EXL3 trellis: for the 256 weights of a tile, the closed walk through the 16-bit states whose
//! values come closest to them.
//!
//! The walk through a circle of states is found by the Viterbi algorithm. QTIP (Tseng et al. 2024) and EXL3 take two passes:
//! one around position 0 with free ends settles the state there, and one starts and ends in it. Here one is mostly enough:
//! it starts anywhere, half-way before position 0, and goes once around from there. The way back from a state at the end comes
//! through some state at position 0, mostly the same for all; where it comes through the state that it ends in, what lies
//! between is the cheapest closed walk through that state, as the cheapest of all ways is cheaper than those that have to start
//! there. So the state that one way back comes through is where the next begins. Tiles of which no walk is closed after some,
//! about one in twenty, are searched again from their last state. Errors are a little lower than those of the two passes
//! (by 0.1 % at 3 bits), as what settles a state lies farther.
//!
//! A step computes 65,536 costs for each tile: a subtraction, a fused multiply-add and a minimum for a vector of them
//! (`step`), with values in an order that makes every load a vector (`table`). Nothing is noted on the way: the costs of all
//! states are kept every few steps, and the way back computes again which of the few ways that lead to its state was the
//! cheapest (`back`).
//!
//! In exact mode costs are `f32`, and results are those of the plain algorithm (`tests`) bit for bit on every level: of equal
//! ways the one from the lowest state. In fast mode they are `f16` where the machine computes with it, up to
//! [`HALF_BITS`] bits: with the smallest cost taken off every 16 steps, the costs of ways that matter are so small that
//! rounding them adds less than 0.1 % to the squared error.

mod back;
mod rooms;
mod search;
mod step;
mod table;
#[cfg(test)]
mod tests;

pub use rooms::TILE;

use crate::buffer::{Shared, scratch};
use crate::mat::{at_least, same};
use crate::simd::quarters::{Number, run_f16};
use crate::{Cpu, Error, Mode, Result, simd};
use half::f16;
use marlin_checkpoint::weight::Codebook;
use rooms::Rooms;
use search::{Search, Walks};
use std::sync::OnceLock;
use step::TILES;
use table::Table;

/// The most bits with `f16` costs: with more, targets rounded to `f16` would be too coarse.
pub const HALF_BITS: usize = 5;
/// Targets farther from zero are taken for this: all codebooks end below 5, and errors beyond only have to stay comparable.
const FARTHEST: f32 = 256.0;
/// Farther targets would make costs too large for `f16` to be precise.
const HALF_FARTHEST: f32 = 8.0;
/// The search with costs of a type.
trait Costs: Number {
    /// Lanes of a quarter.
    const LANES: usize;

    /// The codebook in the order of the search, made once.
    fn table(codebook: Codebook, bits: usize) -> &'static Table<Self>;

    /// Searches some tiles.
    ///
    /// # Safety
    /// The machine can compute with these costs, and the rooms have the memory that they need.
    unsafe fn run(cpu: &Cpu, search: Search<Self>) -> Walks;
}

type Tables<N> = [[OnceLock<Table<N>>; 8]; 3];

fn book(codebook: Codebook) -> usize {
    match codebook {
        Codebook::ThreeInst => 0,
        Codebook::Mcg => 1,
        Codebook::Mul1 => 2,
    }
}

impl Costs for f32 {
    const LANES: usize = 4;

    fn table(codebook: Codebook, bits: usize) -> &'static Table<f32> {
        static TABLES: Tables<f32> = [const { [const { OnceLock::new() }; 8] }; 3];
        TABLES[book(codebook)][bits - 1].get_or_init(|| Table::new(codebook, bits, f32::LANES))
    }

    unsafe fn run(cpu: &Cpu, search: Search<f32>) -> Walks {
        // SAFETY: the caller's promises.
        unsafe { simd::run(cpu.level(), search) }
    }
}

impl Costs for f16 {
    const LANES: usize = 8;

    fn table(codebook: Codebook, bits: usize) -> &'static Table<f16> {
        static TABLES: Tables<f16> = [const { [const { OnceLock::new() }; 8] }; 3];
        TABLES[book(codebook)][bits - 1].get_or_init(|| Table::new(codebook, bits, f16::LANES))
    }

    unsafe fn run(_cpu: &Cpu, search: Search<f16>) -> Walks {
        // SAFETY: the caller's promises.
        unsafe { run_f16(search) }
    }
}

/// Finds the 16-bit words whose values are closest to `targets`: tiles of 256 weights in the order of the stream, each a
/// closed walk, `words[i] = words[i - 1] << bits | symbol` around the tile. Targets that are not numbers are an error; those
/// beyond any codebook's reach, 256 and more, are equally far.
pub fn encode(
    cpu: &Cpu,
    mode: Mode,
    codebook: Codebook,
    bits: usize,
    targets: &[f32],
    words: &mut [u16],
) -> Result<()> {
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
    let all = Shared::of(words);
    let is_far = |tile: &[f32; TILE]| tile.iter().any(|t| t.abs() > HALF_FARTHEST);
    let half = mode == Mode::Fast && bits <= HALF_BITS && cpu.level().has_f16();
    let (near, far): (Vec<usize>, Vec<usize>) = (0..tiles.len()).partition(|tile| half && !is_far(&tiles[*tile]));
    // SAFETY: the level is one that the machine has, and halves are asked for where it has them.
    unsafe {
        search::<f16>(cpu, f16::table(codebook, bits), tiles, &near, &all);
        search::<f32>(cpu, f32::table(codebook, bits), tiles, &far, &all);
    }
    Ok(())
}

/// Searches some of the tiles.
///
/// # Safety
/// The machine can compute costs of this type, and there are words for each tile.
unsafe fn search<N: Costs>(cpu: &Cpu, table: &Table<N>, tiles: &[[f32; TILE]], chosen: &[usize], words: &Shared<u16>) {
    // The states at position 0 of walks that are not closed.
    let mut open = vec![None; chosen.len()];
    let found = Shared::of(&mut open);
    // SAFETY: the caller's promises; a place of `open` belongs to one task.
    unsafe {
        let chosen = |i: usize| (chosen[i], None);
        groups(cpu, table, tiles, open.len(), &chosen, words, &|i, start| found.part(i, 1)[0] = start);
    }
    let open: Vec<_> = chosen.iter().zip(open).filter(|(_, start)| start.is_some()).collect();
    // SAFETY: the caller's promises.
    unsafe { groups(cpu, table, tiles, open.len(), &|i| (*open[i].0, open[i].1), words, &|_, _| ()) };
}

/// Searches `n` tiles in groups, on all threads. Which tile is the `i`-th, and the state it starts in, says `chosen`; where its
/// walk is not closed is told to `open`.
///
/// # Safety
/// The machine can compute costs of this type, tiles are not chosen twice, and there are words for each.
unsafe fn groups<N: Costs>(
    cpu: &Cpu,
    table: &Table<N>,
    tiles: &[[f32; TILE]],
    n: usize,
    chosen: &(dyn Fn(usize) -> (usize, Option<usize>) + Sync),
    words: &Shared<u16>,
    open: &(dyn Fn(usize, Option<usize>) + Sync),
) {
    cpu.pool().run(n.div_ceil(TILES), &|group| {
        // Where tiles are wanting, the last is searched several times.
        let group: [usize; TILES] = std::array::from_fn(|i| (group * TILES + i).min(n - 1));
        let chosen = group.map(chosen);
        let targets = chosen.map(|(tile, _)| tiles[tile].map(|t| t.clamp(-FARTHEST, FARTHEST)));
        let start = chosen[0].1.map(|_| chosen.map(|(_, start)| start.unwrap_or_default()));
        scratch(size_of::<N>() * Rooms::<N>::values(table.bits), |memory| {
            let rooms = Rooms::new(table.bits, N::LANES, memory.cast());
            // SAFETY: the rooms are as large as they ask for; the rest is the caller's promise.
            let walks = unsafe { N::run(cpu, Search { table, rooms, targets: targets.each_ref(), start }) };
            for lane in 0..TILES {
                // SAFETY: there are as many words as targets, and each tile belongs to one task.
                unsafe { words.part(chosen[lane].0 * TILE, TILE) }.copy_from_slice(&walks.words[lane]);
                open(group[lane], (!walks.closed[lane]).then_some(walks.start[lane]));
            }
        });
    });
}
