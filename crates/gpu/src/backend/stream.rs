//! Products of a few rows by the kernels for tensor cores, with what stands around the matrix.

use super::GpuBackend;
use super::linear::{After, Before};
use super::product::FEW_ROWS;
use super::stored::{Kind, Stored};
use crate::kernels::*;
use crate::source::Entry;
use crate::{Gpu, Result, Slice};
use std::sync::PoisonError;

/// Memory that groups leave their sums in for one another, one launch after another.
pub(super) struct Scratch {
    sums: Slice<f32>,
    /// All 0 between launches.
    tickets: Slice<u32>,
    /// What was too small: launches that were recorded may still use it.
    smaller: Vec<(Slice<f32>, Slice<u32>)>,
}

impl Scratch {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { sums: gpu.uninitialised(1)?, tickets: gpu.upload(&[0u32])?, smaller: Vec::new() })
    }

    /// Has room for so many of both.
    pub fn grow(&mut self, gpu: &Gpu, sums: usize, tickets: usize) -> Result<()> {
        if self.sums.len() < sums || self.tickets.len() < tickets {
            let sums = gpu.uninitialised(sums.max(self.sums.len()))?;
            let tickets = gpu.upload(&vec![0u32; tickets.next_power_of_two().max(self.tickets.len())])?;
            let before = (std::mem::replace(&mut self.sums, sums), std::mem::replace(&mut self.tickets, tickets));
            self.smaller.push(before);
        }
        Ok(())
    }

    /// Sums and tickets.
    pub fn both(&self) -> (Slice<f32>, Slice<u32>) {
        (self.sums.clone(), self.tickets.clone())
    }
}

/// What a kernel does around a matrix, besides the product.
#[derive(Clone, Copy, Default)]
pub(super) struct Sides<'a> {
    pub before: Option<&'a Before>,
    pub after: Option<&'a After>,
    pub bias: Option<&'a Slice<f32>>,
}

/// Groups that share so many blocks in columns of `deep`: as many as run `together` or fewer that have as much to do, in as many rounds
/// as it takes that each has `most` at most. Shares that divide a column save a second end of one.
pub(super) fn share(total: usize, deep: usize, together: usize, most: usize) -> usize {
    let rounds = total.div_ceil(together.saturating_mul(most)).max(1);
    let least = total.div_ceil(rounds * together).max(1);
    let even = (least..=(least + 1).min(most)).find(|n| deep.is_multiple_of(*n));
    total.div_ceil(even.unwrap_or(least)).max(1)
}

/// Rows that a kernel is made for.
fn rows_for(batch: usize) -> u32 {
    match batch {
        1 => 1,
        2..=4 => 4,
        5..=8 => 8,
        _ => 16,
    }
}

/// A kernel for tensor cores.
#[derive(Clone, Copy)]
enum Kernel {
    Trellis(TrellisStream),
    Grouped(GroupedStream, WeightArgs),
}

impl Kernel {
    /// The kernel for so many rows of a matrix of this kind, if there is one.
    fn of(kind: &Kind, batch: usize, rotations: [u32; 2], bias: bool) -> Option<Self> {
        let m = rows_for(batch);
        match *kind {
            Kind::Rows { .. } if rotations != [1, 1] => None,
            Kind::Rows { weight, args } => GroupedStream::of(weight, &args, m, bias).map(|k| Self::Grouped(k, args)),
            Kind::Trellis { bits, book, rows, cols } => {
                let [rows, cols] = [rows, cols].map(|n| n as usize);
                let whole = rows.is_multiple_of(STREAM_BLOCK) && cols.is_multiple_of(STREAM_BLOCK);
                (whole && cols >= 2 * STREAM_BLOCK)
                    .then(|| Self::Trellis(TrellisStream::of(bits, book, m, rotations, bias)))
            }
        }
    }

    fn rows(&self) -> u32 {
        match self {
            Self::Trellis(k) => k.m,
            Self::Grouped(k, _) => k.m,
        }
    }

    /// Blocks of inputs that a group has at most.
    fn blocks(&self) -> usize {
        match self {
            Self::Trellis(TrellisStream { m: 1, blocks, .. })
            | Self::Grouped(GroupedStream { m: 1, blocks, .. }, _) => *blocks as usize,
            _ => usize::MAX,
        }
    }

    fn entries(&self, rotations: [u32; 2]) -> [Entry; 2] {
        match self {
            Self::Trellis(k) => [k.entry(), PackRows { parts: k.parts, block: rotations[0] }.entry()],
            Self::Grouped(k, _) => [k.entry(), PackForCodes { weight: k.weight }.entry()],
        }
    }
}

/// Every kernel that [`GpuBackend::stream`] may take for a matrix with such rotations around it.
pub(super) fn entries(kind: &Kind, rotations: [u32; 2]) -> Vec<Entry> {
    let each = [1, 4, 8, 16].into_iter().filter_map(|batch| Kernel::of(kind, batch, rotations, false));
    each.flat_map(|k| k.entries(rotations)).collect()
}

/// The kernel for so many rows of such a matrix, with the rotations that it usually has, if there is one.
pub(crate) fn streamed(kind: &Kind, batch: usize) -> Option<String> {
    let rotations = if matches!(kind, Kind::Trellis { .. }) { [STREAM_BLOCK as u32; 2] } else { [1, 1] };
    Some(Kernel::of(kind, batch, rotations, false)?.entries(rotations)[0].name.clone())
}

/// Whether the kernels for tensor cores do this around a matrix.
fn inside(kind: &Kind, scaled: bool, block: u32) -> bool {
    match kind {
        Kind::Rows { .. } => !scaled && block == 1,
        Kind::Trellis { .. } => block == 1 || block as usize == STREAM_BLOCK,
    }
}

impl Before {
    /// Whether the kernels for tensor cores do it.
    pub fn streams(&self, kind: &Kind) -> bool {
        self.order.is_none() && inside(kind, self.scale.is_some(), self.block)
    }
}

impl After {
    /// Whether the kernels for tensor cores do it.
    pub fn streams(&self, kind: &Kind) -> bool {
        inside(kind, self.scale.is_some(), self.block)
    }
}

impl GpuBackend {
    /// Whether a matrix has kernels for tensor cores on this device.
    pub(super) fn streams(&self, kind: &Kind) -> bool {
        self.gpu.device().target().has_tensor_cores() && Kernel::of(kind, 1, [1, 1], false).is_some()
    }

    /// Groups that share a matrix: as many as run at once, or so many that each finds room for its inputs.
    fn groups(&self, k: &Kernel, rows: usize, cols: usize) -> usize {
        let deep = cols.div_ceil(STREAM_BLOCK);
        let total = deep * rows.div_ceil(STREAM_BLOCK);
        let resident = match k {
            Kernel::Grouped(GroupedStream { m: 1, .. }, _) => 3,
            _ => 2,
        };
        let together = resident * self.gpu.device().info().cores.max(1) as usize;
        let most = if deep > k.blocks() { k.blocks() } else { usize::MAX };
        match k {
            // A grid that leaves no core with fewer groups than another: the next kernel's would take their places.
            Kernel::Trellis(_) => {
                let least = if most < usize::MAX { total.div_ceil(most) } else { 1 };
                least.next_multiple_of(together).min(total).max(least.min(total))
            }
            Kernel::Grouped(..) => share(total, deep, together, most),
        }
    }

    /// Makes room for products with a matrix, before any of them is asked for.
    pub(super) fn reserve(&self, kind: &Kind) -> Result<()> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        for batch in [1, 4, 8, FEW_ROWS] {
            let Some(k) = Kernel::of(kind, batch, [1, 1], false) else { continue };
            let sums = 2 * STREAM_BLOCK * k.rows() as usize * self.groups(&k, kind.rows(), kind.cols());
            let tickets = k.rows() as usize * kind.rows().div_ceil(STREAM_BLOCK);
            scratch.grow(&self.gpu, sums, tickets)?;
        }
        Ok(())
    }

    /// `x` `[batch, inputs]`, at most [`FEW_ROWS`] rows, through a matrix and what stands around it; `None` if that has no such kernel.
    pub(super) fn stream(&self, w: &Stored, sides: Sides, x: &Slice<f32>, batch: usize) -> Result<Option<Slice<f32>>> {
        let Sides { before, after, bias } = sides;
        let (rows, cols) = (w.kind.rows(), w.kind.cols());
        let rotations = [before.map_or(1, |b| b.block), after.map_or(1, |a| a.block)];
        let bias = bias.or(after.and_then(|a| a.bias.as_ref()));
        let Some(k) = Kernel::of(&w.kind, batch, rotations, bias.is_some()) else { return Ok(None) };
        let (gpu, none) = (&self.gpu, &self.none);
        let [factor, offset] = match &k {
            Kernel::Trellis(k) => k.parts.affine(),
            Kernel::Grouped(..) => [1.0, 0.0],
        };
        let (features, outputs) = (before.map_or(cols, |b| b.features), after.map_or(rows, |a| a.features));
        let scale_in = before.and_then(|b| b.scale.as_ref());
        let scale_out = after.and_then(|a| a.scale.as_ref());
        let (mut packed, mut info) = (none.cast(), none.clone());
        if k.rows() > 1 {
            let [words, floats] = match &k {
                Kernel::Trellis(t) => t.parts.sizes(cols, t.m as usize),
                Kernel::Grouped(t, _) => GroupedStream::sizes(cols, t.m as usize),
            };
            (packed, info) = (gpu.uninitialised(words)?, gpu.uninitialised(floats)?);
            let a = PackArgs {
                cols: cols as u32,
                features: features as u32,
                batch: batch as u32,
                rows: k.rows(),
                scaled: scale_in.is_some().into(),
                factor,
                offset,
            };
            let groups = [cols.div_ceil(4 * STREAM_BLOCK) as u32, k.rows(), 1];
            match &k {
                Kernel::Trellis(t) => {
                    let pack = PackRows { parts: t.parts, block: rotations[0] };
                    pack.launch(gpu, groups, x, scale_in.unwrap_or(none), &packed, &info, &a)?;
                }
                Kernel::Grouped(t, _) => {
                    PackForCodes { weight: t.weight }.launch(gpu, groups, x, &packed, &info, &a)?;
                }
            }
        }
        let y = gpu.uninitialised(batch * outputs)?;
        let groups = self.groups(&k, rows, cols) as u32;
        let a = StreamArgs {
            powers: std::array::from_fn(|i| 1 << i),
            rows: rows as u32,
            cols: cols as u32,
            batch: batch as u32,
            groups,
            features: features as u32,
            outputs: outputs as u32,
            scaled_in: scale_in.is_some().into(),
            scaled_out: scale_out.is_some().into(),
            factor,
            offset,
        };
        let (sums, tickets) = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).both();
        let (scale_in, scale_out) = (scale_in.unwrap_or(none), scale_out.unwrap_or(none));
        let (biases, words, grid) = (bias.unwrap_or(none), &w.words, [groups, 1, 1]);
        match k {
            Kernel::Trellis(k) => {
                k.launch(gpu, grid, words, x, scale_in, &packed, &info, scale_out, biases, &sums, &tickets, &y, &a)?
            }
            Kernel::Grouped(k, args) => {
                let a = GroupedStreamArgs { s: a, w: args };
                k.launch(gpu, grid, words, &w.factors, x, &packed, &info, biases, &sums, &tickets, &y, &a)?;
            }
        }
        Ok(Some(y))
    }
}
