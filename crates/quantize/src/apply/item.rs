//! What a new checkpoint is made of, in order.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use half::bf16;
use marlin_checkpoint::{Bytes, Checkpoint, DType, LatentProjection, Linear, Modules, Stored, TensorInfo};
use marlin_models::Inventory;

use super::Planned;
use crate::roles::{Input, layer_of};
use crate::{Error, Matrix, Result, Role};

/// One thing to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A module that is quantised.
    Quantise(String),
    /// The same projection of all experts of a layer, quantised and stored as one stack.
    Stack {
        /// Its name in the file.
        name: String,
        /// The modules, in the order of the experts.
        modules: Vec<String>,
    },
    /// A tensor that is copied as it lies in the file.
    Copy(String),
    /// A parameter that is decoded and stored as plain floats: it is packed, or called otherwise, in the original.
    Decode(String),
}

impl Item {
    /// The modules that it quantises.
    pub(super) fn modules(&self) -> &[String] {
        match self {
            Self::Quantise(module) => std::slice::from_ref(module),
            Self::Stack { modules, .. } => modules,
            Self::Copy(_) | Self::Decode(_) => &[],
        }
    }

    /// What the journal calls it.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Quantise(name) | Self::Stack { name, .. } | Self::Copy(name) | Self::Decode(name) => name,
        }
    }
}

/// All items: those of layer `i` in part `i + 1`, what goes before and behind in the first and last.
pub(super) struct Items<'a> {
    checkpoint: &'a Checkpoint,
    methods: &'a BTreeMap<String, Planned>,
    modules: Arc<dyn Modules>,
    inventory: Inventory,
    pub(super) parts: Vec<Vec<Item>>,
    bytes: u64,
}

/// The list of experts that `name` is of one of: what goes before `.experts.` and a number.
fn experts_of(name: &str) -> Option<&str> {
    let (experts, rest) = name.split_once(".experts.")?;
    rest.split('.').next()?.parse::<usize>().is_ok().then_some(experts)
}

impl<'a> Items<'a> {
    pub(super) fn new(
        checkpoint: &'a Checkpoint,
        modules: Arc<dyn Modules>,
        inventory: Inventory,
        mtp: &[String],
        methods: &'a BTreeMap<String, Planned>,
        stacked: bool,
    ) -> Result<Self> {
        let layers = inventory.required().iter().filter_map(|t| layer_of(&t.name)).max().map_or(0, |last| last + 1);
        let mut items = Self { checkpoint, methods, modules, inventory, parts: vec![Vec::new(); layers + 2], bytes: 0 };
        let mut seen = HashSet::new();
        let mut behind = false;
        for tensor in items.inventory.required().to_vec() {
            let part = match layer_of(&tensor.name) {
                Some(layer) => {
                    behind = true;
                    layer + 1
                }
                None if behind => layers + 1,
                None => 0,
            };
            let module = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
            if let Some(planned) = methods.get(module) {
                items.check_role(module)?;
                items.bytes += (planned.bits * tensor.elements() as f64 / 8.0) as u64;
                seen.insert(module.to_owned());
                match Input::of(module).stack(module).filter(|_| stacked) {
                    Some(stack) => items.stack(part, stack, module),
                    None => items.parts[part].push(Item::Quantise(module.to_owned())),
                }
                continue;
            }
            for item in items.kept(&tensor)? {
                if seen.insert(item.name().to_owned()) {
                    items.parts[part].push(item);
                }
            }
        }
        for name in mtp.iter().filter(|name| seen.insert((*name).clone())) {
            items.bytes += items.checkpoint.store.info(name)?.bytes() as u64;
            items.parts[layers + 1].push(Item::Copy(name.clone()));
        }
        items.check_stacks()?;
        for module in methods.keys().filter(|module| !seen.contains(*module)) {
            // An output projection that the embedding stands for may be quantised apart.
            if items.inventory.features(module).is_none() || Role::of(module) != Some(Role::Head) {
                return Err(Error::module(module, "is to be quantised, but the model has no such module"));
            }
            items.parts[layers + 1].push(Item::Quantise(module.clone()));
        }
        Ok(items)
    }

    /// Bytes of the new checkpoint, about.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts `module` into its stack in a part, which begins with its first module.
    fn stack(&mut self, part: usize, stack: String, module: &str) {
        let known = self.parts[part].iter_mut().find_map(|item| match item {
            Item::Stack { name, modules } if *name == stack => Some(modules),
            _ => None,
        });
        match known {
            Some(modules) => modules.push(module.to_owned()),
            None => self.parts[part].push(Item::Stack { name: stack, modules: vec![module.to_owned()] }),
        }
    }

    /// Refuses a stack that some experts are left out of.
    fn check_stacks(&self) -> Result<()> {
        for item in self.parts.iter().flatten() {
            let Item::Stack { name, modules } = item else { continue };
            let of = |t: &&TensorInfo| {
                let module = t.name.strip_suffix(".weight").unwrap_or(&t.name);
                Input::of(module).stack(module).as_ref() == Some(name)
            };
            let experts = self.inventory.required().iter().filter(of).count();
            if modules.len() != experts {
                let why = format!(
                    "is a stack of {experts} experts, of which {} are to be quantised: all or none can be",
                    modules.len()
                );
                return Err(Error::module(name, why));
            }
        }
        Ok(())
    }

    fn check_role(&self, module: &str) -> Result<()> {
        match (Role::of(module), self.inventory.sizes(module)) {
            (Some(_), None) => Ok(()),
            _ => Err(Error::module(
                module,
                "is kept as it is: embeddings, norms, routers and kv_b_proj are not quantised",
            )),
        }
    }

    /// How the parameter `tensor` of the architecture is taken over.
    fn kept(&mut self, tensor: &TensorInfo) -> Result<Vec<Item>> {
        let store = &self.checkpoint.store;
        let stored = self.stored(tensor)?;
        let plain = |s: &Stored| {
            s.scheme == "dense" && s.tensors.iter().all(|t| t.starts_with("model.") || t == "lm_head.weight")
        };
        if !stored.iter().all(plain) {
            self.bytes += 4 * tensor.elements() as u64;
            return Ok(vec![Item::Decode(tensor.name.clone())]);
        }
        let mut items = Vec::new();
        for name in stored.into_iter().flat_map(|s| s.tensors) {
            // A stack of experts that some of them are taken from cannot be copied beside them.
            let stacked = experts_of(&tensor.name).filter(|_| experts_of(&name).is_none());
            if stacked.is_some() && self.methods.keys().any(|module| experts_of(module) == stacked) {
                self.bytes += store.info(&name)?.dtype.size() as u64 * tensor.elements() as u64;
                return Ok(vec![Item::Decode(tensor.name.clone())]);
            }
            self.bytes += store.info(&name)?.bytes() as u64;
            items.push(Item::Copy(name));
        }
        Ok(items)
    }

    fn stored(&self, tensor: &TensorInfo) -> Result<Vec<Stored>> {
        Ok(match (tensor.name.strip_suffix(".weight"), tensor.shape.as_slice()) {
            (Some(module), &[rows, cols]) => match self.inventory.sizes(module) {
                Some(sizes) => self.modules.latent(module, sizes)?.matrices().map(|f| f.stored.clone()).collect(),
                None => vec![self.modules.linear(module, [rows, cols])?.stored],
            },
            (_, shape) => vec![self.modules.vector(&tensor.name, shape.iter().product())?.stored],
        })
    }

    /// Whether a parameter is stored as F32, all of it.
    fn is_f32(&self, tensor: &TensorInfo) -> Result<bool> {
        for name in self.stored(tensor)?.iter().flat_map(|s| &s.tensors) {
            if self.checkpoint.store.info(name)?.dtype != DType::F32 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The weight `[out, in]` of a module.
    pub(super) fn matrix(&self, module: &str) -> Result<Matrix> {
        matrix(self.modules.as_ref(), &self.inventory, module)
    }

    /// A tensor as it lies in the original.
    pub(super) fn copied(&self, name: &str) -> Result<(TensorInfo, Bytes)> {
        let tensor = self.checkpoint.store.tensor(name)?;
        Ok((tensor.info, tensor.data))
    }

    /// A parameter as plain floats: matrices as BF16 unless they are stored as F32, vectors as F32. All are finite.
    pub(super) fn decoded(&self, name: &str) -> Result<(TensorInfo, Vec<u8>)> {
        let declared = self.inventory.required().iter().find(|t| t.name == name);
        let declared = declared.ok_or_else(|| Error::module(name, "the architecture does not declare it"))?;
        let (module, shape) = (name.strip_suffix(".weight").unwrap_or(name), declared.shape.clone());
        let info = |dtype| TensorInfo { name: name.to_owned(), dtype, shape: shape.clone() };
        let &[rows, cols] = shape.as_slice() else {
            let values = self.modules.vector(name, shape.iter().product())?.build()?.to_f32()?;
            finite(name, &values)?;
            return Ok((info(DType::F32), crate::files::bytes_of(&values)));
        };
        let values = match self.inventory.sizes(module) {
            None => self.modules.linear(module, [rows, cols])?.build()?.matrix()?,
            Some(sizes) => match self.modules.latent(module, sizes)? {
                LatentProjection::Whole(w) => w.build()?.matrix()?,
                LatentProjection::Split { .. } => {
                    return Err(Error::module(
                        module,
                        "is split in two and quantised in the original; quantise from the plain checkpoint",
                    ));
                }
            },
        };
        finite(name, &values)?;
        if self.is_f32(declared)? {
            return Ok((info(DType::F32), crate::files::bytes_of(&values)));
        }
        Ok((info(DType::BF16), values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()))
    }
}

/// Refuses a value that is not finite.
fn finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let why = format!("value {at} is {}; the checkpoint is damaged: download it again", values[at]);
            Err(Error::module(name, why))
        }
    }
}

/// The weight `[out, in]` of a module, all of it finite. That of an output projection that is not stored is the embedding.
pub(crate) fn matrix(modules: &dyn Modules, inventory: &Inventory, module: &str) -> Result<Matrix> {
    let unknown = || Error::module(module, "the architecture does not declare it");
    let features = inventory.features(module).ok_or_else(unknown)?;
    let stored = |name: &str| inventory.required().iter().any(|t| t.name.strip_suffix(".weight") == Some(name));
    let tied = Role::of(module) == Some(Role::Head) && !stored(module);
    let source = if tied { "model.embed_tokens" } else { module };
    let linear: Linear = modules.linear(source, features)?.build()?;
    let matrix = Matrix::new(features[0], features[1], linear.matrix()?)?;
    match matrix.data().iter().position(|v| !v.is_finite()) {
        None => Ok(matrix),
        Some(at) => {
            let (row, col, value) = (at / features[1], at % features[1], matrix.data()[at]);
            let why = format!("weight [{row}, {col}] is {value}; the checkpoint is damaged: download it again");
            Err(Error::module(module, why))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_of_no_expert() {
        assert_eq!(experts_of("model.layers.1.mlp.experts.12.up_proj.weight"), Some("model.layers.1.mlp"));
        assert_eq!(experts_of("model.layers.1.mlp.experts.gate_up_proj"), None);
        assert_eq!(experts_of("model.layers.1.mlp.shared_experts.up_proj.weight"), None);
    }

    #[test]
    fn damage_is_named() {
        assert!(finite("gate", &[1.0, -2.0]).is_ok());
        let error = finite("gate", &[1.0, f32::INFINITY]).unwrap_err().to_string();
        assert_eq!(error, "gate: value 1 is inf; the checkpoint is damaged: download it again");
    }
}
