//! From a format and bits to a method for each module.

use std::collections::BTreeMap;
use std::sync::Arc;

use marlin_checkpoint::Checkpoint;
use marlin_models::{Architecture, Inventory};

use crate::apply::{Additions, Planned};
use crate::grouped::{self, Factor, Format, Grouped, Rounder, Rounding};
use crate::{Bits, Dense, Error, Method, Result, Role};

/// What checkpoints are quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// FP4 (E2M1) with F16 factors, our own.
    Fp4,
    /// Integers of 4 bits in compressed-tensors' "pack-quantized".
    Int4,
    /// Integers of 8 bits in the same.
    Int8,
    /// Integers as AutoGPTQ stores them.
    Gptq,
    /// NVIDIA's FP4: groups of 16 with E4M3 factors.
    Nvfp4,
    /// OCP's FP4: groups of 32 with factors that are powers of two.
    Mxfp4,
    /// MLX's integers with factor and bias.
    Mlx,
    /// Plain bf16: nothing is quantised, whatever the original was.
    Bf16,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 8] =
        [Self::Fp4, Self::Int4, Self::Int8, Self::Gptq, Self::Nvfp4, Self::Mxfp4, Self::Mlx, Self::Bf16];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp4 => "fp4",
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Gptq => "gptq",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp4 => "mxfp4",
            Self::Mlx => "mlx",
            Self::Bf16 => "bf16",
        }
    }

    /// The bits that the name itself says.
    fn own_bits(self) -> Option<f64> {
        match self {
            Self::Fp4 | Self::Int4 | Self::Nvfp4 | Self::Mxfp4 => Some(4.0),
            Self::Int8 => Some(8.0),
            Self::Bf16 => Some(16.0),
            Self::Gptq | Self::Mlx => None,
        }
    }
}

/// How a checkpoint is quantised.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The format.
    pub target: Target,
    /// Bits of a weight; those of the output projection only if they are named (`head=6`).
    pub bits: Bits,
    /// Inputs that share a factor, where the format leaves a choice [128; mlx: 64].
    pub group: Option<usize>,
    /// Whether integers have zero points.
    pub asymmetric: bool,
    /// Inputs that are rotated together before FP4 is made of them, if any.
    pub rotation: Option<usize>,
    /// How codes are chosen.
    pub rounder: Rounder,
}

/// One module's method.
#[derive(Clone, Copy)]
enum Chosen {
    Dense,
    Grouped(Grouped, [usize; 2]),
}

/// Methods for the modules of one checkpoint.
pub struct Choice {
    inventory: Inventory,
    chosen: BTreeMap<String, Chosen>,
}

impl Recipe {
    /// The methods for the modules of `checkpoint`: every linear that has a [`Role`] and bits under 16. `bits_of` may give a
    /// module bits of its own, as a plan does. What the format cannot hold is refused.
    pub fn choose(&self, checkpoint: &Checkpoint, bits_of: &dyn Fn(&str) -> Option<f64>) -> Result<Choice> {
        let inventory = Architecture::parse(&checkpoint.config)?.inventory();
        let mut chosen = BTreeMap::new();
        for tensor in inventory.required() {
            let Some(module) = tensor.name.strip_suffix(".weight") else { continue };
            let (Some(role), Some(features)) = (Role::of(module), inventory.features(module)) else { continue };
            if let Some(bits) = bits_of(module).or_else(|| self.bits(role))
                && let Some(method) = self.method(module, features, bits)?
            {
                chosen.insert(module.to_owned(), method);
            }
        }
        match chosen.is_empty() {
            true => Err(Error::setting("bits", "bits for some module (--bits)", "none")),
            false => Ok(Choice { inventory, chosen }),
        }
    }

    fn bits(&self, role: Role) -> Option<f64> {
        let own = self.target.own_bits().filter(|_| role != Role::Head || self.target == Target::Bf16);
        self.bits.of(role).or(own)
    }

    fn method(&self, module: &str, features: [usize; 2], bits: f64) -> Result<Option<Chosen>> {
        if self.target == Target::Bf16 {
            return Ok(Some(Chosen::Dense));
        }
        if bits >= 16.0 {
            return Ok(None);
        }
        if bits.fract() != 0.0 {
            let expected = format!("whole bits for {}", self.target.name());
            return Err(Error::setting("bits", expected, bits));
        }
        let group = Some(self.group.unwrap_or(128));
        let (whole, symmetric) = (bits as u32, !self.asymmetric);
        let format = match self.target {
            Target::Fp4 => Format::Fp4 { group: self.group.unwrap_or(128), rotation: self.rotation },
            Target::Int4 | Target::Int8 => Format::Packed { bits: whole, symmetric, group },
            Target::Gptq => Format::Gptq { bits: whole, symmetric, group },
            Target::Nvfp4 => Format::Nvfp4,
            Target::Mxfp4 => Format::Mxfp4,
            Target::Mlx => Format::Mlx { bits: whole, group: self.group.unwrap_or(64), rounding: Rounding::BF16 },
            Target::Bf16 => return Ok(Some(Chosen::Dense)),
        };
        if format.bits() != whole {
            return Err(Error::setting("bits", format!("{} for {}", format.bits(), self.target.name()), bits));
        }
        format.check(module, features)?;
        let method = Grouped { format, factor: Factor::Search, rounder: self.rounder };
        Ok(Some(Chosen::Grouped(method, features)))
    }
}

impl Choice {
    /// The methods, with the bits they will store.
    pub fn methods(&self) -> BTreeMap<String, Planned> {
        let planned = |chosen: &Chosen| -> Planned {
            let (method, bits): (Arc<dyn Method>, f64) = match chosen {
                Chosen::Dense => (Arc::new(Dense), 16.0),
                Chosen::Grouped(method, features) => {
                    let stored = method.format.stored_bits(*features) as f64;
                    (Arc::new(*method), stored / (features[0] * features[1]) as f64)
                }
            };
            Planned { method, bits }
        };
        self.chosen.iter().map(|(module, chosen)| (module.clone(), planned(chosen))).collect()
    }

    /// What the format adds to the small files.
    pub fn additions(&self) -> Result<Additions> {
        let matrices = self.inventory.required().iter().filter(|t| t.shape.len() == 2);
        let modules: Vec<(String, Option<Grouped>)> = matrices
            .map(|t| {
                let module = t.name.strip_suffix(".weight").unwrap_or(&t.name);
                let method = match self.chosen.get(module) {
                    Some(Chosen::Grouped(method, _)) => Some(*method),
                    _ => None,
                };
                (module.to_owned(), method)
            })
            .collect();
        if modules.iter().all(|(_, method)| method.is_none()) {
            return Ok(Additions::default());
        }
        let config = grouped::settings(&modules)?.into_iter().collect();
        Ok(Additions { config, files: Vec::new() })
    }
}
