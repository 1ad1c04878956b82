//! Rotary embedding.

use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, Simd, load_some, store_some};
use crate::{Cpu, Result};

/// Cosines and sines of some positions: `[positions, pairs]`, shared by all layers of a step.
pub struct Angles {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
}

impl Angles {
    /// Angle `position * inv_freq[i]`, rounded to f32 before its cosine and sine are taken, as transformers does.
    pub fn new(cpu: &Cpu, inv_freq: &[f32], positions: &[u32]) -> Angles {
        let pairs = inv_freq.len();
        let n = positions.len() * pairs;
        let (mut cos, mut sin) = (vec![0.0; n], vec![0.0; n]);
        let (to_cos, to_sin) = (Shared::of(&mut cos), Shared::of(&mut sin));
        cpu.pool.ranges(positions.len(), 16, &|r| {
            for i in r {
                // SAFETY: every position has values of its own.
                let (cos, sin) = unsafe { ({ to_cos }.part(i * pairs, pairs), { to_sin }.part(i * pairs, pairs)) };
                for (p, f) in inv_freq.iter().enumerate() {
                    (sin[p], cos[p]) = (positions[i] as f32 * f).sin_cos();
                }
            }
        });
        Angles { cos, sin, pairs }
    }

    /// Positions.
    fn rows(&self) -> usize {
        self.cos.len() / self.pairs.max(1)
    }
}

/// Rotates, in every group of `group` values of every row of x `[rows, cols]`, the `2 * pairs` values from `offset`
/// on: pairs (2i, 2i + 1) if `interleaved`, else (i, i + pairs).
pub fn rope(
    cpu: &Cpu,
    x: &mut [f32],
    cols: usize,
    group: usize,
    offset: usize,
    interleaved: bool,
    angles: &Angles,
) -> Result<()> {
    const OP: &str = "rope";
    let (rows, pairs) = (angles.rows(), angles.pairs);
    at_least(OP, "values of a group", (offset + 2 * pairs).max(1), group)?;
    same(OP, "values of a row, a multiple of the group", cols / group * group, cols)?;
    same(OP, "values", rows * cols, x.len())?;
    let x = Shared::of(x);
    cpu.pool.ranges(rows, ((8 << 10) / cols.max(1)).max(1), &|r| {
        for row in r {
            for g in 0..cols / group {
                // SAFETY: the shapes were compared; every row belongs to one task; the level is available.
                unsafe {
                    let head = { x }.0.add(row * cols + g * group + offset);
                    let (cos, sin) = (angles.cos.as_ptr().add(row * pairs), angles.sin.as_ptr().add(row * pairs));
                    if interleaved {
                        interleave(head, cos, sin, pairs);
                    } else {
                        simd::run(cpu.level, Halves { head, cos, sin, pairs });
                    }
                }
            }
        }
    });
    Ok(())
}

/// Rotates pairs (2i, 2i + 1).
///
/// # Safety
/// `head` holds `2 * pairs` values, `cos` and `sin` hold `pairs`.
unsafe fn interleave(head: *mut f32, cos: *const f32, sin: *const f32, pairs: usize) {
    for i in 0..pairs {
        // SAFETY: the caller's promise.
        unsafe {
            let (p, q, c, s) = (*head.add(2 * i), *head.add(2 * i + 1), *cos.add(i), *sin.add(i));
            *head.add(2 * i) = p * c - q * s;
            *head.add(2 * i + 1) = q * c + p * s;
        }
    }
}

struct Halves {
    head: *mut f32,
    cos: *const f32,
    sin: *const f32,
    pairs: usize,
}

impl Kernel for Halves {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the fields promise `2 * pairs` values and `pairs` cosines and sines.
        unsafe {
            let n = self.pairs;
            let mut i = 0;
            while i < n {
                let some = LANES.min(n - i);
                let load = |p: *const f32| if some == LANES { S::load(p) } else { load_some::<S>(p, some) };
                let (a, b) = (self.head.add(i), self.head.add(n + i));
                let (p, q, c, s) = (load(a), load(b), load(self.cos.add(i)), load(self.sin.add(i)));
                let x = S::sub(S::mul(p, c), S::mul(q, s));
                let y = S::add(S::mul(q, c), S::mul(p, s));
                if some == LANES {
                    S::store(a, x);
                    S::store(b, y);
                } else {
                    store_some::<S>(a, some, x);
                    store_some::<S>(b, some, y);
                }
                i += some;
            }
        }
    }
}
