//! Linears: uploading, and products with what stands around them.

use super::stored::{Kind, Packed, Stored};
use super::{GpuBackend, Tensor};
use crate::fallback::Reason;
use crate::kernels::*;
use crate::{Gpu, Result, Slice};
use marlin_backend::{Backend, Error, LinearHandle};
use marlin_checkpoint::{InputTransform, Linear, OutputTransform};
use marlin_cpu::{CpuBackend, CpuLinear};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Batches beyond this go to the kernel for many rows.
pub(super) const FEW_ROWS: usize = 16;

/// Which kernel computes a product: decided when the weight is loaded, by checking it against the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rung {
    /// The kernels made for speed.
    Fast,
    /// The plain kernel.
    Simple,
    /// The CPU.
    Host,
}

/// How a product is computed, and why so if not by the fastest kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub rung: Rung,
    pub reason: Option<Reason>,
}

impl Decision {
    pub const FAST: Decision = Decision { rung: Rung::Fast, reason: None };
}

/// What happens to the inputs of a matrix.
#[derive(Clone)]
pub(super) struct Before {
    pub order: Option<Slice<u32>>,
    pub scale: Option<Slice<f32>>,
    /// Size of the rotation; 1 for none.
    pub block: u32,
    /// Inputs of the layer, and of the matrix with its padding.
    pub features: usize,
    pub width: usize,
}

/// What happens to the outputs of a matrix.
#[derive(Clone)]
pub(super) struct After {
    pub scale: Option<Slice<f32>>,
    pub block: u32,
    pub features: usize,
    pub width: usize,
    pub bias: Option<Slice<f32>>,
}

/// Where a layer's matrix is.
pub(super) enum Place {
    Device { stored: Stored, before: Option<Before>, after: Option<After>, bias: Option<Slice<f32>>, decision: Decision },
    Host { linear: Box<CpuLinear>, reason: Reason },
}

/// A linear of the GPU backend.
pub struct GpuLinear {
    pub(super) name: String,
    pub(super) cols: usize,
    pub(super) rows: usize,
    pub(super) place: Place,
    /// A latent projection as attention takes it, made when it is first used so.
    pub(super) latent: Mutex<Option<super::latent::Projection>>,
}

impl LinearHandle for GpuLinear {
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

/// Largest rotation that the kernels know.
const LARGEST_BLOCK: usize = 1024;

/// What a linear has around its matrix, in the host's memory.
pub(super) struct Around_ {
    pub before: Option<(Option<Vec<u32>>, Option<Vec<f32>>, u32)>,
    pub after: Option<(Option<Vec<f32>>, u32)>,
}

/// What stands around the matrix of `linear`, or that no kernel does it.
pub(super) fn surroundings(linear: &Linear) -> std::result::Result<Around_, Reason> {
    let [rows, cols] = [linear.weight.rows(), linear.weight.cols()];
    let block = |b: usize| if b <= LARGEST_BLOCK { Ok(b as u32) } else { Err(Reason::UnsupportedTransform) };
    let before = match linear.input() {
        InputTransform::None => (linear.in_features() != cols).then_some((None, None, 1)),
        InputTransform::Permutation(order) => Some((Some(order.to_vec()), None, 1)),
        InputTransform::Hadamard { scale, block: b } => Some((None, scale.as_ref().map(|s| s.to_vec()), block(*b)?)),
    };
    let after = match linear.output() {
        OutputTransform::None => (linear.out_features() != rows).then_some((None, 1)),
        OutputTransform::Hadamard { scale, block: b } => Some((scale.as_ref().map(|s| s.to_vec()), block(*b)?)),
    };
    Ok(Around_ { before, after })
}

/// One over the square root of a rotation's size.
pub(super) fn norm(block: u32) -> f32 {
    (1.0 / f64::from(block).sqrt()) as f32
}

fn div(a: usize, b: usize) -> u32 {
    a.div_ceil(b) as u32
}

/// Values that [`Around`] handles in a threadgroup.
pub(super) fn span(block: u32) -> usize {
    128 * (block as usize / 32).max(1)
}

impl GpuBackend {
    /// Uploads a linear and decides how it is computed.
    pub(super) fn load(&self, linear: Linear) -> marlin_backend::Result<GpuLinear> {
        let (name, cols, rows) = (linear.name.clone(), linear.in_features(), linear.out_features());
        let place = match self.place(&linear)? {
            Ok(place) => place,
            Err(reason) => self.on_host(linear, reason)?,
        };
        Ok(GpuLinear { name, cols, rows, place, latent: Mutex::default() })
    }

    fn on_host(&self, linear: Linear, reason: Reason) -> marlin_backend::Result<Place> {
        Ok(Place::Host { linear: Box::new(self.cpu().linear(linear)?), reason })
    }

    /// The CPU's backend, for what no kernel does.
    pub(super) fn cpu(&self) -> &CpuBackend {
        self.cpu.get_or_init(|| {
            CpuBackend::new(marlin_cpu::CpuOptions { threads: self.options.threads, exact: true, ..Default::default() })
        })
    }

    fn place(&self, linear: &Linear) -> marlin_backend::Result<std::result::Result<Place, Reason>> {
        let around = match surroundings(linear) {
            Ok(around) => around,
            Err(reason) => return Ok(Err(reason)),
        };
        // The reference takes rows of the weight, whose pages `of` gives back.
        let samples = self.samples(linear)?;
        let packed = match Packed::of(&linear.name, &linear.weight)? {
            Ok(packed) => packed,
            Err(reason) => return Ok(Err(reason)),
        };
        let gpu = &self.gpu;
        let stored = packed.upload(gpu)?;
        let decision = self.decide(&linear.name, &stored, &samples)?;
        if decision.rung == Rung::Host {
            return Ok(Err(decision.reason.unwrap_or(Reason::SelfCheckFailed)));
        }
        let bias = linear.bias.as_ref().map(|b| gpu.upload(b)).transpose()?;
        let up = |v: Option<Vec<f32>>| v.map(|v| gpu.upload(&v)).transpose();
        let before = match around.before {
            None => None,
            Some((order, scale, block)) => Some(Before {
                order: order.map(|o| gpu.upload(&o)).transpose()?,
                scale: up(scale)?,
                block,
                features: linear.in_features(),
                width: linear.weight.cols(),
            }),
        };
        let (after, bias) = match around.after {
            None => (None, bias),
            Some((scale, block)) => {
                let (features, width) = (linear.out_features(), linear.weight.rows());
                (Some(After { scale: up(scale)?, block, features, width, bias }), None)
            }
        };
        Ok(Ok(Place::Device { stored, before, after, bias, decision }))
    }

    /// `x` `[n, cols]` through a linear.
    pub(super) fn apply(&self, linear: &GpuLinear, x: &Tensor) -> marlin_backend::Result<Tensor> {
        if x.cols != linear.cols {
            return Err(Error::shape("linear", format!("{} columns", linear.cols), x.cols));
        }
        match &linear.place {
            Place::Host { linear: host, reason } => {
                self.fallbacks.note(*reason, &linear.name, x.rows, [0, 0]);
                let cpu = self.cpu();
                let values = cpu.write(x.rows, x.cols, self.read(x)?)?;
                let y = cpu.linears(&[host], &values)?.pop().ok_or_else(|| Error::shape("linear", 1, 0))?;
                self.write(x.rows, linear.rows, cpu.read(&y)?)
            }
            Place::Device { stored, before, after, bias, decision } => {
                if let Some(reason) = decision.reason {
                    self.fallbacks.note(reason, &linear.name, x.rows, [0, 0]);
                }
                let input = match before {
                    Some(before) => &self.before(before, x)?,
                    None => x,
                };
                let y = self.product(stored, bias.as_ref(), &input.data, x.rows, decision.rung)?;
                let y = Tensor { rows: x.rows, cols: stored.kind.rows(), data: y };
                Ok(match after {
                    Some(after) => self.after(after, &y)?,
                    None => y,
                })
            }
        }
    }

    fn before(&self, b: &Before, x: &Tensor) -> Result<Tensor> {
        let gpu = &self.gpu;
        let y = self.uninitialised(x.rows, b.width)?;
        let kernel = Around {
            block: b.block,
            output: false,
            scale: b.scale.is_some(),
            order: b.order.is_some(),
            bias: false,
            indexed: false,
        };
        let args = AroundArgs {
            width: b.width as u32,
            x_width: b.features as u32,
            y_width: b.width as u32,
            share: 1,
            norm: norm(b.block),
        };
        let (none, no_index) = (&self.none, self.none.cast());
        let (scale, order) = (b.scale.as_ref().unwrap_or(none), b.order.as_ref().unwrap_or(&no_index));
        let groups = [div(b.width, span(b.block)), x.rows as u32, 1];
        kernel.launch(gpu, groups, &x.data, scale, none, order, &no_index, &y.data, &args)?;
        Ok(y)
    }

    fn after(&self, a: &After, x: &Tensor) -> Result<Tensor> {
        let y = self.uninitialised(x.rows, a.features)?;
        let kernel = Around {
            block: a.block,
            output: true,
            scale: a.scale.is_some(),
            order: false,
            bias: a.bias.is_some(),
            indexed: false,
        };
        let args = AroundArgs {
            width: a.width as u32,
            x_width: a.width as u32,
            y_width: a.features as u32,
            share: 1,
            norm: norm(a.block),
        };
        let (none, no_index) = (&self.none, self.none.cast());
        let (scale, bias) = (a.scale.as_ref().unwrap_or(none), a.bias.as_ref().unwrap_or(none));
        let groups = [div(a.width, span(a.block)), x.rows as u32, 1];
        kernel.launch(&self.gpu, groups, &x.data, scale, bias, &no_index, &no_index, &y.data, &args)?;
        Ok(y)
    }

    /// `x` `[batch, cols of the matrix]` times the matrix.
    pub(super) fn product(
        &self,
        w: &Stored,
        bias: Option<&Slice<f32>>,
        x: &Slice<f32>,
        batch: usize,
        rung: Rung,
    ) -> Result<Slice<f32>> {
        let y = self.gpu.uninitialised(batch * w.kind.rows())?;
        let biases = bias.unwrap_or(&self.none);
        product_into(&self.gpu, &self.none, w, (bias.is_some(), biases), x, batch, rung, &y)?;
        Ok(y)
    }
}

/// Rows of x that a kernel for few rows takes at a time.
fn rows_at_a_time(batch: usize) -> u32 {
    match batch {
        1 => 1,
        2 => 2,
        _ => 4,
    }
}

#[allow(clippy::too_many_arguments)]
fn product_into(
    gpu: &Gpu,
    none: &Slice<f32>,
    w: &Stored,
    (bias, biases): (bool, &Slice<f32>),
    x: &Slice<f32>,
    batch: usize,
    rung: Rung,
    y: &Slice<f32>,
) -> Result<()> {
    let no_index = none.cast();
    let m = rows_at_a_time(batch);
    let few = batch <= FEW_ROWS;
    let tall = div(batch, m as usize);
    match w.kind {
        Kind::Rows { weight, args } => {
            let a = GemvArgs { w: args, batch: batch as u32, share: 1, stack_words: 0, stack_factors: 0 };
            let rows = args.rows as usize;
            if rung != Rung::Fast {
                let groups = [div(rows, 128), batch as u32, 1];
                return SimpleLinear { weight, bias }.launch(gpu, groups, &w.words, &w.factors, biases, x, y, &a);
            }
            if !few {
                let groups = [div(rows, 64), div(batch, 64), 1];
                return Gemm { weight, bias }.launch(gpu, groups, &w.words, &w.factors, biases, x, y, &a);
            }
            let kernel = gemv(weight, m, bias, false);
            let groups = [div(rows, (kernel.r * kernel.simds) as usize), tall, 1];
            kernel.launch(gpu, groups, &w.words, &w.factors, biases, x, &no_index, &no_index, y, &a)
        }
        Kind::Trellis { bits, book, rows, cols } => {
            let a = TrellisArgs { rows, cols, batch: batch as u32, share: 1, stack_words: 0 };
            if rung != Rung::Fast {
                let groups = [div(rows as usize, 128), batch as u32, 1];
                return SimpleTrellis { bits, book }.launch(gpu, groups, &w.words, x, y, &a);
            }
            if !few {
                let groups = [div(rows as usize, 64), div(batch, 64), 1];
                return TrellisGemm { bits, book }.launch(gpu, groups, &w.words, x, y, &a);
            }
            let kernel = trellis_gemv(bits, book, m, false);
            let groups = [div(rows as usize, 16 * kernel.tiles as usize), tall, 1];
            kernel.launch(gpu, groups, &w.words, x, &no_index, &no_index, y, &a)
        }
    }
}

/// The kernel for few rows of a weight.
pub(super) fn gemv(weight: WeightType, m: u32, bias: bool, experts: bool) -> Gemv {
    Gemv { weight, m, r: if m == 1 { 4 } else { 2 }, simds: 4, bias, experts }
}

/// The kernel for few rows of a trellis.
pub(super) fn trellis_gemv(bits: u32, book: Book, m: u32, experts: bool) -> TrellisGemv {
    TrellisGemv { bits, book, m, tiles: if m <= 2 { 2 } else { 1 }, simds: 8, experts }
}

/// Some rows of a weight as the reference decodes them: what the kernels are checked against.
pub(super) struct Samples {
    rows: Vec<usize>,
    values: Vec<Vec<f32>>,
}

/// Greatest difference from the reference that is taken for rounding, relative to the product's size. TF32 rounds
/// operands to one part in 2048; a wrong code, scale or place is off by far more.
const LIMIT: f64 = 2e-3;

impl GpuBackend {
    pub(super) fn samples(&self, linear: &Linear) -> marlin_backend::Result<Samples> {
        let [n, cols] = [linear.weight.rows(), linear.weight.cols()];
        // The first, the last, and some in between that fall on different lanes and tiles.
        let mut rows: Vec<usize> = [0, 1, 17, n / 3, n / 2 + 5, n.saturating_sub(2), n.saturating_sub(1)].into_iter().filter(|r| *r < n).collect();
        rows.sort_unstable();
        rows.dedup();
        let mut values = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut out = vec![0.0; cols];
            linear.weight.dequantize_row(*row, &mut out)?;
            if let Some(k) = out.iter().position(|v| !v.is_finite()) {
                return Err(Error::NotFinite { name: linear.name.clone(), index: row * cols + k, value: out[k] });
            }
            values.push(out);
        }
        Ok(Samples { rows, values })
    }

    /// How to compute products with `w`: the fastest way that agrees with the reference, for one row, a few and many. What is
    /// known of one weight holds for all of its kind and size.
    pub(super) fn decide(&self, name: &str, w: &Stored, samples: &Samples) -> marlin_backend::Result<Decision> {
        let key = format!("{:?}", w.kind);
        let known = self.plan.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(decision) = known {
            return Ok(decision);
        }
        let mut decision = Decision { rung: Rung::Host, reason: None };
        for rung in [Rung::Fast, Rung::Simple] {
            let (reason, what) = match self.agrees(w, samples, rung) {
                Ok(true) => {
                    decision.rung = rung;
                    break;
                }
                Ok(false) => (Reason::SelfCheckFailed, name.to_owned()),
                Err(crate::Error::Compile { kernel, .. }) => (Reason::KernelCompileFailed, kernel),
                Err(error @ crate::Error::Launch { .. }) => (Reason::SelfCheckFailed, format!("{name}: {error}")),
                Err(error) => return Err(error.into()),
            };
            self.fallbacks.note(reason, &what, 0, [0, 0]);
            // What kept it from the fastest way is the reason that counts.
            decision.reason.get_or_insert(reason);
        }
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).insert(key, decision);
        Ok(decision)
    }

    fn agrees(&self, w: &Stored, samples: &Samples, rung: Rung) -> Result<bool> {
        let (cols, n) = (w.kind.cols(), w.kind.rows());
        for batch in [1, 2, 3, FEW_ROWS + 1] {
            // Numbers of both signs and several sizes from a linear congruence.
            let mut state = 12345u32;
            let x: Vec<f32> = (0..batch * cols)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 23) as f32 - 1.0
                })
                .collect();
            let y = self.gpu.read(&self.product(w, None, &self.gpu.upload(&x)?, batch, rung)?)?;
            for (row, values) in samples.rows.iter().zip(&samples.values) {
                for (m, x) in x.chunks_exact(cols).enumerate() {
                    let products = || x.iter().zip(values).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (expected, size) = (products().sum::<f64>(), products().map(|p| p * p).sum::<f64>().sqrt());
                    let found = f64::from(y[m * n + row]);
                    // Written so that NaN fails.
                    if !((found - expected).abs() <= LIMIT * size + 1e-30) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}

/// Set once, read often: the CPU that stands in.
pub(super) type Cpu = OnceLock<CpuBackend>;
