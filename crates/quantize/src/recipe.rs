//! From a format and bits to a method for each module.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use marlin_checkpoint::weight::Codebook;
use marlin_checkpoint::{Checkpoint, DType};
use marlin_models::{Architecture, Inventory};
use serde_json::{Map, Value, json};

use crate::apply::{Additions, Entry, Planned};
use crate::grouped::{self, Factor, Format, Grouped, Rounder, Rounding};
use crate::roles::Input;
use crate::{Bits, Dense, Error, Exl3, Method, Result, Role};

/// What checkpoints are quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// EXL3: a trellis of 1 to 8 bits.
    Exl3,
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
    pub const ALL: [Self; 9] =
        [Self::Exl3, Self::Fp4, Self::Int4, Self::Int8, Self::Gptq, Self::Nvfp4, Self::Mxfp4, Self::Mlx, Self::Bf16];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exl3 => "exl3",
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
            Self::Exl3 | Self::Gptq | Self::Mlx => None,
        }
    }

    /// The bits that a module can have.
    pub fn widths(self) -> &'static [u32] {
        match self {
            Self::Exl3 => &[1, 2, 3, 4, 5, 6, 7, 8],
            Self::Int4 | Self::Int8 => &[2, 3, 4, 5, 6, 7, 8],
            Self::Gptq => &[2, 3, 4, 8],
            Self::Mlx => &[2, 3, 4, 5, 6, 8],
            Self::Fp4 | Self::Nvfp4 | Self::Mxfp4 => &[4],
            Self::Bf16 => &[16],
        }
    }

    /// Whether errors fall by the same factor with each bit.
    pub(crate) fn is_even(self) -> bool {
        self == Self::Exl3
    }

    /// Whether experts of a layer are stored as one stack for each projection, all with the same bits.
    pub fn stacks(self) -> bool {
        self == Self::Mlx
    }

    /// Whether an output projection that is the embedding may be quantised apart.
    fn unties(self) -> bool {
        self == Self::Exl3
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
    /// Windows of the calibration, and tokens of each; EXL3's settings tell.
    pub windows: [usize; 2],
}

/// One module's method.
#[derive(Clone, Copy)]
enum Chosen {
    Dense,
    /// Bits of the trellis.
    Exl3(u32, [usize; 2]),
    Grouped(Grouped, [usize; 2]),
}

impl Chosen {
    /// Bits of a code.
    fn bits(&self) -> u32 {
        match self {
            Self::Dense => 16,
            Self::Exl3(bits, _) => *bits,
            Self::Grouped(method, _) => method.format.bits(),
        }
    }
}

/// Methods for the modules of one checkpoint.
pub struct Choice {
    recipe: Recipe,
    inventory: Inventory,
    chosen: BTreeMap<String, Chosen>,
}

impl Recipe {
    /// The methods for the modules of `checkpoint`: every linear that has a [`Role`] and bits under 16. `bits_of` may give a
    /// module bits of its own, as a plan does. What the format cannot hold is refused.
    pub fn choose(&self, checkpoint: &Checkpoint, bits_of: &dyn Fn(&str) -> Option<f64>) -> Result<Choice> {
        let inventory = Architecture::parse(&checkpoint.config)?.inventory();
        let mut chosen = BTreeMap::new();
        for (module, role, features) in self.linears(&inventory) {
            if let Some(bits) = bits_of(module).or_else(|| self.bits(role))
                && let Some(method) = self.method(module, features, bits)?
            {
                chosen.insert(module.to_owned(), method);
            }
        }
        self.check_stacks(&chosen)?;
        match chosen.is_empty() {
            true => Err(Error::setting("bits", "bits for some module (--bits)", "none")),
            false => Ok(Choice { recipe: self.clone(), inventory, chosen }),
        }
    }

    /// Refuses different bits in a stack of experts.
    fn check_stacks(&self, chosen: &BTreeMap<String, Chosen>) -> Result<()> {
        let mut known: BTreeMap<String, (&str, u32)> = BTreeMap::new();
        for (module, method) in chosen.iter().filter(|_| self.target.stacks()) {
            let Some(stack) = Input::of(module).stack(module) else { continue };
            let own = method.bits();
            match known.get(&stack) {
                Some((first, bits)) if *bits != own => {
                    let why = format!(
                        "is to have {own} bits and {first} {bits}, but {} keeps both in one stack, {stack}",
                        self.target.name()
                    );
                    return Err(Error::module(module, why));
                }
                _ => _ = known.insert(stack, (module, own)),
            }
        }
        Ok(())
    }

    /// Every module of `checkpoint` that could be quantised, in the order of the architecture.
    pub fn modules(&self, checkpoint: &Checkpoint) -> Result<Vec<String>> {
        let inventory = Architecture::parse(&checkpoint.config)?.inventory();
        Ok(self.linears(&inventory).map(|(module, ..)| module.to_owned()).collect())
    }

    /// Linears with a role and features `[out, in]`.
    fn linears<'a>(&self, inventory: &'a Inventory) -> impl Iterator<Item = (&'a str, Role, [usize; 2])> + use<'a> {
        let mut modules: Vec<&str> =
            inventory.required().iter().filter_map(|t| t.name.strip_suffix(".weight")).collect();
        if self.target.unties() && !modules.contains(&HEAD) {
            modules.push(HEAD);
        }
        modules.into_iter().filter_map(|module| Some((module, Role::of(module)?, inventory.features(module)?)))
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
        if self.target == Target::Exl3 && bits.fract() == 0.0 {
            return match bits {
                1.0..=8.0 => Ok(Some(Chosen::Exl3(bits as u32, features))),
                _ => Err(Error::setting("EXL3 bits", "1 to 8, or 16 to keep a module", bits)),
            };
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
            Target::Bf16 | Target::Exl3 => return Ok(None),
        };
        if format.bits() != whole {
            return Err(Error::setting("bits", format!("{} for {}", format.bits(), self.target.name()), bits));
        }
        let method = Grouped { format, factor: Factor::Search, rounder: self.rounder };
        method.check(module, features)?;
        Ok(Some(Chosen::Grouped(method, features)))
    }
}

impl Choice {
    /// The methods, with the bits they will store.
    pub fn methods(&self) -> Result<BTreeMap<String, Planned>> {
        // A quantiser of a trellis has tables; modules share it.
        let mut trellises: BTreeMap<u32, Arc<Exl3>> = BTreeMap::new();
        for chosen in self.chosen.values() {
            if let Chosen::Exl3(bits, _) = chosen
                && !trellises.contains_key(bits)
            {
                trellises.insert(*bits, Arc::new(Exl3::new(*bits as usize, CODEBOOK)?));
            }
        }
        let planned = |chosen: &Chosen| -> Planned {
            let (method, bits): (Arc<dyn Method>, f64) = match chosen {
                Chosen::Dense => (Arc::new(Dense), 16.0),
                Chosen::Exl3(bits, features) => match trellises.get(bits) {
                    Some(method) => (method.clone(), exl3_bits(*bits, *features)),
                    None => (Arc::new(Dense), 16.0),
                },
                Chosen::Grouped(method, features) => {
                    let stored = method.format.stored_bits(*features) as f64;
                    (Arc::new(*method), stored / (features[0] * features[1]) as f64)
                }
            };
            Planned { method, bits }
        };
        Ok(self.chosen.iter().map(|(module, chosen)| (module.clone(), planned(chosen))).collect())
    }

    /// Bits of each quantised module's codes.
    pub fn bits(&self) -> BTreeMap<&str, u32> {
        self.chosen.iter().map(|(module, chosen)| (module.as_str(), chosen.bits())).collect()
    }

    /// Whether experts of a layer are to be stored as stacks.
    pub fn stacks(&self) -> bool {
        self.recipe.target.stacks()
    }

    /// What the format adds to the small files.
    pub fn additions(&self, entries: &[Entry]) -> Result<Additions> {
        if self.recipe.target == Target::Exl3 {
            return Ok(self.exl3(entries));
        }
        let matrices = self.inventory.required().iter().filter(|t| t.shape.len() == 2);
        let mut modules: Vec<(String, Option<Grouped>)> = matrices
            .map(|t| {
                let module = t.name.strip_suffix(".weight").unwrap_or(&t.name);
                let method = match self.chosen.get(module) {
                    Some(Chosen::Grouped(method, _)) => Some(*method),
                    _ => None,
                };
                let stack = Input::of(module).stack(module).filter(|_| self.stacks() && method.is_some());
                (stack.unwrap_or_else(|| module.to_owned()), method)
            })
            .collect();
        // A stack is named by each of its experts.
        let mut seen = HashSet::new();
        modules.retain(|(name, _)| seen.insert(name.clone()));
        if modules.iter().all(|(_, method)| method.is_none()) {
            return Ok(Additions::default());
        }
        let config = grouped::settings(&modules)?.into_iter().collect();
        Ok(Additions { config, files: Vec::new() })
    }

    /// EXL3's settings, and its list of what every module stores.
    fn exl3(&self, entries: &[Entry]) -> Additions {
        let bits = self.bits();
        let weights = |module: &str| self.inventory.features(module).map_or(0, |[rows, cols]| rows * cols) as f64;
        let body = || bits.iter().filter(|(module, _)| **module != HEAD);
        let all: f64 = body().map(|(module, _)| weights(module)).sum();
        let sum: f64 = body().map(|(module, bits)| f64::from(*bits) * weights(module)).sum();
        let settings = json!({
            "quant_method": "exl3",
            "version": env!("CARGO_PKG_VERSION"),
            "bits": (sum / all.max(1.0) * 1e4).round() / 1e4,
            "head_bits": bits.get(HEAD).copied().unwrap_or(16),
            "calibration": { "rows": self.recipe.windows[0], "cols": self.recipe.windows[1] },
            "out_scales": "always",
            "codebook": "mul1",
        });
        let mut storage = Map::new();
        for entry in entries {
            let quantised = !entry.reports.is_empty();
            let module = match quantised {
                true => entry.module.as_str(),
                false => entry.module.rsplit_once('.').map_or(entry.module.as_str(), |(module, _)| module),
            };
            let value = storage.entry(module).or_insert_with(|| json!({ "stored_tensors": {} }));
            for tensor in &entry.tensors {
                value["stored_tensors"][&tensor.name] =
                    json!({ "shape": tensor.shape, "n_bytes": tensor.bytes(), "dtype": torch(tensor.dtype) });
            }
            if let (true, Some(bits)) = (quantised, bits.get(module)) {
                value["quant_format"] = json!("exl3");
                value["bits_per_weight"] = json!(bits);
                value["mul1_multiplier"] = json!(MUL1);
            }
        }
        let mut whole = settings.clone();
        whole["tensor_storage"] = Value::Object(storage);
        Additions {
            config: vec![("quantization_config".to_owned(), settings)],
            files: vec![("quantization_config.json".to_owned(), whole)],
        }
    }
}

/// The output projection.
const HEAD: &str = "lm_head";
/// The codebook that exllamav3 writes, and its multiplier.
const CODEBOOK: Codebook = Codebook::Mul1;
const MUL1: u32 = 0x83dc_d12d;

/// Bits that EXL3 stores for each weight of a `[out, in]` matrix, both padded to whole blocks of 128.
fn exl3_bits(bits: u32, [rows, cols]: [usize; 2]) -> f64 {
    let [out, inputs] = [rows, cols].map(|n| n.next_multiple_of(128));
    (bits as usize * out * inputs + 16 * (out + inputs) + 32) as f64 / (rows * cols).max(1) as f64
}

/// The type as PyTorch calls it.
fn torch(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "torch.bfloat16",
        DType::F16 => "torch.float16",
        DType::F32 => "torch.float32",
        DType::F64 => "torch.float64",
        DType::I16 => "torch.int16",
        DType::I64 => "torch.int64",
        _ => "torch.int32",
    }
}
