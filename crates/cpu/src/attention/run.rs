//! Cuts attention into tasks: (sequence, key/value head, some query rows), and for few of those (.., chunk) as well.

use super::core::{CHUNK, Dot, E4m3, I8, Kv, Plain, Quads, Queries, Source, State, WORK, Widened, merge};
use super::stored::Stored;
#[cfg(target_arch = "x86_64")]
use super::{row_tiles, tiles};
#[cfg(target_arch = "x86_64")]
use crate::amx::Tiles;
use crate::buffer::{Shared, scratch, shared_scratch};
use crate::simd::{self, Kernel, LANES, Simd, load_some, store_some};
use crate::simd::{F16, F32};
use crate::{Cpu, DType};
use std::marker::PhantomData;

/// Query vectors that a task takes at most, where a row has no more heads than that; and with matrix tiles.
const VECTORS: usize = 48;
#[cfg(target_arch = "x86_64")]
const TILED_VECTORS: usize = 64;

/// Consecutive rows of a batch that belong to one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first row of the batch.
    pub row: usize,
    /// Rows.
    pub rows: usize,
    /// The position of the first row; the others follow it one by one.
    pub start: usize,
}

/// How keys and values are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Single,
    Half,
    Widened,
    Dot,
    Int8,
    Fp8,
}

impl Kind {
    /// The kind for memory of this type.
    pub(super) fn of(stored: Stored, dot: bool) -> Kind {
        match stored {
            Stored::Float(DType::F32) => Kind::Single,
            Stored::Float(DType::F16) => Kind::Half,
            Stored::Float(DType::Bf16) if dot => Kind::Dot,
            Stored::Float(DType::Bf16) => Kind::Widened,
            Stored::Int8 => Kind::Int8,
            Stored::Fp8 => Kind::Fp8,
        }
    }
}

/// A part of query vectors: `width` values at `row * row_ld + head * head_ld`.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub ptr: Shared<f32>,
    pub row_ld: usize,
    pub head_ld: usize,
    pub width: usize,
}

/// Attention over one kind of source.
pub(super) struct Problem {
    pub q: [Part; 2],
    /// Where results go; the width is the value dimension.
    pub out: Part,
    pub kv_heads: usize,
    /// Query heads that share a key/value head.
    pub group: usize,
    pub scale: f32,
    pub kind: Kind,
    pub spans: Vec<Span>,
}

impl Problem {
    fn k_dim(&self) -> usize {
        self.q[0].width + self.q[1].width
    }
    fn v_pad(&self) -> usize {
        self.out.width.next_multiple_of(LANES)
    }
    /// Vectors to make room for.
    fn room(&self, vectors: usize) -> usize {
        vectors.next_multiple_of(2 * LANES)
    }
    /// Vectors that a task takes at most, where a row has no more heads than that.
    fn most(&self, _cpu: &Cpu) -> usize {
        #[cfg(target_arch = "x86_64")]
        if self.tiled(_cpu, TILED_VECTORS) {
            return TILED_VECTORS;
        }
        VECTORS
    }
    /// Whether matrix tiles take part for so many vectors. Heads that share their keys and values are as many in every
    /// batch, so rows of a dozen heads do not depend on their company.
    #[cfg(target_arch = "x86_64")]
    fn tiled(&self, cpu: &Cpu, vectors: usize) -> bool {
        let whole = self.k_dim().is_multiple_of(tiles::STEP) && self.v_pad().is_multiple_of(tiles::STEP);
        self.kind == Kind::Dot && whole && cpu.tiled(vectors)
    }
    /// Bytes of the work room of so many vectors, with their queries laid out for matrix tiles, and of the source's scratch.
    #[cfg(target_arch = "x86_64")]
    fn rooms(&self, vectors: usize, source_bytes: usize) -> (usize, usize) {
        let (k_dim, v_pad) = (self.k_dim(), self.v_pad());
        let work = WORK.max(row_tiles::work(vectors)) + vectors * k_dim * 2;
        (work, source_bytes.max(row_tiles::staged(k_dim, v_pad)))
    }
    #[cfg(not(target_arch = "x86_64"))]
    fn rooms(&self, _: usize, source_bytes: usize) -> (usize, usize) {
        (WORK, source_bytes)
    }
    /// `f32` values of the state of one vector: maximum, sum, accumulator.
    fn state(&self) -> usize {
        self.v_pad() + LANES
    }
}

/// Some rows of one sequence, for one key/value head.
#[derive(Clone, Copy)]
struct Piece {
    span: usize,
    head: usize,
    /// First row in the batch, its position, and rows.
    row: usize,
    pos: usize,
    rows: usize,
    /// First chunk among those of all pieces.
    chunk: usize,
}

impl Piece {
    fn end(&self) -> usize {
        self.pos + self.rows
    }
    fn chunks(&self) -> usize {
        self.end().div_ceil(CHUNK)
    }
}

/// Runs a problem; `source(span, kv head)` says where keys and values are, and `source_bytes` is the scratch that each
/// needs.
pub(super) fn run<T: Source>(
    cpu: &Cpu,
    problem: &Problem,
    source_bytes: usize,
    source: &(dyn Fn(usize, usize) -> T + Sync),
) {
    let per = (problem.most(cpu) / problem.group).max(1);
    let mut pieces = Vec::new();
    let mut chunks = 0;
    for (i, span) in problem.spans.iter().enumerate() {
        for head in 0..problem.kv_heads {
            let mut done = 0;
            while done < span.rows {
                let rows = per.min(span.rows - done);
                let piece = Piece { span: i, head, row: span.row + done, pos: span.start + done, rows, chunk: chunks };
                chunks += piece.chunks();
                pieces.push(piece);
                done += rows;
            }
        }
    }
    let per = per.min(pieces.iter().map(|p| p.rows).max().unwrap_or(1));
    let most = per * problem.group * problem.state();
    // Split along the context only where the pieces alone would leave threads idle.
    let split = cpu.pool.threads() > 1 && chunks > pieces.len() && pieces.len() < 4 * cpu.pool.threads();
    let task = |piece: Piece, only: Option<usize>, partial: *mut f32| {
        let vectors = problem.room(piece.rows * problem.group);
        let q_ld = problem.k_dim().next_multiple_of(LANES) * 4;
        let (work, source_bytes) = problem.rooms(vectors, source_bytes);
        let bytes = vectors * (q_ld + 8 + 2 * problem.state() * 4 + LANES * 4) + q_ld + work + source_bytes + 9 * 64;
        scratch(bytes, |mem| {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this level has tiles, and attention is all that this thread does with them now.
            let tiles = problem.tiled(cpu, piece.rows * problem.group).then(|| unsafe { Tiles::shape() });
            let kernel = Task {
                problem,
                piece,
                only,
                partial,
                source: source(piece.span, piece.head),
                q_ld,
                mem,
                #[cfg(target_arch = "x86_64")]
                tiles: tiles.as_ref(),
            };
            // SAFETY: the entry points have checked shapes and spans; `mem` has room for the parts that `Task` lays
            // out; tasks write their own rows and heads, or their own partial results.
            unsafe { simd::run(cpu.level, kernel) }
        });
    };
    if !split {
        cpu.pool.run(pieces.len(), &|i| task(pieces[i], None, std::ptr::null_mut()));
        return;
    }
    let vectors = per * problem.group;
    shared_scratch(chunks * most * 4, |mem| {
        let partial = Shared(mem.cast::<f32>());
        cpu.pool.run(chunks, &|c| {
            let piece = pieces[pieces.partition_point(|p| p.chunk <= c) - 1];
            // SAFETY: each chunk has a part of the memory.
            task(piece, Some(c - piece.chunk), unsafe { { partial }.0.add(c * most) });
        });
        cpu.pool.ranges(pieces.len() * vectors, 4, &|some| {
            scratch(problem.state() * 4, |mem| {
                for (i, vector) in some.map(|n| (n / vectors, n % vectors)) {
                    let piece = pieces[i];
                    if vector >= piece.rows * problem.group {
                        continue;
                    }
                    // SAFETY: the partial results of the piece's chunks are complete; the scratch holds one state.
                    unsafe {
                        let first = { partial }.0.add(piece.chunk * most);
                        simd::run(cpu.level, Join { problem, piece, vector, first, most, mem: mem.cast() });
                    }
                }
            });
        });
    });
}

struct Task<'a, T> {
    problem: &'a Problem,
    piece: Piece,
    /// One chunk, written to `partial`; or all of them, written to the output.
    only: Option<usize>,
    partial: *mut f32,
    source: T,
    q_ld: usize,
    mem: *mut u8,
    #[cfg(target_arch = "x86_64")]
    tiles: Option<&'a Tiles>,
}

/// Takes `bytes` off the front of scratch memory, on a cache line's boundary.
fn take(mem: &mut *mut u8, bytes: usize) -> *mut u8 {
    let p = *mem;
    *mem = p.wrapping_add(bytes.next_multiple_of(64));
    p
}

impl<T: Source> Task<'_, T> {
    #[inline(always)]
    unsafe fn go<S: Simd, K: Kv>(mut self) {
        let (pr, piece) = (self.problem, self.piece);
        let r = piece.rows * pr.group;
        let room = pr.room(r);
        let (k_dim, v_pad) = (pr.k_dim(), pr.v_pad());
        let mem = &mut self.mem;
        let q = take(mem, room * self.q_ld);
        let stage = take(mem, self.q_ld).cast::<f32>();
        let pos = take(mem, room * 8).cast::<usize>();
        #[cfg(target_arch = "x86_64")]
        let (work, panels) = (take(mem, WORK.max(row_tiles::work(room))), take(mem, room * k_dim * 2));
        #[cfg(not(target_arch = "x86_64"))]
        let work = take(mem, WORK);
        let state = State {
            m: take(mem, room * 4).cast(),
            l: take(mem, room * LANES * 4).cast(),
            acc: take(mem, room * v_pad * 4).cast(),
        };
        let total = take(mem, r * pr.state() * 4).cast::<f32>();
        let scratch = *mem;
        // SAFETY: `run` has made room for these parts; the fields' promises.
        unsafe {
            for i in 0..r {
                let (row, head) = (piece.row + i / pr.group, piece.head * pr.group + i % pr.group);
                *pos.add(i) = piece.pos + i / pr.group;
                let mut at = 0;
                for part in &pr.q {
                    let from = part.ptr.0.add(row * part.row_ld + head * part.head_ld);
                    std::ptr::copy_nonoverlapping(from, stage.add(at), part.width);
                    at += part.width;
                }
                let to = q.add(i * self.q_ld);
                let mut e = 0;
                while e < k_dim {
                    let some = LANES.min(k_dim - e);
                    let v = load_some::<S>(stage.add(e), some);
                    if K::ROUNDED {
                        S::store_bf16(to.add(e * 2), v)
                    } else {
                        S::store(to.add(e * 4).cast(), v)
                    }
                    e += some;
                }
            }
            for i in r..room {
                *pos.add(i) = piece.end() - 1;
            }
            #[cfg(target_arch = "x86_64")]
            if T::ROWS && self.tiles.is_some() {
                row_tiles::lay_queries::<S>(q, self.q_ld, room, k_dim, panels);
            }
            total.write_bytes(0, r * pr.state());
            for i in 0..r {
                *total.add(i * pr.state()) = f32::NEG_INFINITY;
            }
            let queries = Queries {
                q,
                q_ld: self.q_ld,
                pos,
                r,
                k_dim,
                v_pad,
                scale: pr.scale,
                #[cfg(target_arch = "x86_64")]
                panels,
                work,
                scratch,
                #[cfg(target_arch = "x86_64")]
                tiles: self.tiles,
                life: PhantomData,
            };
            let chunks = match self.only {
                Some(c) => c..c + 1,
                None => 0..piece.chunks(),
            };
            for c in chunks {
                for i in 0..room {
                    *state.m.add(i) = f32::NEG_INFINITY;
                }
                state.l.write_bytes(0, room * LANES);
                state.acc.write_bytes(0, room * v_pad);
                let end = ((c + 1) * CHUNK).min(piece.end());
                queries.chunk::<S, K, T>(&self.source, c * CHUNK, end, state);
                for i in 0..r {
                    let chunk = (*state.m.add(i), S::sum(S::load(state.l.add(i * LANES))), state.acc.add(i * v_pad));
                    if self.only.is_some() {
                        let to = self.partial.add(i * pr.state());
                        (*to, *to.add(1)) = (chunk.0, chunk.1);
                        std::ptr::copy_nonoverlapping(chunk.2, to.add(LANES), v_pad);
                    } else {
                        let t = total.add(i * pr.state());
                        merge::<S>((&mut *t, &mut *t.add(1), t.add(LANES)), (chunk.0, chunk.1, chunk.2), v_pad);
                    }
                }
            }
            if self.only.is_none() {
                for i in 0..r {
                    finish::<S>(pr, piece, i, total.add(i * pr.state()));
                }
            }
        }
    }
}

/// Divides a total by its sum and writes it out.
#[inline(always)]
unsafe fn finish<S: Simd>(pr: &Problem, piece: Piece, i: usize, total: *const f32) {
    let (row, head) = (piece.row + i / pr.group, piece.head * pr.group + i % pr.group);
    // SAFETY: the caller vouches for a complete total; the output has this row and head.
    unsafe {
        let inverse = S::splat(1.0 / *total.add(1));
        let out = pr.out.ptr.0.add(row * pr.out.row_ld + head * pr.out.head_ld);
        let mut d = 0;
        while d < pr.out.width {
            let some = LANES.min(pr.out.width - d);
            let v = S::mul(S::load(total.add(LANES + d)), inverse);
            if some == LANES {
                S::store(out.add(d), v)
            } else {
                store_some::<S>(out.add(d), some, v)
            }
            d += some;
        }
    }
}

impl<T: Source> Kernel for Task<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields' promises.
        unsafe {
            match self.problem.kind {
                Kind::Single => self.go::<S, Plain<F32>>(),
                Kind::Half => self.go::<S, Plain<F16>>(),
                Kind::Dot if S::BF16 => self.go::<S, Dot>(),
                Kind::Widened | Kind::Dot => self.go::<S, Widened>(),
                Kind::Int8 => self.go::<S, Quads<I8>>(),
                Kind::Fp8 => self.go::<S, Quads<E4m3>>(),
            }
        }
    }
}

/// Merges the chunks of one vector of a piece.
struct Join<'a> {
    problem: &'a Problem,
    piece: Piece,
    vector: usize,
    first: *const f32,
    most: usize,
    mem: *mut f32,
}

impl Kernel for Join<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (pr, v_pad) = (self.problem, self.problem.v_pad());
        // SAFETY: the fields' promises.
        unsafe {
            let t = self.mem;
            t.write_bytes(0, pr.state());
            *t = f32::NEG_INFINITY;
            for c in 0..self.piece.chunks() {
                let from = self.first.add(c * self.most + self.vector * pr.state());
                let chunk = (*from, *from.add(1), from.add(LANES));
                merge::<S>((&mut *t, &mut *t.add(1), t.add(LANES)), chunk, v_pad);
            }
            finish::<S>(pr, self.piece, self.vector, t);
        }
    }
}
