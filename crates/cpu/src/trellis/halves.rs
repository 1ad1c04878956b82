//! Codes decoded to `bf16` for matrix tiles.

use super::decode::{Decode, Form};
use super::lanes::Isa;
use super::layout::TrellisMat;
use crate::Level;
use crate::amx::{Panels, Part, STEP, Tiles};
use std::arch::x86_64::*;

/// Columns decoded at a time.
const COLUMNS: usize = 128;

/// Values of two tiles of outputs, `[inputs, 16]` `f16` bits each.
#[repr(C, align(64))]
struct Halves([[u16; 16 * COLUMNS]; 2]);

impl Panels for TrellisMat {
    unsafe fn fill(&self, part: Part, to: *mut u8, tiles: &Tiles) {
        let mut halves = Halves([[0; 16 * COLUMNS]; 2]);
        let [first, second] = &mut halves.0;
        let sides = [first.as_mut_ptr(), second.as_mut_ptr()];
        for from in (0..part.columns).step_by(COLUMNS) {
            let columns = COLUMNS.min(part.columns - from);
            let words = self.words(part.tile / 2, (part.from + from) / 16);
            let decode = Decode { form: Form::Halves, words, tiles: columns / 16, to: sides.map(|p| p.cast()), ld: 32 };
            // SAFETY: the columns exist, a multiple of sixteen; the caller vouches for the panel and the level.
            unsafe {
                decode.run(Isa::of(Level::Amx), self);
                tiles.stay_awake();
                for (t, side) in sides.into_iter().enumerate().take(part.tiles) {
                    pairs(side, columns, to.add(STEP / 2 * t + from / 32 * STEP));
                }
            }
        }
    }
}

/// `[columns, 16]` halves to pairs of `bf16`; zeros up to a multiple of 32.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn pairs(from: *const u16, columns: usize, to: *mut u8) {
    let half = _mm512_set1_epi32(0x8000);
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    for i in 0..columns.next_multiple_of(32) / 2 {
        let mut pair = _mm512_setzero_si512();
        // SAFETY: the caller vouches for the values and the panel.
        unsafe {
            if 2 * i < columns {
                let at = from.add(32 * i);
                let [a, b] = [at, at.add(16)].map(|p| _mm256_loadu_si256(p.cast()));
                let a = _mm512_add_epi32(_mm512_castps_si512(_mm512_cvtph_ps(a)), half);
                let b = _mm512_add_epi32(_mm512_castps_si512(_mm512_cvtph_ps(b)), half);
                // a's upper half below, or b's where it is.
                pair = _mm512_ternarylogic_epi32::<0xf8>(_mm512_srli_epi32::<16>(a), b, upper);
            }
            _mm512_store_si512(to.add(i / 16 * STEP + 64 * (i % 16)).cast(), pair);
        }
    }
}
