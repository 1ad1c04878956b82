//! Canonical matrices but for one change that is made when they are unpacked.

use std::ops::Range;
use std::sync::Arc;

use crate::weight::{Grouped, Packed, ScaleTree, Scales, grouped};
use crate::{Error, Result};

/// What a matrix needs to become canonical.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Codes are signed bytes: 128 is added, modulo 256.
    Signed,
    /// The inputs are taken in this order.
    Order(Arc<[u32]>),
    /// Every second row, from this one.
    EveryOther(usize),
}

/// A matrix before its change. Its factors are right already, except that a row of its own has those of each row.
#[derive(Debug)]
pub(super) struct Changed {
    pub whole: Grouped,
    pub change: Change,
}

impl Packed for Changed {
    fn shape(&self) -> [usize; 2] {
        let rows = self.whole.rows();
        [if let Change::EveryOther(_) = self.change { rows / 2 } else { rows }, self.whole.cols()]
    }

    fn bytes(&self) -> usize {
        if let Change::EveryOther(_) = self.change { self.whole.bytes() / 2 } else { self.whole.bytes() }
    }

    fn unpack(&self, rows: Range<usize>) -> Result<Grouped> {
        let whole = &self.whole;
        let (part, codes) = match &self.change {
            Change::Signed => {
                let part = whole.slice(rows)?;
                let codes: Vec<u8> = part.codes().iter().map(|c| c ^ 0x80).collect();
                (part, codes)
            }
            Change::Order(order) => {
                let part = whole.slice(rows)?;
                let codes = reorder(&part, order);
                (part, codes)
            }
            Change::EveryOther(first) => return every_other(whole, *first, rows),
        };
        let [height, cols] = [part.rows(), part.cols()];
        let (map, scale, minimum) = (part.map().clone(), part.scale().clone(), part.minimum().cloned());
        Grouped::new([height, cols], part.bits(), codes.into(), map, scale, minimum)
    }

    fn release(&self) {
        self.whole.release();
    }
}

/// Codes whose column j is column `order[j]` of `from`.
fn reorder(from: &Grouped, order: &[u32]) -> Vec<u8> {
    let (bits, cols) = (from.bits() as usize, from.cols());
    let mask = (0xff_u32 >> (8 - bits)) as u8;
    let mut plain = vec![0u8; cols];
    let mut sorted = vec![0u8; cols];
    let mut out = Vec::with_capacity(from.codes().len());
    for line in from.codes().chunks_exact(from.row_stride().max(1)) {
        for (col, code) in plain.iter_mut().enumerate() {
            let bit = col * bits;
            let two = u16::from(line[bit / 8]) | u16::from(line.get(bit / 8 + 1).copied().unwrap_or(0)) << 8;
            *code = (two >> (bit % 8)) as u8 & mask;
        }
        sorted.iter_mut().zip(order).for_each(|(to, &from)| *to = plain[from as usize]);
        out.extend(grouped::pack(&sorted, cols, from.bits()));
    }
    out
}

/// Rows `2 r + first` for each of `rows`, of a matrix with a factor for each group of each row.
fn every_other(whole: &Grouped, first: usize, rows: Range<usize>) -> Result<Grouped> {
    let count = whole.rows() / 2;
    if rows.start > rows.end || rows.end > count {
        return Err(Error::invalid("interleaved weight", format!("rows {rows:?} are not within its {count}")));
    }
    let pick = |data: &[u8], stride: usize| -> Vec<u8> {
        rows.clone().flat_map(|row| &data[(2 * row + first) * stride..][..stride]).copied().collect()
    };
    let inner = whole.scale().inner();
    let stride = inner.data().len() / whole.rows().max(1);
    let data = pick(inner.data(), stride);
    let scale = Scales::new(inner.kind(), rows.len(), whole.cols(), inner.block(), data.into())?;
    let codes = pick(whole.codes(), whole.row_stride());
    let (map, scale) = (whole.map().clone(), ScaleTree::flat(scale));
    Grouped::new([rows.len(), whole.cols()], whole.bits(), codes.into(), map, scale, None)
}
