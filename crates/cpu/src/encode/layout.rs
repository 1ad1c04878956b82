//! The order in which states and words lie in memory, so that a step of the search walks through both.
//!
//! A word of 16 bits is the new symbol (`bits` bits, lowest) after the state that it comes from; the state that it goes to
//! is its lower 16 - `bits` bits. So `1 << bits` states that differ in their upper bits, *siblings*, compete for the same
//! successors, which are neighbours.
//!
//! * From 4 bits on, a vector's sixteen lanes are neighbours that all come from the same states: the cost of a state is
//!   spread over the lanes, and states lie in their own order.
//! * With 3 bits, a vector holds eight neighbours of two tiles, by turns, whose costs lie by turns, too; a line of the
//!   codebook is for two such vectors.
//! * Below, lanes are states whose siblings are in one vector, too, so that costs are loaded as they lie. New costs come
//!   out with successors of one state in different vectors, and a transposition of 16 vectors puts them in order; which four
//!   bits of a state choose its lane is such that this order is the same one again.

use half::f16;
use marlin_checkpoint::weight::Codebook;

/// Words, and bits of one.
pub const WORDS: usize = 1 << BITS;
const BITS: usize = 16;
/// Values of a line of the cache.
const LINE: usize = 16;
/// Vectors of new states that are computed side by side from 4 bits on.
pub const GROUP: usize = 8;

/// For 1 and 2 bits: the bits of a state that choose its lane, and those of `state >> bits` that choose one of the parts of
/// a block of 256 new states. Shifted by `bits`, the latter are the former's last.
const LANE_BITS: [[usize; 4]; 2] = [[0, 2, 4, 6], [0, 1, 4, 5]];
const PART_BITS: [&[usize]; 2] = [&[1, 3, 5], &[2, 3]];

/// A codebook for a number of bits, in the order of the search.
pub struct Layout {
    /// Bits of a symbol, 1 to 8.
    pub bits: usize,
    /// Values by word.
    pub values: Vec<f32>,
    /// From 3 bits on: values in the order of the search.
    pub table: Vec<f32>,
    /// Below: the same as the bits of `f16`, which they are exactly. There are more states than vectors of a table there,
    /// and the second cache's bandwidth is what the search waits for.
    pub halves: Vec<u16>,
    /// Where the cost of each state lies.
    pub places: Vec<u16>,
    /// Below 3 bits: for each block, part and upper bits, where the costs of sixteen states begin.
    pub offsets: Vec<u32>,
}

/// The bits of `value`, lowest first, at `places`.
fn spread(value: usize, places: impl IntoIterator<Item = usize>) -> usize {
    places.into_iter().enumerate().map(|(i, place)| (value >> i & 1) << place).sum()
}

impl Layout {
    /// Of a codebook; `bits` from 1 to 8.
    pub fn new(codebook: Codebook, bits: usize) -> Layout {
        let values = (0..=u16::MAX).map(|word| codebook.value(word).to_f32()).collect();
        let empty =
            Layout { bits, values, table: Vec::new(), halves: Vec::new(), places: Vec::new(), offsets: Vec::new() };
        match bits {
            1 | 2 => empty.transposed(),
            3 => empty.by_turns(),
            _ => empty.plain(),
        }
    }

    /// Number of states.
    pub fn states(&self) -> usize {
        WORDS >> self.bits
    }

    /// Where the `index`-th cost lies: siblings, which are read together, would all fall into one set of the first cache
    /// without a line between them.
    #[inline(always)]
    pub fn place(&self, index: usize) -> usize {
        if self.bits < 3 { index + (index >> (BITS - 2 * self.bits)) * LINE } else { index }
    }

    /// Values between the costs of one step and those of another.
    pub fn room(&self) -> usize {
        self.place(self.states()) + 5 * LINE
    }

    /// Tiles whose costs lie by turns.
    pub fn turns(&self) -> usize {
        if self.bits == 3 { 2 } else { 1 }
    }

    fn by_turns(mut self) -> Layout {
        self.places = (0..self.states()).map(|state| state as u16).collect();
        let symbols = 1 << self.bits;
        for from in (0..self.states()).step_by(GROUP * symbols) {
            for upper in 0..symbols {
                for line in (0..GROUP).step_by(2) {
                    let word = upper << (BITS - self.bits) | (from + line * symbols);
                    for symbol in 0..symbols {
                        self.table.extend([self.values[word + symbol], self.values[word + symbols + symbol]]);
                    }
                }
            }
        }
        self
    }

    fn plain(mut self) -> Layout {
        self.places = (0..self.states()).map(|state| state as u16).collect();
        let block = GROUP * 16;
        for from in (0..self.states()).step_by(block) {
            for upper in 0..1 << self.bits {
                let word = upper << (BITS - self.bits) | from;
                self.table.extend_from_slice(&self.values[word..word + block]);
            }
        }
        self
    }

    fn transposed(mut self) -> Layout {
        let bits = self.bits;
        let (lanes, parts) = (LANE_BITS[bits - 1], PART_BITS[bits - 1]);
        let inner = lanes.map(|bit| bit + bits);
        // What is left chooses the block.
        let outer: Vec<usize> = (0..BITS - bits).filter(|bit| !lanes.contains(bit) && !inner.contains(bit)).collect();
        self.places = vec![0; self.states()];
        for place in 0..self.states() {
            let state = spread(place & 15, lanes) | spread(place >> 4 & 15, inner) | spread(place >> 8, outer.clone());
            self.places[state] = self.place(place) as u16;
        }
        for block in 0..self.states() >> 8 {
            for part in 0..1 << (4 - bits) {
                // The bits of `new state >> bits` but for the lanes'.
                let base = spread(block, outer.iter().map(|bit| bit - bits)) | spread(part, parts.iter().copied());
                for upper in 0..1 << bits {
                    let from = upper << (BITS - 2 * bits) | base;
                    self.offsets.push(u32::from(self.places[from]));
                    for symbol in 0..1 << bits {
                        let lane = |lane| (from | spread(lane, lanes)) << bits | symbol;
                        self.halves.extend((0..16).map(|i| f16::from_f32(self.values[lane(i)]).to_bits()));
                    }
                }
            }
        }
        self
    }
}
