//! What each block type holds: its codes as a bit stream, and its factors.
//!
//! Definitions: `ggml-common.h` and `ggml-quants.c` of ggml. `qs[j]` of a block of 32 holds element j in its low half
//! and element j + 16 in its high half; super-blocks of 256 hold elements 32 apart in the same byte.

use super::bits::{each, eight, put, spread};

/// Q4_0, Q4_1, IQ4_NL, MXFP4: 16 bytes of halves.
#[inline(always)]
pub(super) fn halves(qs: &[u8], codes: &mut [u8]) {
    // Two bytes at a time, and one array of all results: so the compiler finds its vectors.
    let mut both = [0; 16];
    for (i, bytes) in qs.as_chunks().0.iter().take(8).enumerate() {
        let two = u16::from_le_bytes(*bytes);
        let (low, high) = (two & 0x0f0f, two >> 4 & 0x0f0f);
        both[i] = (low | low >> 4) & 255;
        both[i + 8] = (high | high >> 4) & 255;
    }
    codes[..16].copy_from_slice(&both.map(|v| v as u8));
}

/// Q5_0, Q5_1: a fifth bit for each element in order, then halves.
#[inline(always)]
pub(super) fn halves_and_fifth(qh: &[u8], qs: &[u8], codes: &mut [u8]) {
    for g in 0..2 {
        let x = eight(qs, 8 * g);
        put::<5>(codes, g, x & each(15) | spread(qh[g]) << 4);
        put::<5>(codes, g + 2, x >> 4 & each(15) | spread(qh[g + 2]) << 4);
    }
}

/// Q8_0: signed bytes, of which codes are 128 more.
#[inline(always)]
pub(super) fn signed_bytes(qs: &[u8], codes: &mut [u8]) {
    codes.iter_mut().zip(qs).for_each(|(code, q)| *code = q ^ 0x80);
}

/// Scales and minimums of Q4_K and Q5_K: 6 bits each, eight of either in 12 bytes.
#[inline(always)]
fn six_bits(b: &[u8], scales: &mut [u8; 8], minimums: &mut [u8; 8]) {
    for j in 0..4 {
        scales[j] = b[j] & 63;
        minimums[j] = b[j + 4] & 63;
        scales[j + 4] = b[j + 8] & 15 | b[j] >> 6 << 4;
        minimums[j + 4] = b[j + 8] >> 4 | b[j + 4] >> 6 << 4;
    }
}

/// d, dmin, scales\[12\], qs\[128\]
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], codes: &mut [u8; 128], scales: &mut [u8; 8], minimums: &mut [u8; 8]) {
    six_bits(&block[4..16], scales, minimums);
    for chunk in 0..4 {
        for g in 0..4 {
            let x = eight(block, 16 + 32 * chunk + 8 * g);
            put::<4>(codes, 8 * chunk + g, x & each(15));
            put::<4>(codes, 8 * chunk + g + 4, x >> 4 & each(15));
        }
    }
}

/// d, dmin, scales\[12\], qh\[32\], qs\[128\]
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], codes: &mut [u8; 160], scales: &mut [u8; 8], minimums: &mut [u8; 8]) {
    six_bits(&block[4..16], scales, minimums);
    for chunk in 0..4 {
        for g in 0..4 {
            let x = eight(block, 48 + 32 * chunk + 8 * g);
            let high = eight(block, 16 + 8 * g) >> (2 * chunk);
            put::<5>(codes, 8 * chunk + g, x & each(15) | (high & each(1)) << 4);
            put::<5>(codes, 8 * chunk + g + 4, x >> 4 & each(15) | (high >> 1 & each(1)) << 4);
        }
    }
}

/// ql\[128\], qh\[64\], scales\[16\], d
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], codes: &mut [u8; 192], scales: &mut [u8; 16], _: &mut [u8; 16]) {
    scales.copy_from_slice(&block[192..208]);
    for half in 0..2 {
        for g in 0..4 {
            let (first, second) = (eight(block, 64 * half + 8 * g), eight(block, 64 * half + 32 + 8 * g));
            let high = eight(block, 128 + 32 * half + 8 * g);
            let group = 16 * half + g;
            put::<6>(codes, group, first & each(15) | (high & each(3)) << 4);
            put::<6>(codes, group + 4, second & each(15) | (high >> 2 & each(3)) << 4);
            put::<6>(codes, group + 8, first >> 4 & each(15) | (high >> 4 & each(3)) << 4);
            put::<6>(codes, group + 12, second >> 4 & each(15) | (high >> 6 & each(3)) << 4);
        }
    }
}

/// hmask\[32\], qs\[64\], scales\[12\], d. A set bit of the mask adds 4, so that 4 stands for zero.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], codes: &mut [u8; 96], scales: &mut [u8; 16], _: &mut [u8; 16]) {
    let b = &block[96..108];
    for i in 0..16 {
        let low = if i < 8 { b[i] & 15 } else { b[i - 8] >> 4 };
        let high = b[8 + i % 4] >> (2 * (i / 4)) & 3;
        scales[i] = (low | high << 4).wrapping_sub(32);
    }
    for half in 0..2 {
        for g in 0..4 {
            let (low, high) = (eight(block, 32 + 32 * half + 8 * g), eight(block, 8 * g) >> (4 * half));
            for j in 0..4 {
                let x = low >> (2 * j) & each(3) | (high >> j & each(1)) << 2;
                put::<3>(codes, 16 * half + 4 * j + g, x);
            }
        }
    }
}

/// scales\[16\], qs\[64\], d, dmin. Factors and minimums are halves of the same bytes.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], codes: &mut [u8; 64], scales: &mut [u8; 8], minimums: &mut [u8; 8]) {
    for g in 0..2 {
        let x = eight(block, 8 * g);
        put::<4>(scales, g, x & each(15));
        put::<4>(minimums, g, x >> 4 & each(15));
    }
    for half in 0..2 {
        for g in 0..4 {
            let x = eight(block, 16 + 32 * half + 8 * g);
            for j in 0..4 {
                put::<2>(codes, 16 * half + 4 * j + g, x >> (2 * j) & each(3));
            }
        }
    }
}

/// d, scales_h u16, scales_l\[4\], qs\[128\]
#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], codes: &mut [u8; 128], scales: &mut [u8; 8], _: &mut [u8; 8]) {
    let high = u16::from_le_bytes([block[2], block[3]]);
    for i in 0..8 {
        let low = block[4 + i / 2] >> (4 * (i % 2)) & 15;
        scales[i] = (low | ((high >> (2 * i)) as u8 & 3) << 4).wrapping_sub(32);
        halves(&block[8 + 16 * i..24 + 16 * i], &mut codes[16 * i..16 * i + 16]);
    }
}
