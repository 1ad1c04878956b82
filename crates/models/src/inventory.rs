//! Which modules a model is made of, and whether a checkpoint has them.

use crate::{Error, Result};
use marlin_checkpoint::{DType, LatentSizes, Modules, Stored, TensorInfo, TensorSource};
use std::collections::{HashMap, HashSet};

/// Names and shapes of a model's parameters, experts one by one, as the models are published.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    required: Vec<TensorInfo>,
    mtp: Vec<TensorInfo>,
    stood_for: Vec<String>,
    latents: HashMap<String, LatentSizes>,
    shapes: HashMap<String, [usize; 2]>,
    lengths: HashMap<String, usize>,
}

/// What a checkpoint has.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every module and vector that is computed with, by name, and how it is stored.
    pub modules: Vec<(String, Stored)>,
    /// Tensors of the multi-token-prediction layers: recognised, and used by speculation only.
    pub mtp: Vec<String>,
    /// Stored in f64, computed with in f32.
    pub converted: Vec<String>,
}

impl Inventory {
    /// A linear's matrix `{module}.weight` `[rows, cols]`.
    pub(crate) fn matrix(&mut self, module: &str, rows: usize, cols: usize) {
        self.shapes.insert(module.to_owned(), [rows, cols]);
        self.push(format!("{module}.weight"), DType::BF16, vec![rows, cols]);
    }

    /// A latent attention layer's projection `{module}.weight` `[heads * (nope + value), rank]`.
    pub(crate) fn latent(&mut self, module: &str, sizes: LatentSizes) {
        self.latents.insert(module.to_owned(), sizes);
        self.matrix(module, sizes.heads * (sizes.nope + sizes.value), sizes.rank);
    }

    /// A vector; `name` is whole.
    pub(crate) fn vector(&mut self, name: &str, len: usize) {
        // The router's correction is kept in f32 everywhere.
        let dtype = if name.ends_with("e_score_correction_bias") { DType::F32 } else { DType::BF16 };
        self.lengths.insert(name.to_owned(), len);
        self.push(name.to_owned(), dtype, vec![len]);
    }

    /// `count` experts `{prefix}.{e}.{gate,up,down}_proj`.
    pub(crate) fn experts(&mut self, prefix: &str, count: usize, hidden: usize, intermediate: usize) {
        for e in 0..count {
            self.swiglu(&format!("{prefix}.{e}"), hidden, intermediate);
        }
    }

    /// `{prefix}.{gate,up,down}_proj`.
    pub(crate) fn swiglu(&mut self, prefix: &str, hidden: usize, intermediate: usize) {
        self.matrix(&format!("{prefix}.gate_proj"), intermediate, hidden);
        self.matrix(&format!("{prefix}.up_proj"), intermediate, hidden);
        self.matrix(&format!("{prefix}.down_proj"), hidden, intermediate);
    }

    /// A module that another stands for where it is stored as floats or not at all, as the embedding does for a tied output
    /// projection. Some schemes quantise it apart; then it is one of the model's.
    pub(crate) fn optional(&mut self, module: &str, rows: usize, cols: usize) {
        self.shapes.insert(module.to_owned(), [rows, cols]);
        self.stood_for.push(module.to_owned());
    }

    /// Everything declared by `declare` belongs to the multi-token-prediction layers: may be there, for speculation.
    pub(crate) fn mtp(&mut self, declare: impl FnOnce(&mut Self)) {
        let mut part = Self::default();
        declare(&mut part);
        self.mtp.append(&mut part.required);
        self.latents.extend(part.latents);
        self.shapes.extend(part.shapes);
        self.lengths.extend(part.lengths);
    }

    fn push(&mut self, name: String, dtype: DType, shape: Vec<usize>) {
        self.required.push(TensorInfo { name, dtype, shape });
    }

    /// The parameters that are computed with, in the types the models are published in.
    pub fn required(&self) -> &[TensorInfo] {
        &self.required
    }

    /// Features `[out, in]` of a module.
    pub fn features(&self, module: &str) -> Option<[usize; 2]> {
        self.shapes.get(module).copied()
    }

    /// Values of the vector `name`.
    pub fn length(&self, name: &str) -> Option<usize> {
        self.lengths.get(name).copied()
    }

    /// Sizes of a latent projection.
    pub fn sizes(&self, module: &str) -> Option<LatentSizes> {
        self.latents.get(module).copied()
    }

    /// How the parameter `name` of this shape is stored: one module, the two of a split projection, or a vector.
    fn find(&self, modules: &dyn Modules, name: &str, shape: &[usize]) -> marlin_checkpoint::Result<Vec<Stored>> {
        match (name.strip_suffix(".weight"), shape) {
            (Some(module), &[rows, cols]) => match self.sizes(module) {
                Some(sizes) => {
                    let found = modules.latent(module, sizes)?;
                    Ok(found.matrices().map(|f| f.stored.clone()).collect())
                }
                None => Ok(vec![modules.linear(module, [rows, cols])?.stored]),
            },
            (_, shape) => Ok(vec![modules.vector(name, shape.iter().product())?.stored]),
        }
    }

    /// Refuses a checkpoint that lacks a module, has one of another shape or one that cannot be read, or a tensor that the
    /// model does not know.
    pub fn check(&self, modules: &dyn Modules, source: &dyn TensorSource) -> Result<Report> {
        use marlin_checkpoint::Error::MissingTensor;
        let mut wrong = Vec::new();
        let mut report = Report::default();
        let mut used: HashSet<String> = HashSet::new();
        for tensor in &self.required {
            match self.find(modules, &tensor.name, &tensor.shape) {
                Ok(stored) => {
                    used.extend(stored.iter().flat_map(|s| s.tensors.iter().cloned()));
                    let name = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name);
                    report.modules.extend(stored.into_iter().map(|s| (name.to_owned(), s)));
                }
                Err(MissingTensor { name, .. }) => wrong.push(format!("tensor {name:?} {:?} is missing", tensor.shape)),
                Err(e) => wrong.push(e.to_string()),
            }
        }
        for tensor in &self.mtp {
            match self.find(modules, &tensor.name, &tensor.shape) {
                Ok(stored) => {
                    let names = stored.into_iter().flat_map(|s| s.tensors).filter(|name| used.insert(name.clone()));
                    report.mtp.extend(names);
                }
                Err(MissingTensor { .. }) => {}
                Err(e) => wrong.push(e.to_string()),
            }
        }
        for module in &self.stood_for {
            let features = self.features(module).unwrap_or_default();
            match modules.linear(module, features) {
                Ok(found) if found.stored.scheme != "dense" => {
                    used.extend(found.stored.tensors.iter().cloned());
                    report.modules.push((module.clone(), found.stored));
                }
                Ok(_) | Err(MissingTensor { .. }) => {}
                // Floats beside an embedding that stands for them are not looked at.
                Err(_)
                    if source.tensors().iter().any(|t| t.name == format!("{module}.weight") && t.dtype.is_float()) => {}
                Err(e) => wrong.push(e.to_string()),
            }
        }
        let ignored = |name: &str| {
            let module = |m: &String| name.strip_prefix(m.as_str()).is_some_and(|rest| rest.starts_with('.'));
            self.stood_for.iter().any(module) || modules.ignores(name)
        };
        let surplus = source.tensors().iter().filter(|t| !used.contains(&t.name) && !ignored(&t.name));
        wrong.extend(surplus.map(|t| format!("tensor {:?} {:?} is not part of this architecture", t.name, t.shape)));
        if !wrong.is_empty() {
            return Err(Error::Tensors { checkpoint: source.describe(), why: some(&wrong) });
        }
        report.converted = source.tensors().iter().filter(|t| t.dtype == DType::F64).map(|t| t.name.clone()).collect();
        Ok(report)
    }
}

/// The first few of many complaints.
fn some(wrong: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = wrong.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if wrong.len() > SHOWN {
        text.push_str(&format!("; and {} more", wrong.len() - SHOWN));
    }
    text + ". config.json and the tensors must belong to the same model"
}
