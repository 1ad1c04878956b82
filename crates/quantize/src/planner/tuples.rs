//! Few different tuples of bits among the experts.
//!
//! Which tuples is a choice of its own, made by a search that does not prove anything. It begins with tuples added one by one,
//! each the one that gains most, and with those that the unrestricted plan uses most; both are exchanged for others as long
//! as that gains something. With the better of the two fixed, the plan is solved as any other.

use super::knapsack::{Choice as Class, Solution, relax, solve as exact};
use super::{Joint, Module};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Tuples that the unrestricted plan uses most, as candidates.
const FREQUENT: usize = 24;
/// Rounds of exchanges.
const ROUNDS: usize = 8;
/// Experts (and other modules) that are few enough to try every tuple with the exact plan.
const FEW: usize = 100;

type Tuple = Vec<u32>;

/// The best plan found in which joints that are tuples have at most `most` different ones; `None` if the budget is too small.
pub(super) fn solve(modules: &[Module], joints: &[Joint], budget: u64, most: usize) -> Result<Option<Solution>> {
    if most == 0 {
        return Err(Error::setting("tuples", "at least 1", 0));
    }
    let Some(first) = joints.iter().find(|j| j.tuple) else {
        return Ok(exact(&classes(joints), budget));
    };
    let size = first.members.len();
    if let Some(other) = joints.iter().find(|j| j.tuple && j.members.len() != size) {
        let why = format!(
            "its expert has {} modules to choose for, others have {size}; tuples cannot be restricted then",
            other.members.len()
        );
        return Err(Error::Module { module: modules[other.members[0]].name.clone(), why });
    }
    let Some(free) = relax(&classes(joints), budget) else { return Ok(None) };
    let mut counts: BTreeMap<&Tuple, u64> = BTreeMap::new();
    for (joint, pick) in joints.iter().zip(&free.solution.picks).filter(|(j, _)| j.tuple) {
        let weights: u64 = joint.members.iter().map(|m| modules[*m].weights).sum();
        *counts.entry(&joint.choices[*pick].bits).or_default() += weights;
    }
    if counts.len() <= most {
        return Ok(exact(&classes(joints), budget));
    }
    let mut frequent: Vec<(&Tuple, u64)> = counts.into_iter().collect();
    frequent.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let frequent: Vec<Tuple> = frequent.into_iter().take(FREQUENT).map(|(t, _)| t.clone()).collect();

    let search = Search { joints, budget, all: all(joints), frequent };
    let starts = [search.one_by_one(most), search.frequent.iter().take(most).cloned().collect()];
    let found = starts.into_iter().map(|start| search.exchanged(start));
    let Some((_, chosen)) = found.min_by(|a, b| a.0.total_cmp(&b.0)) else { return Ok(None) };
    if chosen.is_empty() {
        return Ok(None);
    }
    let (kept, classes) = search.restricted(&chosen);
    Ok(exact(&classes, budget).map(|mut solution| {
        solution.picks.iter_mut().zip(&kept).for_each(|(pick, kept)| *pick = kept[*pick]);
        solution
    }))
}

fn classes(joints: &[Joint]) -> Vec<Vec<Class>> {
    joints.iter().map(Joint::class).collect()
}

/// Every tuple that all experts can have.
fn all(joints: &[Joint]) -> Vec<Tuple> {
    let mut tuples = joints.iter().filter(|j| j.tuple);
    let mut all: Vec<Tuple> = tuples.next().map_or(Vec::new(), |j| j.choices.iter().map(|c| c.bits.clone()).collect());
    for joint in tuples {
        all.retain(|tuple| joint.choices.iter().any(|c| c.bits == *tuple));
    }
    all
}

struct Search<'a> {
    joints: &'a [Joint],
    budget: u64,
    all: Vec<Tuple>,
    frequent: Vec<Tuple>,
}

impl Search<'_> {
    /// Tuples added one by one, each the one that gains most. The first must do for all.
    fn one_by_one(&self, most: usize) -> Vec<Tuple> {
        let mut chosen: Vec<Tuple> = Vec::new();
        let mut best = f64::INFINITY;
        while chosen.len() < most {
            let with = |t: &Tuple| self.damage(&[&chosen[..], std::slice::from_ref(t)].concat());
            let found = self.candidates(&chosen).into_iter().map(|t| (with(&t), t)).min_by(|a, b| a.0.total_cmp(&b.0));
            let Some((damage, tuple)) = found.filter(|(damage, _)| *damage < best) else { break };
            best = damage;
            chosen.push(tuple);
        }
        chosen
    }

    /// Tuples exchanged one for another as long as that gains something; with the damage that they come to.
    fn exchanged(&self, mut chosen: Vec<Tuple>) -> (f64, Vec<Tuple>) {
        let mut best = self.damage(&chosen);
        for _ in 0..ROUNDS {
            let mut better: Option<(f64, usize, Tuple)> = None;
            for place in 0..chosen.len() {
                for tuple in self.candidates(&chosen) {
                    let mut tried = chosen.clone();
                    tried[place] = tuple.clone();
                    let damage = self.damage(&tried);
                    if damage < better.as_ref().map_or(best, |b| b.0) {
                        better = Some((damage, place, tuple));
                    }
                }
            }
            let Some((damage, place, tuple)) = better else { break };
            (best, chosen[place]) = (damage, tuple);
        }
        (best, chosen)
    }

    /// Each joint's choices with these tuples, and which those are.
    fn restricted(&self, tuples: &[Tuple]) -> (Vec<Vec<usize>>, Vec<Vec<Class>>) {
        let of = |joint: &Joint| -> (Vec<usize>, Vec<Class>) {
            let choices = joint.choices.iter().enumerate();
            choices.filter(|(_, c)| !joint.tuple || tuples.contains(&c.bits)).map(|(i, c)| (i, c.class)).unzip()
        };
        self.joints.iter().map(of).unzip()
    }

    /// The least damage with these tuples, nearly (where many experts make differences small); infinite if there is no plan.
    fn damage(&self, tuples: &[Tuple]) -> f64 {
        let (_, classes) = self.restricted(tuples);
        if classes.iter().any(Vec::is_empty) {
            return f64::INFINITY;
        }
        let found = match classes.len() <= FEW {
            true => exact(&classes, self.budget).map(|s| s.damage),
            false => relax(&classes, self.budget).map(|r| r.solution.damage),
        };
        found.unwrap_or(f64::INFINITY)
    }

    /// Tuples worth trying beside those chosen: all, if there are few experts or none is chosen; else frequent ones, and those
    /// that differ from a chosen one in one place.
    fn candidates(&self, chosen: &[Tuple]) -> Vec<Tuple> {
        let every = chosen.is_empty() || self.joints.len() <= FEW;
        let near = |a: &Tuple, b: &Tuple| a.iter().zip(b).filter(|(a, b)| a != b).count() == 1;
        let wanted = |t: &&Tuple| every || self.frequent.contains(t) || chosen.iter().any(|c| near(c, t));
        self.all.iter().filter(|t| !chosen.contains(t)).filter(wanted).cloned().collect()
    }
}
