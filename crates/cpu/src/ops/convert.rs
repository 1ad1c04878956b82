//! Conversions between element types, rounding to nearest even, and gathering rows of an embedding.

use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, PAIRS, Simd, load_some};
use crate::simd::{Bf16, Elem, F16, F32};
use crate::{Cpu, DType, Error, Mat, Result};

/// Values that one task converts.
const GRAIN: usize = 16 << 10;

/// Bytes of a row of `k` `bf16` values padded to whole vectors of 32, and not a multiple of a page's part, so that
/// rows do not compete for the same sets of the cache.
pub(crate) fn row_bytes(k: usize) -> usize {
    let bytes = k.next_multiple_of(PAIRS) * 2;
    if bytes.is_multiple_of(1024) { bytes + PAIRS * 2 } else { bytes }
}

/// Rows of `f32` to rows of `bf16`, padded with zeros to `out_ld` bytes.
pub(crate) struct ToBf16 {
    pub x: *const f32,
    pub x_ld: usize,
    pub out: *mut u8,
    pub out_ld: usize,
    pub m: usize,
    pub k: usize,
}

impl Kernel for ToBf16 {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let padded = self.out_ld / 2;
        // SAFETY: the fields' promises; `padded` is a multiple of 16.
        unsafe {
            for r in 0..self.m {
                let (x, out) = (self.x.add(r * self.x_ld), self.out.add(r * self.out_ld));
                let mut i = 0;
                while i < padded {
                    let v = if i + LANES <= self.k {
                        S::load(x.add(i))
                    } else if i < self.k {
                        load_some::<S>(x.add(i), self.k - i)
                    } else {
                        S::zero()
                    };
                    S::store_bf16(out.add(i * 2), v);
                    i += LANES;
                }
            }
        }
    }
}

struct Widen {
    from: *const u8,
    dtype: DType,
    to: *mut f32,
    n: usize,
}

impl Widen {
    #[inline(always)]
    unsafe fn go<S: Simd, E: Elem>(self) {
        // SAFETY: the fields' promises.
        unsafe {
            let whole = self.n - self.n % LANES;
            let mut i = 0;
            while i < whole {
                S::store(self.to.add(i), E::load::<S>(self.from.add(i * E::SIZE)));
                i += LANES;
            }
            if whole < self.n {
                let v = crate::linear::load_tail::<S, E>(self.from.add(whole * E::SIZE), self.n - whole);
                simd::store_some::<S>(self.to.add(whole), self.n - whole, v);
            }
        }
    }
}

impl Kernel for Widen {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields' promises.
        unsafe {
            match self.dtype {
                DType::F32 => self.go::<S, F32>(),
                DType::F16 => self.go::<S, F16>(),
                DType::Bf16 => self.go::<S, Bf16>(),
            }
        }
    }
}

struct Narrow {
    from: *const f32,
    dtype: DType,
    to: *mut u8,
    n: usize,
}

impl Kernel for Narrow {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields' promises.
        unsafe {
            let size = self.dtype.size();
            let mut i = 0;
            while i < self.n {
                let some = LANES.min(self.n - i);
                let v = if some == LANES { S::load(self.from.add(i)) } else { load_some::<S>(self.from.add(i), some) };
                let mut buf = [0u8; LANES * 4];
                let to = self.to.add(i * size);
                let at = if some == LANES { to } else { buf.as_mut_ptr() };
                match self.dtype {
                    DType::F32 => S::store(at.cast(), v),
                    DType::F16 => S::store_f16(at, v),
                    DType::Bf16 => S::store_bf16(at, v),
                }
                if some < LANES {
                    std::ptr::copy_nonoverlapping(buf.as_ptr(), to, some * size);
                }
                i += some;
            }
        }
    }
}

/// Widens `to.len()` values of a type to `f32`.
pub fn to_f32(cpu: &Cpu, from: &[u8], dtype: DType, to: &mut [f32]) -> Result<()> {
    same("conversion to f32", "bytes", to.len() * dtype.size(), from.len())?;
    let n = to.len();
    let to = Shared::of(to);
    cpu.pool.ranges(n, GRAIN, &|r| {
        // SAFETY: the lengths were compared; the tasks' ranges are disjoint.
        unsafe {
            let from = from.as_ptr().add(r.start * dtype.size());
            simd::run(cpu.level, Widen { from, dtype, to: { to }.0.add(r.start), n: r.len() });
        }
    });
    Ok(())
}

/// Rounds `f32` values to a type.
pub fn from_f32(cpu: &Cpu, from: &[f32], dtype: DType, to: &mut [u8]) -> Result<()> {
    same("conversion from f32", "bytes", from.len() * dtype.size(), to.len())?;
    let to = Shared::of(to);
    cpu.pool.ranges(from.len(), GRAIN, &|r| {
        // SAFETY: the lengths were compared; the tasks' ranges are disjoint.
        unsafe {
            let to = { to }.0.add(r.start * dtype.size());
            simd::run(cpu.level, Narrow { from: from.as_ptr().add(r.start), dtype, to, n: r.len() });
        }
    });
    Ok(())
}

/// Rows of a table, widened: `out[i, :] = table[tokens[i], :]`.
pub fn embed(cpu: &Cpu, table: Mat<'_>, tokens: &[u32], out: &mut [f32]) -> Result<()> {
    const OP: &str = "embedding";
    let k = table.cols();
    at_least(OP, "values of the output", tokens.len() * k, out.len())?;
    if let Some(&bad) = tokens.iter().find(|&&t| t as usize >= table.rows()) {
        return Err(Error {
            op: OP,
            what: "token, below the rows of the table",
            expected: table.rows(),
            found: bad as usize,
        });
    }
    let to = Shared::of(out);
    cpu.pool.ranges(tokens.len(), (GRAIN / k.max(1)).max(1), &|r| {
        for i in r {
            // SAFETY: the token is a row of the table; each output row belongs to one task.
            unsafe {
                let from = table.data().as_ptr().add(tokens[i] as usize * table.stride());
                simd::run(cpu.level, Widen { from, dtype: table.dtype(), to: { to }.0.add(i * k), n: k });
            }
        }
    });
    Ok(())
}
