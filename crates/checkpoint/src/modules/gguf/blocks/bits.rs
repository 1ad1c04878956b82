//! Eight codes at a time: one in each byte of a `u64`, the first in the lowest.

/// The eight bytes of `from` at `at`.
#[inline(always)]
pub(super) fn eight(from: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| from[at + i]))
}

/// The same byte eight times.
#[inline(always)]
pub(super) const fn each(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}

/// Bit k of `bits` as bit 0 of byte k.
#[inline(always)]
pub(super) fn spread(bits: u8) -> u64 {
    // Byte k keeps bit k; adding 0x7f carries any bit into the topmost.
    let kept = each(bits) & 0x8040_2010_0804_0201;
    (kept + each(0x7f)) >> 7 & each(1)
}

/// Writes eight codes of `BITS` bits as group `group` of a bit stream, least significant bit first.
#[inline(always)]
pub(super) fn put<const BITS: usize>(stream: &mut [u8], group: usize, codes: u64) {
    // Neighbours are pushed together: in 16 bits, in 32, in 64.
    let x = join(codes, 8, BITS);
    let x = join(x, 16, 2 * BITS);
    let x = join(x, 32, 4 * BITS);
    stream[group * BITS..][..BITS].copy_from_slice(&x.to_le_bytes()[..BITS]);
}

/// Of each two fields of `ones` bits in `width`, one of twice the bits.
#[inline(always)]
const fn join(x: u64, width: usize, ones: usize) -> u64 {
    let low = lanes(2 * width, ones);
    x & low | x >> (width - ones) & low << ones
}

/// The lowest `ones` bits of each `width` bits.
const fn lanes(width: usize, ones: usize) -> u64 {
    let one = (1u64 << ones) - 1;
    let mut all = 0;
    let mut at = 0;
    while at < 64 {
        all |= one << at;
        at += width;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_codes_become_a_stream() {
        fn check<const BITS: usize>() {
            for seed in 1..200u64 {
                let codes: [u8; 16] = std::array::from_fn(|i| {
                    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * i as u64) >> 40) as u8 & ((1u16 << BITS) - 1) as u8
                });
                let mut stream = vec![0; 2 * BITS];
                put::<BITS>(&mut stream, 0, eight(&codes, 0));
                put::<BITS>(&mut stream, 1, eight(&codes, 8));
                assert_eq!(stream, crate::weight::grouped::pack(&codes, 16, BITS as u32)[..2 * BITS], "{BITS}");
            }
        }
        check::<2>();
        check::<3>();
        check::<4>();
        check::<5>();
        check::<6>();
        check::<8>();
    }

    #[test]
    fn bits_are_spread() {
        for bits in 0..=255u8 {
            let expected: [u8; 8] = std::array::from_fn(|k| bits >> k & 1);
            assert_eq!(spread(bits), u64::from_le_bytes(expected));
        }
    }
}
