//! The mixture of experts of Qwen and GLM.

use crate::{Inventory, Loader, Result};
use marlin_backend::Backend;
use marlin_backend::blocks::{Moe, Router, RouterRule, SharedExpert};

/// Sizes, names and switches of a mixture.
#[derive(Clone, Debug)]
pub struct Mixture {
    /// Width of the hidden state.
    pub hidden: usize,
    /// Routed experts.
    pub experts: usize,
    /// Width of a routed expert.
    pub intermediate: usize,
    /// How experts are chosen.
    pub rule: RouterRule,
    /// Whether the choice is corrected by `mlp.gate.e_score_correction_bias`.
    pub correction: bool,
    /// The shared expert, if there is one.
    pub shared: Option<Shared>,
}

/// A shared expert.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Its module below `mlp`.
    pub name: &'static str,
    /// Its width.
    pub intermediate: usize,
    /// The module below `mlp` whose sigmoid scales it, if any.
    pub gate: Option<&'static str>,
}

impl Mixture {
    /// Declares `{layer}.post_attention_layernorm` and `{layer}.mlp.*`.
    pub fn declare(&self, inventory: &mut Inventory, layer: &str) {
        inventory.vector(&format!("{layer}.post_attention_layernorm.weight"), self.hidden);
        inventory.matrix(&format!("{layer}.mlp.gate"), self.experts, self.hidden);
        if self.correction {
            inventory.vector(&format!("{layer}.mlp.gate.e_score_correction_bias"), self.experts);
        }
        inventory.experts(&format!("{layer}.mlp.experts"), self.experts, self.hidden, self.intermediate);
        if let Some(shared) = &self.shared {
            inventory.swiglu(&format!("{layer}.mlp.{}", shared.name), self.hidden, shared.intermediate);
            if let Some(gate) = shared.gate {
                inventory.matrix(&format!("{layer}.mlp.{gate}"), 1, self.hidden);
            }
        }
    }

    /// Loads what `declare` declares.
    pub fn load<B: Backend>(&self, loader: &Loader<B>, layer: &str, eps: f32) -> Result<Moe<B>> {
        let linear = |name: String| loader.linear(&format!("{layer}.mlp.{name}"), false);
        let bias = format!("{layer}.mlp.gate.e_score_correction_bias");
        let shared = match &self.shared {
            None => None,
            Some(shared) => Some(SharedExpert {
                gate_proj: linear(format!("{}.gate_proj", shared.name))?,
                up_proj: linear(format!("{}.up_proj", shared.name))?,
                down_proj: linear(format!("{}.down_proj", shared.name))?,
                gate: shared.gate.map(|gate| linear(gate.to_owned())).transpose()?,
            }),
        };
        Ok(Moe {
            norm: loader.norm(&format!("{layer}.post_attention_layernorm"), eps)?,
            router: Router {
                gate: linear("gate".to_owned())?,
                bias: self.correction.then(|| loader.vector(&bias)).transpose()?,
                rule: self.rule,
            },
            experts: loader.experts(&format!("{layer}.mlp.experts"), self.experts)?,
            shared,
        })
    }
}
