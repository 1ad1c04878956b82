//! Where in a record what is.

use super::acts::Start;
use super::unpack::step_bytes;
use super::{ROWS, SPAN, STEP};
use marlin_checkpoint::Grouped;
use marlin_checkpoint::weight::{ScaleTree, ScaleType, ValueMap, Zero};

/// What codes are multiplied as.
#[derive(Clone, Debug, PartialEq)]
pub enum Mapping {
    /// The code minus `zero`, where zero points are not stored for each group.
    Integer {
        /// The code that stands for zero.
        zero: u8,
    },
    /// A table of 16 integers plus `zero`, all below 256; the value is `factor` times the integer.
    Table {
        /// The integers plus `zero`, by code.
        table: [u8; 16],
        /// What is added to make them unsigned.
        zero: u8,
        /// What an integer stands for.
        factor: f32,
    },
    /// Values of 16 codes that are no small integers.
    Floats(Box<[f32; 16]>),
    /// 8-bit floats with three bits of mantissa.
    E4M3,
    /// 8-bit floats with two bits of mantissa.
    E5M2,
}

impl Mapping {
    fn of(map: &ValueMap) -> Mapping {
        match map {
            ValueMap::Integer(Zero::Constant(zero)) => Mapping::Integer { zero: *zero },
            ValueMap::Integer(Zero::Groups(_)) => Mapping::Integer { zero: 0 },
            ValueMap::E2M1 => Mapping::integers(&marlin_checkpoint::weight::values::E2M1, 2.0),
            ValueMap::Table(table) => Mapping::integers(table, 1.0),
            ValueMap::E4M3 => Mapping::E4M3,
            ValueMap::E5M2 => Mapping::E5M2,
        }
    }

    /// The table times `times` as integers, if they are such.
    fn integers(table: &[f32; 16], times: f32) -> Mapping {
        let lowest = table.iter().fold(0.0f32, |a, b| a.min(*b)) * times;
        let mut bytes = [0; 16];
        for (byte, value) in bytes.iter_mut().zip(table) {
            let v = value * times - lowest;
            if (value * times).fract() != 0.0 || !(0.0..=255.0).contains(&v) || lowest < -128.0 {
                return Mapping::Floats(Box::new(*table));
            }
            *byte = v as u8;
        }
        Mapping::Table { table: bytes, zero: -lowest as u8, factor: 1.0 / times }
    }

    /// Whether it can be multiplied in integers.
    pub fn is_integer(&self) -> bool {
        matches!(self, Mapping::Integer { .. } | Mapping::Table { .. })
    }

    /// The highest integer of codes of so many bits, unsigned.
    pub(crate) fn highest(&self, bits: u32) -> u8 {
        match self {
            Mapping::Table { table, .. } => table.iter().copied().max().unwrap_or(0),
            _ => (0xff_u32 >> (8 - bits)) as u8,
        }
    }

    /// What is subtracted from every unsigned code.
    pub fn zero(&self) -> u8 {
        match self {
            Mapping::Integer { zero } | Mapping::Table { zero, .. } => *zero,
            _ => 0,
        }
    }

    /// What the integers are multiplied with besides the stored factors.
    pub(crate) fn factor(&self) -> f32 {
        match self {
            Mapping::Table { factor, .. } => *factor,
            _ => 1.0,
        }
    }
}

/// Numbers of a record, sixteen (one a row) for each group of columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Numbers {
    /// Type they are stored in; 4-bit ones are stored in bytes.
    pub kind: ScaleType,
    /// Columns that share one: a divisor of [`SPAN`], at least 16.
    pub group: usize,
    /// Where in a record they begin.
    pub offset: usize,
}

impl Numbers {
    pub fn size(&self) -> usize {
        self.kind.bits().div_ceil(8)
    }

    fn bytes(&self) -> usize {
        SPAN / self.group * ROWS * self.size()
    }
}

/// A tree of factors: parts in the record and one for each row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tree {
    pub inner: Option<Numbers>,
    pub outer: Option<Numbers>,
    /// Where in a tile's head sixteen f32 stand.
    pub row: Option<usize>,
    /// Whether the outer numbers, or the rows', divide.
    pub divides: bool,
}

/// Sizes and offsets of a re-laid matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bits: u32,
    pub(crate) mapping: Mapping,
    pub(crate) scale: Tree,
    pub(crate) minimum: Option<Tree>,
    pub(crate) zeros: Option<Numbers>,
    /// Columns that share all numbers: 16 or a multiple of 32.
    pub(crate) group: usize,
    /// Bytes of a tile's numbers for whole rows.
    pub(crate) head: usize,
    /// Bytes of a record's numbers, after which its codes begin.
    pub(crate) numbers: usize,
}

/// What has been given a place so far.
#[derive(Default)]
struct Places {
    head: usize,
    record: usize,
    group: usize,
}

impl Places {
    /// Numbers for every `width` columns, or `None` if the kernels have no place for such.
    fn numbers(&mut self, kind: ScaleType, width: usize) -> Option<Numbers> {
        // A width that does not divide the span is taken apart into ones that do.
        let group = gcd(width, SPAN);
        if group < 16 {
            return None;
        }
        let kind = if kind == ScaleType::U4 { ScaleType::U8 } else { kind };
        let numbers = Numbers { kind, group, offset: self.record };
        self.record += numbers.bytes();
        self.group = self.group.min(group);
        Some(numbers)
    }

    fn row(&mut self) -> usize {
        let offset = self.head;
        self.head += 4 * ROWS;
        offset
    }

    fn tree(&mut self, tree: &ScaleTree, cols: usize) -> Option<Tree> {
        let mut place = Tree { divides: tree.divides(), ..Tree::default() };
        let width = tree.inner().block().1;
        match tree.outer() {
            None if width >= cols => place.row = Some(self.row()),
            None => place.inner = Some(self.numbers(tree.inner().kind(), width)?),
            Some(outer) => {
                place.inner = Some(self.numbers(tree.inner().kind(), width.min(SPAN))?);
                if width > SPAN && width < cols {
                    // Repeated in every record, which holds when a group is whole records.
                    width.is_multiple_of(SPAN).then_some(())?;
                }
                match outer.block().1 >= cols {
                    true => place.row = Some(self.row()),
                    false => place.outer = Some(self.numbers(outer.kind(), outer.block().1)?),
                }
            }
        }
        Some(place)
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Layout {
    /// The layout for a matrix like `sample` with `rows` rows, or `None` if groups of its size have no kernel.
    pub fn of(sample: &Grouped, rows: usize) -> Option<Layout> {
        let cols = sample.cols();
        let bits = sample.bits();
        let mut places = Places { head: 0, record: 0, group: SPAN };
        let scale = places.tree(sample.scale(), cols)?;
        let minimum = match sample.minimum() {
            None => None,
            Some(minimum) => Some(places.tree(minimum, cols)?),
        };
        let zeros = match sample.map() {
            ValueMap::Integer(Zero::Groups(zeros)) => Some(places.numbers(ScaleType::U8, zeros.block().1.min(SPAN))?),
            _ => None,
        };
        Some(Layout {
            rows,
            cols,
            bits,
            mapping: Mapping::of(sample.map()),
            scale,
            minimum,
            zeros,
            group: if places.group < STEP { 16 } else { places.group },
            head: places.head.next_multiple_of(64),
            numbers: places.record.next_multiple_of(64),
        })
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bits of a code.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The highest unsigned integer that is multiplied.
    pub(crate) fn highest(&self) -> u8 {
        self.mapping.highest(self.bits)
    }

    /// What codes are multiplied as.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Whether something is added besides the products: a minimum, or zero points of groups.
    pub fn is_affine(&self) -> bool {
        self.minimum.is_some() || self.zeros.is_some()
    }

    /// What sums of products with it begin with.
    pub fn start(&self) -> Start {
        Start { zero: self.mapping.zero(), half: self.group == 16 }
    }

    /// Columns that share all their numbers.
    pub fn group(&self) -> usize {
        self.group
    }

    /// Tiles, the last one perhaps padded.
    pub fn tiles(&self) -> usize {
        self.rows.div_ceil(ROWS)
    }

    /// Records of a tile.
    pub(crate) fn records(&self) -> usize {
        self.cols.div_ceil(SPAN)
    }

    /// Steps of a record, all but the last of which have eight.
    pub(crate) fn steps(&self, record: usize) -> usize {
        (self.cols - record * SPAN).min(SPAN).div_ceil(STEP)
    }

    /// Bytes of a whole record.
    pub(crate) fn record(&self) -> usize {
        self.numbers + SPAN / STEP * step_bytes(self.bits)
    }

    /// Where a tile's numbers for whole rows begin.
    pub(crate) fn head_at(&self, tile: usize) -> usize {
        tile * self.tile_bytes()
    }

    /// Where a tile's record begins.
    pub(crate) fn record_at(&self, tile: usize, record: usize) -> usize {
        tile * self.tile_bytes() + self.head + record * self.record()
    }

    /// Bytes of a tile. The last record ends with its own codes.
    pub(crate) fn tile_bytes(&self) -> usize {
        let missing = self.records() * (SPAN / STEP) - self.cols.div_ceil(STEP);
        self.head + self.records() * self.record() - missing * step_bytes(self.bits)
    }

    /// Bytes of the whole.
    pub fn bytes(&self) -> usize {
        self.tiles() * self.tile_bytes()
    }
}
