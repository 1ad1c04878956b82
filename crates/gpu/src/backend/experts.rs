//! Experts: stacked by kind, each row's chosen ones computed in one launch for every kind.

use super::decide::{Decision, Rung};
use super::linear::{self, After, Before, GpuLinear, OnDevice, Place, norm, span};
use super::product::{gemv, trellis_gemv};
use super::stored::{Kind, Packed, Stored};
use super::{GpuBackend, GpuRouting, Tensor};
use crate::kernels::*;
use crate::{Gpu, Slice};
use marlin_backend::fallback::Reason;
use marlin_backend::{Backend, Error, Expert, LinearHandle, Result};
use marlin_checkpoint::{Bytes, Linear};
use std::sync::Mutex;

/// Experts whose matrices are alike, one after another in memory.
pub(super) struct Stack {
    pub kind: Kind,
    pub words: Slice<u32>,
    pub factors: Slice<u8>,
    pub stack_words: u32,
    pub stack_factors: u32,
    /// For each expert of the layer its number in this stack, or all ones.
    pub places: Slice<u32>,
}

/// One projection of all experts.
pub(super) struct Projection {
    pub stacks: Vec<Stack>,
    /// Scales around the matrices, expert after expert.
    pub before: Option<Before>,
    pub after: Option<After>,
    pub rows: usize,
    /// Whether tensor cores compute it.
    pub tensor: bool,
    /// Why they do not though they could.
    pub slower: Option<Reason>,
}

/// The experts of one layer.
pub struct GpuExperts {
    each: Vec<[GpuLinear; 3]>,
    /// Gates with ups behind them, downs; `None` where they must be computed one by one.
    projections: Option<[Projection; 2]>,
}

/// Pairs of a row and a matrix in the order of their matrices.
pub(super) struct Sorted {
    pub order: Slice<u32>,
    pub tiles: Slice<u32>,
    /// Tiles there is room for.
    pub most: usize,
}

/// Pairs of which each has a matrix.
pub(super) struct Pairs<'a> {
    pub index: &'a Slice<u32>,
    pub count: usize,
    /// So many of them come from one row of x.
    pub share: usize,
    /// Whether a pair's input is the SiLU of row 2 p of x, a gate, times the next row.
    pub gated: bool,
    pub sorted: Option<Sorted>,
}

impl GpuExperts {
    pub(super) fn linears(&self, index: usize) -> [&GpuLinear; 3] {
        self.each[index].each_ref()
    }
}

/// Stacks what is alike; `None` if a matrix has no kernel, or surroundings differ.
fn project(b: &GpuBackend, linears: &[Linear]) -> Result<Option<(Projection, Vec<Stored>)>> {
    let gpu = &b.gpu;
    let Some(first) = linears.first() else { return Ok(None) };
    let shape = |l: &Linear| ([l.in_features(), l.out_features()], [l.weight.cols(), l.weight.rows()]);
    if linears.iter().any(|l| l.bias.is_some() || shape(l) != shape(first)) {
        return Ok(None);
    }
    let mut around = Vec::new();
    for l in linears {
        match linear::surroundings(l) {
            Ok(found) => around.push(found),
            Err(_) => return Ok(None),
        }
    }
    let alike = |a: &linear::Surroundings| {
        let sides = |a: &linear::Surroundings| {
            let before = a.before.as_ref().map(|b| (b.scale.is_some(), b.block));
            (before, a.after.as_ref().map(|a| (a.scale.is_some(), a.block)))
        };
        sides(a) == sides(&around[0]) && a.before.as_ref().is_none_or(|b| b.order.is_none())
    };
    if !around.iter().all(alike) {
        return Ok(None);
    }
    let block = |b: Option<u32>| b.unwrap_or(1);
    let rotations =
        [block(around[0].before.as_ref().map(|b| b.block)), block(around[0].after.as_ref().map(|a| a.block))];
    let (mut tensor, mut slower) = (!b.options.exact, None);
    let mut kinds: Vec<(Kind, Vec<usize>)> = Vec::new();
    let mut packed: Vec<Packed> = Vec::new();
    for (i, l) in linears.iter().enumerate() {
        let samples = b.samples(l)?;
        let Ok(found) = Packed::of(&l.name, &l.weight)? else { return Ok(None) };
        let new = !kinds.iter().any(|(kind, _)| *kind == found.kind);
        if new {
            let stored = found.upload(gpu)?;
            if b.decide(&l.name, &stored, &samples, Rung::Fast, [1, 1])?.rung != Rung::Fast {
                return Ok(None);
            }
            if tensor {
                match b.trusts_experts(&l.name, &stored, &samples, rotations, linears.len())? {
                    Ok(able) => tensor = able,
                    Err(reason) => (tensor, slower) = (false, Some(reason)),
                }
            }
            kinds.push((found.kind, Vec::new()));
        }
        if let Some((_, members)) = kinds.iter_mut().find(|(kind, _)| *kind == found.kind) {
            members.push(i);
        }
        packed.push(found);
    }
    let mut stored: Vec<Option<Stored>> = vec![None; linears.len()];
    let mut stacks = Vec::new();
    for (kind, members) in kinds {
        // Every expert begins where vector loads may.
        let size = packed[members[0]].words.len().next_multiple_of(16);
        let factor_size = packed[members[0]].factors.len();
        let words: Slice<u8> = gpu.uninitialised(size * members.len())?;
        let factors: Slice<u8> = gpu.uninitialised((factor_size * members.len()).max(16))?;
        let mut places = vec![u32::MAX; linears.len()];
        for (n, &i) in members.iter().enumerate() {
            places[i] = n as u32;
            gpu.write(&words, n * size, &packed[i].words)?;
            gpu.write(&factors, n * factor_size, &packed[i].factors)?;
            stored[i] = Some(Stored {
                kind,
                words: words.part(n * size, size).cast(),
                factors: factors.part(n * factor_size, factor_size.max(16)),
            });
            // What has been copied into the stack is needed no more.
            packed[i].words.release();
            (packed[i].words, packed[i].factors) = (Bytes::from_static(&[]), Vec::new());
        }
        stacks.push(Stack {
            kind,
            words: words.cast(),
            factors,
            stack_words: (size / 4) as u32,
            stack_factors: factor_size as u32,
            places: gpu.upload(&places)?,
        });
    }
    let joined = |gpu: &Gpu, parts: Vec<Vec<f32>>| gpu.upload(&parts.concat());
    let ([inputs, outputs], [cols, rows]) = shape(first);
    let before = match &around[0].before {
        None => None,
        Some(linear::Inputs { scale, block, .. }) => {
            let scales = around.iter().filter_map(|a| a.before.as_ref()?.scale.clone()).collect();
            let scale = if scale.is_some() { Some(joined(gpu, scales)?) } else { None };
            Some(Before { order: None, scale, block: *block, features: inputs, width: cols })
        }
    };
    let after = match &around[0].after {
        None => None,
        Some(linear::Outputs { scale, block }) => {
            let scales = around.iter().filter_map(|a| a.after.as_ref()?.scale.clone()).collect();
            let scale = if scale.is_some() { Some(joined(gpu, scales)?) } else { None };
            Some(After { scale, block: *block, features: outputs, width: rows, bias: None })
        }
    };
    let projection = Projection { stacks, before, after, rows: outputs, tensor, slower };
    Ok(Some((projection, stored.into_iter().flatten().collect())))
}

/// Expert `i`'s part of `all`.
fn part(all: Option<&Slice<f32>>, i: usize, width: usize) -> Option<Slice<f32>> {
    all.map(|all| all.part(i * width, width))
}

impl GpuBackend {
    pub(super) fn load_experts(&self, experts: Vec<Expert>) -> Result<GpuExperts> {
        let count = experts.len();
        let mut sides: [Vec<Linear>; 2] = Default::default();
        let mut ups = Vec::with_capacity(count);
        for Expert { gate, up, down } in experts {
            sides[0].push(gate);
            ups.push(up);
            sides[1].push(down);
        }
        sides[0].append(&mut ups);
        let mut projections = Vec::new();
        let mut linears: [Vec<GpuLinear>; 2] = Default::default();
        for (side, loaded) in sides.into_iter().zip(&mut linears) {
            match project(self, &side)? {
                None => {
                    for l in side {
                        loaded.push(self.load(l)?);
                    }
                }
                Some((projection, stored)) => {
                    for (i, (l, stored)) in side.into_iter().zip(stored).enumerate() {
                        let before = projection
                            .before
                            .as_ref()
                            .map(|b| Before { scale: part(b.scale.as_ref(), i, b.width), ..b.clone() });
                        let after = projection
                            .after
                            .as_ref()
                            .map(|a| After { scale: part(a.scale.as_ref(), i, a.width), ..a.clone() });
                        let place = Place::Device(Box::new(OnDevice {
                            stored,
                            before,
                            after,
                            bias: None,
                            decision: Decision::FAST,
                        }));
                        let (cols, rows) = (l.in_features(), l.out_features());
                        loaded.push(GpuLinear { name: l.name, cols, rows, place, latent: Mutex::default() });
                    }
                    projections.push(projection);
                }
            }
        }
        let [mut gate, down] = linears;
        let up = gate.split_off(count);
        let each = gate.into_iter().zip(up).zip(down).map(|((g, u), d)| [g, u, d]).collect();
        Ok(GpuExperts { each, projections: projections.try_into().ok() })
    }

    /// Pairs sorted by their matrix, if there are enough of them.
    pub(super) fn sorted(&self, index: &Slice<u32>, pairs: usize, matrices: usize) -> crate::Result<Option<Sorted>> {
        if pairs < self.thresholds().sort_pairs * matrices {
            return Ok(None);
        }
        let gpu = &self.gpu;
        let most = pairs / 64 + matrices.min(pairs);
        let (order, starts) = (gpu.uninitialised(pairs)?, gpu.uninitialised(matrices + 1)?);
        let tiles = gpu.uninitialised(3 * most)?;
        let args = SortArgs { pairs: pairs as u32, experts: matrices as u32, tiles: most as u32 };
        SortPairs {}.launch(gpu, [args.experts, 1, 1], index, &order, &starts, &args)?;
        ExpertTiles {}.launch(gpu, [1, 1, 1], &starts, &tiles, &args)?;
        Ok(Some(Sorted { order, tiles, most }))
    }

    /// One projection of all pairs.
    fn project(&self, p: &Projection, x: &Slice<f32>, of: &Pairs) -> crate::Result<Slice<f32>> {
        if let Some(y) = self.project_by_tensor_cores(p, x, of)? {
            return Ok(y);
        }
        let gpu = &self.gpu;
        let Pairs { index, count: pairs, share, .. } = *of;
        let width = p.stacks.first().map_or(0, |s| s.kind.cols());
        let x = &match of.gated {
            false => x.clone(),
            true => {
                let features = p.before.as_ref().map_or(width, |b| b.features);
                let inner = gpu.uninitialised(pairs * features)?;
                let args = RowsArgs { rows: pairs as u32, cols: features as u32 };
                SwigluPairs {}.launch(gpu, [(args.rows * args.cols).div_ceil(256), 1, 1], x, &inner, &args)?;
                inner
            }
        };
        let (none, no_index): (_, Slice<u32>) = (&self.none, self.none.cast());
        let (input, share) = match &p.before {
            None => (x.clone(), share),
            Some(b) => {
                let y = gpu.uninitialised(pairs * b.width)?;
                let kernel = Around {
                    block: b.block,
                    output: false,
                    scale: b.scale.is_some(),
                    order: false,
                    bias: false,
                    indexed: true,
                };
                let args = AroundArgs {
                    width: b.width as u32,
                    x_width: b.features as u32,
                    y_width: b.width as u32,
                    share: share as u32,
                    norm: norm(b.block),
                };
                let groups = [b.width.div_ceil(span(b.block)) as u32, pairs as u32, 1];
                let scale = b.scale.as_ref().unwrap_or(none);
                kernel.launch(gpu, groups, x, scale, none, &no_index, index, &y, &args)?;
                (y, 1)
            }
        };
        let width = p.stacks.first().map_or(0, |s| s.kind.rows());
        let y = gpu.uninitialised(pairs * width)?;
        for s in &p.stacks {
            match (s.kind, &of.sorted) {
                (Kind::Rows { weight, args }, Some(Sorted { order, tiles, most })) => {
                    let a = GemvArgs {
                        w: args,
                        batch: pairs as u32,
                        share: share as u32,
                        stack_words: s.stack_words,
                        stack_factors: s.stack_factors,
                    };
                    let groups = [width.div_ceil(64) as u32, *most as u32, 1];
                    let kernel = ExpertGemm { weight };
                    kernel.launch(gpu, groups, &s.words, &s.factors, &input, order, tiles, &s.places, &y, &a)?;
                }
                (Kind::Trellis { bits, book, rows, cols }, Some(Sorted { order, tiles, most })) => {
                    let (batch, share, stack_words) = (pairs as u32, share as u32, s.stack_words);
                    let a = TrellisArgs { rows, cols, batch, share, stack_words };
                    let groups = [width.div_ceil(64) as u32, *most as u32, 1];
                    let kernel = ExpertTrellisGemm { bits, book };
                    kernel.launch(gpu, groups, &s.words, &input, order, tiles, &s.places, &y, &a)?;
                }
                (Kind::Rows { weight, args }, None) => {
                    let kernel = gemv(weight, 1, false, true);
                    let groups = [width.div_ceil((kernel.r * kernel.simds) as usize) as u32, pairs as u32, 1];
                    let a = GemvArgs {
                        w: args,
                        batch: pairs as u32,
                        share: share as u32,
                        stack_words: s.stack_words,
                        stack_factors: s.stack_factors,
                    };
                    kernel.launch(gpu, groups, &s.words, &s.factors, none, &input, index, &s.places, &y, &a)?;
                }
                (Kind::Trellis { bits, book, rows, cols }, None) => {
                    let kernel = trellis_gemv(bits, book, 1, true);
                    let groups = [width.div_ceil(16 * kernel.tiles as usize) as u32, pairs as u32, 1];
                    let a = TrellisArgs {
                        rows,
                        cols,
                        batch: pairs as u32,
                        share: share as u32,
                        stack_words: s.stack_words,
                    };
                    kernel.launch(gpu, groups, &s.words, &input, index, &s.places, &y, &a)?;
                }
            }
        }
        let Some(a) = &p.after else { return Ok(y) };
        let out = gpu.uninitialised(pairs * a.features)?;
        let kernel =
            Around { block: a.block, output: true, scale: a.scale.is_some(), order: false, bias: false, indexed: true };
        let args = AroundArgs {
            width: a.width as u32,
            x_width: a.width as u32,
            y_width: a.features as u32,
            share: 1,
            norm: norm(a.block),
        };
        let groups = [a.width.div_ceil(span(a.block)) as u32, pairs as u32, 1];
        kernel.launch(gpu, groups, &y, a.scale.as_ref().unwrap_or(none), none, &no_index, index, &out, &args)?;
        Ok(out)
    }

    /// The weighted sum of each row's experts, on top of `base` if there is one.
    pub(super) fn mix(
        &self,
        x: &Tensor,
        experts: &GpuExperts,
        routing: &GpuRouting,
        base: Option<&Tensor>,
    ) -> Result<Tensor> {
        if x.rows != routing.rows {
            return Err(Error::shape("apply_experts", format!("{} rows", routing.rows), x.rows));
        }
        if let Some([first, ..]) = experts.each.first()
            && first.cols != x.cols
        {
            return Err(Error::shape("apply_experts", format!("{} columns", first.cols), x.cols));
        }
        let x = &self.settled(x)?;
        let base = base.map(|base| self.settled(base)).transpose()?;
        let base = base.as_ref();
        let Some([gate_up, down]) = &experts.projections else {
            let y = self.mix_one_by_one(x, experts, routing)?;
            return match base {
                Some(base) => self.add(base.clone(), &y),
                None => Ok(y),
            };
        };
        if let Some(base) = base
            && (base.rows, base.cols) != (x.rows, down.rows)
        {
            let expected = format!("[{}, {}]", x.rows, down.rows);
            return Err(Error::shape("moe", expected, format!("[{}, {}]", base.rows, base.cols)));
        }
        for p in [gate_up, down] {
            if let Some(reason) = p.slower {
                let name = experts.each.first().map_or("", |[gate, ..]| gate.name());
                self.count(reason, name, x.rows, [routing.slots, experts.each.len()]);
            }
        }
        let gpu = &self.gpu;
        let (pairs, matrices) = (routing.rows * routing.slots, experts.each.len());
        let both = Pairs {
            index: &routing.both,
            count: 2 * pairs,
            share: 2 * routing.slots,
            gated: false,
            sorted: self.sorted(&routing.both, 2 * pairs, 2 * matrices)?,
        };
        let gates_ups = self.project(gate_up, &x.data, &both)?;
        let sorted = self.sorted(&routing.experts, pairs, matrices)?;
        let single = Pairs { index: &routing.experts, count: pairs, share: 1, gated: true, sorted };
        let downs = self.project(down, &gates_ups, &single)?;
        let out = self.uninitialised(x.rows, down.rows)?;
        let args = CombineArgs { rows: x.rows as u32, cols: down.rows as u32, slots: routing.slots as u32 };
        let groups = [(args.rows * args.cols).div_ceil(256), 1, 1];
        let under = base.map_or(&self.none, |base| &base.data);
        Combine { base: base.is_some() }.launch(gpu, groups, &downs, &routing.weights, under, &out.data, &args)?;
        Ok(out)
    }

    /// Each expert on the rows that chose it. Waits for the routing.
    fn mix_one_by_one(&self, x: &Tensor, experts: &GpuExperts, routing: &GpuRouting) -> Result<Tensor> {
        let name = experts.each.first().map_or("", |[gate, ..]| gate.name());
        self.count(Reason::MixedExperts, name, x.rows, [routing.slots, experts.each.len()]);
        let choices = self.read_routing(routing)?;
        let values = self.read(x)?;
        let cols = experts.each.first().map_or(0, |[_, _, down]| down.rows());
        let mut slots = vec![Vec::new(); x.rows * routing.slots];
        for (e, linears) in experts.each.iter().enumerate() {
            let chosen: Vec<usize> =
                (0..slots.len()).filter(|i| choices[i / routing.slots][i % routing.slots].0 as usize == e).collect();
            if chosen.is_empty() {
                continue;
            }
            let rows = chosen.iter().flat_map(|i| &values[i / routing.slots * x.cols..][..x.cols]).copied().collect();
            let input = self.write(chosen.len(), x.cols, rows)?;
            let [gate, up, down] = linears;
            let inner = self.swiglu(self.apply(gate, &input)?, &self.apply(up, &input)?)?;
            let y = self.read(&self.apply(down, &inner)?)?;
            chosen.iter().zip(y.chunks_exact(cols.max(1))).for_each(|(i, y)| slots[*i] = y.to_vec());
        }
        let mut out = vec![0.0; x.rows * cols];
        for (i, y) in slots.iter().enumerate() {
            let weight = choices[i / routing.slots][i % routing.slots].1;
            out[i / routing.slots * cols..][..cols].iter_mut().zip(y).for_each(|(out, y)| *out += weight * y);
        }
        self.write(x.rows, cols, out)
    }
}
