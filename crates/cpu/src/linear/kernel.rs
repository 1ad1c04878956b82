//! One block of a linear layer: some rows of activations times some rows of weights.
//!
//! Both operands are read along K, sixteen lanes at a time, into one accumulator per output, which is summed over its
//! lanes at the end. A matrix-vector product and a tile of a matrix product do the same operations on an output, so
//! the result does not depend on which of them computed it.

use crate::DType;
use crate::simd::{self, Bf16, Elem, F16, F32, Kernel, LANES, PAIRS, Simd, load_some};
use std::marker::PhantomData;

/// The most rows of activations for which each row of weights may be read once and in order.
pub(crate) const GEMV_ROWS: usize = 2;
/// Rows of activations that pass over a panel of weights before the next panel is taken.
const ROW_BLOCK: usize = 96;
/// Bytes of a row of activations that are multiplied before the next part of K is taken.
const PART: usize = 2048;
/// Bytes that a walk over one row of weights after another asks for ahead of use.
const AHEAD: usize = 6144;
/// Bytes that each of several streams asks for ahead of use.
const NEXT: usize = 1536;
/// Rows of weights that are read side by side where registers allow it: memory answers several streams faster than one.
const STREAMS: usize = 4;
/// Bytes for the accumulators of a block of rows between parts of K.
const SPILL: usize = ROW_BLOCK * 6 * LANES * 4;

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
    /// Up to this many rows of activations each row of weights is read once and in order.
    pub gemv: usize,
    /// Up to this many rows of activations weights are widened for each tile; beyond, once for all.
    pub widen: usize,
    pub out: *mut f32,
    /// Elements from row to row of `out`.
    pub ld: usize,
    /// Room for [`scratch_bytes`].
    pub scratch: *mut u8,
}

/// Scratch that a block with this many columns needs: a panel of weights widened to `f32`.
pub(crate) fn scratch_bytes(k: usize) -> usize {
    SPILL + 6 * wide_row(k)
}

/// Bytes of a widened row: not a multiple of a page, so that rows do not compete for the same sets of the cache.
fn wide_row(k: usize) -> usize {
    let bytes = k.next_multiple_of(LANES) * 4;
    if bytes.is_multiple_of(1024) { bytes + 64 } else { bytes }
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

/// How activations and weights are read and multiplied: in `f32`, or as pairs of `bf16`.
trait Math {
    /// Elements of a step.
    const STEP: usize;
    /// Bytes of an activation and of a weight.
    const X: usize;
    const W: usize;
    type V<S: Simd>: Copy;
    unsafe fn x<S: Simd>(p: *const u8) -> Self::V<S>;
    unsafe fn x_tail<S: Simd>(p: *const u8, n: usize) -> Self::V<S>;
    unsafe fn w<S: Simd>(p: *const u8) -> Self::V<S>;
    unsafe fn w_tail<S: Simd>(p: *const u8, n: usize) -> Self::V<S>;
    unsafe fn mac<S: Simd>(a: Self::V<S>, b: Self::V<S>, acc: S::F) -> S::F;
}

struct Single<E>(PhantomData<E>);
struct Pairs;

// SAFETY comments: the callers vouch for the elements that a method loads, or says it loads.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<E: Elem> Math for Single<E> {
    const STEP: usize = LANES;
    const X: usize = 4;
    const W: usize = E::SIZE;
    type V<S: Simd> = S::F;
    #[inline(always)]
    unsafe fn x<S: Simd>(p: *const u8) -> S::F {
        unsafe { S::load(p.cast()) }
    }
    #[inline(always)]
    unsafe fn x_tail<S: Simd>(p: *const u8, n: usize) -> S::F {
        unsafe { load_some::<S>(p.cast(), n) }
    }
    #[inline(always)]
    unsafe fn w<S: Simd>(p: *const u8) -> S::F {
        unsafe { E::load::<S>(p) }
    }
    #[inline(always)]
    unsafe fn w_tail<S: Simd>(p: *const u8, n: usize) -> S::F {
        unsafe { load_tail::<S, E>(p, n) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(a: S::F, b: S::F, acc: S::F) -> S::F {
        unsafe { S::fma(a, b, acc) }
    }
}

// SAFETY comments: as above; activations are padded with zeros to whole vectors.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Math for Pairs {
    const STEP: usize = PAIRS;
    const X: usize = 2;
    const W: usize = 2;
    type V<S: Simd> = S::B;
    #[inline(always)]
    unsafe fn x<S: Simd>(p: *const u8) -> S::B {
        unsafe { S::load_pairs(p) }
    }
    #[inline(always)]
    unsafe fn x_tail<S: Simd>(p: *const u8, _: usize) -> S::B {
        unsafe { S::load_pairs(p) }
    }
    #[inline(always)]
    unsafe fn w<S: Simd>(p: *const u8) -> S::B {
        unsafe { S::load_pairs(p) }
    }
    #[inline(always)]
    unsafe fn w_tail<S: Simd>(p: *const u8, n: usize) -> S::B {
        let mut buf = [0u8; PAIRS * 2];
        unsafe {
            std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), n * 2);
            S::load_pairs(buf.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(a: S::B, b: S::B, acc: S::F) -> S::F {
        unsafe { S::dot(acc, a, b) }
    }
}

/// Operands of a tile; strides in bytes but for `ld`.
#[derive(Clone, Copy)]
struct Tile {
    x: *const u8,
    x_ld: usize,
    w: *const u8,
    w_ld: usize,
    /// Elements `k0..k1` of `k` are multiplied now.
    k0: usize,
    k1: usize,
    k: usize,
    /// Where the accumulators wait between parts of K.
    spill: *mut f32,
    /// Memory to fetch meanwhile, from its first byte on, as many lines as the tile reads of weights; or null.
    ahead: *const u8,
    out: *mut f32,
    ld: usize,
}

#[inline(always)]
unsafe fn tile<S: Simd, A: Math, const M: usize, const N: usize>(t: Tile) {
    // SAFETY: the caller vouches for M rows of x, N rows of w of k elements, M rows of N outputs, and for M x N
    // vectors of spill where K is taken in parts.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        if t.k0 > 0 {
            for m in 0..M {
                for n in 0..N {
                    acc[m][n] = S::load(t.spill.add((m * N + n) * LANES));
                }
            }
        }
        let whole = t.k1 - (t.k1 - t.k0) % A::STEP;
        let mut i = t.k0;
        if t.ahead.is_null() {
            while i < whole {
                step::<S, A, M, N>(&t, i, &mut acc);
                i += A::STEP;
            }
        } else {
            while i < whole {
                for n in 0..N {
                    S::prefetch(t.ahead.wrapping_add((i * N + n * A::STEP) * A::W));
                }
                step::<S, A, M, N>(&t, i, &mut acc);
                i += A::STEP;
            }
        }
        if t.k1 < t.k {
            for m in 0..M {
                for n in 0..N {
                    S::store(t.spill.add((m * N + n) * LANES), acc[m][n]);
                }
            }
            return;
        }
        finish::<S, A, M, N>(&t, whole, &mut acc);
    }
}

/// The same operations for rows of weights that are read once: each row is a stream, what it has next asked for.
#[inline(always)]
unsafe fn streams<S: Simd, A: Math, const M: usize, const N: usize>(t: Tile) {
    // SAFETY: as for `tile`, with all of K; what is asked for need not exist.
    unsafe {
        let mut acc = [[S::zero(); N]; M];
        let whole = t.k - t.k % A::STEP;
        let near = whole.saturating_sub(NEXT / A::W);
        // Towards the end the rows that follow begin.
        let following = t.w.wrapping_add(N * t.w_ld).wrapping_sub(near * A::W);
        let mut i = 0;
        for (end, wanted) in [(near, t.w.wrapping_add(NEXT)), (whole, following)] {
            while i < end {
                for n in 0..N {
                    S::prefetch(wanted.wrapping_add(n * t.w_ld + i * A::W));
                }
                step::<S, A, M, N>(&t, i, &mut acc);
                i += A::STEP;
            }
        }
        finish::<S, A, M, N>(&t, whole, &mut acc);
    }
}

/// Multiplies the elements after the last whole step and sums up.
#[inline(always)]
unsafe fn finish<S: Simd, A: Math, const M: usize, const N: usize>(t: &Tile, whole: usize, acc: &mut [[S::F; N]; M]) {
    // SAFETY: as for `tile`.
    unsafe {
        if whole < t.k1 {
            let rest = t.k1 - whole;
            for n in 0..N {
                let b = A::w_tail::<S>(t.w.add(n * t.w_ld + whole * A::W), rest);
                for m in 0..M {
                    let a = A::x_tail::<S>(t.x.add(m * t.x_ld + whole * A::X), rest);
                    acc[m][n] = A::mac::<S>(a, b, acc[m][n]);
                }
            }
        }
        S::sum_tile(acc, t.out, t.ld);
    }
}

#[inline(always)]
unsafe fn step<S: Simd, A: Math, const M: usize, const N: usize>(t: &Tile, i: usize, acc: &mut [[S::F; N]; M]) {
    // SAFETY: the caller vouches for a whole step at element i.
    unsafe {
        let mut b = [A::w::<S>(t.w.add(i * A::W)); N];
        for n in 1..N {
            b[n] = A::w::<S>(t.w.add(n * t.w_ld + i * A::W));
        }
        for m in 0..M {
            let a = A::x::<S>(t.x.add(m * t.x_ld + i * A::X));
            for n in 0..N {
                acc[m][n] = A::mac::<S>(a, b[n], acc[m][n]);
            }
        }
    }
}

impl Block {
    /// Rows of weights in order, each against all rows of `x` (at most [`GEMV_ROWS`]).
    #[inline(always)]
    unsafe fn gemv<S: Simd, A: Math>(self, x: *const u8, x_ld: usize) {
        let b = self;
        let (spill, ahead) = (std::ptr::null_mut(), std::ptr::null());
        let t = Tile { x, x_ld, w: b.w, w_ld: b.w_ld, k0: 0, k1: b.k, k: b.k, spill, ahead, out: b.out, ld: b.ld };
        // SAFETY: the fields' promises.
        unsafe { simd::run(S::LEVEL, Rows::<A>(t, b.m, b.n, PhantomData)) }
    }

    /// Panels of `S::NR` rows of weights, each against blocks of rows of `x`, a part of K at a time so that a panel
    /// and a tile's rows stay in the first cache. The next panel is fetched in the order of addresses.
    #[inline(always)]
    unsafe fn gemm<S: Simd, A: Math, E: Elem>(self, x: *const u8, x_ld: usize) {
        let b = self;
        let wide_ld = wide_row(b.k);
        let part = PART / A::X;
        // SAFETY: the fields' promises; the scratch holds the spill and a panel.
        unsafe {
            let spill = b.scratch.cast::<f32>();
            let wide = b.scratch.add(SPILL);
            let mut m0 = 0;
            while m0 < b.m {
                let rows = ROW_BLOCK.min(b.m - m0);
                let mut n = 0;
                while n < b.n {
                    let cols = if b.n - n >= S::NR { S::NR } else { 1 };
                    let from = b.w.add(n * b.w_ld);
                    let (mut w, mut w_ld) = (from, b.w_ld);
                    let mut next = if m0 == 0 { from.wrapping_add(cols * b.w_ld) } else { std::ptr::null() };
                    if E::SIZE != A::W {
                        for c in 0..cols {
                            widen_row::<S, E>(from.add(c * b.w_ld), b.k, wide.add(c * wide_ld).cast());
                        }
                        (w, w_ld, next) = (wide, wide_ld, std::ptr::null());
                    }
                    let mut k0 = 0;
                    while k0 < b.k {
                        let k1 = if b.k - k0 <= part * 3 / 2 { b.k } else { k0 + part };
                        let t = Tile {
                            x: x.add(m0 * x_ld),
                            x_ld,
                            w,
                            w_ld,
                            k0,
                            k1,
                            k: b.k,
                            spill,
                            ahead: next,
                            out: b.out.add(m0 * b.ld + n),
                            ld: b.ld,
                        };
                        // A function of its own: one with all of them inlined takes minutes to compile.
                        match cols {
                            6 if S::NR == 6 => simd::run(S::LEVEL, Panel::<A, 6>(t, rows, PhantomData)),
                            3 if S::NR == 3 => simd::run(S::LEVEL, Panel::<A, 3>(t, rows, PhantomData)),
                            _ => simd::run(S::LEVEL, Panel::<A, 1>(t, rows, PhantomData)),
                        }
                        k0 = k1;
                    }
                    n += cols;
                }
                m0 += rows;
            }
        }
    }

    #[inline(always)]
    unsafe fn exact<S: Simd, E: Elem>(self) {
        let (x, x_ld) = (self.x.cast(), self.x_ld * 4);
        // SAFETY: the fields' promises.
        unsafe {
            if self.m <= self.gemv.min(GEMV_ROWS) {
                self.gemv::<S, Single<E>>(x, x_ld);
            } else if self.m <= self.widen {
                self.gemm::<S, Single<E>, E>(x, x_ld);
            } else {
                self.gemm::<S, Single<F32>, E>(x, x_ld);
            }
        }
    }
}

/// `N` rows of weights against some rows of activations, a tile after another.
struct Panel<A, const N: usize>(Tile, usize, PhantomData<A>);

impl<A: Math, const N: usize> Kernel for Panel<A, N> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Panel(mut t, mut rows, _) = self;
        // SAFETY: the fields' promises.
        unsafe {
            while rows > 0 {
                let m = S::MR.min(rows);
                match m {
                    4 if S::MR >= 4 => tile::<S, A, 4, N>(t),
                    3 if S::MR >= 4 => tile::<S, A, 3, N>(t),
                    2 if S::MR >= 2 => tile::<S, A, 2, N>(t),
                    _ => tile::<S, A, 1, N>(t),
                }
                t.x = t.x.add(m * t.x_ld);
                t.out = t.out.add(m * t.ld);
                t.spill = t.spill.add(m * N * LANES);
                t.ahead = std::ptr::null();
                rows -= m;
            }
        }
    }
}

/// Rows of weights, each read once, against one or two rows of activations.
struct Rows<A>(Tile, usize, usize, PhantomData<A>);

impl<A: Math> Kernel for Rows<A> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Rows(mut t, m, mut n, _) = self;
        // SAFETY: the fields' promises.
        unsafe {
            while S::NR >= 6 && n >= STREAMS {
                if m == 1 {
                    streams::<S, A, 1, STREAMS>(t)
                } else {
                    streams::<S, A, 2, STREAMS>(t)
                }
                t.w = t.w.add(STREAMS * t.w_ld);
                t.out = t.out.add(STREAMS);
                n -= STREAMS;
            }
            for _ in 0..n {
                t.ahead = t.w.wrapping_add(AHEAD);
                if m == 1 {
                    tile::<S, A, 1, 1>(t)
                } else {
                    tile::<S, A, 2, 1>(t)
                }
                t.w = t.w.add(t.w_ld);
                t.out = t.out.add(1);
            }
        }
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
                if self.m <= self.gemv.min(GEMV_ROWS) {
                    self.gemv::<S, Pairs>(self.x16, self.x16_ld);
                } else {
                    self.gemm::<S, Pairs, Bf16>(self.x16, self.x16_ld);
                }
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
                if some == LANES {
                    S::store(u, y)
                } else {
                    crate::simd::store_some::<S>(u, some, y)
                }
                i += some;
            }
        }
    }
}
