//! Weights as the kernels want them: dense ones straight from the checkpoint's bytes, others through their reference
//! decoder, some rows at a time.

use super::{CpuBackend, Tensor, shape};
use crate::linear::{Job, Out, linears};
use crate::{DType, Mat, ops};
use marlin_backend::{Error, LinearHandle, Result};
use marlin_checkpoint::{Bytes, InputTransform, Linear, OutputTransform, Weight};
use std::sync::{Mutex, OnceLock};

/// A linear layer.
pub struct CpuLinear {
    name: String,
    rows: usize,
    cols: usize,
    bias: Option<Vec<f32>>,
    kind: Kind,
}

enum Kind {
    Dense {
        data: Bytes,
        dtype: DType,
    },
    Decoded {
        linear: Box<Linear>,
        /// The matrix in f32, once somebody has asked for it.
        whole: OnceLock<Vec<u8>>,
    },
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
        let dense = match &linear.weight {
            Weight::Dense(dense) if linear.is_plain() => {
                let dtype = match dense.dtype() {
                    marlin_checkpoint::DType::BF16 => DType::Bf16,
                    marlin_checkpoint::DType::F16 => DType::F16,
                    _ => DType::F32,
                };
                Some((dense.data().clone(), dtype))
            }
            _ => None,
        };
        let not_finite = |index: usize, value: f32| Error::NotFinite { name: linear.name.clone(), index, value };
        let kind = match dense {
            Some((data, dtype)) => {
                if let Some(index) = ops::first_not_finite(&b.cpu, &data, dtype) {
                    let mut row = vec![0.0; cols];
                    linear.weight.dequantize_row(index / cols, &mut row)?;
                    return Err(not_finite(index, row[index % cols]));
                }
                Kind::Dense { data, dtype }
            }
            None => {
                let width = linear.weight.cols();
                let bad = Mutex::new(None);
                b.cpu.pool().ranges(linear.weight.rows(), 16, &|range| {
                    let mut row = vec![0.0; width];
                    for n in range {
                        // An error leaves zeros here and comes again at the first use.
                        if linear.weight.dequantize_row(n, &mut row).is_err() {
                            row.fill(0.0);
                        }
                        if let (Some(k), Ok(mut bad)) = (row.iter().position(|v| !v.is_finite()), bad.lock()) {
                            *bad = Some((n * width + k, row[k]));
                        }
                    }
                });
                if let Ok(Some((index, value))) = bad.into_inner() {
                    return Err(not_finite(index, value));
                }
                Kind::Decoded { linear: Box::new(linear.clone()), whole: OnceLock::new() }
            }
        };
        Ok(Self { rows, cols, bias: linear.bias, name: linear.name, kind })
    }

    /// The matrix, if the kernels can use it as it is.
    pub(super) fn dense(&self) -> Result<Option<Mat<'_>>> {
        match &self.kind {
            Kind::Dense { data, dtype } => Ok(Some(Mat::new(data, *dtype, self.rows, self.cols).map_err(shape)?)),
            Kind::Decoded { .. } => Ok(None),
        }
    }

    /// The matrix, biases excluded; one that is not dense is decoded once and kept in f32. For small matrices that an
    /// operation needs in pieces.
    pub(super) fn whole(&self) -> Result<Mat<'_>> {
        match &self.kind {
            Kind::Dense { data, dtype } => Mat::new(data, *dtype, self.rows, self.cols).map_err(shape),
            Kind::Decoded { linear, whole } => {
                let bytes = match whole.get() {
                    Some(bytes) => bytes,
                    None => {
                        let bytes = linear.matrix()?.into_iter().flat_map(f32::to_le_bytes).collect();
                        whole.get_or_init(|| bytes)
                    }
                };
                Mat::new(bytes, DType::F32, self.rows, self.cols).map_err(shape)
            }
        }
    }

    pub(super) fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Values of row `row`, for embedding.
    pub(super) fn embed(&self, b: &CpuBackend, tokens: &[u32], out: &mut Tensor) -> Result<()> {
        if let Some(&token) = tokens.iter().find(|t| **t as usize >= self.rows) {
            return Err(Error::shape("embed", format!("a token below {}", self.rows), token));
        }
        match &self.kind {
            Kind::Dense { .. } => ops::embed(&b.cpu, self.whole()?, tokens, out.values_mut()).map_err(shape),
            Kind::Decoded { linear, .. } if linear.is_plain() => {
                for (row, token) in out.values_mut().chunks_exact_mut(self.cols).zip(tokens) {
                    linear.weight.dequantize_row(*token as usize, row)?;
                }
                Ok(())
            }
            Kind::Decoded { .. } => Err(Error::Unsupported {
                op: "embed",
                why: format!("{} has transforms or padding around its matrix", self.name),
            }),
        }
    }

    /// `x W^T + bias` for a weight that is not a plain dense matrix: rows are decoded into panels, the panels multiplied.
    pub(super) fn decoded(&self, b: &CpuBackend, x: &Tensor) -> Result<Tensor> {
        let Kind::Decoded { linear, .. } = &self.kind else {
            return Err(Error::Unsupported { op: "linear", why: format!("{} is a dense matrix", self.name) });
        };
        const PANEL: usize = 256;
        let [width, height] = [linear.weight.cols(), linear.weight.rows()];
        let mut input = b.buffers.tensor(x.rows, width);
        for (to, from) in input.values_mut().chunks_exact_mut(width).zip(x.values().chunks_exact(self.cols)) {
            to[..self.cols].copy_from_slice(from);
            to[self.cols..].fill(0.0);
            if !matches!(linear.input(), InputTransform::None) {
                linear.input().apply(to);
            }
        }
        let mut whole = b.buffers.tensor(x.rows, height);
        let mut scratch = b.scratch();
        let acts =
            scratch.acts.prepare(&b.cpu, crate::Mode::Exact, input.values(), x.rows, width, width).map_err(shape)?;
        let mut panel = vec![0.0f32; PANEL * width];
        for first in (0..height).step_by(PANEL) {
            let count = PANEL.min(height - first);
            let bad = Mutex::new(None);
            let rows: Vec<Mutex<&mut [f32]>> = panel[..count * width].chunks_exact_mut(width).map(Mutex::new).collect();
            b.cpu.pool().ranges(count, 4, &|range| {
                for n in range {
                    let failed = match rows[n].lock() {
                        Ok(mut row) => linear.weight.dequantize_row(first + n, &mut row).err(),
                        Err(_) => None,
                    };
                    if let (Some(e), Ok(mut bad)) = (failed, bad.lock()) {
                        *bad = Some(e);
                    }
                }
            });
            drop(rows);
            if let Ok(Some(e)) = bad.into_inner() {
                return Err(e.into());
            }
            let bytes: Vec<u8> = panel[..count * width].iter().flat_map(|v| v.to_le_bytes()).collect();
            let mat = Mat::new(&bytes, DType::F32, count, width).map_err(shape)?;
            linears(&b.cpu, &[Job::new(acts, mat, Out::new(&mut whole.values_mut()[first..], height))])
                .map_err(shape)?;
        }
        let mut out = b.buffers.tensor(x.rows, self.rows);
        for (to, from) in out.values_mut().chunks_exact_mut(self.rows).zip(whole.values_mut().chunks_exact_mut(height))
        {
            if !matches!(linear.output(), OutputTransform::None) {
                linear.output().apply(from);
            }
            to.copy_from_slice(&from[..self.rows]);
            if let Some(bias) = &self.bias {
                to.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
            }
        }
        Ok(out)
    }
}
