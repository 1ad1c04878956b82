//! Experts by tensor cores: few pairs as one stream through all their matrices, many as tiles of pairs that share a matrix.

use super::GpuBackend;
use super::decide::{Samples, failing, numbers, rotate};
use super::experts::{Pairs, Projection, Sorted, Stack};
use super::linear::{After, Before};
use super::stored::{Kind, Stored};
use super::stream::share;
use crate::kernels::*;
use crate::source::Entry;
use crate::{Result, Slice};
use marlin_backend::fallback::Reason;
use std::sync::PoisonError;

/// What weights that are not a trellis's are multiplied with (see `expert_mma.h`).
const WEIGHT_FACTOR: f32 = 64.0;

/// Sizes of the rotations before and behind a projection's matrices, if the kernels know them.
fn rotations(p: &Projection) -> Option<[u32; 2]> {
    let known = |block: u32| (block == 1 || block as usize == STREAM_BLOCK).then_some(block);
    Some([known(p.before.as_ref().map_or(1, |b| b.block))?, known(p.after.as_ref().map_or(1, |a| a.block))?])
}

/// The kernel that streams such matrices, if there is one.
fn stream_kernel(kind: &Kind, rotations: [u32; 2], gated: bool) -> Option<TrellisExperts> {
    match *kind {
        Kind::Trellis { bits, book, rows, cols } => {
            let whole = [rows, cols].iter().all(|n| (*n as usize).is_multiple_of(STREAM_BLOCK));
            (whole && cols as usize >= 2 * STREAM_BLOCK).then(|| TrellisExperts::of(bits, book, rotations, gated))
        }
        Kind::Rows { .. } => None,
    }
}

/// Groups of the stream that a core has room for at once; more would run in a second round.
const RESIDENT: usize = 2;

/// Whether there are tiles of such matrices.
fn tiled(kind: &Kind, rotations: [u32; 2]) -> bool {
    match kind {
        Kind::Rows { .. } => rotations == [1, 1] && kind.cols().is_multiple_of(4),
        Kind::Trellis { .. } => true,
    }
}

/// Whether chunks of the matrix are two blocks of 16 inputs.
fn spread(kind: &Kind) -> bool {
    matches!(kind, Kind::Rows { weight, .. } if weight.chunk() == 32)
}

fn entries(kind: &Kind, rotations: [u32; 2]) -> Vec<Entry> {
    let mut all = Vec::new();
    for gated in [false, true] {
        all.extend(stream_kernel(kind, rotations, gated).map(|k| k.entry()));
        for scale in [false, true] {
            all.push(PairHalves { block: rotations[0], scale, gated, spread: spread(kind) }.entry());
        }
    }
    match *kind {
        Kind::Rows { weight, .. } => all.push(ExpertRowsMma { weight }.entry()),
        Kind::Trellis { bits, book, .. } => {
            all.extend([false, true].map(|scale| ExpertTrellisMma { bits, book, block: rotations[1], scale }.entry()))
        }
    }
    all
}

impl GpuBackend {
    /// Whether tensor cores compute products with such matrices of `count` experts, or why they do not though they could; one of the
    /// matrices shows it.
    pub(super) fn trusts_experts(
        &self,
        name: &str,
        w: &Stored,
        samples: &Samples,
        rotations: [u32; 2],
        count: usize,
    ) -> marlin_backend::Result<std::result::Result<bool, Reason>> {
        let [block_in, block_out] = rotations;
        let known = |block: u32| block == 1 || block as usize == STREAM_BLOCK;
        let able = known(block_in) && known(block_out) && tiled(&w.kind, rotations);
        if !self.gpu.device().target().has_tensor_cores() || !able {
            return Ok(Ok(false));
        }
        self.reserve_experts(&w.kind, rotations, self.thresholds().sort_pairs * count)?;
        let key = format!("experts {:?} {rotations:?}", w.kind);
        let known = self.plan.lock().unwrap_or_else(PoisonError::into_inner).get(&key).map(|(_, decision)| *decision);
        if let Some(decision) = known {
            return Ok(decision.reason.map_or(Ok(true), Err));
        }
        let look = || {
            self.gpu.prepare(&entries(&w.kind, rotations))?;
            self.experts_agree(w, samples, rotations)
        };
        let failed = failing(name, self.gpu.in_earnest(|| self.gpu.check(look)))?;
        let reason = failed.map(|(reason, what)| {
            self.count(reason, &what, 0, [0, 0]);
            reason
        });
        let decision = super::Decision { reason, ..super::Decision::FAST };
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).insert(key, (name.to_owned(), decision));
        Ok(reason.map_or(Ok(true), Err))
    }

    /// A few pairs, and a tile and a part of one, with an only expert.
    fn experts_agree(&self, w: &Stored, samples: &Samples, [block_in, block_out]: [u32; 2]) -> Result<bool> {
        let gpu = &self.gpu;
        let (rows, cols) = (w.kind.rows(), w.kind.cols());
        let stack = Stack {
            kind: w.kind,
            words: w.words.clone(),
            factors: w.factors.clone(),
            stack_words: 0,
            stack_factors: 0,
            places: gpu.upload(&[0u32])?,
        };
        let before =
            (block_in > 1).then(|| Before { order: None, scale: None, block: block_in, features: cols, width: cols });
        let after =
            (block_out > 1).then(|| After { scale: None, block: block_out, features: rows, width: rows, bias: None });
        let p = Projection { stacks: vec![stack], before, after, rows, tensor: true, slower: None };
        for pairs in [3, TILE_PAIRS + 5] {
            let index = gpu.upload(&vec![0u32; pairs])?;
            let sorted = self.sorted(&index, pairs, if pairs < TILE_PAIRS { pairs } else { 1 })?;
            if sorted.is_none() && stream_kernel(&w.kind, [block_in, block_out], false).is_none() {
                continue;
            }
            let mut x = numbers(pairs * cols);
            let of = Pairs { index: &index, count: pairs, share: 1, gated: false, sorted };
            let Some(y) = self.project_by_tensor_cores(&p, &gpu.upload(&x)?, &of)? else { return Ok(false) };
            let mut y = gpu.read(&y)?;
            rotate(&mut x, block_in as usize);
            rotate(&mut y, block_out as usize);
            if !samples.agree(&x, &y, rows) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Groups that share the matrices of so many pairs: as many as run at once, or so many that each finds room for its inputs.
    fn expert_groups(&self, k: &TrellisExperts, kind: &Kind, pairs: usize) -> usize {
        let deep = kind.cols() / STREAM_BLOCK;
        let total = pairs * deep * (kind.rows() / STREAM_BLOCK);
        let together = RESIDENT * self.gpu.device().info().cores.max(1) as usize;
        share(total, deep, together, k.blocks as usize)
    }

    /// Makes room for the sums of so many pairs.
    fn reserve_experts(&self, kind: &Kind, rotations: [u32; 2], pairs: usize) -> Result<()> {
        let Some(k) = stream_kernel(kind, rotations, false) else { return Ok(()) };
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let tickets = pairs * kind.rows() / STREAM_BLOCK;
        scratch.grow(&self.gpu, 2 * STREAM_BLOCK * self.expert_groups(&k, kind, pairs), tickets)
    }

    /// One projection of all pairs with what stands around it, if tensor cores compute it.
    pub(super) fn project_by_tensor_cores(
        &self,
        p: &Projection,
        x: &Slice<f32>,
        of: &Pairs,
    ) -> Result<Option<Slice<f32>>> {
        let Some(rotations) = rotations(p).filter(|_| p.tensor) else { return Ok(None) };
        let Some(first) = p.stacks.first() else { return Ok(None) };
        let features = p.before.as_ref().map_or(first.kind.cols(), |b| b.features);
        if !features.is_multiple_of(4) {
            return Ok(None);
        }
        match &of.sorted {
            Some(sorted) => self.project_tiles(p, x, of, sorted, rotations, features).map(Some),
            None if p.stacks.iter().all(|s| stream_kernel(&s.kind, rotations, of.gated).is_some()) => {
                self.project_stream(p, x, of, rotations, features).map(Some)
            }
            None => Ok(None),
        }
    }

    fn project_stream(
        &self,
        p: &Projection,
        x: &Slice<f32>,
        of: &Pairs,
        rotations: [u32; 2],
        features: usize,
    ) -> Result<Slice<f32>> {
        let (gpu, none) = (&self.gpu, &self.none);
        let scale_in = p.before.as_ref().and_then(|b| b.scale.as_ref());
        let scale_out = p.after.as_ref().and_then(|a| a.scale.as_ref());
        let y = gpu.uninitialised(of.count * p.rows)?;
        for s in &p.stacks {
            let Some(k) = stream_kernel(&s.kind, rotations, of.gated) else { continue };
            let groups = self.expert_groups(&k, &s.kind, of.count) as u32;
            let [factor, offset] = k.parts.affine();
            let a = StreamArgs {
                powers: std::array::from_fn(|i| 1 << i),
                rows: s.kind.rows() as u32,
                cols: s.kind.cols() as u32,
                batch: 1,
                groups,
                features: features as u32,
                outputs: p.rows as u32,
                scaled_in: scale_in.is_some().into(),
                scaled_out: scale_out.is_some().into(),
                factor,
                offset,
            };
            let a =
                ExpertStreamArgs { s: a, pairs: of.count as u32, share: of.share as u32, stack_words: s.stack_words };
            let (sums, tickets) = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).both();
            let (scale_in, scale_out) = (scale_in.unwrap_or(none), scale_out.unwrap_or(none));
            let (index, places, grid) = (of.index, &s.places, [groups, 1, 1]);
            k.launch(gpu, grid, &s.words, x, scale_in, scale_out, index, places, &sums, &tickets, &y, &a)?;
        }
        Ok(y)
    }

    fn project_tiles(
        &self,
        p: &Projection,
        x: &Slice<f32>,
        of: &Pairs,
        sorted: &Sorted,
        rotations: [u32; 2],
        features: usize,
    ) -> Result<Slice<f32>> {
        let (gpu, none) = (&self.gpu, &self.none);
        let Sorted { order, tiles, most } = sorted;
        let scale_in = p.before.as_ref().and_then(|b| b.scale.as_ref());
        let scale_out = p.after.as_ref().and_then(|a| a.scale.as_ref());
        let y = gpu.uninitialised(of.count * p.rows)?;
        // In each order, with each factor.
        let mut inputs: [Option<(Slice<u32>, Slice<f32>)>; 3] = Default::default();
        for s in &p.stacks {
            let cols = s.kind.cols();
            let trellis = matches!(s.kind, Kind::Trellis { .. });
            let spread = spread(&s.kind);
            let made = &mut inputs[if trellis { 2 } else { spread.into() }];
            let (halves, factors) = match made {
                Some(made) => made,
                None => {
                    let halves = gpu.uninitialised(of.count * cols.div_ceil(STREAM_BLOCK) * STREAM_BLOCK / 2)?;
                    let factors = gpu.uninitialised(of.count)?;
                    let k = PairHalves { block: rotations[0], scale: scale_in.is_some(), gated: of.gated, spread };
                    let a = PairArgs {
                        features: features as u32,
                        width: cols as u32,
                        share: of.share as u32,
                        factor: if trellis { 1.0 } else { 1.0 / WEIGHT_FACTOR },
                    };
                    let grid = [of.count as u32, 1, 1];
                    k.launch(gpu, grid, x, scale_in.unwrap_or(none), of.index, order, &halves, &factors, &a)?;
                    made.insert((halves, factors))
                }
            };
            let grid = [s.kind.rows().div_ceil(256) as u32, *most as u32, 1];
            let (batch, stack_words) = (of.count as u32, s.stack_words);
            match s.kind {
                Kind::Rows { weight, args } => {
                    let a = GemvArgs { w: args, batch, share: 1, stack_words, stack_factors: s.stack_factors };
                    let k = ExpertRowsMma { weight };
                    k.launch(gpu, grid, &s.words, &s.factors, halves, factors, order, tiles, &s.places, &y, &a)?;
                }
                Kind::Trellis { bits, book, rows, cols } => {
                    let t = TrellisArgs { rows, cols, batch, share: 1, stack_words };
                    let a = ExpertTrellisArgs { t, outputs: p.rows as u32 };
                    let k = ExpertTrellisMma { bits, book, block: rotations[1], scale: scale_out.is_some() };
                    let scale_out = scale_out.unwrap_or(none);
                    k.launch(gpu, grid, &s.words, halves, factors, order, tiles, &s.places, scale_out, &y, &a)?;
                }
            }
        }
        Ok(y)
    }
}
