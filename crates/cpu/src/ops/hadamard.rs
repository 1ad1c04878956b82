//! Walsh-Hadamard rotations of blocks of a row, with a factor for each value before or after.
//!
//! Sixteen vectors are transposed, so that steps between lanes become steps between vectors, then transposed back. The
//! additions are those of the plain algorithm in the same order, so results are the same bit for bit on every level.

use super::rows_of;
use crate::buffer::Shared;
use crate::mat::{at_least, same};
use crate::simd::{self, Kernel, LANES, Simd};
use crate::{Cpu, Error, Result};

/// The largest block.
pub const MAX_BLOCK: usize = 1024;

/// Values transposed at a time.
const SQUARE: usize = LANES * LANES;

/// A rotation of each `block` consecutive values by the natural-order Hadamard matrix over sqrt(block), and a factor for
/// each value: before the rotation on the input side of a layer, after it on the output side.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Values rotated together: a power of two in 2..=1024.
    pub block: usize,
    /// A factor for each value of a row.
    pub scale: Option<&'a [f32]>,
}

impl Rotation<'_> {
    pub(crate) fn check(&self, n: usize) -> Result<()> {
        const OP: &str = "rotation";
        if !self.block.is_power_of_two() || !(2..=MAX_BLOCK).contains(&self.block) {
            let what = "block, a power of two from 2 to";
            return Err(Error { op: OP, what, expected: MAX_BLOCK, found: self.block });
        }
        same(OP, "values of a row, a multiple of the block", n / self.block * self.block, n)?;
        self.scale.map_or(Ok(()), |scale| same(OP, "scales", n, scale.len()))
    }
}

/// `out[r, :] = blockH(x[r, :] * scale)`: x rows of `width` values, `stride` apart, extended with zeros to the `n` values
/// of an output row; rows of `out` follow one another.
#[allow(clippy::too_many_arguments)]
pub fn rotate_input(
    cpu: &Cpu,
    rotation: Rotation<'_>,
    x: &[f32],
    rows: usize,
    width: usize,
    stride: usize,
    out: &mut [f32],
    n: usize,
) -> Result<()> {
    const OP: &str = "input rotation";
    rotation.check(n)?;
    at_least(OP, "values of a rotated row", width, n)?;
    at_least(OP, "values from row to row", width, stride)?;
    at_least(OP, "values of the input", if rows == 0 { 0 } else { (rows - 1) * stride + width }, x.len())?;
    at_least(OP, "values of the output", rows * n, out.len())?;
    let out = Shared::of(out);
    cpu.pool.ranges(rows, rows_of(n), &|range| {
        for r in range {
            // SAFETY: the shapes were compared; each row of `out` belongs to one task.
            unsafe {
                let (x, out) = (x.as_ptr().add(r * stride), { out }.0.add(r * n));
                rotate_row(cpu, rotation, x, width, out, n);
            }
        }
    });
    Ok(())
}

/// One row of [`rotate_input`].
///
/// # Safety
/// `width <= n` values at `x` and room for `n` at `out`; the rotation fits `n`.
pub(crate) unsafe fn rotate_row(
    cpu: &Cpu,
    rotation: Rotation<'_>,
    x: *const f32,
    width: usize,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: the caller's promises.
    unsafe {
        out.copy_from_nonoverlapping(x, width);
        out.add(width).write_bytes(0, n - width);
        let before = rotation.scale.map_or(std::ptr::null(), <[f32]>::as_ptr);
        rotate(cpu, out, n, rotation.block, before, std::ptr::null());
    }
}

/// `y[r, :] = blockH(y[r, :]) * scale` in place: rows of `n` values, `stride` apart.
pub fn rotate_output(
    cpu: &Cpu,
    rotation: Rotation<'_>,
    y: &mut [f32],
    rows: usize,
    n: usize,
    stride: usize,
) -> Result<()> {
    const OP: &str = "output rotation";
    rotation.check(n)?;
    at_least(OP, "values from row to row", n, stride)?;
    at_least(OP, "values", if rows == 0 { 0 } else { (rows - 1) * stride + n }, y.len())?;
    let y = Shared::of(y);
    let after = Shared(rotation.scale.map_or(std::ptr::null(), <[f32]>::as_ptr).cast_mut());
    cpu.pool.ranges(rows, rows_of(n), &|range| {
        for r in range {
            // SAFETY: the shapes were compared; each row belongs to one task.
            unsafe { rotate(cpu, { y }.0.add(r * stride), n, rotation.block, std::ptr::null(), { after }.0) };
        }
    });
    Ok(())
}

/// Rotates `n` values in place, with factors before or after where they are given.
///
/// # Safety
/// `n` values at `x` and wherever factors are given; `block` is a power of two up to [`MAX_BLOCK`] that divides `n`.
pub(crate) unsafe fn rotate(cpu: &Cpu, x: *mut f32, n: usize, block: usize, before: *const f32, after: *const f32) {
    // Whole squares of whole blocks; the rest goes through a padded copy.
    let piece = block.max(SQUARE);
    let whole = n / piece * piece;
    let norm = (1.0 / (block as f64).sqrt()) as f32;
    // SAFETY: the caller's promises; the padded copies are whole pieces.
    unsafe {
        let kernel = |x, n, before, after| Rotate { x, n, block, before, after, norm };
        simd::run(cpu.level, kernel(x, whole, before, after));
        let rest = n - whole;
        if rest > 0 {
            let mut copy = [[0.0f32; SQUARE]; 3];
            let copied = |to: &mut [f32; SQUARE], from: *const f32| {
                if from.is_null() {
                    return from;
                }
                to.as_mut_ptr().copy_from_nonoverlapping(from.add(whole), rest);
                to.as_ptr()
            };
            let [values, b, a] = &mut copy;
            copied(values, x);
            let (b, a) = (copied(b, before), copied(a, after));
            simd::run(cpu.level, kernel(values.as_mut_ptr(), SQUARE, b, a));
            x.add(whole).copy_from_nonoverlapping(values.as_ptr(), rest);
        }
    }
}

struct Rotate {
    x: *mut f32,
    /// A multiple of the block and of [`SQUARE`].
    n: usize,
    block: usize,
    before: *const f32,
    after: *const f32,
    norm: f32,
}

/// Sums and differences of vectors `stride` apart.
#[inline(always)]
unsafe fn steps<S: Simd, const STRIDE: usize>(v: &mut [S::F; 16]) {
    for i in 0..16 {
        if i & STRIDE == 0 {
            // SAFETY: the caller enabled the features; no memory is touched.
            unsafe { (v[i], v[i + STRIDE]) = (S::add(v[i], v[i + STRIDE]), S::sub(v[i], v[i + STRIDE])) }
        }
    }
}

impl Rotate {
    /// The steps within a square: strides up to 128.
    #[inline(always)]
    unsafe fn square<S: Simd>(&self, at: usize, side: *mut f32) {
        // SAFETY: the fields' promises; `side` is a square.
        unsafe {
            let x = self.x.add(at);
            let mut v = [S::zero(); 16];
            if !self.before.is_null() {
                for i in 0..16 {
                    let p = x.add(16 * i);
                    S::store(p, S::mul(S::load(p), S::load(self.before.add(at + 16 * i))));
                }
            }
            S::transpose(x.cast_const().cast(), 16, side.cast(), 16);
            for i in 0..16 {
                v[i] = S::load(side.add(16 * i));
            }
            steps::<S, 1>(&mut v);
            if self.block > 2 {
                steps::<S, 2>(&mut v);
            }
            if self.block > 4 {
                steps::<S, 4>(&mut v);
            }
            if self.block > 8 {
                steps::<S, 8>(&mut v);
            }
            for i in 0..16 {
                S::store(side.add(16 * i), v[i]);
            }
            S::transpose(side.cast_const().cast(), 16, x.cast(), 16);
            for i in 0..16 {
                v[i] = S::load(x.add(16 * i));
            }
            if self.block > 16 {
                steps::<S, 1>(&mut v);
            }
            if self.block > 32 {
                steps::<S, 2>(&mut v);
            }
            if self.block > 64 {
                steps::<S, 4>(&mut v);
            }
            if self.block > 128 {
                steps::<S, 8>(&mut v);
            }
            for i in 0..16 {
                let mut y = v[i];
                if self.block <= SQUARE {
                    y = self.finish::<S>(at + 16 * i, y);
                }
                S::store(x.add(16 * i), y);
            }
        }
    }

    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, at: usize, y: S::F) -> S::F {
        // SAFETY: the fields' promises.
        unsafe {
            let y = S::mul(y, S::splat(self.norm));
            if self.after.is_null() { y } else { S::mul(y, S::load(self.after.add(at))) }
        }
    }
}

impl Kernel for Rotate {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let mut side = [0.0f32; SQUARE];
        // SAFETY: the fields' promises.
        unsafe {
            for at in (0..self.n).step_by(SQUARE) {
                self.square::<S>(at, side.as_mut_ptr());
            }
            // Blocks of several squares: the steps between them.
            let mut stride = SQUARE;
            while stride < self.block {
                for i in (0..self.n).step_by(LANES).filter(|i| i & stride == 0) {
                    let (a, b) = (self.x.add(i), self.x.add(i + stride));
                    let (x, y) = (S::load(a), S::load(b));
                    let (mut x, mut y) = (S::add(x, y), S::sub(x, y));
                    if 2 * stride == self.block {
                        (x, y) = (self.finish::<S>(i, x), self.finish::<S>(i + stride, y));
                    }
                    S::store(a, x);
                    S::store(b, y);
                }
                stride *= 2;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::tests::{Rng, levels};

    /// Bit for bit what the checkpoint's plain rotation gives, on every level.
    #[test]
    fn rotations_of_every_size() {
        let mut rng = Rng(31);
        for block in [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024] {
            for blocks in [1, 2, 3, 5] {
                let n = block * blocks;
                for (rows, width) in [(1, n), (3, n - 1)] {
                    let (x, scale) = (rng.vec(rows * n), rng.vec(n));
                    for cpu in levels() {
                        let rotation = Rotation { block, scale: Some(&scale) };
                        let mut got = vec![f32::NAN; rows * n];
                        rotate_input(&cpu, rotation, &x, rows, width, n, &mut got, n).unwrap();
                        let mut back = x.clone();
                        rotate_output(&cpu, rotation, &mut back, rows, n, n).unwrap();
                        for r in 0..rows {
                            let row = &x[r * n..][..n];
                            let mut want: Vec<f32> = row.iter().zip(&scale).map(|(x, s)| x * s).collect();
                            want[width..].fill(0.0);
                            marlin_checkpoint::weight::hadamard(&mut want, block);
                            assert_eq!(got[r * n..][..n], want, "{block} {blocks} {}", cpu.level());
                            let mut want = row.to_vec();
                            marlin_checkpoint::weight::hadamard(&mut want, block);
                            want.iter_mut().zip(&scale).for_each(|(y, s)| *y *= s);
                            assert_eq!(back[r * n..][..n], want, "{block} {blocks} {}", cpu.level());
                        }
                    }
                }
            }
        }
    }

    /// A published example of the format: H x for x_i = (i + 1) / 128.
    #[test]
    fn rotation_of_a_ramp() {
        let x: Vec<f32> = (1..=128).map(|i| i as f32 / 128.0).collect();
        let mut y = vec![0.0; 128];
        let plain = Rotation { block: 128, scale: None };
        rotate_input(&Cpu::new(1), plain, &x, 1, 128, 128, &mut y, 128).unwrap();
        for (i, want) in [(0, 5.701_048_4), (1, -0.044_194_17), (2, -0.088_388_35), (3, 0.0), (64, -2.828_427)] {
            assert!((y[i] - want).abs() < 2e-6, "{i}: {}", y[i]);
        }
    }

    #[test]
    fn rotations_that_do_not_fit() {
        let (cpu, mut y) = (Cpu::new(1), vec![0.0; 24]);
        let mut try_block = |block, scale| rotate_output(&cpu, Rotation { block, scale }, &mut y, 1, 24, 24);
        assert!(try_block(8, None).is_ok());
        assert!(try_block(16, None).is_err());
        assert!(try_block(3, None).is_err());
        assert!(try_block(1, None).is_err());
        assert!(try_block(8, Some(&[1.0; 8])).is_err());
    }
}
