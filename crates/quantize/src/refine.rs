//! From errors of outputs to what they do: damages of a plan made comparable, and checked, by measuring.
//!
//! The same relative error matters more in one module's outputs than in another's. [`Bench::sensitivities`] quantises each
//! module alone (the experts of a layer together, projection by projection) by a cheap stand-in, and scales all the predicted
//! damages of the module to the divergence that was found: they become nats a token. [`Bench::refined`] does the same for
//! single modules with the method and bits that a plan gives them, where that is worth more time. [`spearman`] says how well
//! predictions order what was measured.

use std::collections::BTreeMap;
use std::sync::Arc;

use marlin_backend::Backend;

use crate::grouped::{Factor, Format, Grouped, Rounder};
use crate::measure::{Bench, Effect, Trial};
use crate::planner::Module;
use crate::roles::{Input, layer_of};
use crate::{Error, Method, Recipe, Result, Watch};

/// What stands in for every method: integers of 4 bits, whole rows sharing a factor, by GPTQ. It is fast, and its errors avoid
/// the inputs that matter as those of every method with a Hessian do.
const STAND_IN: Grouped = Grouped {
    format: Format::Packed { bits: 4, symmetric: true, group: None },
    factor: Factor::Search,
    rounder: Rounder::GPTQ,
};

/// What is measured together: the modules of a plan that are of layers and have a choice, the same projections of all
/// experts of a layer as one.
fn groups(modules: &[Module]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    for (i, module) in modules.iter().enumerate().filter(|(_, m)| !m.is_protected()) {
        let Some(layer) = layer_of(&module.name) else { continue };
        let last = module.name.rsplit('.').next().unwrap_or_default();
        let key = match Input::of(&module.name) {
            Input::Expert { experts, .. } => format!("{experts}.{last}"),
            Input::Of(_) => module.name.clone(),
        };
        groups.entry((layer, key)).or_default().push(i);
    }
    groups.into_values().collect()
}

impl<B: Backend> Bench<'_, B> {
    /// `modules` with damages in nats a token, as measured with a stand-in for their methods. Those that no layer has, and
    /// those without a choice, stay as they are.
    pub fn sensitivities(&self, modules: &[Module], watch: Watch<'_>) -> Result<Vec<Module>> {
        let groups = groups(modules);
        let stand_in: Arc<dyn Method> = Arc::new(STAND_IN);
        let trial = |group: &Vec<usize>| {
            let modules = group.iter().map(|i| (modules[*i].name.clone(), stand_in.clone())).collect();
            Trial { modules }
        };
        let trials: Vec<Trial> = groups.iter().map(trial).collect();
        let effects = self.measure(&trials, watch)?;
        let mut scaled = modules.to_vec();
        for (group, effect) in groups.iter().zip(effects) {
            for i in group {
                scaled[*i].scale(effect.kl, effect.damage);
            }
        }
        Ok(scaled)
    }

    /// What quantising each of `modules`, by its number, alone does with its method at its bits.
    pub fn alone(
        &self,
        recipe: &Recipe,
        modules: &[Module],
        which: &[(usize, u32)],
        watch: Watch<'_>,
    ) -> Result<Vec<Effect>> {
        let bits: BTreeMap<&str, u32> = which.iter().map(|(i, bits)| (modules[*i].name.as_str(), *bits)).collect();
        let choice = recipe.choose(self.checkpoint, &|name| bits.get(name).map(|bits| f64::from(*bits)))?;
        let methods = choice.methods()?;
        let trial = |(i, _): &(usize, u32)| {
            let name = &modules[*i].name;
            let planned = methods.get(name).ok_or_else(|| Error::module(name, "cannot be quantised"))?;
            Ok(Trial { modules: vec![(name.clone(), planned.method.clone())] })
        };
        self.measure(&which.iter().map(trial).collect::<Result<Vec<_>>>()?, watch)
    }

    /// `modules` with the damages of `which` (by number, at bits that they can have) scaled to what was measured.
    pub fn refined(
        &self,
        recipe: &Recipe,
        modules: &[Module],
        which: &[(usize, u32)],
        watch: Watch<'_>,
    ) -> Result<Vec<Module>> {
        let effects = self.alone(recipe, modules, which, watch)?;
        let mut scaled = modules.to_vec();
        for ((i, bits), effect) in which.iter().zip(effects) {
            let predicted = modules[*i].choices.iter().find(|c| c.bits == *bits).map_or(0.0, |c| c.damage);
            scaled[*i].scale(effect.kl, predicted);
        }
        Ok(scaled)
    }
}

impl Module {
    /// Scales its damages so that one that was `predicted` becomes what was `found`.
    fn scale(&mut self, found: f64, predicted: f64) {
        if predicted > 0.0 {
            self.choices.iter_mut().for_each(|c| c.damage *= found / predicted);
        }
    }
}

/// Spearman's rank correlation of two lists of the same length: 1 if they have the same order. Equal values share their ranks'
/// mean; `None` where there is no order (fewer than two values, or all of a list equal).
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    // The mean rank of both.
    let mean = (a.len() as f64 - 1.0) / 2.0;
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let scale = (sum(&a, &a) * sum(&b, &b)).sqrt();
    (scale > 0.0 && a.len() == b.len()).then(|| sum(&a, &b) / scale)
}

/// Ranks from 0.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|i, j| values[*i].total_cmp(&values[*j]));
    let mut ranks = vec![0.0; values.len()];
    let mut from = 0;
    for equal in order.chunk_by(|i, j| values[*i] == values[*j]) {
        let rank = from as f64 + (equal.len() as f64 - 1.0) / 2.0;
        equal.iter().for_each(|i| ranks[*i] = rank);
        from += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::Choice;

    /// By hand: the last two are 8 / sqrt(10 x 9.5) and 7.5 / 9.5 from the deviations of ranks.
    #[test]
    fn orders_are_compared() {
        let rho = |a: &[f64], b: &[f64]| spearman(a, b);
        assert_eq!(rho(&[1.0, 2.0, 9.0], &[0.1, 0.2, 0.3]), Some(1.0));
        assert_eq!(rho(&[1.0, 2.0, 9.0], &[3.0, 2.0, 1.0]), Some(-1.0));
        let near = |found: Option<f64>, wanted: f64| assert!((found.unwrap() - wanted).abs() < 1e-12, "{found:?}");
        near(rho(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]), 8.0 / 95f64.sqrt());
        near(rho(&[3.0, 1.0, 4.0, 1.0, 5.0], &[9.0, 2.0, 6.0, 5.0, 9.0]), 7.5 / 9.5);
        assert_eq!(rho(&[1.0, 1.0], &[1.0, 2.0]), None);
        assert_eq!(rho(&[1.0], &[1.0]), None);
    }

    #[test]
    fn experts_of_a_layer_are_measured_together() {
        let module = |name: &str, choices: usize| {
            let choice = |bits| Choice { bits, stored: 1, damage: 0.5 };
            Module { name: name.into(), weights: 1, choices: (1..=choices as u32).map(choice).collect() }
        };
        let mlp = "model.layers.1.mlp";
        let modules = [
            module("lm_head", 2),
            module(&format!("{mlp}.experts.0.up_proj"), 2),
            module(&format!("{mlp}.experts.0.down_proj"), 2),
            module(&format!("{mlp}.experts.1.up_proj"), 2),
            module(&format!("{mlp}.shared_experts.up_proj"), 2),
            module("model.layers.0.self_attn.q_proj", 1),
            module("model.layers.0.self_attn.k_proj", 2),
        ];
        assert_eq!(groups(&modules), [vec![6], vec![2], vec![1, 3], vec![4]]);
        let mut module = modules[1].clone();
        module.scale(3.0, 0.25);
        assert_eq!(module.choices[1].damage, 6.0);
        module.scale(3.0, 0.0);
        assert_eq!(module.choices[1].damage, 6.0);
    }
}
