//! From rows as a file packs them to tiles.

use super::layout::{Layout, Mapping, Numbers, Tree};
use super::scales::{Decode, Decoded};
use super::unpack::{lay, step_bytes};
use super::{ROWS, SPAN, STEP};
use crate::buffer::{Pages, Shared};
use crate::{Cpu, simd};
use marlin_checkpoint::weight::{ScaleTree, ScaleType, Scales, ValueMap, Zero};
use marlin_checkpoint::{Error, Grouped, Packed, Result};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// A matrix of grouped codes in tiles.
pub struct GroupedMat {
    layout: Layout,
    data: Pages,
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
        let mut data = Pages::new("a weight", layout.bytes())?;
        let base = Shared(data.ptr_mut());
        // Whole tiles that are whole granules, a few at a time.
        let piece = (ROWS..).step_by(ROWS).find(|n| n.is_multiple_of(granule)).unwrap_or(ROWS);
        let piece = piece * (64 / piece).max(1);
        let wrong = Mutex::new(None);
        cpu.pool().run(rows.div_ceil(piece), &|p| {
            let range = p * piece..rows.min((p + 1) * piece);
            let part = weight.rows(range.clone()).map_err(marlin_backend::Error::from).and_then(|part| {
                for first in (0..part.rows()).step_by(ROWS) {
                    let tile = (range.start + first) / ROWS;
                    // SAFETY: every tile belongs to one task and lies within the buffer.
                    let bytes = unsafe { { base }.part(tile * layout.tile_bytes(), layout.tile_bytes()) };
                    lay_tile(&layout, &part, first, bytes);
                    if !finite(cpu, &layout, bytes) {
                        return Err(first_not_finite(name, &part, first, range.start));
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

    /// The first byte of tile `tile`.
    pub(crate) fn tile(&self, tile: usize) -> *const u8 {
        debug_assert!(tile < self.layout.tiles());
        // SAFETY: the buffer holds every tile.
        unsafe { self.data.ptr().add(tile * self.layout.tile_bytes()) }
    }
}

/// Puts rows `first..` of `part`, sixteen at most, into a tile.
fn lay_tile(layout: &Layout, part: &Grouped, first: usize, tile: &mut [u8]) {
    let count = ROWS.min(part.rows() - first);
    let (stride, codes) = (part.row_stride(), part.codes());
    let size = step_bytes(layout.bits);
    let bytes = layout.bits as usize * 4;
    for r in 0..count {
        let row = &codes[(first + r) * stride..][..stride];
        for step in 0..layout.cols.div_ceil(STEP) {
            let at = layout.head + step / 8 * layout.record() + layout.numbers + step % 8 * size;
            let to = &mut tile[at..at + size];
            match row.get(step * bytes..(step + 1) * bytes) {
                Some(from) if (step + 1) * STEP <= layout.cols => match layout.bits {
                    4 => lay_four(r, from, to),
                    8 => lay(8, r, from.as_array().unwrap_or(&[0; 32]), to),
                    bits => lay(bits, r, &expand(bits, from), to),
                },
                _ => {
                    let mut padded = [0; 32];
                    let rest = &row[(step * bytes).min(stride)..];
                    padded[..rest.len()].copy_from_slice(rest);
                    let mut codes = expand(layout.bits, &padded);
                    codes[layout.cols - step * STEP..].fill(0);
                    lay(layout.bits, r, &codes, to);
                }
            }
        }
    }
    let mut put = |numbers: &Numbers, scales: &Scales| lay_numbers(layout, numbers, scales, first, count, tile);
    let mut place = |tree: &Tree, from: &ScaleTree| {
        if let Some(inner) = &tree.inner {
            put(inner, from.inner());
        }
        if let (Some(outer), Some(scales)) = (&tree.outer, from.outer()) {
            put(outer, scales);
        }
    };
    place(&layout.scale, part.scale());
    if let (Some(tree), Some(from)) = (&layout.minimum, part.minimum()) {
        place(tree, from);
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
                tile[at + 4 * r..][..4].copy_from_slice(&value.to_le_bytes());
            }
        }
    };
    row(&layout.scale, part.scale());
    if let (Some(tree), Some(from)) = (&layout.minimum, part.minimum()) {
        row(tree, from);
    }
}

/// Copies numbers as they are stored, each row's into its lane.
fn lay_numbers(layout: &Layout, numbers: &Numbers, scales: &Scales, first: usize, count: usize, tile: &mut [u8]) {
    let (size, per) = (numbers.size(), SPAN / numbers.group);
    let (block, bits) = (scales.block(), scales.kind().bits());
    let stride = (scales.across() * bits).div_ceil(8);
    for r in 0..count {
        let line = &scales.data()[(first + r) / block.0 * stride..][..stride];
        for g in 0..layout.cols.div_ceil(numbers.group) {
            let i = g * numbers.group / block.1;
            let at = layout.head + g / per * layout.record() + numbers.offset + (g % per * ROWS + r) * size;
            match scales.kind() {
                ScaleType::U4 => tile[at] = line[i / 2] >> (4 * (i % 2)) & 15,
                _ => tile[at..at + size].copy_from_slice(&line[i * size..(i + 1) * size]),
            }
        }
    }
}

/// Row `r`'s 32 codes of 4 bits.
fn lay_four(r: usize, from: &[u8], step: &mut [u8]) {
    for (j, word) in from.as_chunks::<4>().0.iter().enumerate() {
        let x = u32::from_le_bytes(*word);
        // Four nibbles to the low halves of four bytes.
        let spread = |v: u32| {
            let v = (v | v << 8) & 0x00ff_00ff;
            (v | v << 4) & 0x0f0f_0f0f
        };
        let planes = spread(x & 0xffff) | spread(x >> 16) << 4;
        step[64 * j + 4 * r..][..4].copy_from_slice(&planes.to_le_bytes());
    }
}

/// 32 codes from a bit stream, least significant bit first.
fn expand(bits: u32, from: &[u8]) -> [u8; 32] {
    let mut codes = [0; 32];
    let mask = (1u64 << bits) - 1;
    // Eight codes are as many bytes as a code has bits.
    for (eight, bytes) in codes.as_chunks_mut::<8>().0.iter_mut().zip(from.chunks_exact(bits as usize)) {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        for (i, code) in eight.iter_mut().enumerate() {
            *code = (word >> (i as u32 * bits) & mask) as u8;
        }
    }
    codes
}

/// Whether a tile's factors, and its codes where they can be otherwise, are finite.
fn finite(cpu: &Cpu, layout: &Layout, tile: &[u8]) -> bool {
    let mut out = Decoded::new();
    for record in 0..layout.records() {
        let groups = layout.steps(record) * STEP / layout.group.min(layout.steps(record) * STEP);
        let at = layout.head + record * layout.record();
        let decode = Decode {
            layout,
            head: tile.as_ptr(),
            // SAFETY: the record lies within the tile.
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
