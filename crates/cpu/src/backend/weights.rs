//! Weights as the kernels want them: dense ones straight from the checkpoint's bytes, grouped and trellis ones re-laid
//! once, what has no kernel through its reference decoder, some rows at a time.

use super::{CpuBackend, Tensor, shape};
use crate::grouped::GroupedMat;
use crate::linear::{Job, Out, Tiles, W, linears};
use crate::ops::hadamard::{MAX_BLOCK, Rotation};
use crate::trellis::TrellisMat;
use crate::{DType, Mat, Mode, ops};
use marlin_backend::fallback::Reason;
use marlin_backend::{Error, LinearHandle, Result};
use marlin_checkpoint::{Bytes, InputTransform, Linear, OutputTransform, Weight};
use std::sync::{Mutex, OnceLock, PoisonError};

/// A linear layer.
pub struct CpuLinear {
    name: String,
    rows: usize,
    cols: usize,
    /// Rows and columns of the matrix, padding included.
    padded: [usize; 2],
    bias: Option<Vec<f32>>,
    input: InputTransform,
    output: OutputTransform,
    kind: Kind,
    /// The whole layer as a matrix in f32, once somebody has asked for it.
    whole: OnceLock<Vec<u8>>,
}

enum Kind {
    Dense { data: Bytes, dtype: DType },
    Grouped(Box<GroupedMat>),
    Trellis(TrellisMat),
    Decoded(Box<Weight>),
}

impl LinearHandle for CpuLinear {
    fn name(&self) -> &str {
        &self.name
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn rows(&self) -> usize {
        self.rows
    }
}

impl CpuLinear {
    pub(super) fn new(b: &CpuBackend, linear: Linear) -> Result<Self> {
        let (rows, cols) = (linear.out_features(), linear.in_features());
        let padded = [linear.weight.rows(), linear.weight.cols()];
        let (input, output) = (linear.input().clone(), linear.output().clone());
        let Linear { name, weight, bias, .. } = linear;
        let kind = match weight {
            Weight::Dense(dense) => {
                let dtype = match dense.dtype() {
                    marlin_checkpoint::DType::BF16 => DType::Bf16,
                    marlin_checkpoint::DType::F16 => DType::F16,
                    _ => DType::F32,
                };
                let data = dense.data().clone();
                if let Some(index) = ops::first_not_finite(&b.cpu, &data, dtype) {
                    let mut row = vec![0.0; padded[1]];
                    Weight::Dense(dense).dequantize_row(index / padded[1], &mut row)?;
                    return Err(Error::NotFinite { name, index, value: row[index % padded[1]] });
                }
                Kind::Dense { data, dtype }
            }
            Weight::Grouped(weight) => match GroupedMat::from_grouped(&b.cpu, &name, &weight)? {
                Some(mat) => Kind::Grouped(Box::new(mat)),
                None => decoded(b, &name, Weight::Grouped(weight))?,
            },
            Weight::Packed(weight) => match GroupedMat::from_packed(&b.cpu, &name, weight.as_ref())? {
                Some(mat) => Kind::Grouped(Box::new(mat)),
                None => decoded(b, &name, Weight::Packed(weight))?,
            },
            Weight::Trellis(weight) => match (rotation(&input, &output), weight.rows() * weight.cols()) {
                (Some(_), 1..) => Kind::Trellis(TrellisMat::new(&b.cpu, &weight)?),
                _ => decoded(b, &name, Weight::Trellis(weight))?,
            },
        };
        for (side, scale) in [("input", input_scale(&input)), ("output", output_scale(&output))] {
            if let Some(i) = scale.iter().position(|v| !v.is_finite()) {
                let why = format!("{side} scale {i} is {}; the checkpoint is damaged", scale[i]);
                return Err(marlin_checkpoint::Error::invalid(name, why).into());
            }
        }
        Ok(Self { name, rows, cols, padded, bias, input, output, kind, whole: OnceLock::new() })
    }

    /// The matrix, padding included, if there are kernels for it.
    pub(super) fn weight(&self) -> Result<Option<W<'_>>> {
        Ok(match &self.kind {
            Kind::Dense { data, dtype } => {
                Some(Mat::new(data, *dtype, self.padded[0], self.padded[1]).map_err(shape)?.into())
            }
            Kind::Grouped(mat) => Some(Tiles::all(mat).into()),
            Kind::Trellis(_) | Kind::Decoded(_) => None,
        })
    }

    /// The matrix if it is all there is to the layer, but perhaps for a bias.
    pub(super) fn plain(&self) -> Result<Option<W<'_>>> {
        if self.changes_input() || self.changes_output() { Ok(None) } else { self.weight() }
    }

    /// The trellis, and the rotations before and after it.
    pub(super) fn trellis(&self) -> Option<(&TrellisMat, [Option<Rotation<'_>>; 2])> {
        match &self.kind {
            Kind::Trellis(mat) => Some((mat, rotation(&self.input, &self.output)?)),
            _ => None,
        }
    }

    /// The tiles of a layer that is nothing else.
    pub(super) fn tiles(&self) -> Option<Tiles<'_>> {
        match &self.kind {
            Kind::Grouped(mat) if !self.changes_input() && !self.changes_output() => Some(Tiles::all(mat)),
            _ => None,
        }
    }

    /// Whether codes are multiplied in f32 even in the fast mode.
    pub(super) fn has_float_codes(&self) -> bool {
        matches!(&self.kind, Kind::Grouped(mat) if !mat.layout().mapping().is_integer())
    }

    /// Whether inputs are transformed or padded.
    pub(super) fn changes_input(&self) -> bool {
        !matches!(self.input, InputTransform::None) || self.cols != self.padded[1]
    }

    /// Whether outputs are transformed or cut.
    pub(super) fn changes_output(&self) -> bool {
        !matches!(self.output, OutputTransform::None) || self.rows != self.padded[0]
    }

    /// Whether the other layer's inputs are transformed in the same way.
    pub(super) fn same_input(&self, other: &Self) -> bool {
        match (&self.input, &other.input) {
            (InputTransform::None, InputTransform::None) => true,
            (InputTransform::Hadamard { block: a, .. }, InputTransform::Hadamard { block: b, .. }) => {
                a == b && input_scale(&self.input) == input_scale(&other.input)
            }
            _ => false,
        }
    }

    /// Outputs of the matrix, padding included.
    pub(super) fn padded_rows(&self) -> usize {
        self.padded[0]
    }

    /// Inputs of the matrix, padding included.
    pub(super) fn padded_cols(&self) -> usize {
        self.padded[1]
    }

    /// One row of inputs, padded and transformed, into `to`.
    pub(super) fn input_row(&self, from: &[f32], to: &mut [f32]) {
        to[..self.cols].copy_from_slice(from);
        to[self.cols..].fill(0.0);
        self.input.apply(to);
    }

    /// One row of the matrix's outputs, transformed (in place), cut and with its bias, into `to`.
    pub(super) fn output_row(&self, from: &mut [f32], to: &mut [f32]) {
        self.output.apply(from);
        to.copy_from_slice(&from[..self.rows]);
        if let Some(bias) = &self.bias {
            to.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    }

    /// The layer as one dense matrix, biases excluded; one that is not dense is decoded once and kept in f32. For small
    /// matrices that an operation needs in pieces.
    pub(super) fn whole(&self, b: &CpuBackend) -> Result<Mat<'_>> {
        if let Some(W::Dense(mat)) = self.plain()? {
            return Ok(mat);
        }
        let bytes = match self.whole.get() {
            Some(bytes) => bytes,
            None => {
                let bytes = self.matrix(b)?.into_iter().flat_map(f32::to_le_bytes).collect();
                self.whole.get_or_init(|| bytes)
            }
        };
        Mat::new(bytes, DType::F32, self.rows, self.cols).map_err(shape)
    }

    /// The layer's values, transforms folded in: what it makes of unit vectors.
    fn matrix(&self, b: &CpuBackend) -> Result<Vec<f32>> {
        const UNITS: usize = 256;
        let mut matrix = vec![0.0; self.rows * self.cols];
        for first in (0..self.cols).step_by(UNITS) {
            let count = UNITS.min(self.cols - first);
            let mut units = b.buffers.tensor(count, self.cols);
            units.values_mut().fill(0.0);
            (0..count).for_each(|i| units.values_mut()[i * self.cols + first + i] = 1.0);
            let columns = b.apply(Mode::Exact, &[self], &units)?;
            for (i, column) in columns.iter().flat_map(|y| y.values().chunks_exact(self.rows.max(1))).enumerate() {
                for (r, v) in column.iter().enumerate() {
                    matrix[r * self.cols + first + i] = v - self.bias.as_ref().map_or(0.0, |bias| bias[r]);
                }
            }
        }
        Ok(matrix)
    }

    /// Values of the matrix's row `row`.
    fn matrix_row(&self, b: &CpuBackend, row: usize, out: &mut [f32]) -> Result<()> {
        match &self.kind {
            Kind::Dense { data, dtype } => {
                let size = out.len() * dtype.size();
                ops::to_f32(&b.cpu, &data[row * size..(row + 1) * size], *dtype, out).map_err(shape)
            }
            Kind::Grouped(mat) => {
                mat.row(b.cpu.level(), row, out);
                Ok(())
            }
            Kind::Trellis(_) => Err(Error::Unsupported { op: "embed", why: format!("{} is a trellis", self.name) }),
            Kind::Decoded(weight) => Ok(weight.dequantize_row(row, out)?),
        }
    }

    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Values of the rows `tokens`, for embedding.
    pub(super) fn embed(&self, b: &CpuBackend, tokens: &[u32], out: &mut Tensor) -> Result<()> {
        if let Some(&token) = tokens.iter().find(|t| **t as usize >= self.rows) {
            return Err(Error::shape("embed", format!("a token below {}", self.rows), token));
        }
        if let Some(W::Dense(mat)) = self.plain()? {
            return ops::embed(&b.cpu, mat, tokens, out.values_mut()).map_err(shape);
        }
        if self.changes_output() || matches!(self.kind, Kind::Trellis(_)) {
            // Rows of the layer are mixed by what follows the matrix.
            return ops::embed(&b.cpu, self.whole(b)?, tokens, out.values_mut()).map_err(shape);
        }
        let cols = self.cols;
        let rows: Vec<Mutex<&mut [f32]>> = out.values_mut().chunks_exact_mut(cols.max(1)).map(Mutex::new).collect();
        let failed = Mutex::new(None);
        b.cpu.pool().run(rows.len(), &|i| {
            let mut row = vec![0.0; self.padded[1]];
            match self.matrix_row(b, tokens[i] as usize, &mut row) {
                Ok(()) => {
                    self.input.fold(&mut row);
                    rows[i].lock().unwrap_or_else(PoisonError::into_inner).copy_from_slice(&row[..cols]);
                }
                Err(e) => *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(e),
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// `x w^T` for a matrix without kernels: rows are decoded into panels, the panels multiplied in f32. `x` has been
    /// transformed; outputs are not yet.
    pub(super) fn decoded(&self, b: &CpuBackend, x: &Tensor) -> Result<Tensor> {
        let Kind::Decoded(weight) = &self.kind else {
            return Err(Error::Unsupported { op: "linear", why: format!("{} has kernels of its own", self.name) });
        };
        b.note_decoded(self, x.rows, reason(weight));
        const PANEL: usize = 256;
        let [height, width] = self.padded;
        let mut whole = b.buffers.tensor(x.rows, height);
        let mut buf = crate::linear::ActsBuf::default();
        let needs = crate::linear::Needs::default();
        let acts = buf.prepare(&b.cpu, Mode::Exact, needs, x.values(), x.rows, width, width).map_err(shape)?;
        let mut panel = vec![0.0f32; PANEL * width];
        for first in (0..height).step_by(PANEL) {
            let count = PANEL.min(height - first);
            let bad = Mutex::new(None);
            let rows: Vec<Mutex<&mut [f32]>> = panel[..count * width].chunks_exact_mut(width).map(Mutex::new).collect();
            b.cpu.pool().ranges(count, 4, &|range| {
                for n in range {
                    let mut row = rows[n].lock().unwrap_or_else(PoisonError::into_inner);
                    if let Err(e) = weight.dequantize_row(first + n, &mut row) {
                        *bad.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
                    }
                }
            });
            drop(rows);
            if let Some(e) = bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
                return Err(e.into());
            }
            let bytes: Vec<u8> = panel[..count * width].iter().flat_map(|v| v.to_le_bytes()).collect();
            let mat = Mat::new(&bytes, DType::F32, count, width).map_err(shape)?;
            linears(&b.cpu, &[Job::new(acts, mat, Out::new(&mut whole.values_mut()[first..], height))])
                .map_err(shape)?;
        }
        Ok(whole)
    }
}

/// Why a weight has no kernel.
fn reason(weight: &Weight) -> Reason {
    if matches!(weight, Weight::Trellis(_)) { Reason::UnsupportedTransform } else { Reason::UnsupportedGroup }
}

/// The transforms as rotations, if they are such.
pub(crate) fn rotation<'a>(
    input: &'a InputTransform,
    output: &'a OutputTransform,
) -> Option<[Option<Rotation<'a>>; 2]> {
    let fits = |block: usize| (2..=MAX_BLOCK).contains(&block);
    let rotation = |block: usize, scale: &'a Option<std::sync::Arc<[f32]>>| {
        fits(block).then_some(Some(Rotation { block, scale: scale.as_deref() }))
    };
    let before = match input {
        InputTransform::None => None,
        InputTransform::Permutation(_) => return None,
        InputTransform::Hadamard { scale, block } => rotation(*block, scale)?,
    };
    let after = match output {
        OutputTransform::None => None,
        OutputTransform::Hadamard { scale, block } => rotation(*block, scale)?,
    };
    Some([before, after])
}

fn input_scale(input: &InputTransform) -> &[f32] {
    match input {
        InputTransform::Hadamard { scale: Some(scale), .. } => scale,
        _ => &[],
    }
}

fn output_scale(output: &OutputTransform) -> &[f32] {
    match output {
        OutputTransform::Hadamard { scale: Some(scale), .. } => scale,
        _ => &[],
    }
}

/// A weight without kernels, once all its values are known to be finite.
fn decoded(b: &CpuBackend, name: &str, weight: Weight) -> Result<Kind> {
    let width = weight.cols();
    let bad = Mutex::new(None);
    b.cpu.pool().ranges(weight.rows(), 16, &|range| {
        let mut row = vec![0.0; width];
        for n in range {
            let found = match weight.dequantize_row(n, &mut row) {
                Err(e) => Some(e.into()),
                Ok(()) => row.iter().position(|v| !v.is_finite()).map(|k| Error::NotFinite {
                    name: name.to_owned(),
                    index: n * width + k,
                    value: row[k],
                }),
            };
            if let Some(e) = found {
                bad.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        }
    });
    match bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(e) => Err(e),
        None => Ok(Kind::Decoded(Box::new(weight))),
    }
}
