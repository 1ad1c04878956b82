//! Linears: uploading, and products with what stands around them.

use super::decide::{Decision, Rung};
use super::stored::{Kind, Packed, Stored};
use super::stream::Sides;
use super::{GpuBackend, Tensor};
use crate::kernels::{Around, AroundArgs, STREAM_BLOCK};
use crate::{Result, Slice};
use marlin_backend::fallback::Reason;
use marlin_backend::{Backend, Error, LinearHandle};
use marlin_checkpoint::{InputTransform, Linear, OutputTransform};
use marlin_cpu::{CpuBackend, CpuLinear};
use std::sync::{Mutex, OnceLock};

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
    Device(Box<OnDevice>),
    Host { linear: Box<CpuLinear>, reason: Reason },
}

/// A matrix on the device with what stands around it.
pub(super) struct OnDevice {
    pub stored: Stored,
    pub before: Option<Before>,
    pub after: Option<After>,
    /// Added to the product, where nothing else happens to it.
    pub bias: Option<Slice<f32>>,
    pub decision: Decision,
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

impl GpuLinear {
    /// The matrix, if it is on the device and nothing happens to its inputs or outputs (but perhaps a bias).
    pub(super) fn plain(&self) -> Option<&OnDevice> {
        match &self.place {
            Place::Device(here) if here.before.is_none() && here.after.is_none() => Some(here),
            _ => None,
        }
    }
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

/// What happens to the inputs of a matrix, in the host's memory.
pub(super) struct Inputs {
    pub order: Option<Vec<u32>>,
    pub scale: Option<Vec<f32>>,
    pub block: u32,
}

/// What happens to the outputs of a matrix, in the host's memory.
pub(super) struct Outputs {
    pub scale: Option<Vec<f32>>,
    pub block: u32,
}

/// What a linear has around its matrix.
pub(super) struct Surroundings {
    pub before: Option<Inputs>,
    pub after: Option<Outputs>,
}

/// What stands around the matrix of `linear`, or that no kernel does it.
pub(super) fn surroundings(linear: &Linear) -> std::result::Result<Surroundings, Reason> {
    let [rows, cols] = [linear.weight.rows(), linear.weight.cols()];
    let block = |b: usize| if b <= LARGEST_BLOCK { Ok(b as u32) } else { Err(Reason::UnsupportedTransform) };
    let before = match linear.input() {
        InputTransform::None if linear.in_features() == cols => None,
        InputTransform::None => Some(Inputs { order: None, scale: None, block: 1 }),
        InputTransform::Permutation(order) => Some(Inputs { order: Some(order.to_vec()), scale: None, block: 1 }),
        InputTransform::Hadamard { scale, block: b } => {
            Some(Inputs { order: None, scale: scale.as_ref().map(|s| s.to_vec()), block: block(*b)? })
        }
    };
    let after = match linear.output() {
        OutputTransform::None if linear.out_features() == rows => None,
        OutputTransform::None => Some(Outputs { scale: None, block: 1 }),
        OutputTransform::Hadamard { scale, block: b } => {
            Some(Outputs { scale: scale.as_ref().map(|s| s.to_vec()), block: block(*b)? })
        }
    };
    Ok(Surroundings { before, after })
}

/// One over the square root of a rotation's size.
pub(super) fn norm(block: u32) -> f32 {
    (1.0 / f64::from(block).sqrt()) as f32
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
        // Other rotations are computed by themselves.
        let trellis = matches!(stored.kind, Kind::Trellis { .. });
        let one = |block: Option<u32>| block.filter(|b| trellis && *b as usize == STREAM_BLOCK).unwrap_or(1);
        let rotations = [one(around.before.as_ref().map(|b| b.block)), one(around.after.as_ref().map(|a| a.block))];
        let highest = if self.options.exact { Rung::Fast } else { Rung::Tensor };
        let decision = self.decide(&linear.name, &stored, &samples, highest, rotations)?;
        if decision.rung == Rung::Host {
            return Ok(Err(decision.reason.unwrap_or(Reason::SelfCheckFailed)));
        }
        let bias = linear.bias.as_ref().map(|b| gpu.upload(b)).transpose()?;
        let up = |v: Option<Vec<f32>>| v.map(|v| gpu.upload(&v)).transpose();
        let before = match around.before {
            None => None,
            Some(Inputs { order, scale, block }) => Some(Before {
                order: order.map(|o| gpu.upload(&o)).transpose()?,
                scale: up(scale)?,
                block,
                features: linear.in_features(),
                width: linear.weight.cols(),
            }),
        };
        let (after, bias) = match around.after {
            None => (None, bias),
            Some(Outputs { scale, block }) => {
                let (features, width) = (linear.out_features(), linear.weight.rows());
                (Some(After { scale: up(scale)?, block, features, width, bias }), None)
            }
        };
        Ok(Ok(Place::Device(Box::new(OnDevice { stored, before, after, bias, decision }))))
    }

    /// `x` `[n, cols]` through a linear.
    pub(super) fn apply(&self, linear: &GpuLinear, x: &Tensor) -> marlin_backend::Result<Tensor> {
        if x.cols != linear.cols {
            return Err(Error::shape("linear", format!("{} columns", linear.cols), x.cols));
        }
        let x = &self.settled(x)?;
        match &linear.place {
            Place::Host { .. } if self.gpu.is_rehearsing() => Ok(self.uninitialised(x.rows, linear.rows)?),
            Place::Host { linear: host, reason } => {
                self.count(*reason, &linear.name, x.rows, [0, 0]);
                let cpu = self.cpu();
                let values = cpu.write(x.rows, x.cols, self.read(x)?)?;
                let y = cpu.linears(&[host], &values)?.pop().ok_or_else(|| Error::shape("linear", 1, 0))?;
                self.write(x.rows, linear.rows, cpu.read(&y)?)
            }
            Place::Device(here) => {
                let OnDevice { stored, before, after, bias, decision } = here.as_ref();
                if let Some(reason) = decision.reason {
                    self.count(reason, &linear.name, x.rows, [0, 0]);
                }
                let is_few = x.rows <= self.thresholds().few_rows;
                let few = decision.rung == Rung::Tensor && is_few && self.streams(&stored.kind);
                if let Some(many) = self.many(linear, x.rows) {
                    let products = self.products(many, &self.to_halves(many, &x.data, x.rows)?)?;
                    return Ok(Tensor::of(x.rows, linear.rows, self.finished(&products)?));
                }
                let inside = before.as_ref().filter(|b| few && b.streams(&stored.kind));
                let outside = after.as_ref().filter(|a| few && a.streams(&stored.kind));
                let input = match before {
                    Some(before) if inside.is_none() => &self.before(before, x)?,
                    _ => x,
                };
                if few {
                    let sides = Sides { before: inside, after: outside, bias: bias.as_ref() };
                    if let Some(y) = self.stream(stored, sides, &input.data, x.rows)? {
                        let cols = outside.map_or(stored.kind.rows(), |a| a.features);
                        let y = Tensor::of(x.rows, cols, y);
                        return Ok(match after {
                            Some(after) if outside.is_none() => self.after(after, &y)?,
                            _ => y,
                        });
                    }
                }
                let y = self.product(stored, bias.as_ref(), &input.data, x.rows, decision.rung)?;
                let y = Tensor::of(x.rows, stored.kind.rows(), y);
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
        let groups = [b.width.div_ceil(span(b.block)) as u32, x.rows as u32, 1];
        kernel.launch(gpu, groups, &x.data, scale, none, order, &no_index, &y.data, &args)?;
        Ok(y)
    }

    pub(super) fn after(&self, a: &After, x: &Tensor) -> Result<Tensor> {
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
        let groups = [a.width.div_ceil(span(a.block)) as u32, x.rows as u32, 1];
        kernel.launch(&self.gpu, groups, &x.data, scale, bias, &no_index, &no_index, &y.data, &args)?;
        Ok(y)
    }
}

/// Set once, read often: the CPU that stands in.
pub(super) type Cpu = OnceLock<CpuBackend>;
