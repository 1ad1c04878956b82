//! A record's factors, minimums and zero points as f32.

use super::layout::{Layout, Numbers, Tree};
use super::{ROWS, SPAN, STEP};
use crate::simd::{Kernel, LANES, Simd};
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

/// Loads sixteen numbers.
#[inline(always)]
unsafe fn load<S: Simd>(kind: ScaleType, p: *const u8) -> S::F {
    // SAFETY: the caller vouches for sixteen numbers of the type.
    unsafe {
        match kind {
            ScaleType::F32 => S::load(p.cast()),
            ScaleType::F16 => S::load_f16(p),
            ScaleType::BF16 => S::load_bf16(p),
            ScaleType::E4M3 => S::load_e4m3(p),
            ScaleType::E8M0 => S::load_e8m0(p),
            ScaleType::I8 => S::load_i8(p),
            ScaleType::U8 | ScaleType::U4 => S::load_u8(p),
        }
    }
}

/// The numbers for the group of `group` columns at number `g`.
#[inline(always)]
unsafe fn number<S: Simd>(numbers: &Numbers, record: *const u8, group: usize, g: usize) -> S::F {
    let at = numbers.offset + g * group / numbers.group * ROWS * numbers.size();
    // SAFETY: the caller vouches for the record.
    unsafe { load::<S>(numbers.kind, record.add(at)) }
}

#[inline(always)]
unsafe fn tree<S: Simd>(
    tree: &Tree,
    head: *const u8,
    record: *const u8,
    group: usize,
    groups: usize,
    out: &mut [[f32; LANES]; GROUPS],
) {
    // SAFETY: the caller vouches for the tile's head and the record.
    unsafe {
        for g in 0..groups {
            let mut v = match &tree.inner {
                Some(inner) => number::<S>(inner, record, group, g),
                None => S::splat(1.0),
            };
            let more = match (&tree.outer, tree.row) {
                (Some(outer), _) => Some(number::<S>(outer, record, group, g)),
                (None, Some(row)) => Some(S::load(head.add(row).cast())),
                (None, None) => None,
            };
            if let Some(more) = more {
                v = if tree.divides { S::div(v, more) } else { S::mul(v, more) };
            }
            S::store(out[g].as_mut_ptr(), v);
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
        // SAFETY: the fields' promises.
        unsafe {
            tree::<S>(&layout.scale, head, record, group, groups, &mut out.scale);
            if let Some(minimum) = &layout.minimum {
                tree::<S>(minimum, head, record, group, groups, &mut out.minimum);
            }
            if let Some(zeros) = &layout.zeros {
                for g in 0..groups {
                    let zero = number::<S>(zeros, record, group, g);
                    S::store(out.zero[g].as_mut_ptr(), zero);
                    if folded {
                        let minimum = match layout.minimum {
                            Some(_) => S::load(out.minimum[g].as_ptr()),
                            None => S::zero(),
                        };
                        let scale = S::load(out.scale[g].as_ptr());
                        S::store(out.minimum[g].as_mut_ptr(), S::fma(S::sub(S::zero(), zero), scale, minimum));
                    }
                }
            }
            let factor = layout.mapping.factor();
            if folded && factor != 1.0 {
                for g in 0..groups {
                    let scale = S::mul(S::load(out.scale[g].as_ptr()), S::splat(factor));
                    S::store(out.scale[g].as_mut_ptr(), scale);
                }
            }
        }
    }
}
