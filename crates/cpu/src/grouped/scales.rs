//! A record's factors, minimums and zero points as f32.

use super::layout::{Layout, Numbers, Tree};
use super::{ROWS, SPAN, STEP};
use crate::simd::{Bf16, E4m3, E8m0, Elem, F16, F32, I8, Kernel, LANES, Simd, U8};
use marlin_checkpoint::weight::ScaleType;

/// Vectors of numbers in a record: one for each 16 columns at most.
pub(crate) const GROUPS: usize = SPAN / ROWS;

/// One record's numbers, a vector of sixteen rows for each of its groups.
#[repr(C, align(64))]
pub(crate) struct Decoded {
    /// Factors: as stored, or times the mapping's own if so asked.
    pub scale: [[f32; LANES]; GROUPS],
    /// Minimums (in integer products with the zero points' part).
    pub minimum: [[f32; LANES]; GROUPS],
    /// Zero points, if there are any of groups.
    pub zero: [[f32; LANES]; GROUPS],
}

impl Decoded {
    pub const fn new() -> Decoded {
        Decoded { scale: [[0.0; LANES]; GROUPS], minimum: [[0.0; LANES]; GROUPS], zero: [[0.0; LANES]; GROUPS] }
    }
}

/// Runs `$body` with `$kind` as the type that numbers of this kind are loaded by.
macro_rules! each_kind {
    ($numbers:expr, $kind:ident => $body:expr) => {
        match $numbers.kind {
            ScaleType::F32 => {
                type $kind = F32;
                $body
            }
            ScaleType::F16 => {
                type $kind = F16;
                $body
            }
            ScaleType::BF16 => {
                type $kind = Bf16;
                $body
            }
            ScaleType::E4M3 => {
                type $kind = E4m3;
                $body
            }
            ScaleType::E8M0 => {
                type $kind = E8m0;
                $body
            }
            ScaleType::I8 => {
                type $kind = I8;
                $body
            }
            ScaleType::U8 | ScaleType::U4 => {
                type $kind = U8;
                $body
            }
        }
    };
}

/// Where the numbers of one kind stand in a record, and how many groups share one.
struct Run {
    from: *const u8,
    /// Groups that share a number, as a shift.
    share: u32,
    groups: usize,
}

impl Run {
    /// The numbers of the first `groups` groups of `group` columns.
    fn of(numbers: &Numbers, record: *const u8, group: usize, groups: usize) -> Run {
        let share = (numbers.group / group).trailing_zeros();
        Run { from: record.wrapping_add(numbers.offset), share, groups }
    }

    /// `out[g] = number * factor`.
    #[inline(always)]
    unsafe fn put<S: Simd, E: Elem>(&self, factor: f32, out: &mut [[f32; LANES]; GROUPS]) {
        // SAFETY: the caller vouches for the record.
        unsafe {
            let factor = S::splat(factor);
            for (g, out) in out.iter_mut().enumerate().take(self.groups) {
                let v = E::load::<S>(self.from.add((g >> self.share) * ROWS * E::SIZE));
                S::store(out.as_mut_ptr(), S::mul(v, factor));
            }
        }
    }

    /// `out[g] *= number`, or `/=`.
    #[inline(always)]
    unsafe fn fold<S: Simd, E: Elem>(&self, divides: bool, out: &mut [[f32; LANES]; GROUPS]) {
        // SAFETY: the caller vouches for the record.
        unsafe {
            for (g, out) in out.iter_mut().enumerate().take(self.groups) {
                let v = E::load::<S>(self.from.add((g >> self.share) * ROWS * E::SIZE));
                fold::<S>(divides, v, out);
            }
        }
    }
}

#[inline(always)]
unsafe fn fold<S: Simd>(divides: bool, v: S::F, out: &mut [f32; LANES]) {
    // SAFETY: the level's features are enabled.
    unsafe {
        let old = S::load(out.as_ptr());
        S::store(out.as_mut_ptr(), if divides { S::div(old, v) } else { S::mul(old, v) });
    }
}

/// `out[g] = factor * inner * outer`.
#[inline(always)]
unsafe fn tree<S: Simd>(
    tree: &Tree,
    factor: f32,
    [head, record]: [*const u8; 2],
    [group, groups]: [usize; 2],
    out: &mut [[f32; LANES]; GROUPS],
) {
    // SAFETY: the caller vouches for the tile's head and the record.
    unsafe {
        match &tree.inner {
            Some(inner) => {
                let run = Run::of(inner, record, group, groups);
                each_kind!(inner, E => run.put::<S, E>(factor, out));
            }
            None => out[..groups].fill([factor; LANES]),
        }
        if let Some(outer) = &tree.outer {
            let run = Run::of(outer, record, group, groups);
            each_kind!(outer, E => run.fold::<S, E>(tree.divides, out));
        } else if let Some(row) = tree.row {
            let v = S::load(head.add(row).cast());
            for out in &mut out[..groups] {
                fold::<S>(tree.divides, v, out);
            }
        }
    }
}

/// Decodes a record's numbers.
pub(crate) struct Decode<'a> {
    pub layout: &'a Layout,
    /// The tile's head.
    pub head: *const u8,
    pub record: *const u8,
    /// Whether to fold the mapping's factor into the factors and zero points into the minimums.
    pub folded: bool,
    pub out: &'a mut Decoded,
}

impl Kernel for Decode<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Decode { layout, head, record, folded, out } = self;
        let group = layout.group;
        let groups = SPAN / group;
        debug_assert!(group == 16 || group.is_multiple_of(STEP));
        let (at, size) = ([head, record], [group, groups]);
        let factor = if folded { layout.mapping.factor() } else { 1.0 };
        // SAFETY: the fields' promises.
        unsafe {
            tree::<S>(&layout.scale, factor, at, size, &mut out.scale);
            if let Some(minimum) = &layout.minimum {
                tree::<S>(minimum, 1.0, at, size, &mut out.minimum);
            }
            if let Some(zeros) = &layout.zeros {
                // Zero points are bytes, and their codes plain integers, whose factor is one.
                Run::of(zeros, record, group, groups).put::<S, U8>(1.0, &mut out.zero);
                for g in 0..if folded { groups } else { 0 } {
                    let minimum = match layout.minimum {
                        Some(_) => S::load(out.minimum[g].as_ptr()),
                        None => S::zero(),
                    };
                    let (zero, scale) = (S::load(out.zero[g].as_ptr()), S::load(out.scale[g].as_ptr()));
                    S::store(out.minimum[g].as_mut_ptr(), S::fma(S::sub(S::zero(), zero), scale, minimum));
                }
            }
        }
    }
}
