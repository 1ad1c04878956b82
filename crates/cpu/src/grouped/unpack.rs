//! Codes of a step from their planes to one byte each.

use crate::simd::Simd;

/// Bytes of a step's codes.
pub(crate) const fn step_bytes(bits: u32) -> usize {
    64 * bits as usize
}

/// The eight vectors of a step, each code in a byte.
///
/// # Safety
/// `p` must be valid for [`step_bytes`], the features of `S` enabled, and `bits` in 2..=8.
#[inline(always)]
pub(crate) unsafe fn codes<S: Simd>(bits: u32, p: *const u8) -> [S::V; 8] {
    // SAFETY: the caller's promise; each arm reads 64 bytes for each of its bits.
    unsafe {
        match bits {
            2 => twos::<S>(p),
            3 => ones::<S, 2>(twos::<S>(p), p.add(128)),
            4 => fours::<S>(p),
            5 => ones::<S, 4>(fours::<S>(p), p.add(256)),
            6 => twos_above::<S>(fours::<S>(p), p.add(256)),
            7 => ones::<S, 6>(twos_above::<S>(fours::<S>(p), p.add(256)), p.add(384)),
            _ => {
                let mut v = [S::bytes(p); 8];
                for i in 1..8 {
                    v[i] = S::bytes(p.add(64 * i));
                }
                v
            }
        }
    }
}

#[inline(always)]
unsafe fn fours<S: Simd>(p: *const u8) -> [S::V; 8] {
    // SAFETY: the caller vouches for 256 bytes.
    unsafe {
        let (a, b, c, d) = (S::bytes(p), S::bytes(p.add(64)), S::bytes(p.add(128)), S::bytes(p.add(192)));
        [
            S::field::<0, 15>(a),
            S::field::<4, 15>(a),
            S::field::<0, 15>(b),
            S::field::<4, 15>(b),
            S::field::<0, 15>(c),
            S::field::<4, 15>(c),
            S::field::<0, 15>(d),
            S::field::<4, 15>(d),
        ]
    }
}

#[inline(always)]
unsafe fn twos<S: Simd>(p: *const u8) -> [S::V; 8] {
    // SAFETY: the caller vouches for 128 bytes.
    unsafe {
        let (a, b) = (S::bytes(p), S::bytes(p.add(64)));
        [
            S::field::<0, 3>(a),
            S::field::<2, 3>(a),
            S::field::<4, 3>(a),
            S::field::<6, 3>(a),
            S::field::<0, 3>(b),
            S::field::<2, 3>(b),
            S::field::<4, 3>(b),
            S::field::<6, 3>(b),
        ]
    }
}

/// Two more bits above four.
#[inline(always)]
unsafe fn twos_above<S: Simd>(v: [S::V; 8], p: *const u8) -> [S::V; 8] {
    // SAFETY: the caller vouches for 128 bytes.
    unsafe {
        let (a, b) = (S::bytes(p), S::bytes(p.add(64)));
        [
            S::insert::<0, 3, 4>(v[0], a),
            S::insert::<2, 3, 4>(v[1], a),
            S::insert::<4, 3, 4>(v[2], a),
            S::insert::<6, 3, 4>(v[3], a),
            S::insert::<0, 3, 4>(v[4], b),
            S::insert::<2, 3, 4>(v[5], b),
            S::insert::<4, 3, 4>(v[6], b),
            S::insert::<6, 3, 4>(v[7], b),
        ]
    }
}

/// One more bit above `T`.
#[inline(always)]
unsafe fn ones<S: Simd, const T: u32>(v: [S::V; 8], p: *const u8) -> [S::V; 8] {
    // SAFETY: the caller vouches for 64 bytes.
    unsafe {
        let a = S::bytes(p);
        [
            S::insert::<0, 1, T>(v[0], a),
            S::insert::<1, 1, T>(v[1], a),
            S::insert::<2, 1, T>(v[2], a),
            S::insert::<3, 1, T>(v[3], a),
            S::insert::<4, 1, T>(v[4], a),
            S::insert::<5, 1, T>(v[5], a),
            S::insert::<6, 1, T>(v[6], a),
            S::insert::<7, 1, T>(v[7], a),
        ]
    }
}
