//! Dense `bf16` weights for matrix tiles.

use crate::Mat;
use crate::amx::{BLOCK, Panels, Part, STEP, TILE, Tiles};
use std::arch::x86_64::*;

/// The rows of a matrix of `bf16` from `from` on.
pub(super) struct Slice<'a> {
    pub mat: Mat<'a>,
    pub from: usize,
}

impl Panels for Slice<'_> {
    unsafe fn fill(&self, part: Part, to: *mut u8, tiles: &Tiles) {
        let stride = self.mat.stride();
        for t in 0..part.tiles {
            // Rows that do not exist are the last one's.
            let row = |i: usize| {
                let row = (self.from + TILE * (part.tile + t) + i).min(self.mat.rows() - 1);
                self.mat.data().as_ptr().wrapping_add(row * stride + 2 * part.from)
            };
            // SAFETY: so many values of each row are in the matrix; the caller vouches for the panel and the level.
            unsafe { fill(std::array::from_fn(row), part.columns, to.add(STEP / 2 * t)) };
            tiles.stay_awake();
        }
    }
}

/// Columns of sixteen rows, pair after pair.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn fill(rows: [*const u8; TILE], columns: usize, to: *mut u8) {
    for step in 0..columns.div_ceil(32) {
        let there = !0u32 >> (32 - (columns - 32 * step).min(32));
        let mut v = [_mm512_setzero_si512(); TILE];
        // SAFETY: masked to the columns there are; a line is asked for ahead; the panel holds sixteen vectors a step.
        unsafe {
            for (v, row) in v.iter_mut().zip(rows) {
                let at = row.add(64 * step);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(2 * BLOCK).cast());
                *v = _mm512_maskz_loadu_epi16(there, at.cast());
            }
            for (i, v) in transpose(v).into_iter().enumerate() {
                _mm512_store_si512(to.add(STEP * step + 64 * i).cast(), v);
            }
        }
    }
}

/// Sixteen rows of sixteen 32-bit lanes to columns.
#[target_feature(enable = "avx512f")]
#[inline]
fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = r;
    for i in (0..16).step_by(2) {
        (a[i], a[i + 1]) = (_mm512_unpacklo_epi32(r[i], r[i + 1]), _mm512_unpackhi_epi32(r[i], r[i + 1]));
    }
    let mut b = a;
    for i in (0..16).step_by(4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // b[4 j + c] holds column 4 l + c of rows 4 j.. in quarter l.
    let mut out = r;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0xdd>(b[c], b[4 + c]);
        let low2 = _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]);
        let high2 = _mm512_shuffle_i32x4::<0xdd>(b[8 + c], b[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
    }
    out
}
