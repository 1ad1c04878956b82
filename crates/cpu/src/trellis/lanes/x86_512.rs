//! AVX-512 with VBMI2 and VNNI: thirty-two lanes in one register.

use super::{Isa, Lanes, LanesKernel};
use std::arch::x86_64::*;

#[derive(Clone, Copy)]
pub struct Avx512;

/// Runs a kernel with AVX-512 F, BW, DQ, VL, VBMI2 and VNNI enabled.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx512vnni")]
pub unsafe fn run<K: LanesKernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled in this function.
    unsafe { kernel.run::<Avx512>() }
}

#[inline(always)]
unsafe fn words(c: u16) -> __m512i {
    // SAFETY: only called with the level's features enabled.
    unsafe { _mm512_set1_epi16(c as i16) }
}

/// Thirty-two singles to `f16`.
#[inline(always)]
unsafe fn to_f16(low: __m512, high: __m512) -> __m512i {
    // SAFETY: as above.
    unsafe {
        let low = _mm512_castsi256_si512(_mm512_cvtps_ph::<0>(low));
        _mm512_inserti64x4::<1>(low, _mm512_cvtps_ph::<0>(high))
    }
}

#[inline(always)]
unsafe fn halves(v: __m512i) -> (__m256i, __m256i) {
    // SAFETY: as above.
    unsafe { (_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v)) }
}

/// `(1024 + v) * k + c` of sixteen words.
#[inline(always)]
unsafe fn affine(v: __m256i, k: f32, c: f32) -> __m512 {
    // SAFETY: as above.
    unsafe {
        let h = _mm512_add_epi32(_mm512_cvtepu16_epi32(v), _mm512_set1_epi32(1024));
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(h), _mm512_set1_ps(k), _mm512_set1_ps(c))
    }
}

/// Sums of sixteen `f16`.
#[inline(always)]
unsafe fn sum(a: __m256i, b: __m256i) -> __m512 {
    // SAFETY: as above.
    unsafe { _mm512_add_ps(_mm512_cvtph_ps(a), _mm512_cvtph_ps(b)) }
}

/// `vpdpwssd` as an instruction of its own: left to itself the compiler takes it apart into a product and a sum.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_words(mut acc: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: the feature is enabled; no memory is touched.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {acc}, {w}, {x}",
            acc = inout(zmm_reg) acc,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

// SAFETY comments: every method is covered by the trait's contract: features enabled, pointers valid.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Lanes for Avx512 {
    type V = __m512i;
    type A = __m512i;
    const ISA: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut u8, v: __m512i) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }
    #[inline(always)]
    unsafe fn wrap(v: __m512i) -> __m512i {
        const ORDER: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = ((i & 16) | ((i + 15) & 15)) as u16;
                i += 1;
            }
            order
        };
        unsafe { _mm512_permutexvar_epi16(_mm512_loadu_si512(ORDER.as_ptr().cast()), v) }
    }
    #[inline(always)]
    unsafe fn funnel(high: __m512i, low: __m512i, n: u32) -> __m512i {
        unsafe { _mm512_shldv_epi16(high, low, words(n as u16)) }
    }
    #[inline(always)]
    unsafe fn mul_low(a: __m512i, c: u16) -> __m512i {
        unsafe { _mm512_mullo_epi16(a, words(c)) }
    }
    #[inline(always)]
    unsafe fn mul_high(a: __m512i, c: u16) -> __m512i {
        unsafe { _mm512_mulhi_epu16(a, words(c)) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi16(a, b) }
    }
    #[inline(always)]
    unsafe fn add_const(a: __m512i, c: u16) -> __m512i {
        unsafe { _mm512_add_epi16(a, words(c)) }
    }
    #[inline(always)]
    unsafe fn add_wide(low: __m512i, high: __m512i, c: u32) -> (__m512i, __m512i) {
        unsafe {
            let sum = _mm512_add_epi16(low, words(c as u16));
            let carry = _mm512_cmplt_epu16_mask(sum, low);
            let high = _mm512_add_epi16(high, words((c >> 16) as u16));
            (sum, _mm512_mask_add_epi16(high, carry, high, words(1)))
        }
    }
    #[inline(always)]
    unsafe fn and_xor(a: __m512i, mask: u16, flip: u16) -> __m512i {
        unsafe { _mm512_ternarylogic_epi32::<0x78>(words(flip), a, words(mask)) }
    }
    #[inline(always)]
    unsafe fn byte_sum(low: __m512i, high: __m512i) -> __m512i {
        unsafe {
            let ones = _mm512_set1_epi8(1);
            _mm512_add_epi16(_mm512_maddubs_epi16(low, ones), _mm512_maddubs_epi16(high, ones))
        }
    }
    #[inline(always)]
    unsafe fn average(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_avg_epu8(a, b) }
    }
    #[inline(always)]
    unsafe fn bytes_of(low: __m512i, high: __m512i) -> __m512i {
        unsafe { _mm512_ternarylogic_epi32::<0xca>(words(0xff00), high, low) }
    }
    #[inline(always)]
    unsafe fn upper_bytes(low: __m512i, high: __m512i) -> __m512i {
        unsafe { _mm512_ternarylogic_epi32::<0xca>(words(0xff00), high, _mm512_srli_epi16::<8>(low)) }
    }
    #[inline(always)]
    unsafe fn fixed(x: __m512i) -> __m512i {
        unsafe {
            let size = Self::and_xor(x, 0x3ff, 0x760);
            let v = _mm512_sllv_epi16(size, Self::and_xor(_mm512_srli_epi16::<10>(x), 3, 2));
            _mm512_mask_sub_epi16(v, _mm512_movepi16_mask(x), _mm512_setzero_si512(), v)
        }
    }
    #[inline(always)]
    unsafe fn affine_f16(v: __m512i, k: f32, c: f32) -> __m512i {
        unsafe {
            let (low, high) = halves(v);
            to_f16(affine(low, k, c), affine(high, k, c))
        }
    }
    #[inline(always)]
    unsafe fn add_f16(a: __m512i, b: __m512i) -> __m512i {
        unsafe {
            let ((a0, a1), (b0, b1)) = (halves(a), halves(b));
            to_f16(sum(a0, b0), sum(a1, b1))
        }
    }

    #[inline(always)]
    unsafe fn splat(v: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(v) }
    }
    #[inline(always)]
    unsafe fn dot(acc: __m512i, w: __m512i, pair: *const i16) -> __m512i {
        unsafe { dot_words(acc, w, _mm512_set1_epi32(pair.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn flush(acc: __m512i, scale: f32, out: *mut f32) {
        unsafe {
            let v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), _mm512_set1_ps(scale), _mm512_loadu_ps(out));
            _mm512_storeu_ps(out, v);
        }
    }
    #[inline(always)]
    unsafe fn store_split(v: __m512i, to: [*mut u16; 4]) {
        const ORDER: [u16; 32] = {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = ((i & 16) | (i % 8 * 2) | (i / 8 % 2)) as u16;
                i += 1;
            }
            order
        };
        unsafe {
            let v = _mm512_permutexvar_epi16(_mm512_loadu_si512(ORDER.as_ptr().cast()), v);
            _mm_storeu_si128(to[0].cast(), _mm512_castsi512_si128(v));
            _mm_storeu_si128(to[1].cast(), _mm512_extracti32x4_epi32::<1>(v));
            _mm_storeu_si128(to[2].cast(), _mm512_extracti32x4_epi32::<2>(v));
            _mm_storeu_si128(to[3].cast(), _mm512_extracti32x4_epi32::<3>(v));
        }
    }
    #[inline(always)]
    unsafe fn store_split_zip(low: __m512i, high: __m512i, to: [*mut u8; 4]) {
        unsafe {
            // Quarters of the first: lanes 0..4, 8..12 of both tiles; of the second: 4..8, 12..16.
            let (a, b) = (_mm512_unpacklo_epi16(low, high), _mm512_unpackhi_epi16(low, high));
            let (a, b) = (_mm512_castsi512_ps(a), _mm512_castsi512_ps(b));
            let even = _mm512_castps_si512(_mm512_shuffle_ps::<0x88>(a, b));
            let odd = _mm512_castps_si512(_mm512_shuffle_ps::<0xdd>(a, b));
            let ((e0, e1), (o0, o1)) = (halves(even), halves(odd));
            _mm256_storeu_si256(to[0].cast(), e0);
            _mm256_storeu_si256(to[1].cast(), o0);
            _mm256_storeu_si256(to[2].cast(), e1);
            _mm256_storeu_si256(to[3].cast(), o1);
        }
    }
    #[inline(always)]
    unsafe fn measure(x: &[f32]) -> (f32, f32) {
        unsafe {
            let (mut most, mut sum) = (_mm512_setzero_ps(), _mm512_setzero_ps());
            for x in x.as_chunks::<16>().0 {
                let v = _mm512_abs_ps(_mm512_loadu_ps(x.as_ptr()));
                (most, sum) = (_mm512_max_ps(v, most), _mm512_add_ps(sum, v));
            }
            (_mm512_reduce_max_ps(most), _mm512_reduce_add_ps(sum))
        }
    }
    #[inline(always)]
    unsafe fn round8(x: &[f32], inverse: f32, to: *mut u8) -> i32 {
        unsafe {
            let mut sum = _mm512_setzero_si512();
            for (t, x) in x.as_chunks::<16>().0.iter().enumerate() {
                let q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_set1_ps(inverse)));
                sum = _mm512_add_epi32(sum, q);
                _mm_storeu_si128(to.add(16 * t).cast(), _mm512_cvtepi32_epi8(q));
            }
            _mm512_reduce_add_epi32(sum)
        }
    }
    #[inline(always)]
    unsafe fn round16(x: &[f32], inverse: f32, to: *mut u8) -> i32 {
        unsafe {
            let order = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15);
            let mut sum = _mm512_setzero_si512();
            for (t, x) in x.as_chunks::<16>().0.iter().enumerate() {
                let q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_set1_ps(inverse)));
                sum = _mm512_add_epi32(sum, q);
                let (first, second) = halves(_mm512_permutexvar_epi32(order, q));
                let pairs = _mm256_blend_epi16::<0xaa>(first, _mm256_slli_epi32::<16>(second));
                _mm256_storeu_si256(to.add(32 * t).cast(), pairs);
            }
            _mm512_reduce_add_epi32(sum)
        }
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
