//! Rotary position embedding from tables of angles.

use super::rows_of;
use crate::buffer::Shared;
use crate::mat::{Error, at_least, same};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::{Cpu, Result};

/// Which elements are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `i` with `i + d / 2` (NeoX; Llama, Qwen).
    HalfSplit,
    /// `2 i` with `2 i + 1` (GPT-J; DeepSeek, GLM).
    Interleaved,
}

/// Cosines and sines `[positions, half]`.
#[derive(Clone, Copy, Debug)]
pub struct Angles<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
    /// Angles of a position: half of the elements that are rotated.
    pub half: usize,
}

struct Rotate {
    x: *mut f32,
    cos: *const f32,
    sin: *const f32,
    half: usize,
    style: RopeStyle,
}

impl Kernel for Rotate {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: twice `half` values to rotate, `half` cosines and sines.
        unsafe {
            let mut i = 0;
            if self.style == RopeStyle::HalfSplit {
                while i + LANES <= self.half {
                    let (c, s) = (S::load(self.cos.add(i)), S::load(self.sin.add(i)));
                    let (a, b) = (S::load(self.x.add(i)), S::load(self.x.add(i + self.half)));
                    S::store(self.x.add(i), S::sub(S::mul(a, c), S::mul(b, s)));
                    S::store(self.x.add(i + self.half), S::add(S::mul(b, c), S::mul(a, s)));
                    i += LANES;
                }
            }
            while i < self.half {
                let (pa, pb) = match self.style {
                    RopeStyle::HalfSplit => (self.x.add(i), self.x.add(i + self.half)),
                    RopeStyle::Interleaved => (self.x.add(2 * i), self.x.add(2 * i + 1)),
                };
                let (c, s) = (*self.cos.add(i), *self.sin.add(i));
                let (a, b) = (*pa, *pb);
                *pa = a * c - b * s;
                *pb = b * c + a * s;
                i += 1;
            }
        }
    }
}

/// Rotates `2 * half` values in place in each of `heads` vectors of each row: vector h of row r starts at
/// `r * ld + h * head_ld` of x, and row r stands at `positions[r]`.
#[allow(clippy::too_many_arguments)]
pub fn rope(
    cpu: &Cpu,
    style: RopeStyle,
    angles: Angles<'_>,
    positions: &[u32],
    x: &mut [f32],
    ld: usize,
    heads: usize,
    head_ld: usize,
) -> Result<()> {
    const OP: &str = "rope";
    let (m, d) = (positions.len(), 2 * angles.half);
    same(OP, "sines", angles.cos.len(), angles.sin.len())?;
    if m == 0 || heads == 0 || d == 0 {
        return Ok(());
    }
    at_least(OP, "values from head to head", d, head_ld)?;
    let width = (heads - 1) * head_ld + d;
    at_least(OP, "values from row to row", width, ld)?;
    at_least(OP, "values", (m - 1) * ld + width, x.len())?;
    let known = angles.cos.len() / angles.half;
    if let Some(&bad) = positions.iter().find(|&&p| p as usize >= known) {
        return Err(Error { op: OP, what: "position, below those of the table", expected: known, found: bad as usize });
    }
    let x = Shared::of(x);
    cpu.pool().ranges(m, rows_of(heads * d), &|rows| {
        for i in rows.start * heads..rows.end * heads {
            let (r, h) = (i / heads, i % heads);
            let at = positions[r] as usize * angles.half;
            // SAFETY: the shapes were compared; each row belongs to one task.
            unsafe {
                let kernel = Rotate {
                    x: { x }.0.add(r * ld + h * head_ld),
                    cos: angles.cos.as_ptr().add(at),
                    sin: angles.sin.as_ptr().add(at),
                    half: angles.half,
                    style,
                };
                simd::run(cpu.level(), kernel);
            }
        }
    });
    Ok(())
}
