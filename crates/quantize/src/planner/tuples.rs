//! Few different tuples of bits among the experts.
//!
//! Which tuples is a choice of its own, made by a search that does not prove anything. It begins with tuples added one by one,
//! each the one that gains most, and with those that the unrestricted plan uses most; both are exchanged for others as long
//! as that gains something. With the better of the two fixed, the plan is solved as any other.

use super::knapsack::{Choice as Class, Solution, relax, solve as exact};
use super::{Joint, Module};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Tuples that are tried of all that are not chosen, for each of two prices.
const PROMISING: usize = 24;
/// Rounds of exchanges.
const ROUNDS: usize = 20;
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
    let frequent: Vec<Tuple> = frequent.into_iter().map(|(t, _)| t.clone()).collect();
    let search = Search::new(joints, budget, free.price);
    let place = |t: &Tuple| search.all.iter().position(|known| known == t);
    let start: Vec<usize> = frequent.iter().filter_map(place).take(most).collect();
    let starts = [search.one_by_one(most), start];
    let found = starts.into_iter().map(|start| search.exchanged(start));
    let found = found.min_by(|a, b| a.0.total_cmp(&b.0)).filter(|(damage, _)| damage.is_finite());
    let Some((_, chosen)) = found else {
        let expected = "more, or a larger budget: no tuples that all experts can have are within this one";
        return Err(Error::setting("tuples", expected, most));
    };
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
    /// For each tuple, what it means for each expert.
    table: Vec<Vec<Class>>,
    /// What a bit is worth in the unrestricted plan.
    price: f64,
}

impl<'a> Search<'a> {
    fn new(joints: &'a [Joint], budget: u64, price: f64) -> Self {
        let all = all(joints);
        let tuples = || joints.iter().filter(|j| j.tuple);
        let of = |tuple: &Tuple| -> Vec<Class> {
            tuples().filter_map(|j| j.choices.iter().find(|c| c.bits == *tuple)).map(|c| c.class).collect()
        };
        let table = all.iter().map(of).collect();
        Self { joints, budget, all, table, price }
    }

    /// Tuples added one by one, each the one that gains most. The first must do for all.
    fn one_by_one(&self, most: usize) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::new();
        let mut best = f64::INFINITY;
        while chosen.len() < most {
            let with = |t: &usize| self.relaxed(&[&chosen[..], &[*t]].concat()).0;
            let candidates = if chosen.is_empty() { (0..self.all.len()).collect() } else { self.candidates(&chosen) };
            let found = candidates.into_iter().map(|t| (with(&t), t)).min_by(|a, b| a.0.total_cmp(&b.0));
            let Some((damage, tuple)) = found.filter(|(damage, _)| *damage < best) else { break };
            best = damage;
            chosen.push(tuple);
        }
        chosen
    }

    /// Tuples exchanged one for another as long as that gains something; with the damage that they come to.
    fn exchanged(&self, mut chosen: Vec<usize>) -> (f64, Vec<usize>) {
        let mut best = self.relaxed(&chosen).0;
        for _ in 0..ROUNDS {
            let mut better: Option<(f64, usize, usize)> = None;
            for place in 0..chosen.len() {
                let mut tried = chosen.clone();
                tried.remove(place);
                for tuple in self.candidates(&tried) {
                    let damage = self.relaxed(&[&tried[..], &[tuple]].concat()).0;
                    if damage < better.map_or(best, |b| b.0) {
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
    fn restricted(&self, tuples: &[usize]) -> (Vec<Vec<usize>>, Vec<Vec<Class>>) {
        let allowed: Vec<&Tuple> = tuples.iter().map(|t| &self.all[*t]).collect();
        let of = |joint: &Joint| -> (Vec<usize>, Vec<Class>) {
            let choices = joint.choices.iter().enumerate();
            choices.filter(|(_, c)| !joint.tuple || allowed.contains(&&c.bits)).map(|(i, c)| (i, c.class)).unzip()
        };
        self.joints.iter().map(of).unzip()
    }

    /// The least damage with these tuples, nearly (where many experts make differences small), and the price of a bit; infinite
    /// if there is no plan.
    fn relaxed(&self, tuples: &[usize]) -> (f64, f64) {
        let mut expert = 0;
        let mut classes = Vec::with_capacity(self.joints.len());
        for joint in self.joints {
            if joint.tuple {
                classes.push(tuples.iter().map(|t| self.table[*t][expert]).collect());
                expert += 1;
            } else {
                classes.push(joint.class());
            }
        }
        if tuples.is_empty() {
            return (f64::INFINITY, self.price);
        }
        if classes.len() <= FEW {
            return (exact(&classes, self.budget).map_or(f64::INFINITY, |s| s.damage), self.price);
        }
        relax(&classes, self.budget).map_or((f64::INFINITY, self.price), |r| (r.solution.damage, r.price))
    }

    /// Tuples worth trying beside those chosen: all, if experts are few; else those that lower the Lagrangian most, at the price
    /// of the unrestricted plan and at that of the tuples chosen.
    fn candidates(&self, chosen: &[usize]) -> Vec<usize> {
        let mut left: Vec<usize> = (0..self.all.len()).filter(|t| !chosen.contains(t)).collect();
        if self.joints.len() <= FEW || left.len() <= 2 * PROMISING {
            return left;
        }
        let mut promising = Vec::with_capacity(2 * PROMISING);
        for price in [self.price, self.relaxed(chosen).1] {
            let priced = |t: usize| self.table[t].iter().map(move |c| c.damage + price * c.cost as f64);
            let mut floor = vec![f64::INFINITY; self.table[0].len()];
            for t in chosen {
                floor.iter_mut().zip(priced(*t)).for_each(|(floor, v)| *floor = floor.min(v));
            }
            let mut values = vec![0.0; self.all.len()];
            for t in &left {
                values[*t] = floor.iter().zip(priced(*t)).map(|(floor, v)| floor.min(v)).sum::<f64>();
            }
            left.sort_by(|a, b| values[*a].total_cmp(&values[*b]).then(a.cmp(b)));
            promising.extend(left.iter().take(PROMISING).copied());
        }
        promising.sort_unstable();
        promising.dedup();
        promising
    }
}
