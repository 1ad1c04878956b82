//! Which tensors a model is made of, and whether a checkpoint has them.

use crate::{Error, Result};
use marlin_checkpoint::{DType, TensorInfo, TensorSource};
use std::collections::{HashMap, HashSet};

/// Names and shapes of a model's tensors, experts one by one (a checkpoint may stack them).
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    required: Vec<TensorInfo>,
    mtp: Vec<TensorInfo>,
    ignored: Vec<String>,
    mixtures: Vec<Mixture>,
}

/// The experts below a prefix, which a checkpoint may stack.
#[derive(Clone, Debug)]
struct Mixture {
    prefix: String,
    count: usize,
    hidden: usize,
    intermediate: usize,
}

impl Mixture {
    /// Names and shapes of the stacked tensors.
    fn stacked(&self) -> [(String, Vec<usize>); 2] {
        [
            (format!("{}.gate_up_proj", self.prefix), vec![self.count, 2 * self.intermediate, self.hidden]),
            (format!("{}.down_proj", self.prefix), vec![self.count, self.hidden, self.intermediate]),
        ]
    }

    /// Whether `name` is one of the experts' own tensors.
    fn owns(&self, name: &str) -> bool {
        name.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| {
            rest.split_once('.').is_some_and(|(e, _)| e.parse::<usize>().is_ok_and(|e| e < self.count))
        })
    }
}

/// What a checkpoint has beside what is computed with.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Tensors of the multi-token-prediction layers: recognised, and used by speculation only.
    pub mtp: Vec<String>,
    /// Stored in f64, computed with in f32.
    pub converted: Vec<String>,
}

/// Saved by old versions of transformers; computed from the configuration instead.
const DERIVED: &str = "rotary_emb.inv_freq";

impl Inventory {
    /// A linear's matrix `{module}.weight` `[rows, cols]`.
    pub(crate) fn matrix(&mut self, module: &str, rows: usize, cols: usize) {
        self.push(format!("{module}.weight"), DType::BF16, vec![rows, cols]);
    }

    /// A vector; `name` is whole.
    pub(crate) fn vector(&mut self, name: &str, len: usize) {
        // The router's correction is kept in f32 everywhere.
        let dtype = if name.ends_with("e_score_correction_bias") { DType::F32 } else { DType::BF16 };
        self.push(name.to_owned(), dtype, vec![len]);
    }

    /// `count` experts `{prefix}.{e}.{gate,up,down}_proj`.
    pub(crate) fn experts(&mut self, prefix: &str, count: usize, hidden: usize, intermediate: usize) {
        for e in 0..count {
            self.swiglu(&format!("{prefix}.{e}"), hidden, intermediate);
        }
        self.mixtures.push(Mixture { prefix: prefix.to_owned(), count, hidden, intermediate });
    }

    /// `{prefix}.{gate,up,down}_proj`.
    pub(crate) fn swiglu(&mut self, prefix: &str, hidden: usize, intermediate: usize) {
        self.matrix(&format!("{prefix}.gate_proj"), intermediate, hidden);
        self.matrix(&format!("{prefix}.up_proj"), intermediate, hidden);
        self.matrix(&format!("{prefix}.down_proj"), hidden, intermediate);
    }

    /// A tensor that may be there and is not used.
    pub(crate) fn ignore(&mut self, name: &str) {
        self.ignored.push(name.to_owned());
    }

    /// Everything declared by `declare` belongs to the multi-token-prediction layers: may be there, for speculation.
    pub(crate) fn mtp(&mut self, declare: impl FnOnce(&mut Self)) {
        let mut part = Self::default();
        declare(&mut part);
        self.mtp.append(&mut part.required);
        self.mixtures.append(&mut part.mixtures);
    }

    fn push(&mut self, name: String, dtype: DType, shape: Vec<usize>) {
        self.required.push(TensorInfo { name, dtype, shape });
    }

    /// The tensors that are computed with, in the types the models are published in.
    pub fn required(&self) -> &[TensorInfo] {
        &self.required
    }

    /// Refuses a checkpoint that lacks a tensor, has one of another shape, or one that the model does not know.
    pub fn check(&self, source: &dyn TensorSource) -> Result<Report> {
        let found: HashMap<&str, &TensorInfo> = source.tensors().iter().map(|t| (t.name.as_str(), t)).collect();
        let stacked: Vec<&Mixture> =
            self.mixtures.iter().filter(|m| found.contains_key(m.stacked()[0].0.as_str())).collect();
        let in_stack = |name: &str| stacked.iter().any(|m| m.owns(name));
        let mut wrong = Vec::new();
        let mut compare = |name: &str, shape: &[usize], needed: bool| match found.get(name) {
            Some(there) if there.shape != shape => {
                wrong.push(format!("tensor {name:?}: expected shape {shape:?}, found {:?}", there.shape));
            }
            Some(there) if !there.dtype.is_float() => {
                wrong.push(format!("tensor {name:?}: expected BF16, F16, F32 or F64, found {}", there.dtype));
            }
            None if needed => wrong.push(format!("tensor {name:?} {shape:?} is missing")),
            _ => {}
        };
        for tensor in &self.required {
            compare(&tensor.name, &tensor.shape, !in_stack(&tensor.name));
        }
        for tensor in &self.mtp {
            compare(&tensor.name, &tensor.shape, false);
        }
        for (name, shape) in stacked.iter().flat_map(|m| m.stacked()) {
            compare(&name, &shape, true);
        }
        let both = |t: &&TensorInfo| in_stack(&t.name);
        wrong.extend(
            source.tensors().iter().filter(both).map(|t| format!("tensor {:?} is also in a stack of experts", t.name)),
        );
        let stacks: HashSet<String> = stacked.iter().flat_map(|m| m.stacked()).map(|(name, _)| name).collect();
        let known: HashSet<&str> = self
            .required
            .iter()
            .chain(&self.mtp)
            .map(|t| t.name.as_str())
            .chain(self.ignored.iter().map(String::as_str))
            .collect();
        let surplus = |name: &str| !known.contains(name) && !stacks.contains(name) && !name.ends_with(DERIVED);
        wrong.extend(
            source
                .tensors()
                .iter()
                .filter(|t| surplus(&t.name))
                .map(|t| format!("tensor {:?} {:?} is not part of this architecture", t.name, t.shape)),
        );
        if !wrong.is_empty() {
            return Err(Error::Tensors { checkpoint: source.describe(), why: some(&wrong) });
        }
        Ok(Report {
            mtp: self.mtp.iter().filter(|t| found.contains_key(t.name.as_str())).map(|t| t.name.clone()).collect(),
            converted: source.tensors().iter().filter(|t| t.dtype == DType::F64).map(|t| t.name.clone()).collect(),
        })
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
