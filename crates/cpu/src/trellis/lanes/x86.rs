//! AVX2: thirty-two lanes in two registers, one for each tile.

use super::{Isa, Lanes, LanesKernel};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx2;

/// Runs a kernel with AVX2, FMA and F16C enabled.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn run<K: LanesKernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<Avx2>() }
}

type V = [__m256i; 2];

/// The same on both registers; no closure, since one that is not inlined would lack the features.
macro_rules! both {
    (|$($v:ident),+| $body:expr) => {{
        let first = {
            $(let $v = $v[0];)+
            $body
        };
        let second = {
            $(let $v = $v[1];)+
            $body
        };
        [first, second]
    }};
}

#[inline(always)]
unsafe fn words(c: u16) -> __m256i {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm256_set1_epi16(c as i16) }
}

/// Sixteen singles, eight in each, to `f16`.
#[inline(always)]
unsafe fn to_f16(low: __m256, high: __m256) -> __m256i {
    // SAFETY: as above.
    unsafe { _mm256_set_m128i(_mm256_cvtps_ph::<0>(high), _mm256_cvtps_ph::<0>(low)) }
}

#[inline(always)]
unsafe fn halves(v: __m256i) -> (__m128i, __m128i) {
    // SAFETY: as above.
    unsafe { (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)) }
}

/// `(1024 + v) * k + c` of eight words.
#[inline(always)]
unsafe fn affine(v: __m128i, k: f32, c: f32) -> __m256 {
    // SAFETY: as above.
    unsafe {
        let h = _mm256_add_epi32(_mm256_cvtepu16_epi32(v), _mm256_set1_epi32(1024));
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(h), _mm256_set1_ps(k), _mm256_set1_ps(c))
    }
}

/// Sums of eight `f16`.
#[inline(always)]
unsafe fn sum(a: __m128i, b: __m128i) -> __m256 {
    // SAFETY: as above.
    unsafe { _mm256_add_ps(_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)) }
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx2 {
    type V = V;
    type A = V;
    const ISA: Isa = Isa::Avx2;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> V {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: V) {
        unsafe {
            _mm256_storeu_si256(p.cast(), v[0]);
            _mm256_storeu_si256(p.add(32).cast(), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn wrap(v: V) -> V {
        unsafe { both!(|v| _mm256_alignr_epi8::<14>(v, _mm256_permute2x128_si256::<1>(v, v))) }
    }
    #[inline(always)]
    unsafe fn funnel(high: V, low: V, n: u32) -> V {
        unsafe {
            let (left, right) = (_mm_cvtsi32_si128(n as i32), _mm_cvtsi32_si128(16 - n as i32));
            both!(|high, low| _mm256_or_si256(_mm256_sll_epi16(high, left), _mm256_srl_epi16(low, right)))
        }
    }
    #[inline(always)]
    unsafe fn mul_low(a: V, c: u16) -> V {
        unsafe { both!(|a| _mm256_mullo_epi16(a, words(c))) }
    }
    #[inline(always)]
    unsafe fn mul_high(a: V, c: u16) -> V {
        unsafe { both!(|a| _mm256_mulhi_epu16(a, words(c))) }
    }
    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        unsafe { both!(|a, b| _mm256_add_epi16(a, b)) }
    }
    #[inline(always)]
    unsafe fn add_const(a: V, c: u16) -> V {
        unsafe { both!(|a| _mm256_add_epi16(a, words(c))) }
    }
    #[inline(always)]
    unsafe fn add_wide(low: V, high: V, c: u32) -> (V, V) {
        unsafe {
            let sum = Self::add_const(low, c as u16);
            // All ones where there was no carry: take one off a constant that has one too many.
            let none = both!(|sum| _mm256_cmpeq_epi16(_mm256_max_epu16(sum, words(c as u16)), sum));
            (sum, Self::add(Self::add_const(high, ((c >> 16) as u16).wrapping_add(1)), none))
        }
    }
    #[inline(always)]
    unsafe fn and_xor(a: V, mask: u16, flip: u16) -> V {
        unsafe { both!(|a| _mm256_xor_si256(_mm256_and_si256(a, words(mask)), words(flip))) }
    }
    #[inline(always)]
    unsafe fn byte_sum(low: V, high: V) -> V {
        unsafe {
            let ones = _mm256_set1_epi8(1);
            both!(|low, high| _mm256_add_epi16(_mm256_maddubs_epi16(low, ones), _mm256_maddubs_epi16(high, ones)))
        }
    }
    #[inline(always)]
    unsafe fn average(a: V, b: V) -> V {
        unsafe { both!(|a, b| _mm256_avg_epu8(a, b)) }
    }
    #[inline(always)]
    unsafe fn bytes_of(low: V, high: V) -> V {
        unsafe { both!(|low, high| _mm256_blendv_epi8(low, high, words(0xff00))) }
    }
    #[inline(always)]
    unsafe fn upper_bytes(low: V, high: V) -> V {
        unsafe { both!(|low, high| _mm256_blendv_epi8(_mm256_srli_epi16::<8>(low), high, words(0xff00))) }
    }
    #[inline(always)]
    unsafe fn fixed(x: V) -> V {
        unsafe {
            // The factor that each value of the two varying bits of the exponent, times four, stands for.
            let powers = _mm256_set_epi32(2, 1, 8, 4, 2, 1, 8, 4);
            both!(|x| {
                let size = _mm256_xor_si256(_mm256_and_si256(x, words(0x3ff)), words(0x760));
                let at = _mm256_and_si256(_mm256_srli_epi16::<8>(x), words(0x0c));
                let power = _mm256_shuffle_epi8(powers, _mm256_or_si256(at, words(0x8000)));
                _mm256_sign_epi16(_mm256_mullo_epi16(size, power), _mm256_or_si256(x, words(1)))
            })
        }
    }
    #[inline(always)]
    unsafe fn affine_f16(v: V, k: f32, c: f32) -> V {
        unsafe {
            both!(|v| {
                let (low, high) = halves(v);
                to_f16(affine(low, k, c), affine(high, k, c))
            })
        }
    }
    #[inline(always)]
    unsafe fn add_f16(a: V, b: V) -> V {
        unsafe {
            both!(|a, b| {
                let ((a0, a1), (b0, b1)) = (halves(a), halves(b));
                to_f16(sum(a0, b0), sum(a1, b1))
            })
        }
    }

    #[inline(always)]
    unsafe fn splat(v: i32) -> V {
        unsafe { [_mm256_set1_epi32(v); 2] }
    }
    #[inline(always)]
    unsafe fn dot(acc: V, w: V, pair: *const i16) -> V {
        unsafe {
            let x = _mm256_set1_epi32(pair.cast::<i32>().read_unaligned());
            both!(|acc, w| _mm256_add_epi32(acc, _mm256_madd_epi16(w, x)))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: V, w: V, x: *const i8) -> V {
        unsafe {
            // Even and odd bytes apart, widened: their pairs cannot saturate.
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let (even, odd) = (_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x)), _mm256_srai_epi16::<8>(x));
            both!(|acc, w| {
                let low = _mm256_madd_epi16(_mm256_and_si256(w, words(255)), even);
                let high = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), odd);
                _mm256_add_epi32(acc, _mm256_add_epi32(low, high))
            })
        }
    }
    #[inline(always)]
    unsafe fn flush(acc: V, scale: f32, out: *mut f32) {
        unsafe {
            for (i, acc) in acc.into_iter().enumerate() {
                let out = out.add(8 * i);
                let v = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), _mm256_set1_ps(scale), _mm256_loadu_ps(out));
                _mm256_storeu_ps(out, v);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_split(v: V, to: [*mut u16; 4]) {
        unsafe {
            let order =
                _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
            for (i, v) in v.into_iter().enumerate() {
                let v = _mm256_permute4x64_epi64::<0xd8>(_mm256_shuffle_epi8(v, order));
                let (even, odd) = halves(v);
                _mm_storeu_si128(to[2 * i].cast(), even);
                _mm_storeu_si128(to[2 * i + 1].cast(), odd);
            }
        }
    }
    #[inline(always)]
    unsafe fn store_split_zip(low: V, high: V, to: [*mut u8; 4]) {
        unsafe {
            for i in 0..2 {
                let a = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low[i], high[i]));
                let b = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low[i], high[i]));
                _mm256_storeu_si256(to[2 * i].cast(), _mm256_castps_si256(_mm256_shuffle_ps::<0x88>(a, b)));
                _mm256_storeu_si256(to[2 * i + 1].cast(), _mm256_castps_si256(_mm256_shuffle_ps::<0xdd>(a, b)));
            }
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
