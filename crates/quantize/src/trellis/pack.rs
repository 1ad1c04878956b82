//! Between a matrix and the streams of its tiles.

use super::{AREA, TILE};
use marlin_checkpoint::weight::trellis::position;

/// The words `[16 x bits]` that store a tile's codes: each code's lowest `bits` bits, most significant first, in a stream of
/// 32-bit words, most significant bit first, each of which is stored as its lower half, then its upper one.
pub fn pack(codes: &[u16], bits: usize, to: &mut [u16]) {
    to.fill(0);
    for (t, code) in codes.iter().enumerate() {
        for bit in 0..bits {
            let n = t * bits + bit;
            // The upper half of a 32-bit word comes first in the stream.
            let word = (n / 16) ^ 1;
            to[word] |= (code >> (bits - 1 - bit) & 1) << (15 - n % 16);
        }
    }
}

/// For each place in a tile's stream, its output and input within the tile.
pub fn places() -> [(usize, usize); AREA] {
    let mut places = [(0, 0); AREA];
    for input in 0..TILE {
        for output in 0..TILE {
            places[position(input, output)] = (output, input);
        }
    }
    places
}
