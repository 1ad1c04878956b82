//! Values of a codebook in the order in which a step of the search reads them.

use crate::simd::quarters::Number;
use marlin_checkpoint::weight::Codebook;

/// Words.
pub const WORDS: usize = 1 << BITS;
/// Bits of a word.
pub const BITS: usize = 16;
/// Symbols that stand next to each other in the table, where there are so many.
const CHUNK: usize = 4;

/// How the words of `bits` bits fall apart, for vectors whose quarters have `size` lanes.
///
/// A word is the symbol (lowest) after the state that it comes from; the state that it goes to is its lower
/// 16 - `bits` bits. So `1 << bits` states that differ in their upper bits, *siblings*, compete for the same successors,
/// which are neighbours. The lanes of a quarter are neighbouring states. Where a family has fewer than `size` members that
/// are neighbours (7 and 8 bits), lanes hold siblings, too.
#[derive(Clone, Copy)]
pub struct Order {
    /// Symbols.
    pub symbols: usize,
    /// States with the same upper bits.
    pub family: usize,
    /// Of a vector's lanes in a quarter, those that go to states of their own.
    pub lanes: usize,
    /// Vectors that compete for the same states.
    pub rivals: usize,
    /// Symbols that stand next to each other in the table.
    pub chunk: usize,
}

impl Order {
    /// Of words of `bits` bits, 1 to 8.
    #[inline(always)]
    pub const fn new(bits: usize, size: usize) -> Order {
        let symbols = 1 << bits;
        let family = WORDS >> (2 * bits);
        let lanes = if family < size { family } else { size };
        let chunk = if symbols < CHUNK { symbols } else { CHUNK };
        Order { symbols, family, lanes, rivals: symbols * lanes / size, chunk }
    }
}

/// A codebook for a number of bits, in the order of the search: for each vector's worth of a family, each chunk of symbols, each rival
/// vector and each symbol of the chunk, the values of the words from its states.
pub struct Table<N> {
    /// Bits of a symbol, 1 to 8.
    pub bits: usize,
    /// Values by word.
    pub values: Vec<f32>,
    /// Values in the order of the search.
    pub ordered: Vec<N>,
}

impl<N: Number> Table<N> {
    /// Of a codebook; `bits` from 1 to 8, `size` lanes in a quarter.
    pub fn new(codebook: Codebook, bits: usize, size: usize) -> Table<N> {
        let values: Vec<f32> = (0..=u16::MAX).map(|word| codebook.value(word).to_f32()).collect();
        let order = Order::new(bits, size);
        let mut ordered = Vec::with_capacity(WORDS);
        for first in (0..order.family).step_by(order.lanes) {
            for chunk in (0..order.symbols).step_by(order.chunk) {
                for rival in 0..order.rivals {
                    let state = rival * (size / order.lanes) * order.family + first;
                    for symbol in chunk..chunk + order.chunk {
                        ordered.extend((0..size).map(|lane| N::of(values[(state + lane) << bits | symbol])));
                    }
                }
            }
        }
        Table { bits, values, ordered }
    }

    /// Number of states.
    pub fn states(&self) -> usize {
        WORDS >> self.bits
    }
}
