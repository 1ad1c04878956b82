//! From a format and bits to a method for each module.

use std::collections::BTreeMap;
use std::sync::Arc;

use marlin_checkpoint::Checkpoint;
use marlin_models::{Architecture, Inventory};

use crate::apply::{Entry, Planned, Additions};
use crate::{Bits, Dense, Error, Method, Result, Role};

/// What checkpoints are quantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Plain bf16: nothing is quantised, whatever the original was.
    Bf16,
}

impl Target {
    /// Every target.
    pub const ALL: [Self; 1] = [Self::Bf16];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "bf16",
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
    /// Whether Hessians will be there.
    pub calibrated: bool,
}

/// One module's method, as [`Recipe::settings`] needs it again.
#[derive(Clone)]
enum Chosen {
    Dense,
}

/// Methods for the modules of one checkpoint.
pub struct Choice {
    recipe: Recipe,
    inventory: Inventory,
    chosen: BTreeMap<String, Chosen>,
}

impl Recipe {
    /// The methods for the modules of `checkpoint`: every linear that has a [`Role`] and bits under 16. `bits_of` may give a
    /// module bits of its own, as a plan does.
    pub fn choose(&self, checkpoint: &Checkpoint, bits_of: &dyn Fn(&str) -> Option<f64>) -> Result<Choice> {
        let inventory = Architecture::parse(&checkpoint.config)?.inventory();
        let mut choice = Choice { recipe: self.clone(), inventory, chosen: BTreeMap::new() };
        let required: Vec<String> = choice.inventory.required().iter().map(|t| t.name.clone()).collect();
        for name in required {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            let (Some(role), Some(features)) = (Role::of(module), choice.inventory.features(module)) else { continue };
            let plain = (self.target == Target::Bf16).then_some(16.0);
            let Some(bits) = bits_of(module).or(self.bits.of(role)).or(plain) else { continue };
            if let Some(chosen) = self.method(module, features, bits)? {
                choice.chosen.insert(module.to_owned(), chosen);
            }
        }
        match choice.chosen.is_empty() {
            true => Err(Error::setting("bits", "some module to quantise", "none")),
            false => Ok(choice),
        }
    }

    fn method(&self, _module: &str, _features: [usize; 2], _bits: f64) -> Result<Option<Chosen>> {
        Ok(match self.target {
            Target::Bf16 => Some(Chosen::Dense),
        })
    }
}

impl Choice {
    /// The methods, with the bits they will store.
    pub fn methods(&self) -> BTreeMap<String, Planned> {
        let planned = |chosen: &Chosen| -> Planned {
            let (method, bits): (Arc<dyn Method>, f64) = match chosen {
                Chosen::Dense => (Arc::new(Dense), 16.0),
            };
            Planned { method, bits }
        };
        self.chosen.iter().map(|(module, chosen)| (module.clone(), planned(chosen))).collect()
    }

    /// What the format adds to the small files.
    pub fn settings(&self, _entries: &[Entry]) -> Result<Additions> {
        Ok(match self.recipe.target {
            Target::Bf16 => Additions::default(),
        })
    }
}
