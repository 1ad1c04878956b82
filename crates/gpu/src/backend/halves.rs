//! Products of many rows by the device's library: weights are decoded to halves, a panel at a time, and so are inputs. What comes out
//! is still to be finished: multiplied with factors of its rows, rotated and scaled. What comes next often does that on its way.

use super::linear::{After, Before, GpuLinear, Place};
use super::stored::{Kind, Stored};
use super::tensor::Second as Added;
use super::{GpuBackend, Tensor, decide::Rung};
use crate::device::Matmul;
use crate::kernels::*;
use crate::source::{Access, Entry};
use crate::{Result, Slice};
use std::sync::PoisonError;

/// Values of a panel at most.
const PANEL: usize = 64 << 20;

/// Bytes that the library may work in.
const WORKSPACE: usize = 32 << 20;

/// What weights that are not a trellis's are multiplied with: those of 2^-14 to 2^10 keep all their bits.
const SCALE: f32 = 64.0;

/// Inputs of a matrix at most.
const WIDEST: usize = 1 << 16;

/// Memory for panels and the library.
#[derive(Clone)]
pub(super) struct Panels {
    panel: Slice<u32>,
    workspace: Slice<u8>,
}

/// Rows as one linear's matrix takes them, and what products with them are to be multiplied with.
pub(super) struct Halves {
    rows: Slice<u32>,
    factors: Slice<f32>,
    batch: usize,
}

/// Products of many rows that are still to be finished.
#[derive(Clone)]
pub(super) struct Products {
    values: Slice<f32>,
    factors: Slice<f32>,
    batch: usize,
    /// Values of a row.
    width: usize,
    after: Finish,
}

/// How products are finished.
#[derive(Clone)]
struct Finish {
    block: u32,
    scale: Option<Slice<f32>>,
    bias: Option<Slice<f32>>,
    features: usize,
}

/// A linear of which many rows are multiplied so.
#[derive(Clone, Copy)]
pub(super) struct Many<'a> {
    stored: &'a Stored,
    block: u32,
    scale: Option<&'a Slice<f32>>,
    features: usize,
    after: Option<&'a After>,
    bias: Option<&'a Slice<f32>>,
}

impl Many<'_> {
    fn finish(&self) -> Finish {
        match self.after {
            Some(a) => Finish { block: a.block, scale: a.scale.clone(), bias: a.bias.clone(), features: a.features },
            None => Finish { block: 1, scale: None, bias: self.bias.cloned(), features: self.stored.kind.rows() },
        }
    }

    /// Whether all columns come from a row of so many values with a rotation of `block`, and scales or none.
    fn takes(&self, width: usize, block: u32, scaled: bool) -> bool {
        self.features == width
            && self.stored.kind.cols() == width
            && self.block == block
            && self.scale.is_some() == scaled
    }
}

/// The kernels that [`GpuBackend::multiply`] takes for a matrix whose inputs are rotated so.
pub(super) fn entries(kind: &Kind, block: u32) -> [Entry; 4] {
    let decode = match *kind {
        Kind::Rows { weight, .. } => PanelRows { weight }.entry(),
        Kind::Trellis { bits, book, .. } => PanelTrellis { bits, book }.entry(),
    };
    let finish = FinishProducts { block: 1, bias: false }.entry();
    [decode, ToHalves::of(kind.cols(), block).entry(), ToHalves::of(kind.cols(), 1).entry(), finish]
}

/// What products with such a matrix's panels are multiplied with.
pub(super) fn product_factor(kind: &Kind) -> f32 {
    if matches!(kind, Kind::Trellis { .. }) { 1.0 } else { 1.0 / SCALE }
}

/// Whether finishing products, or making halves, can rotate so.
fn turns(block: u32) -> bool {
    block == 1 || block as usize == STREAM_BLOCK
}

/// Whether matrices begin at multiples of 16 bytes, as the library likes them, and rows fit the kernels that make halves.
pub(crate) fn fits_library(kind: &Kind) -> bool {
    kind.cols().is_multiple_of(8) && kind.rows().is_multiple_of(8) && kind.cols() <= WIDEST
}

impl GpuBackend {
    /// Whether the device's library multiplies such matrices.
    pub(super) fn multiplies(&self, kind: &Kind) -> bool {
        fits_library(kind) && self.gpu.device().multiplies()
    }

    fn panels(&self, values: usize) -> Result<Panels> {
        let mut panels = self.panels.lock().unwrap_or_else(PoisonError::into_inner);
        match &*panels {
            Some(p) if p.panel.len() >= values / 2 => Ok(p.clone()),
            _ => {
                let new = Panels {
                    panel: self.gpu.uninitialised(values / 2)?,
                    workspace: self.gpu.uninitialised(WORKSPACE)?,
                };
                Ok(panels.insert(new).clone())
            }
        }
    }

    /// Whether inputs are scaled and rotated on their way to the library.
    fn turns_inputs(before: &Before) -> bool {
        before.order.is_none() && turns(before.block) && before.features.is_multiple_of(4)
    }

    /// Whether and how `batch` rows are multiplied so by a linear; one that has failed its check, or that the library does not take, is not.
    pub(super) fn many<'a>(&self, linear: &'a GpuLinear, batch: usize) -> Option<Many<'a>> {
        let Place::Device(here) = &linear.place else { return None };
        if batch <= self.thresholds().few_rows || here.decision.rung != Rung::Tensor {
            return None;
        }
        let after = here.after.as_ref();
        let good = self.multiplies(&here.stored.kind)
            && here.before.as_ref().is_none_or(Self::turns_inputs)
            && after.is_none_or(|a| turns(a.block));
        let (features, block) = here.before.as_ref().map_or((here.stored.kind.cols(), 1), |b| (b.features, b.block));
        let scale = here.before.as_ref().and_then(|b| b.scale.as_ref());
        good.then_some(Many { stored: &here.stored, block, scale, features, after, bias: here.bias.as_ref() })
    }

    /// `x` `[batch, inputs]` times the matrix.
    pub(super) fn multiply(
        &self,
        w: &Stored,
        before: Option<&Before>,
        x: &Slice<f32>,
        batch: usize,
    ) -> Result<Slice<f32>> {
        let (features, block) = before.map_or((w.kind.cols(), 1), |b| (b.features, b.block));
        let scale = before.and_then(|b| b.scale.as_ref());
        let many = Many { stored: w, block, scale, features, after: None, bias: None };
        self.finished(&self.products(many, &self.to_halves(many, x, batch)?)?)
    }

    /// Rows as a linear takes them.
    pub(super) fn to_halves(&self, w: Many, x: &Slice<f32>, batch: usize) -> Result<Halves> {
        let cols = w.stored.kind.cols();
        let rows = self.gpu.uninitialised::<u32>(batch * cols / 2)?;
        let factors = self.gpu.uninitialised::<f32>(batch)?;
        let args = ToHalvesArgs {
            features: w.features as u32,
            width: cols as u32,
            scaled: u32::from(w.scale.is_some()),
            factor: product_factor(&w.stored.kind),
        };
        let kernel = ToHalves::of(cols, w.block);
        let scales = w.scale.unwrap_or(&self.none);
        kernel.launch(&self.gpu, [batch as u32, 1, 1], x, scales, &rows, &factors, &args)?;
        Ok(Halves { rows, factors, batch })
    }

    /// A linear's products.
    pub(super) fn products(&self, w: Many, x: &Halves) -> Result<Products> {
        let values = self.multiply_halves(w.stored, &x.rows, &self.one, x.batch)?;
        let width = w.stored.kind.rows();
        Ok(Products { values, factors: x.factors.clone(), batch: x.batch, width, after: w.finish() })
    }

    /// Values of products.
    pub(super) fn finished(&self, p: &Products) -> Result<Slice<f32>> {
        let Finish { block, scale, bias, features } = &p.after;
        let y = self.gpu.uninitialised(p.batch * features)?;
        let args = FinishArgs { width: p.width as u32, features: *features as u32, scaled: u32::from(scale.is_some()) };
        let kernel = FinishProducts { block: *block, bias: bias.is_some() };
        let (scales, biases) = (scale.as_ref().unwrap_or(&self.none), bias.as_ref().unwrap_or(&self.none));
        let groups = [p.width.div_ceil(512) as u32, p.batch as u32, 1];
        kernel.launch(&self.gpu, groups, &p.values, &p.factors, scales, biases, &y, &args)?;
        Ok(y)
    }

    /// RMS norm of `x`, with its addend, as the inputs of linears, if one kernel can do that.
    pub(super) fn normed_halves(
        &self,
        x: &Tensor,
        weight: &Slice<f32>,
        eps: f32,
        linears: &[Many],
    ) -> Result<Option<Vec<Halves>>> {
        let Some(first) = linears.first().filter(|_| linears.len() <= 3 && weight.len() == x.cols) else {
            return Ok(None);
        };
        let (block, scaled) = (first.block, first.scale.is_some());
        if !linears.iter().all(|w| w.takes(x.cols, block, scaled)) {
            return Ok(None);
        }
        let (batch, cols) = (x.rows, x.cols);
        let addend = x.addend.as_ref().filter(|a| a.sum.get().is_none());
        let products = match addend.map(|a| &a.second) {
            Some(Added::Products(p)) if p.after.block == block && p.after.bias.is_none() && p.width == cols => Some(p),
            _ => None,
        };
        let values = match addend.map(|a| &a.second) {
            Some(Added::Values(second)) => Some(second),
            _ => None,
        };
        let settled;
        let (x, addend) = if products.is_some() || values.is_some() {
            (x, addend)
        } else {
            settled = self.settled(x)?;
            (&settled, None)
        };
        let sum = self.gpu.uninitialised(if addend.is_some() { batch * cols } else { 1 })?;
        let second = match (values, products) {
            (Some(_), _) => Second::Values,
            (_, Some(_)) => Second::Products,
            _ => Second::No,
        };
        let y = self.gpu.uninitialised::<u32>(linears.len() * batch * cols / 2)?;
        let factors = self.gpu.uninitialised::<f32>(linears.len() * batch)?;
        let kernel = NormToHalves::of(cols, block, second, linears.len());
        let each = |i: usize| linears.get(i).unwrap_or(first);
        let factor = |i| product_factor(&each(i).stored.kind);
        let scales = |i| each(i).scale.unwrap_or(&self.none);
        let added_scales = products.and_then(|p| p.after.scale.as_ref());
        let args = NormToHalvesArgs {
            rows: batch as u32,
            width: cols as u32,
            scaled: u32::from(scaled),
            second_scaled: u32::from(added_scales.is_some()),
            eps,
            factor0: factor(0),
            factor1: factor(1),
            factor2: factor(2),
        };
        kernel.launch(
            &self.gpu,
            [batch as u32, 1, 1],
            &x.data,
            values.or(products.map(|p| &p.values)).unwrap_or(&self.none),
            products.map_or(&self.none, |p| &p.factors),
            added_scales.unwrap_or(&self.none),
            weight,
            scales(0),
            scales(1),
            scales(2),
            &sum,
            &y,
            &factors,
            &args,
        )?;
        if let Some(addend) = addend {
            addend.sum.get_or_init(|| sum);
        }
        let half = |i| Halves {
            rows: y.part(i * batch * cols / 2, batch * cols / 2),
            factors: factors.part(i * batch, batch),
            batch,
        };
        Ok(Some((0..linears.len()).map(half).collect()))
    }

    /// `silu(gate) * up` as a linear's inputs, if one kernel can do that.
    pub(super) fn swiglu_halves(&self, gate: &Products, up: &Products, down: Many) -> Result<Option<Halves>> {
        let (block, scaled, width) = (down.block, down.scale.is_some(), gate.width);
        let same = |p: &Products| {
            let Finish { block: b, scale, bias, features } = &p.after;
            *b == block && scale.is_some() == scaled && bias.is_none() && *features == width && p.width == width
        };
        if !same(gate) || !same(up) || !down.takes(width, block, scaled) {
            return Ok(None);
        }
        let rows = self.gpu.uninitialised::<u32>(gate.batch * width / 2)?;
        let factors = self.gpu.uninitialised::<f32>(gate.batch)?;
        let args = ToHalvesArgs {
            features: width as u32,
            width: width as u32,
            scaled: u32::from(scaled),
            factor: product_factor(&down.stored.kind),
        };
        let scales = |s: Option<&Slice<f32>>| s.unwrap_or(&self.none).clone();
        SwigluToHalves::of(width, block).launch(
            &self.gpu,
            [gate.batch as u32, 1, 1],
            &gate.values,
            &up.values,
            &gate.factors,
            &up.factors,
            &scales(gate.after.scale.as_ref()),
            &scales(up.after.scale.as_ref()),
            &scales(down.scale),
            &rows,
            &factors,
            &args,
        )?;
        Ok(Some(Halves { rows, factors, batch: gate.batch }))
    }

    /// The sum of `h` and a linear's products with `x`, once somebody wants it.
    pub(super) fn onto(&self, h: &Tensor, w: Many, x: &Halves) -> Result<Tensor> {
        let h = self.settled(h)?;
        Ok(h.plus(Added::Products(self.products(w, x)?)))
    }

    /// `x` `[batch, cols]` of halves times the matrix, times what `factors` (that and 0) say.
    pub(super) fn multiply_halves(
        &self,
        w: &Stored,
        x: &Slice<u32>,
        factors: &Slice<f32>,
        batch: usize,
    ) -> Result<Slice<f32>> {
        let gpu = &self.gpu;
        let (rows, cols) = (w.kind.rows(), w.kind.cols());
        let y = gpu.uninitialised(batch * rows)?;
        let most_rows = (PANEL / cols / 16 * 16).clamp(16, rows.next_multiple_of(16));
        let Panels { panel, workspace } = self.panels(most_rows * cols)?;
        for first in (0..rows).step_by(most_rows) {
            let some = most_rows.min(rows - first);
            match w.kind {
                Kind::Rows { weight, args } => {
                    let groups = [cols.div_ceil(128 * weight.chunk() as usize) as u32, some as u32, 1];
                    let a = PanelArgs { w: args, first: first as u32, factor: SCALE };
                    PanelRows { weight }.launch(gpu, groups, &w.words, &w.factors, &panel, &a)?;
                }
                Kind::Trellis { bits, book, rows, cols } => {
                    let groups = [cols.div_ceil(256), some.div_ceil(16) as u32, 1];
                    let a = PanelTrellisArgs { rows, cols, first: first as u32 };
                    PanelTrellis { bits, book }.launch(gpu, groups, &w.words, &panel, &a)?;
                }
            }
            gpu.multiply(&Matmul {
                batch,
                rows: some,
                cols,
                line: rows,
                w: panel.binding(Access::Read),
                x: x.binding(Access::Read),
                factors: factors.binding(Access::Read),
                y: y.part(first, y.len()).binding(Access::Write),
                workspace: workspace.binding(Access::Write),
            })?;
        }
        Ok(y)
    }
}
