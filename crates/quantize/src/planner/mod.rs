//! Which module gets how many bits: the least damage under a budget of stored bits.
//!
//! Each [`Module`] has choices: bits, what they take stored, and the damage that they do, in any unit that adds up over
//! modules. [`plan`] picks one of each under [`Limits`]. A [`Plan`] is the file of the result, to be read, compared and edited;
//! [`Summary`] says what it means; [`pareto`] sweeps budgets, and [`chart`] draws what comes out.
//!
//! What is guaranteed: [`Planned::bound`] is below the damage of every plan under the same limits (with the same tuples, where
//! those are restricted). It is met, up to rounding, whenever the exact finish ran to its end, as it does on small models and,
//! as a rule, on large ones.

mod chart;
mod file;
mod knapsack;
mod summary;
#[cfg(test)]
mod tests;
mod tuples;

pub use chart::{Series, chart};
pub(crate) use chart::{decades, escape, ticks};
pub use file::Plan;
pub use summary::{Point, Summary, pareto, uniform};

use knapsack::Choice as Class;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{Error, Result};

/// One way to store a module.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Bits of a code, by which plans name the choice.
    pub bits: u32,
    /// Bits that the module takes stored, factors and all.
    pub stored: u64,
    /// Damage done to the model.
    pub damage: f64,
}

/// A module that is to be planned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Module {
    /// Its name, as transformers has it.
    pub name: String,
    /// Weights.
    pub weights: u64,
    /// Its choices, of different bits. A module with one choice is protected: limits of bits and tuples are not for it.
    pub choices: Vec<Choice>,
}

impl Module {
    /// Whether there is nothing to choose.
    pub fn is_protected(&self) -> bool {
        self.choices.len() == 1
    }

    fn choice(&self, bits: u32) -> Option<Choice> {
        self.choices.iter().copied().find(|c| c.bits == bits)
    }
}

/// What a plan must keep to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Stored bits of all modules together, protected ones included.
    pub budget: u64,
    /// Least bits of a module.
    pub min_bits: Option<u32>,
    /// Most bits of a module.
    pub max_bits: Option<u32>,
    /// Different tuples of bits that the experts may have, an expert's tuple being the bits of its modules.
    pub max_tuples: Option<usize>,
    /// Whether `gate_proj` and `up_proj` of the same MLP or expert have the same bits.
    pub equal_gate_up: bool,
    /// Whether the same projections of all experts of a layer have the same bits, as formats need that stack them.
    pub equal_experts: bool,
}

/// A choice for each module.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Bits of each module, in their order.
    pub bits: Vec<u32>,
    /// Stored bits of all.
    pub stored: u64,
    /// Damage of all.
    pub damage: f64,
    /// No plan with these limits (and these tuples) does less damage.
    pub bound: f64,
}

/// The plan of least damage. A budget that cannot be kept is an error that names the least that can.
pub fn plan(modules: &[Module], limits: &Limits) -> Result<Planned> {
    let joints = joints(modules, limits)?;
    let classes: Vec<Vec<Class>> = joints.iter().map(Joint::class).collect();
    let solution = match limits.max_tuples {
        None => knapsack::solve(&classes, limits.budget),
        Some(most) => tuples::solve(modules, &joints, limits.budget, most)?,
    };
    let Some(solution) = solution else {
        let least: u64 = classes.iter().filter_map(|class| class.iter().map(|c| c.cost).min()).sum();
        let expected = format!("at least {least} stored bits, the least that these modules can take");
        return Err(Error::setting("budget", expected, format!("{} bits", limits.budget)));
    };
    let mut bits = vec![0; modules.len()];
    for (joint, pick) in joints.iter().zip(&solution.picks) {
        for (module, b) in joint.members.iter().zip(&joint.choices[*pick].bits) {
            bits[*module] = *b;
        }
    }
    Ok(Planned { bits, stored: solution.cost, damage: solution.damage, bound: solution.bound })
}

/// By what part of the difference between two choices of a module the predicted damages would have to be wrong for the other
/// one to be as good, at the price that a bit has in the best plan: the least of its other choices within `limits`. Infinite
/// for modules that have no other. `bits` are those of a plan; tuples and equal bits are not looked at.
pub fn margins(modules: &[Module], limits: &Limits, bits: &[u32]) -> Result<Vec<f64>> {
    let free = Limits { max_tuples: None, equal_gate_up: false, equal_experts: false, ..limits.clone() };
    let joints = joints(modules, &free)?;
    let classes: Vec<Vec<Class>> = joints.iter().map(Joint::class).collect();
    let price = knapsack::relax(&classes, limits.budget).map_or(0.0, |relaxed| relaxed.price);
    let margin = |(joint, own): (&Joint, &u32)| {
        let chosen = joint.choices.iter().find(|c| c.bits[0] == *own).map(|c| c.class)?;
        let others = joint.choices.iter().filter(|c| c.bits[0] != *own).map(|c| c.class);
        let apart = others.filter(|other| other.damage != chosen.damage).map(|other| {
            let gain = price * (other.cost as f64 - chosen.cost as f64) + other.damage - chosen.damage;
            gain.max(0.0) / (other.damage - chosen.damage).abs()
        });
        apart.min_by(f64::total_cmp)
    };
    Ok(joints.iter().zip(bits).map(margin).map(|margin| margin.unwrap_or(f64::INFINITY)).collect())
}

/// Modules that are chosen for together.
#[derive(Debug)]
struct Joint {
    members: Vec<usize>,
    choices: Vec<JointChoice>,
    /// Whether the bits of its members are one of the restricted tuples.
    tuple: bool,
}

#[derive(Clone, Debug)]
struct JointChoice {
    /// Of each member.
    bits: Vec<u32>,
    class: Class,
}

impl Joint {
    fn class(&self) -> Vec<Class> {
        self.choices.iter().map(|c| c.class).collect()
    }
}

/// A module's place among experts: the expert (`model.layers.3.mlp.experts.17`), and which of its modules it is.
fn expert(name: &str) -> Option<(&str, &str)> {
    let (expert, part) = name.rsplit_once('.')?;
    let (experts, e) = expert.rsplit_once('.')?;
    (experts.ends_with("experts") && !e.is_empty() && e.bytes().all(|b| b.is_ascii_digit())).then_some((expert, part))
}

impl Limits {
    /// What the modules with the same bits as the one called `name` have in common; `None` if it is alone.
    fn shared(&self, name: &str) -> Option<String> {
        let (owner, part) = name.rsplit_once('.')?;
        let gated = self.equal_gate_up && matches!(part, "gate_proj" | "up_proj");
        let part = if gated { "gate_proj and up_proj" } else { part };
        match expert(name).filter(|_| self.equal_experts) {
            Some((one, _)) => Some(format!("{} {part}", one.rsplit_once('.')?.0)),
            None => gated.then(|| format!("{owner} {part}")),
        }
    }
}

/// The modules in the groups that limits put them into, with every joint choice that they have.
fn joints(modules: &[Module], limits: &Limits) -> Result<Vec<Joint>> {
    let mut groups: Vec<(Vec<usize>, bool)> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    if limits.max_tuples.is_some() && limits.equal_experts {
        let expected = "no limit where all experts of a layer have the same bits";
        return Err(Error::setting("tuples", expected, limits.max_tuples.unwrap_or_default()));
    }
    for (i, module) in modules.iter().enumerate() {
        check(module)?;
        let free = !module.is_protected();
        let of_expert = expert(&module.name).map(|(e, _)| e.to_owned()).filter(|_| limits.max_tuples.is_some() && free);
        let key = of_expert.clone().or_else(|| limits.shared(&module.name).filter(|_| free));
        match key.as_ref().and_then(|key| known.get(key)) {
            Some(group) => groups[*group].0.push(i),
            None => {
                key.into_iter().for_each(|key| _ = known.insert(key, groups.len()));
                groups.push((vec![i], of_expert.is_some()));
            }
        }
    }
    let joints = groups.into_iter().map(|(members, tuple)| {
        let mut choices = vec![JointChoice { bits: Vec::new(), class: Class { cost: 0, damage: 0.0 } }];
        for (place, i) in members.iter().enumerate() {
            let module = &modules[*i];
            // An earlier member with which bits are shared.
            let shared = limits.shared(&module.name);
            let twin = shared.filter(|_| !module.is_protected()).and_then(|own| {
                members[..place].iter().position(|j| limits.shared(&modules[*j].name).as_ref() == Some(&own))
            });
            let allowed = |c: &Choice| {
                module.is_protected()
                    || (limits.min_bits.is_none_or(|least| c.bits >= least)
                        && limits.max_bits.is_none_or(|m| c.bits <= m))
            };
            let own: Vec<Choice> = module.choices.iter().copied().filter(allowed).collect();
            if own.is_empty() {
                let of: Vec<u32> = module.choices.iter().map(|c| c.bits).collect();
                let why = format!("none of its choices of {of:?} bits is within the limits of bits");
                return Err(Error::Module { module: module.name.clone(), why });
            }
            choices = choices
                .iter()
                .flat_map(|joint| own.iter().map(move |c| (joint, c)))
                .filter(|(joint, c)| twin.is_none_or(|t| joint.bits[t] == c.bits))
                .map(|(joint, c)| JointChoice {
                    bits: joint.bits.iter().copied().chain([c.bits]).collect(),
                    class: Class { cost: joint.class.cost + c.stored, damage: joint.class.damage + c.damage },
                })
                .collect();
            if choices.is_empty() {
                let why = "has no choice of bits in common with its gate_proj or up_proj".to_owned();
                return Err(Error::Module { module: module.name.clone(), why });
            }
        }
        Ok(Joint { members, choices, tuple })
    });
    joints.collect()
}

fn check(module: &Module) -> Result<()> {
    let refuse = |why: String| Err(Error::Module { module: module.name.clone(), why });
    if module.choices.is_empty() {
        return refuse("has no choices of bits".to_owned());
    }
    for (i, choice) in module.choices.iter().enumerate() {
        if !(choice.damage >= 0.0 && choice.damage.is_finite()) {
            return refuse(format!("expected damage of at least 0 at {} bits, found {}", choice.bits, choice.damage));
        }
        if module.choices[..i].iter().any(|c| c.bits == choice.bits) {
            return refuse(format!("has two choices of {} bits", choice.bits));
        }
    }
    Ok(())
}
