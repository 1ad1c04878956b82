//! From rows as a file packs them to tiles.

use super::layout::{Layout, Mapping, Numbers, Tree};
use super::planes::Planes;
use super::scales::{Decode, Decoded};
use super::unpack::step_bytes;
use super::{ROWS, SPAN, STEP};
use crate::Cpu;
use crate::buffer::Shared;
use crate::memory::Memory;
use crate::simd;
use marlin_checkpoint::weight::{ScaleTree, ScaleType, Scales, ValueMap, Zero};
use marlin_checkpoint::{Error, Grouped, Packed, Result};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// A matrix of grouped codes in tiles.
pub struct GroupedMat {
    layout: Layout,
    data: Memory,
}

/// Where canonical rows come from.
trait Source: Sync {
    fn shape(&self) -> [usize; 2];
    /// Ranges begin at multiples of this many rows.
    fn granule(&self) -> usize;
    fn rows(&self, rows: Range<usize>) -> Result<Grouped>;
    /// Called once the rows are no longer needed.
    fn done(&self, rows: &Grouped);
}

impl Source for Grouped {
    fn shape(&self) -> [usize; 2] {
        [self.rows(), self.cols()]
    }
    fn granule(&self) -> usize {
        1
    }
    fn rows(&self, rows: Range<usize>) -> Result<Grouped> {
        self.slice(rows)
    }
    fn done(&self, rows: &Grouped) {
        rows.codes().release();
    }
}

impl Source for dyn Packed + '_ {
    fn shape(&self) -> [usize; 2] {
        Packed::shape(self)
    }
    fn granule(&self) -> usize {
        Packed::granule(self)
    }
    fn rows(&self, rows: Range<usize>) -> Result<Grouped> {
        self.unpack(rows)
    }
    fn done(&self, _: &Grouped) {}
}

impl GroupedMat {
    /// Re-lays `weight`; `None` if its groups are of a size that the kernels do not serve. Refuses factors that are not
    /// finite, naming the first element that has one.
    pub fn from_grouped(cpu: &Cpu, name: &str, weight: &Grouped) -> marlin_backend::Result<Option<GroupedMat>> {
        let mat = Self::new(cpu, name, weight)?;
        weight.release();
        Ok(mat)
    }

    /// The same from rows in another format's packing.
    pub fn from_packed(cpu: &Cpu, name: &str, weight: &dyn Packed) -> marlin_backend::Result<Option<GroupedMat>> {
        let mat = Self::new(cpu, name, weight)?;
        weight.release();
        Ok(mat)
    }

    fn new<W: Source + ?Sized>(cpu: &Cpu, name: &str, weight: &W) -> marlin_backend::Result<Option<GroupedMat>> {
        let ([rows, cols], granule) = (weight.shape(), weight.granule().max(1));
        if rows == 0 || cols == 0 {
            return Ok(None);
        }
        let sample = weight.rows(0..granule.min(rows))?;
        let Some(layout) = Layout::of(&sample, rows) else { return Ok(None) };
        let data = Memory::new(layout.bytes())?;
        let base = Shared(data.ptr());
        // Whole tiles that are whole granules, a few at a time.
        let piece = (ROWS..).step_by(ROWS).find(|n| n.is_multiple_of(granule)).unwrap_or(ROWS);
        let piece = piece * (64 / piece).max(1);
        let wrong = Mutex::new(None);
        cpu.pool().run(rows.div_ceil(piece), &|p| {
            let range = p * piece..rows.min((p + 1) * piece);
            let part = weight.rows(range.clone()).map_err(marlin_backend::Error::from).and_then(|part| {
                let first = layout.head_at(range.start / ROWS);
                let bytes = part.rows().div_ceil(ROWS) * layout.tile_bytes();
                // SAFETY: every tile belongs to one task and lies within the buffer.
                let to = unsafe { { base }.part(first, bytes) };
                for row in (0..part.rows()).step_by(ROWS) {
                    let place = Place { layout: &layout, tile: (range.start + row) / ROWS, base: first };
                    lay_tile(cpu, &place, &part, row, to);
                    if !finite(cpu, &place, to) {
                        return Err(first_not_finite(name, &part, row, range.start));
                    }
                }
                weight.done(&part);
                Ok(())
            });
            if let Err(e) = part {
                wrong.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        });
        match wrong.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(Some(GroupedMat { layout, data })),
        }
    }

    /// Where what is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A tile's numbers for whole rows.
    pub(crate) fn head(&self, tile: usize) -> *const u8 {
        debug_assert!(tile < self.layout.tiles());
        // SAFETY: the buffer holds every tile.
        unsafe { self.data.ptr().add(self.layout.head_at(tile)) }
    }

    /// A tile's record.
    pub(crate) fn record(&self, tile: usize, record: usize) -> *const u8 {
        debug_assert!(tile < self.layout.tiles() && record < self.layout.records());
        // SAFETY: the buffer holds every tile.
        unsafe { self.data.ptr().add(self.layout.record_at(tile, record)) }
    }
}

/// A tile within bytes that begin at `base` of the matrix.
pub(super) struct Place<'a> {
    pub(super) layout: &'a Layout,
    tile: usize,
    base: usize,
}

impl Place<'_> {
    fn head(&self) -> usize {
        self.layout.head_at(self.tile) - self.base
    }

    pub(super) fn record(&self, record: usize) -> usize {
        self.layout.record_at(self.tile, record) - self.base
    }
}

/// Puts rows `first..` of `part`, sixteen at most, into a tile.
fn lay_tile(cpu: &Cpu, place: &Place<'_>, part: &Grouped, first: usize, tile: &mut [u8]) {
    let layout = place.layout;
    let count = ROWS.min(part.rows() - first);
    let (stride, codes) = (part.row_stride(), part.codes());
    let rows: [&[u8]; ROWS] = std::array::from_fn(|r| match r < count {
        true => &codes[(first + r) * stride..][..stride],
        false => &[][..],
    });
    // SAFETY: `Cpu` only holds levels that the machine has.
    unsafe { simd::run(cpu.level(), Planes { place, rows: &rows[..count], tile }) };
    let mut put = |numbers: &Numbers, scales: &Scales| lay_numbers(place, numbers, scales, first, count, tile);
    let mut lay_tree = |tree: &Tree, from: &ScaleTree| {
        if let Some(inner) = &tree.inner {
            put(inner, from.inner());
        }
        if let (Some(outer), Some(scales)) = (&tree.outer, from.outer()) {
            put(outer, scales);
        }
    };
    lay_tree(&layout.scale, part.scale());
    if let (Some(tree), Some(from)) = (&layout.minimum, part.minimum()) {
        lay_tree(tree, from);
    }
    if let (Some(numbers), ValueMap::Integer(Zero::Groups(zeros))) = (&layout.zeros, part.map()) {
        put(numbers, zeros);
    }
    let mut row = |tree: &Tree, from: &ScaleTree| {
        if let Some(at) = tree.row {
            let scales = from.outer().unwrap_or(from.inner());
            for r in 0..ROWS {
                // Rows of padding divide by one.
                let value = if r < count { scales.at(first + r, 0) } else { 1.0 };
                tile[place.head() + at + 4 * r..][..4].copy_from_slice(&value.to_le_bytes());
            }
        }
    };
    row(&layout.scale, part.scale());
    if let (Some(tree), Some(from)) = (&layout.minimum, part.minimum()) {
        row(tree, from);
    }
}

/// Copies numbers as they are stored, each row's into its lane.
fn lay_numbers(place: &Place<'_>, numbers: &Numbers, scales: &Scales, first: usize, count: usize, tile: &mut [u8]) {
    let layout = place.layout;
    let (size, per) = (numbers.size(), SPAN / numbers.group);
    let (block, bits) = (scales.block(), scales.kind().bits());
    let stride = (scales.across() * bits).div_ceil(8);
    let lines: [&[u8]; ROWS] =
        std::array::from_fn(|r| &scales.data()[(first + r.min(count - 1)) / block.0 * stride..][..stride]);
    let lines = &lines[..count];
    for record in 0..layout.records() {
        let groups = (layout.cols - record * SPAN).min(SPAN).div_ceil(numbers.group);
        let base = place.record(record) + numbers.offset;
        let to = &mut tile[base..base + per * ROWS * size];
        if numbers.group == block.1 && size == 2 {
            lay_pairs(lines, record * per, groups, to);
            continue;
        }
        for (g, to) in to.chunks_exact_mut(ROWS * size).take(groups).enumerate() {
            let i = (record * per + g) * numbers.group / block.1;
            match (scales.kind(), size) {
                (ScaleType::U4, _) => to.iter_mut().zip(lines).for_each(|(to, l)| *to = l[i / 2] >> (4 * (i % 2)) & 15),
                (_, 1) => to.iter_mut().zip(lines).for_each(|(to, line)| *to = line[i]),
                _ => {
                    let to = to.chunks_exact_mut(size);
                    to.zip(lines).for_each(|(to, line)| to.copy_from_slice(&line[i * size..(i + 1) * size]));
                }
            }
        }
    }
}

/// Numbers of two bytes, `count` of each row from `first` on, where every group has one of its own.
fn lay_pairs(lines: &[&[u8]], first: usize, count: usize, to: &mut [u8]) {
    for (r, line) in lines.iter().enumerate() {
        let from = &line.as_chunks::<2>().0[first..first + count];
        let places = to.as_chunks_mut::<{ 2 * ROWS }>().0.iter_mut();
        places.zip(from).for_each(|(place, number)| place.as_chunks_mut().0[r] = *number);
    }
}

/// Whether a tile's factors, and its codes where they can be otherwise, are finite.
fn finite(cpu: &Cpu, place: &Place<'_>, tile: &[u8]) -> bool {
    let layout = place.layout;
    let mut out = Decoded::new();
    for record in 0..layout.records() {
        let groups = layout.steps(record) * STEP / layout.group.min(layout.steps(record) * STEP);
        let at = place.record(record);
        let decode = Decode {
            layout,
            // SAFETY: both lie within the bytes.
            head: unsafe { tile.as_ptr().add(place.head()) },
            // SAFETY: as above.
            record: unsafe { tile.as_ptr().add(at) },
            folded: false,
            out: &mut out,
        };
        // SAFETY: the tile is whole; `Cpu` only holds levels that the machine has.
        unsafe { simd::run(cpu.level(), decode) };
        let all = |v: &[[f32; 16]]| v.iter().flatten().all(|v| v.is_finite());
        if !all(&out.scale[..groups]) || !all(&out.minimum[..groups]) {
            return false;
        }
        let end = at + layout.numbers + layout.steps(record) * step_bytes(layout.bits);
        let codes = &tile[at + layout.numbers..end];
        let good = match layout.mapping {
            Mapping::E4M3 => codes.iter().all(|c| c & 0x7f != 0x7f),
            Mapping::E5M2 => codes.iter().all(|c| c & 0x7c != 0x7c),
            _ => true,
        };
        if !good {
            return false;
        }
    }
    true
}

/// The first element of the tile's rows that is not finite.
fn first_not_finite(name: &str, part: &Grouped, first: usize, start: usize) -> marlin_backend::Error {
    let weight = marlin_checkpoint::Weight::Grouped(Box::new(part.clone()));
    let mut row = vec![0.0; part.cols()];
    for r in first..part.rows().min(first + ROWS) {
        if weight.dequantize_row(r, &mut row).is_ok()
            && let Some(k) = row.iter().position(|v| !v.is_finite())
        {
            let index = (start + r) * row.len() + k;
            return marlin_backend::Error::NotFinite { name: name.to_owned(), index, value: row[k] };
        }
    }
    Error::invalid(name, "a factor is not finite").into()
}
