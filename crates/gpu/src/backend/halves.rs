//! Products of many rows by the device's library: weights are decoded to halves, a panel at a time.

use super::GpuBackend;
use super::linear::Before;
use super::stored::{Kind, Stored};
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

/// Memory for panels and the library.
#[derive(Clone)]
pub(super) struct Panels {
    panel: Slice<u32>,
    workspace: Slice<u8>,
}

/// The kernels that [`GpuBackend::multiply`] takes for a matrix whose inputs are rotated so.
pub(super) fn entries(kind: &Kind, block: u32) -> [Entry; 5] {
    let decode = match *kind {
        Kind::Rows { weight, .. } => PanelRows { weight }.entry(),
        Kind::Trellis { bits, book, .. } => PanelTrellis { bits, book }.entry(),
    };
    let scaled = ToHalves { block, scale: true }.entry();
    let plain = ToHalves { block: 1, scale: false }.entry();
    [decode, Largest { scale: true }.entry(), Largest { scale: false }.entry(), scaled, plain]
}

/// What products with such a matrix's panels are multiplied with.
pub(super) fn product_factor(kind: &Kind) -> f32 {
    if matches!(kind, Kind::Trellis { .. }) { 1.0 } else { 1.0 / SCALE }
}

impl GpuBackend {
    /// Whether the device's library multiplies such matrices.
    pub(super) fn multiplies(&self, kind: &Kind) -> bool {
        // Matrices begin at multiples of 16 bytes, as the library likes them.
        kind.cols().is_multiple_of(8) && kind.rows().is_multiple_of(8) && self.gpu.device().multiplies()
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
    pub(super) fn turns_inputs(before: &Before) -> bool {
        before.order.is_none()
            && (before.block == 1 || before.block as usize == STREAM_BLOCK)
            && before.features.is_multiple_of(4)
    }

    /// `x` `[batch, inputs]` times the matrix.
    pub(super) fn multiply(
        &self,
        w: &Stored,
        before: Option<&Before>,
        x: &Slice<f32>,
        batch: usize,
    ) -> Result<Slice<f32>> {
        let (gpu, none) = (&self.gpu, &self.none);
        let cols = w.kind.cols();
        let (features, block) = before.map_or((cols, 1), |b| (b.features, b.block));
        let scales = before.and_then(|b| b.scale.as_ref());
        let (scale, scales) = (scales.is_some(), scales.unwrap_or(none));
        let count = batch * features;
        let groups = count.div_ceil(8192).clamp(1, 512) as u32;
        let most = gpu.uninitialised::<f32>(groups as usize)?;
        let (halves, factors) = (gpu.uninitialised::<u32>(batch * cols / 2)?, gpu.uninitialised::<f32>(4)?);
        let a = LargestArgs { count: count as u32, groups, features: features as u32 };
        Largest { scale }.launch(gpu, [groups, 1, 1], x, scales, &most, &a)?;
        let factor = product_factor(&w.kind);
        let a = ToHalvesArgs { groups, features: features as u32, width: cols as u32, factor };
        let grid = [cols.div_ceil(512) as u32, batch as u32, 1];
        ToHalves { block, scale }.launch(gpu, grid, x, scales, &most, &halves, &factors, &a)?;
        self.multiply_halves(w, &halves, &factors, batch)
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
            gpu.device().multiply(&Matmul {
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
