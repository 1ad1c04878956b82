//! Codes decoded to `bf16` for matrix tiles.

use super::layout::{Layout, Mapping};
use super::relay::GroupedMat;
use super::scales::{Decode, Decoded};
use super::unpack::{codes, step_bytes};
use super::{ROWS, SPAN, STEP};
use crate::amx::{self, Panels, Part, Tiles};
use crate::simd::x86_512::Avx512;
use crate::simd::{self, Level, Simd, int8::Int8};
use std::arch::x86_64::*;

/// Bytes ahead of use that are asked for.
const AHEAD: usize = 4096;

impl Panels for GroupedMat {
    unsafe fn fill(&self, part: Part, to: *mut u8, tiles: &Tiles) {
        let layout = self.layout();
        let table = match layout.mapping() {
            Mapping::Table { table, .. } => Some(table),
            _ => None,
        };
        for t in 0..part.tiles {
            let (head, record) = (self.head(part.tile + t), self.record(part.tile + t, part.from / SPAN));
            let mut numbers = Decoded::new();
            // SAFETY: the tile and the record exist; the caller vouches for the panel and the level.
            unsafe {
                simd::run(Level::Amx, Decode { layout, head, record, folded: true, out: &mut numbers });
                let at = record.add(layout.numbers);
                fill(layout, table, &numbers, at, part.columns.div_ceil(STEP), to.add(amx::STEP / 2 * t));
            }
            tiles.stay_awake();
        }
    }
}

/// The upper halves of two vectors of f32, rounded, as pairs: `a` below.
#[inline(always)]
unsafe fn pair(a: __m512, b: __m512) -> __m512i {
    // SAFETY: only called with the features enabled.
    unsafe {
        let half = _mm512_set1_epi32(0x8000);
        let a = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(a), half));
        let b = _mm512_add_epi32(_mm512_castps_si512(b), half);
        // a | (b & mask).
        _mm512_ternarylogic_epi32::<0xf8>(a, b, _mm512_set1_epi32(0xffff_0000u32 as i32))
    }
}

/// The codes at `from` of a record of one tile: `scale * code + offset`, rounded to `bf16`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni")]
unsafe fn fill(
    layout: &Layout,
    table: Option<&[u8; 16]>,
    numbers: &Decoded,
    from: *const u8,
    steps: usize,
    to: *mut u8,
) {
    type S = Avx512<true>;
    let bits = layout.bits;
    let affine = layout.is_affine();
    // SAFETY: the caller vouches for the codes and the panel, and the features are enabled.
    unsafe {
        let table = table.map(|table| <S as Int8>::table(table.as_ptr()));
        let zero = _mm512_set1_ps(-f32::from(layout.mapping().zero()));
        let byte = _mm512_set1_epi32(0xff);
        for step in 0..steps {
            let at = from.add(step * step_bytes(bits));
            for line in 0..bits as usize {
                S::prefetch(at.wrapping_add(AHEAD + 64 * line));
            }
            let v = codes::<S>(bits, at);
            let to = to.add(step * amx::STEP);
            for q in 0..8 {
                let v = match table {
                    Some(table) => <S as Int8>::look_up(table, v[q]),
                    None => v[q],
                };
                let g = (step * STEP + 4 * q) / layout.group;
                let scale = _mm512_load_ps(numbers.scale.get_unchecked(g).as_ptr());
                let mut offset = _mm512_mul_ps(zero, scale);
                if affine {
                    offset = _mm512_add_ps(offset, _mm512_load_ps(numbers.minimum.get_unchecked(g).as_ptr()));
                }
                let a = _mm512_cvtepi32_ps(_mm512_and_si512(v, byte));
                let b = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<8>(v), byte));
                let c = _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32::<16>(v), byte));
                let d = _mm512_cvtepi32_ps(_mm512_srli_epi32::<24>(v));
                let [a, b, c, d] = [
                    _mm512_fmadd_ps(a, scale, offset),
                    _mm512_fmadd_ps(b, scale, offset),
                    _mm512_fmadd_ps(c, scale, offset),
                    _mm512_fmadd_ps(d, scale, offset),
                ];
                _mm512_store_si512(to.add(128 * q).cast(), pair(a, b));
                _mm512_store_si512(to.add(128 * q + 64).cast(), pair(c, d));
            }
        }
    }
    const { assert!(ROWS == 16 && SPAN.is_multiple_of(STEP)) }
}
