//! What a plan means: sizes, damage, where the bits go, and how that compares with uniform bits.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use super::{Limits, Module, expert, plan};
use crate::Result;
use crate::roles::layer_of;

/// Stored bits, damage, and the distribution of bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Weights of all modules.
    pub weights: u64,
    /// Their stored bits.
    pub stored: u64,
    /// Predicted damage.
    pub damage: f64,
    /// Least damage that a plan could have had, where it is known.
    pub bound: Option<f64>,
    /// Damage of uniform bits at the same size, where those fit.
    pub uniform: Option<f64>,
    /// Modules and weights at each number of bits.
    pub bits: BTreeMap<u32, (usize, u64)>,
    /// Experts at each tuple of bits, the most frequent first.
    pub tuples: Vec<(Vec<u32>, usize)>,
    /// Each layer's weights and stored bits.
    pub layers: BTreeMap<usize, (u64, u64)>,
}

impl Summary {
    /// Of modules that have these bits, each one of its choices.
    pub fn new(modules: &[Module], bits: &[u32], bound: Option<f64>) -> Self {
        let mut summary = Self {
            weights: 0,
            stored: 0,
            damage: 0.0,
            bound,
            uniform: None,
            bits: BTreeMap::new(),
            tuples: Vec::new(),
            layers: BTreeMap::new(),
        };
        let mut experts: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
        for (module, bits) in modules.iter().zip(bits) {
            let Some(choice) = module.choice(*bits) else { continue };
            summary.weights += module.weights;
            summary.stored += choice.stored;
            summary.damage += choice.damage;
            let entry = summary.bits.entry(*bits).or_default();
            *entry = (entry.0 + 1, entry.1 + module.weights);
            if let Some((expert, _)) = expert(&module.name) {
                experts.entry(expert).or_default().push(*bits);
            }
            if let Some(layer) = layer_of(&module.name) {
                let entry = summary.layers.entry(layer).or_default();
                *entry = (entry.0 + module.weights, entry.1 + choice.stored);
            }
        }
        let mut tuples: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
        experts.into_values().for_each(|tuple| *tuples.entry(tuple).or_default() += 1);
        summary.tuples = tuples.into_iter().collect();
        summary.tuples.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        summary.uniform = uniform(modules, summary.stored).map(|bits| damage(modules, &bits));
        summary
    }

    /// Stored bits of a weight.
    pub fn bits_per_weight(&self) -> f64 {
        self.stored as f64 / self.weights.max(1) as f64
    }
}

fn damage(modules: &[Module], bits: &[u32]) -> f64 {
    modules.iter().zip(bits).filter_map(|(m, b)| m.choice(*b)).map(|c| c.damage).sum()
}

/// Bits of each module if nothing is known of them: the most that all can have within `stored` bits (a module without that
/// choice has its next lower, or its least), and one step more for as many as still fit, evenly spread. `None` if the least does not fit.
pub fn uniform(modules: &[Module], stored: u64) -> Option<Vec<u32>> {
    let at = |module: &Module, bits: u32| {
        let below = module.choices.iter().filter(|c| c.bits <= bits).max_by_key(|c| c.bits);
        below.or_else(|| module.choices.iter().min_by_key(|c| c.bits)).copied()
    };
    let free = modules.iter().filter(|m| !m.is_protected());
    let mut levels: Vec<u32> = free.flat_map(|m| m.choices.iter().map(|c| c.bits)).collect();
    levels.sort_unstable();
    levels.dedup();
    let all = |bits: u32| modules.iter().map(|m| at(m, bits)).collect::<Option<Vec<_>>>();
    let cost = |choices: &[super::Choice]| choices.iter().map(|c| c.stored).sum::<u64>();
    let level = levels.iter().rposition(|bits| all(*bits).is_some_and(|c| cost(&c) <= stored));
    let Some(level) = level else {
        // Nothing but protected modules, or too small a size.
        let only = all(0)?;
        return (levels.is_empty() && cost(&only) <= stored).then(|| only.iter().map(|c| c.bits).collect());
    };
    let mut choices = all(levels[level])?;
    if let Some(next) = levels.get(level + 1) {
        let mut left = stored - cost(&choices);
        // Multiples of the golden ratio, modulo 1, are spread evenly, however many are taken.
        let place = |i: usize| (i as f64 * 0.618_033_988_749_894_9).fract();
        let mut order: Vec<usize> = (0..modules.len()).collect();
        order.sort_by(|a, b| place(*a).total_cmp(&place(*b)));
        for i in order {
            let more = at(&modules[i], *next)?;
            let Some(step) = more.stored.checked_sub(choices[i].stored) else { continue };
            if more.bits > choices[i].bits && step <= left {
                left -= step;
                choices[i] = more;
            }
        }
    }
    Some(choices.iter().map(|c| c.bits).collect())
}

impl Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |n: u64, of: u64| 100.0 * n as f64 / of.max(1) as f64;
        writeln!(
            f,
            "{} weights in {} stored bits: {:.4} bits a weight",
            self.weights,
            self.stored,
            self.bits_per_weight()
        )?;
        write!(f, "predicted damage {:.6e}", self.damage)?;
        if let Some(bound) = self.bound {
            let gap = if self.damage > 0.0 { 100.0 * (self.damage - bound).max(0.0) / self.damage } else { 0.0 };
            write!(f, ", at most {gap:.4} % above the least possible")?;
        }
        writeln!(f)?;
        match self.uniform {
            Some(uniform) if uniform > 0.0 => {
                writeln!(f, "uniform bits at the same size {uniform:.6e}: this is {:.4} of it", self.damage / uniform)?
            }
            Some(_) => writeln!(f, "uniform bits at the same size do no damage")?,
            None => writeln!(f, "uniform bits do not fit this size")?,
        }
        writeln!(f, "bits  modules  part of the weights")?;
        for (bits, (modules, weights)) in &self.bits {
            writeln!(f, "{bits:4}  {modules:7}  {:6.2} %", part(*weights, self.weights))?;
        }
        if !self.tuples.is_empty() {
            writeln!(f, "experts with tuples of bits (in the order of their modules)")?;
            for (tuple, experts) in &self.tuples {
                let tuple: Vec<String> = tuple.iter().map(u32::to_string).collect();
                writeln!(f, "{experts:7}  {}", tuple.join(" "))?;
            }
        }
        if !self.layers.is_empty() {
            writeln!(f, "layer  bits a weight")?;
            for (layer, (weights, stored)) in &self.layers {
                writeln!(f, "{layer:5}  {:.3}", *stored as f64 / (*weights).max(1) as f64)?;
            }
        }
        Ok(())
    }
}

/// A budget and what comes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Stored bits of a weight that the plan takes.
    pub bits_per_weight: f64,
    /// Predicted damage of the plan.
    pub damage: f64,
    /// Predicted damage of uniform bits within the same stored bits, where those fit.
    pub uniform: Option<f64>,
}

/// Plans for several budgets, given in stored bits of a weight; `limits.budget` is not looked at.
pub fn pareto(modules: &[Module], limits: &Limits, budgets: &[f64]) -> Result<Vec<Point>> {
    let weights: u64 = modules.iter().map(|m| m.weights).sum();
    let point = |bits: &f64| {
        let budget = (bits * weights as f64).floor() as u64;
        let planned = plan(modules, &Limits { budget, ..limits.clone() })?;
        let uniform = uniform(modules, planned.stored).map(|bits| damage(modules, &bits));
        let bits_per_weight = planned.stored as f64 / weights.max(1) as f64;
        Ok(Point { bits_per_weight, damage: planned.damage, uniform })
    };
    budgets.iter().map(point).collect()
}
