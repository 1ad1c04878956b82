//! One block of a linear layer: some rows of activations times some rows of weights.
//!
//! Both operands are read along K, sixteen lanes at a time, into one accumulator per output, which is summed over its
//! lanes at the end. A matrix-vector product and a tile of a matrix product do the same operations on an output, so
//! the result does not depend on which of them computed it.

use crate::DType;
use crate::simd::{Kernel, LANES, PAIRS, Simd, load_some};

/// Up to this many rows of activations, each row of weights is read once and in order.
pub(crate) const GEMV_ROWS: usize = 8;
/// Rows of activations that pass over a panel of weights before the next panel is taken.
const ROW_BLOCK: usize = 96;

/// `out[m, n] = sum_k x[m, k] * w[n, k]` for `m` rows and `n` rows of weights.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Activations in `f32`, `x_ld` elements from row to row.
    pub x: *const f32,
    pub x_ld: usize,
    /// Activations in `bf16`, padded with zeros to a multiple of 32; null where `f32` arithmetic is wanted.
    pub x16: *const u8,
    /// Bytes from row to row of `x16`.
    pub x16_ld: usize,
    /// Weights, `w_ld` bytes from row to row.
    pub w: *const u8,
    pub w_ld: usize,
    pub dtype: DType,
    pub k: usize,
    pub m: usize,
    pub n: usize,
    pub out: *mut f32,
    /// Elements from row to row of `out`.
    pub ld: usize,
    /// Room for [`scratch_bytes`].
    pub scratch: *mut u8,
}

/// Scratch that a block with this many columns needs: a panel of weights widened to `f32`.
pub(crate) fn scratch_bytes(k: usize) -> usize {
    6 * k.next_multiple_of(LANES) * 4
}

/// Elements as they lie in memory, widened to `f32` on the way in.
pub(crate) trait Elem: Copy {
    const SIZE: usize;
    unsafe fn load<S: Simd>(p: *const u8) -> S::F;
}

#[derive(Clone, Copy)]
pub(crate) struct F32;
#[derive(Clone, Copy)]
pub(crate) struct F16;
#[derive(Clone, Copy)]
pub(crate) struct Bf16;

impl Elem for F32 {
    const SIZE: usize = 4;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { S::load(p.cast()) }
    }
}
impl Elem for F16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { S::load_f16(p) }
    }
}
impl Elem for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        // SAFETY: the caller vouches for sixteen elements.
        unsafe { S::load_bf16(p) }
    }
}

/// Loads `n < 16` elements and zeros.
#[inline(always)]
pub(crate) unsafe fn load_tail<S: Simd, E: Elem>(p: *const u8, n: usize) -> S::F {
    let mut buf = [0u8; LANES * 4];
    // SAFETY: `n` elements are readable; the buffer holds sixteen of any type.
    unsafe {
        std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), n * E::SIZE);
        E::load::<S>(buf.as_ptr())
    }
}

/// A tile in `f32`: rows of `x` are `x_ld` elements apart, rows of `w` `w_ld` bytes.
#[inline(always)]
unsafe fn tile_f32<S: Simd, E: Elem, const M: usize, const N: usize>(
    x: *const f32,
    x_ld: usize,
    w: *const u8,
    w_ld: usize,
    k: usize,
    out: *mut f32,
    ld: usize,
) {
    // SAFETY: the caller vouches for M rows of x, N rows of w of k elements, and M rows of N outputs.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        let whole = k - k % LANES;
        let mut i = 0;
        while i < whole {
            let mut b = [S::zero(); N];
            for n in 0..N {
                b[n] = E::load::<S>(w.add(n * w_ld + i * E::SIZE));
            }
            for m in 0..M {
                let a = S::load(x.add(m * x_ld + i));
                for n in 0..N {
                    acc[m][n] = S::fma(a, b[n], acc[m][n]);
                }
            }
            i += LANES;
        }
        if whole < k {
            for n in 0..N {
                let b = load_tail::<S, E>(w.add(n * w_ld + whole * E::SIZE), k - whole);
                for m in 0..M {
                    acc[m][n] = S::fma(load_some::<S>(x.add(m * x_ld + whole), k - whole), b, acc[m][n]);
                }
            }
        }
        S::sum_tile(&acc, out, ld);
    }
}

/// A tile of `bf16` pairs: rows of `x` are padded with zeros to whole vectors; strides in bytes.
#[inline(always)]
unsafe fn tile_dot<S: Simd, const M: usize, const N: usize>(
    x: *const u8,
    x_ld: usize,
    w: *const u8,
    w_ld: usize,
    k: usize,
    out: *mut f32,
    ld: usize,
) {
    // SAFETY: the caller vouches for M padded rows of x, N rows of w of k elements, and M rows of N outputs.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        let whole = (k - k % PAIRS) * 2;
        let mut i = 0;
        while i < whole {
            let mut b = [S::load_pairs(w.add(i)); N];
            for n in 1..N {
                b[n] = S::load_pairs(w.add(n * w_ld + i));
            }
            for m in 0..M {
                let a = S::load_pairs(x.add(m * x_ld + i));
                for n in 0..N {
                    acc[m][n] = S::dot(acc[m][n], a, b[n]);
                }
            }
            i += PAIRS * 2;
        }
        if whole < k * 2 {
            for n in 0..N {
                let mut buf = [0u8; PAIRS * 2];
                std::ptr::copy_nonoverlapping(w.add(n * w_ld + whole), buf.as_mut_ptr(), k * 2 - whole);
                let b = S::load_pairs(buf.as_ptr());
                for m in 0..M {
                    acc[m][n] = S::dot(acc[m][n], S::load_pairs(x.add(m * x_ld + whole)), b);
                }
            }
        }
        S::sum_tile(&acc, out, ld);
    }
}

/// Calls a tile with the run-time number of rows as a constant.
macro_rules! by_rows {
    ($m:expr, $n:literal, [$($head:tt)+], $args:tt) => {
        match $m {
            1 => $($head)+, 1, $n>$args,
            2 => $($head)+, 2, $n>$args,
            3 => $($head)+, 3, $n>$args,
            _ => $($head)+, 4, $n>$args,
        }
    };
}

impl Block {
    /// Rows of weights in order, each against all rows of `x` (at most eight).
    #[inline(always)]
    unsafe fn gemv<S: Simd, E: Elem>(self) {
        let b = self;
        // SAFETY: the fields' promises.
        unsafe {
            macro_rules! go {
                ($M:literal) => {
                    for n in 0..b.n {
                        tile_f32::<S, E, $M, 1>(b.x, b.x_ld, b.w.add(n * b.w_ld), b.w_ld, b.k, b.out.add(n), b.ld);
                    }
                };
            }
            match b.m {
                1 => go!(1),
                2 => go!(2),
                3 => go!(3),
                4 => go!(4),
                5 => go!(5),
                6 => go!(6),
                7 => go!(7),
                _ => go!(8),
            }
        }
    }

    #[inline(always)]
    unsafe fn gemv_dot<S: Simd>(self) {
        let b = self;
        // SAFETY: the fields' promises.
        unsafe {
            macro_rules! go {
                ($M:literal) => {
                    for n in 0..b.n {
                        tile_dot::<S, $M, 1>(b.x16, b.x16_ld, b.w.add(n * b.w_ld), b.w_ld, b.k, b.out.add(n), b.ld);
                    }
                };
            }
            match b.m {
                1 => go!(1),
                2 => go!(2),
                3 => go!(3),
                4 => go!(4),
                5 => go!(5),
                6 => go!(6),
                7 => go!(7),
                _ => go!(8),
            }
        }
    }

    /// Panels of `S::NR` rows of weights, each against blocks of rows of `x`.
    #[inline(always)]
    unsafe fn gemm<S: Simd, E: Elem>(self) {
        let b = self;
        let wide = b.scratch.cast::<f32>();
        let wide_ld = b.k.next_multiple_of(LANES);
        // SAFETY: the fields' promises; the scratch holds a panel.
        unsafe {
            let mut m0 = 0;
            while m0 < b.m {
                let rows = ROW_BLOCK.min(b.m - m0);
                let mut n = 0;
                while n < b.n {
                    let cols = if b.n - n >= S::NR { S::NR } else { 1 };
                    let mut w = b.w.add(n * b.w_ld);
                    let mut w_ld = b.w_ld;
                    if E::SIZE != 4 {
                        for c in 0..cols {
                            widen_row::<S, E>(w.add(c * b.w_ld), b.k, wide.add(c * wide_ld));
                        }
                        w = b.scratch;
                        w_ld = wide_ld * 4;
                    }
                    let mut m = m0;
                    while m < m0 + rows {
                        let mr = S::MR.min(m0 + rows - m);
                        let x = b.x.add(m * b.x_ld);
                        let out = b.out.add(m * b.ld + n);
                        if cols == 1 {
                            by_rows!(mr, 1, [tile_f32::<S, F32], (x, b.x_ld, w, w_ld, b.k, out, b.ld));
                        } else if S::NR == 6 {
                            by_rows!(mr, 6, [tile_f32::<S, F32], (x, b.x_ld, w, w_ld, b.k, out, b.ld));
                        } else {
                            by_rows!(mr, 3, [tile_f32::<S, F32], (x, b.x_ld, w, w_ld, b.k, out, b.ld));
                        }
                        m += mr;
                    }
                    n += cols;
                }
                m0 += rows;
            }
        }
    }

    #[inline(always)]
    unsafe fn gemm_dot<S: Simd>(self) {
        let b = self;
        // SAFETY: the fields' promises.
        unsafe {
            let mut m0 = 0;
            while m0 < b.m {
                let rows = ROW_BLOCK.min(b.m - m0);
                let mut n = 0;
                while n < b.n {
                    let cols = if b.n - n >= S::NR { S::NR } else { 1 };
                    let w = b.w.add(n * b.w_ld);
                    let mut m = m0;
                    while m < m0 + rows {
                        let mr = S::MR.min(m0 + rows - m);
                        let x = b.x16.add(m * b.x16_ld);
                        let out = b.out.add(m * b.ld + n);
                        if cols == 1 {
                            by_rows!(mr, 1, [tile_dot::<S], (x, b.x16_ld, w, b.w_ld, b.k, out, b.ld));
                        } else if S::NR == 6 {
                            by_rows!(mr, 6, [tile_dot::<S], (x, b.x16_ld, w, b.w_ld, b.k, out, b.ld));
                        } else {
                            by_rows!(mr, 3, [tile_dot::<S], (x, b.x16_ld, w, b.w_ld, b.k, out, b.ld));
                        }
                        m += mr;
                    }
                    n += cols;
                }
                m0 += rows;
            }
        }
    }

    #[inline(always)]
    unsafe fn exact<S: Simd, E: Elem>(self) {
        // SAFETY: the fields' promises.
        unsafe { if self.m <= GEMV_ROWS { self.gemv::<S, E>() } else { self.gemm::<S, E>() } }
    }
}

/// One row of weights to `f32`.
#[inline(always)]
unsafe fn widen_row<S: Simd, E: Elem>(w: *const u8, k: usize, out: *mut f32) {
    let whole = k - k % LANES;
    // SAFETY: the caller vouches for k elements in and k, rounded up to whole vectors, out.
    unsafe {
        let mut i = 0;
        while i < whole {
            S::store(out.add(i), E::load::<S>(w.add(i * E::SIZE)));
            i += LANES;
        }
        if whole < k {
            S::store(out.add(whole), load_tail::<S, E>(w.add(whole * E::SIZE), k - whole));
        }
    }
}

impl Kernel for Block {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields' promises.
        unsafe {
            if S::BF16 && !self.x16.is_null() && self.dtype == DType::Bf16 {
                if self.m <= GEMV_ROWS { self.gemv_dot::<S>() } else { self.gemm_dot::<S>() }
                return;
            }
            match self.dtype {
                DType::F32 => self.exact::<S, F32>(),
                DType::F16 => self.exact::<S, F16>(),
                DType::Bf16 => self.exact::<S, Bf16>(),
            }
        }
    }
}

/// `out[n] = silu(gate[n]) * out[n]`, row by row.
pub(crate) struct SwiGlu {
    pub gate: *const f32,
    pub up: *mut f32,
    pub n: usize,
}

impl Kernel for SwiGlu {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: both hold n values.
        unsafe {
            let mut i = 0;
            while i < self.n {
                let some = LANES.min(self.n - i);
                let (g, u) = (self.gate.add(i), self.up.add(i));
                let (gv, uv) = if some == LANES {
                    (S::load(g), S::load(u))
                } else {
                    (load_some::<S>(g, some), load_some::<S>(u, some))
                };
                let y = S::mul(S::mul(gv, crate::simd::sigmoid::<S>(gv)), uv);
                if some == LANES { S::store(u, y) } else { crate::simd::store_some::<S>(u, some, y) }
                i += some;
            }
        }
    }
}
