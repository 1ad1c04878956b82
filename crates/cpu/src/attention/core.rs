//! Online softmax over fixed tiles of positions, for a few query vectors that share their keys and values.
//!
//! Positions are cut at absolute multiples of [`TILE`] and [`CHUNK`]. Within a chunk, tiles update a running maximum,
//! sum and weighted sum; chunks are merged in order. What a query computes depends on its own position only: masked
//! positions have a probability of exactly zero and never enter a maximum, so a query in the middle of a prefill does
//! the same operations as the same query decoded alone.

use crate::simd::Elem;
use crate::simd::{self, Kernel, LANES, Simd, exp};
use std::marker::PhantomData;

/// Positions of a tile.
pub(super) const TILE: usize = 32;
/// Positions of a chunk.
pub(super) const CHUNK: usize = 512;

/// Keys and values of [`TILE`] positions, in groups of `P` (see [`Kv`]): keys `[k_dim / P][TILE][P]`, values
/// `[TILE / P][v_dim][P]`; strides in bytes from group to group.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub k: *const u8,
    pub k_ld: usize,
    pub v: *const u8,
    pub v_ld: usize,
    /// Factors of the keys and of the values `[TILE]`, where the type has any.
    pub scales: [*const f32; 2],
}

/// Keys and values of [`TILE`] positions as rows of `bf16`, bytes apart.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct RowTile {
    pub k: *const u8,
    pub k_ld: usize,
    pub v: *const u8,
    pub v_ld: usize,
}

#[cfg(target_arch = "x86_64")]
impl Default for RowTile {
    fn default() -> RowTile {
        RowTile { k: std::ptr::null(), k_ld: 0, v: std::ptr::null(), v_ld: 0 }
    }
}

/// Where tiles come from.
pub(super) trait Source {
    /// Whether keys and values lie row by row, as [`Source::rows`] says.
    #[cfg(target_arch = "x86_64")]
    const ROWS: bool = false;

    /// The tile at `start`, of whose positions the first `len` are filled. Value vectors are padded to whole vectors.
    ///
    /// # Safety
    /// The positions must exist, and `scratch` must have the room that the source asked for.
    unsafe fn tile<S: Simd>(&self, start: usize, len: usize, scratch: *mut u8) -> Tile;

    /// The same as rows of `bf16`, with nothing promised of those beyond the filled positions.
    ///
    /// # Safety
    /// As for [`Source::tile`], of a source with [`Source::ROWS`] whose rows are `bf16` or to be rounded to it.
    #[cfg(target_arch = "x86_64")]
    unsafe fn rows<S: Simd>(&self, _start: usize, _len: usize, _scratch: *mut u8) -> RowTile {
        RowTile::default()
    }

    /// Where keys and values of the tile at `start` lie in memory, with the strides of every tile: worth asking for
    /// early, since pages and blocks end what the hardware would foresee. Null where they are copied or turned first.
    ///
    /// # Safety
    /// The positions must exist.
    unsafe fn ahead(&self, _start: usize) -> [*const u8; 2] {
        [std::ptr::null(); 2]
    }
}

/// How elements of keys and values are multiplied: alone or in pairs along the summed dimension.
pub(super) trait Kv {
    /// Elements of a group.
    const P: usize;
    /// Bytes of a group of the left operand (queries, probabilities).
    const LEFT: usize;
    /// Bytes of sixteen groups of the right operand.
    const RIGHT: usize;
    /// Whether the left operand is `bf16`.
    const ROUNDED: bool;
    /// Whether positions have factors for their keys and values.
    const SCALED: bool = false;
    type V<S: Simd>: Copy;
    unsafe fn load<S: Simd>(p: *const u8) -> Self::V<S>;
    unsafe fn mac<S: Simd>(left: *const u8, v: Self::V<S>, acc: S::F) -> S::F;
    /// The same with the first element of the group alone.
    unsafe fn mac_first<S: Simd>(left: *const u8, v: Self::V<S>, acc: S::F) -> S::F;
}

/// Elements one by one, in `f32` arithmetic.
pub(super) struct Plain<E>(PhantomData<E>);
/// Pairs of `bf16`, widened.
pub(super) struct Widened;
/// Pairs of `bf16`, multiplied as such.
pub(super) struct Dot;

// SAFETY comments: the callers vouch for the elements that a method loads.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<E: Elem> Kv for Plain<E> {
    const P: usize = 1;
    const LEFT: usize = 4;
    const RIGHT: usize = LANES * E::SIZE;
    const ROUNDED: bool = false;
    type V<S: Simd> = S::F;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::F {
        unsafe { E::load::<S>(p) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(left: *const u8, v: S::F, acc: S::F) -> S::F {
        unsafe { S::fma(S::splat(*left.cast::<f32>()), v, acc) }
    }
    #[inline(always)]
    unsafe fn mac_first<S: Simd>(left: *const u8, v: S::F, acc: S::F) -> S::F {
        unsafe { Self::mac::<S>(left, v, acc) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Kv for Widened {
    const P: usize = 2;
    const LEFT: usize = 8;
    const RIGHT: usize = LANES * 4;
    const ROUNDED: bool = false;
    type V<S: Simd> = (S::F, S::F);
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> (S::F, S::F) {
        unsafe { S::load_bf16_pairs(p) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(left: *const u8, v: (S::F, S::F), acc: S::F) -> S::F {
        unsafe { S::fma(S::splat(*left.add(4).cast::<f32>()), v.1, Self::mac_first::<S>(left, v, acc)) }
    }
    #[inline(always)]
    unsafe fn mac_first<S: Simd>(left: *const u8, v: (S::F, S::F), acc: S::F) -> S::F {
        unsafe { S::fma(S::splat(*left.cast::<f32>()), v.0, acc) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks)]
impl Kv for Dot {
    const P: usize = 2;
    const LEFT: usize = 4;
    const RIGHT: usize = LANES * 4;
    const ROUNDED: bool = true;
    type V<S: Simd> = S::B;
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> S::B {
        unsafe { S::load_pairs(p) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(left: *const u8, v: S::B, acc: S::F) -> S::F {
        unsafe { S::dot(acc, S::splat_pair(left), v) }
    }
    #[inline(always)]
    unsafe fn mac_first<S: Simd>(left: *const u8, v: S::B, acc: S::F) -> S::F {
        unsafe { S::dot(acc, S::splat_pair(left), S::keep_first(v)) }
    }
}

/// Bytes that are numbers of a type.
pub(super) trait Code {
    /// Loads sixteen quads: vector `j` has number `j` of each.
    unsafe fn quads<S: Simd>(p: *const u8) -> [S::F; 4];
}

/// Signed bytes.
pub(super) struct I8;
/// E4M3 numbers.
pub(super) struct E4m3;

impl Code for I8 {
    #[inline(always)]
    unsafe fn quads<S: Simd>(p: *const u8) -> [S::F; 4] {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { S::load_i8_quads(p) }
    }
}

impl Code for E4m3 {
    #[inline(always)]
    unsafe fn quads<S: Simd>(p: *const u8) -> [S::F; 4] {
        // SAFETY: the caller vouches for 64 bytes.
        unsafe { S::load_e4m3_quads(p) }
    }
}

/// Quads of bytes, widened; any byte is finite, so what was never written needs no care.
pub(super) struct Quads<E>(PhantomData<E>);

#[allow(clippy::undocumented_unsafe_blocks)]
impl<E: Code> Kv for Quads<E> {
    const P: usize = 4;
    const LEFT: usize = 16;
    const RIGHT: usize = LANES * 4;
    const ROUNDED: bool = false;
    const SCALED: bool = true;
    type V<S: Simd> = [S::F; 4];
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u8) -> [S::F; 4] {
        unsafe { E::quads::<S>(p) }
    }
    #[inline(always)]
    unsafe fn mac<S: Simd>(left: *const u8, v: [S::F; 4], acc: S::F) -> S::F {
        unsafe {
            let acc = S::fma(S::splat(*left.cast::<f32>()), v[0], acc);
            let acc = S::fma(S::splat(*left.add(4).cast::<f32>()), v[1], acc);
            let acc = S::fma(S::splat(*left.add(8).cast::<f32>()), v[2], acc);
            S::fma(S::splat(*left.add(12).cast::<f32>()), v[3], acc)
        }
    }
    #[inline(always)]
    unsafe fn mac_first<S: Simd>(left: *const u8, v: [S::F; 4], acc: S::F) -> S::F {
        unsafe { Self::mac::<S>(left, v, acc) }
    }
}

/// The running softmax of `r` query vectors over one chunk.
#[derive(Clone, Copy)]
pub(super) struct State {
    /// Largest score so far `[r]`.
    pub m: *mut f32,
    /// Sum of probabilities, sixteen partial sums each `[r][16]`.
    pub l: *mut f32,
    /// Weighted sum of values `[r][v_pad]`.
    pub acc: *mut f32,
}

/// Query vectors that share keys and values.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    /// `[r]` vectors of `k_dim` elements, `q_ld` bytes apart, rounded if the arithmetic is.
    pub q: *const u8,
    pub q_ld: usize,
    /// Position of each vector, not decreasing `[r]`.
    pub pos: *const usize,
    pub r: usize,
    pub k_dim: usize,
    /// Value dimension, padded to whole vectors.
    pub v_pad: usize,
    pub scale: f32,
    /// The same as the right operand of matrix tiles, where keys are rows: see [`super::row_tiles`].
    #[cfg(target_arch = "x86_64")]
    pub panels: *const u8,
    /// Room for scores and probabilities of a tile of queries: [`WORK`] bytes, or what [`super::row_tiles`] asks for.
    pub work: *mut u8,
    /// The source's scratch.
    pub scratch: *mut u8,
    /// Matrix tiles, where they are to be used: then everything that there is one of for each vector, here and in the
    /// state, has room for a multiple of sixteen, and every position is set.
    #[cfg(target_arch = "x86_64")]
    pub tiles: Option<&'a crate::amx::Tiles>,
    pub life: PhantomData<&'a ()>,
}

/// Most query vectors of a register tile.
const QMAX: usize = 12;
/// Bytes of [`Queries::work`].
pub(super) const WORK: usize = 2 * QMAX * TILE * 4;

/// `acc[r][c] += sum over groups of left[r][g] * right[g][c]`; unless null, `next` is asked for like `right`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn product<S: Simd, K: Kv, const R: usize, const C: usize>(
    left: *const u8,
    left_ld: usize,
    right: *const u8,
    right_ld: usize,
    next: *const u8,
    groups: usize,
    half: bool,
    acc: &mut [[S::F; C]; R],
) {
    // SAFETY: the caller vouches for both operands.
    unsafe {
        for g in 0..groups {
            let p = right.add(g * right_ld);
            if !next.is_null() {
                for c in 0..C {
                    S::prefetch(next.wrapping_add(g * right_ld + c * K::RIGHT));
                }
            }
            if K::P == 4 {
                // A group is four vectors: one after another, they stay in registers.
                for c in 0..C {
                    let v = K::load::<S>(p.add(c * K::RIGHT));
                    for r in 0..R {
                        acc[r][c] = K::mac::<S>(left.add(r * left_ld + g * K::LEFT), v, acc[r][c]);
                    }
                }
                continue;
            }
            let mut v = [K::load::<S>(p); C];
            for c in 1..C {
                v[c] = K::load::<S>(p.add(c * K::RIGHT));
            }
            for r in 0..R {
                let a = left.add(r * left_ld + g * K::LEFT);
                for c in 0..C {
                    acc[r][c] = K::mac::<S>(a, v[c], acc[r][c]);
                }
            }
        }
        if half {
            let p = right.add(groups * right_ld);
            for r in 0..R {
                let a = left.add(r * left_ld + groups * K::LEFT);
                for c in 0..C {
                    acc[r][c] = K::mac_first::<S>(a, K::load::<S>(p.add(c * K::RIGHT)), acc[r][c]);
                }
            }
        }
    }
}

impl Queries<'_> {
    /// Takes positions `from..to` (of one chunk) into the state. The state starts at a maximum of -inf and zeros.
    #[inline(always)]
    pub(super) unsafe fn chunk<S: Simd, K: Kv, T: Source>(&self, source: &T, from: usize, to: usize, state: State) {
        // SAFETY: the fields' promises; positions up to the largest of the queries' exist.
        unsafe {
            let mut start = from;
            #[cfg(target_arch = "x86_64")]
            if let (Some(tiles), true) = (self.tiles, T::ROWS) {
                return self.by_rows::<S, T>(tiles, source, from, to, state);
            }
            while start < to {
                let len = TILE.min(to - start);
                let tile = source.tile::<S>(start, len, self.scratch);
                #[cfg(target_arch = "x86_64")]
                if let (Some(tiles), true) = (self.tiles, len == TILE) {
                    self.by_tiles::<S, K>(tiles, start, len, tile, state);
                    start += TILE;
                    continue;
                }
                let more = start + TILE <= *self.pos.add(self.r - 1);
                let mut next = if more { source.ahead(start + TILE) } else { [std::ptr::null(); 2] };
                let mut r = 0;
                while r < self.r {
                    let rest = self.r - r;
                    // Vectors are in the order of positions: those before this tile see nothing of it.
                    let n = register_rows(S::QR, rest);
                    if *self.pos.add(r + n - 1) >= start {
                        // Each a function of its own: one with all of them inlined takes minutes to compile.
                        let call = Call { q: self, r0: r, start, len, t: tile, next, state };
                        match n {
                            12 if S::QR >= 12 => simd::run(S::LEVEL, Rows::<K, 12>(call, PhantomData)),
                            8 if S::QR >= 8 => simd::run(S::LEVEL, Rows::<K, 8>(call, PhantomData)),
                            4 if S::QR >= 4 => simd::run(S::LEVEL, Rows::<K, 4>(call, PhantomData)),
                            3 if S::QR >= 3 => simd::run(S::LEVEL, Rows::<K, 3>(call, PhantomData)),
                            2 => simd::run(S::LEVEL, Rows::<K, 2>(call, PhantomData)),
                            _ => simd::run(S::LEVEL, Rows::<K, 1>(call, PhantomData)),
                        }
                    }
                    r += n;
                    next = [std::ptr::null(); 2];
                }
                start += TILE;
            }
        }
    }

    /// One tile of positions for vectors `r0..r0 + R`.
    #[inline(always)]
    unsafe fn tile<S: Simd, K: Kv, const R: usize>(&self, call: &Call<'_>) {
        let Call { r0, start, len, t, next, state, .. } = *call;
        // SAFETY: as for `chunk`.
        unsafe {
            let mut s = [[S::zero(); 2]; R];
            let q = self.q.add(r0 * self.q_ld);
            product::<S, K, R, 2>(q, self.q_ld, t.k, t.k_ld, next[0], self.k_dim.div_ceil(K::P), false, &mut s);
            if K::SCALED {
                let factors = [S::load(t.scales[0]), S::load(t.scales[0].add(LANES))];
                for r in 0..R {
                    s[r] = [S::mul(s[r][0], factors[0]), S::mul(s[r][1], factors[1])];
                }
            }

            let (alpha, visible) = self.probabilities::<S, K, R>(r0, start, len, t, s, state);

            // Positions are in order, so the last vector sees most.
            let seen = visible;
            let seen = if K::P == 4 { (seen.div_ceil(4), false) } else { (seen / K::P, seen % K::P != 0) };
            // Enough accumulators to hide the latency of a multiply-add, and no more than there are registers.
            let many = S::QR == QMAX;
            let mut d = 0;
            while d < self.v_pad {
                let n = (self.v_pad - d) / LANES;
                if many && R <= 2 && n >= 8 {
                    self.values::<S, K, R, 8>(r0, d, &alpha, seen, t, next[1], state);
                    d += 8 * LANES;
                } else if (R == 1 || many && R <= 4) && n >= 4 {
                    self.values::<S, K, R, 4>(r0, d, &alpha, seen, t, next[1], state);
                    d += 4 * LANES;
                } else if n >= 2 {
                    self.values::<S, K, R, 2>(r0, d, &alpha, seen, t, next[1], state);
                    d += 2 * LANES;
                } else {
                    self.values::<S, K, R, 1>(r0, d, &alpha, seen, t, next[1], state);
                    d += LANES;
                }
            }
        }
    }

    /// From scores `[R][TILE]` of vectors `r0..r0 + R` to probabilities in [`Queries::work`], `[R][TILE]`, with the state's
    /// maxima and sums brought up to date. Returns what the state's values are to be multiplied by, and how many positions
    /// the last vector sees.
    #[inline(always)]
    pub(super) unsafe fn probabilities<S: Simd, K: Kv, const R: usize>(
        &self,
        r0: usize,
        start: usize,
        len: usize,
        t: Tile,
        mut s: [[S::F; 2]; R],
        state: State,
    ) -> ([f32; LANES], usize) {
        // SAFETY: as for `chunk`.
        unsafe {
            let scale = S::splat(self.scale);
            let hidden = S::splat(f32::NEG_INFINITY);
            let (mut old, mut new) = ([f32::NEG_INFINITY; LANES], [0.0f32; LANES]);
            let mut visible = [0; R];
            for r in 0..R {
                visible[r] = (*self.pos.add(r0 + r) + 1).saturating_sub(start).min(len);
                let a = S::first(visible[r].min(LANES), S::mul(s[r][0], scale), hidden);
                let b = S::first(visible[r].saturating_sub(LANES), S::mul(s[r][1], scale), hidden);
                s[r] = [a, b];
                let top = S::largest(S::max(a, b));
                old[r] = *state.m.add(r0 + r);
                let m = if top > old[r] { top } else { old[r] };
                *state.m.add(r0 + r) = m;
                // Nothing seen yet: any finite reference gives probabilities of zero.
                new[r] = if m == f32::NEG_INFINITY { 0.0 } else { m };
            }
            let alpha_v = exp::<S>(S::sub(S::load(old.as_ptr()), S::load(new.as_ptr())));
            let mut alpha = [0.0f32; LANES];
            S::store(alpha.as_mut_ptr(), alpha_v);

            let p_ld = TILE * K::LEFT / K::P;
            for r in 0..R {
                let m = S::splat(new[r]);
                let mut p = [exp::<S>(S::sub(s[r][0], m)), exp::<S>(S::sub(s[r][1], m))];
                let to = self.work.add(r * p_ld);
                for c in 0..2 {
                    if K::SCALED {
                        // Factors of positions that were never written may be anything.
                        let factors = S::load(t.scales[1].add(c * LANES));
                        let n = visible[r].saturating_sub(c * LANES).min(LANES);
                        S::store(to.add(c * LANES * 4).cast(), S::first(n, S::mul(p[c], factors), S::zero()));
                    } else if K::ROUNDED {
                        // The sum is of what is multiplied.
                        S::store_bf16(to.add(c * LANES * 2), p[c]);
                        p[c] = S::load_bf16(to.add(c * LANES * 2));
                    } else {
                        S::store(to.add(c * LANES * 4).cast(), p[c]);
                    }
                }
                let l = state.l.add((r0 + r) * LANES);
                S::store(l, S::fma(S::load(l), S::splat(alpha[r]), S::add(p[0], p[1])));
            }
            (alpha, visible[R - 1])
        }
    }

    /// Adds the tile's weighted values, dimensions `d..d + 16 C`.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn values<S: Simd, K: Kv, const R: usize, const C: usize>(
        &self,
        r0: usize,
        d: usize,
        alpha: &[f32; LANES],
        seen: (usize, bool),
        t: Tile,
        next: *const u8,
        state: State,
    ) {
        // SAFETY: as for `chunk`.
        unsafe {
            let mut acc = [[S::zero(); C]; R];
            for r in 0..R {
                let a = S::splat(alpha[r]);
                for c in 0..C {
                    acc[r][c] = S::mul(S::load(state.acc.add((r0 + r) * self.v_pad + d + c * LANES)), a);
                }
            }
            let p_ld = TILE * K::LEFT / K::P;
            let right = t.v.add(d / LANES * K::RIGHT);
            let next = if next.is_null() { next } else { next.wrapping_add(d / LANES * K::RIGHT) };
            product::<S, K, R, C>(self.work, p_ld, right, t.v_ld, next, seen.0, seen.1, &mut acc);
            for r in 0..R {
                for c in 0..C {
                    S::store(state.acc.add((r0 + r) * self.v_pad + d + c * LANES), acc[r][c]);
                }
            }
        }
    }
}

/// A tile of positions for some vectors, as a kernel.
struct Call<'a> {
    q: &'a Queries<'a>,
    r0: usize,
    start: usize,
    len: usize,
    t: Tile,
    /// Keys and values of the next tile, to ask for; or null.
    next: [*const u8; 2],
    state: State,
}

struct Rows<'a, K, const R: usize>(Call<'a>, PhantomData<K>);

impl<K: Kv, const R: usize> Kernel for Rows<'_, K, R> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let c = self.0;
        // SAFETY: as for `chunk`.
        unsafe { c.q.tile::<S, K, R>(&c) }
    }
}

/// Query vectors of the next register tile.
fn register_rows(most: usize, rest: usize) -> usize {
    if most >= QMAX {
        match rest {
            12.. => 12,
            8.. => 8,
            4.. => 4,
            3 => 3,
            2 => 2,
            _ => 1,
        }
    } else {
        rest.min(most)
    }
}

/// Merges a chunk (`m`, `l` summed, `acc`) into the total of the chunks before it.
#[inline(always)]
pub(super) unsafe fn merge<S: Simd>(
    total: (&mut f32, &mut f32, *mut f32),
    chunk: (f32, f32, *const f32),
    v_pad: usize,
) {
    let (big_m, big_l, out) = total;
    let (m, l, acc) = chunk;
    if m == f32::NEG_INFINITY {
        return;
    }
    let top = if m > *big_m { m } else { *big_m };
    // SAFETY: the caller vouches for v_pad values on both sides.
    unsafe {
        let mut e = [0.0f32; LANES];
        e[0] = *big_m - top;
        e[1] = m - top;
        S::store(e.as_mut_ptr(), exp::<S>(S::load(e.as_ptr())));
        let (a, b) = (e[0], e[1]);
        *big_m = top;
        *big_l = *big_l * a + l * b;
        let (a, b) = (S::splat(a), S::splat(b));
        let mut d = 0;
        while d < v_pad {
            let o = out.add(d);
            S::store(o, S::fma(S::load(o), a, S::mul(S::load(acc.add(d)), b)));
            d += LANES;
        }
    }
}
