//! The multiple-choice knapsack: of each class one choice, within a budget, with the least damage.
//!
//! 1. The linear relaxation: each class is reduced to its lower convex hull; steps up the hulls are taken, the steepest
//!    first, until one does not fit. Its slope is the price `p` of a bit that makes the Lagrangian
//!    `sum min(damage + p cost) - p budget` largest, which is a bound below every plan's damage.
//! 2. A plan: further steps that fit, then exchanges of single choices.
//! 3. An exact finish: a choice whose reduced damage (what it adds to the Lagrangian) exceeds the gap between plan and bound
//!    is in no better plan. Over what is left, partial plans are listed class by class, those that another one dominates
//!    or that the bound excludes left out. The gap is first taken much smaller than it is: a plan found within is the best.

/// One way to have a class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    /// Stored bits.
    pub cost: u64,
    /// What it does to the model; at least 0.
    pub damage: f64,
}

/// A choice of each class.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Solution {
    pub picks: Vec<usize>,
    pub cost: u64,
    pub damage: f64,
    /// No solution has less damage. Equal to `damage` up to rounding if this one is proven to be the best.
    pub bound: f64,
}

/// Partial plans that are kept of all classes together; where that is too few, the solution is not proven.
const MOST_STATES: usize = 12_000_000;
/// Partial plans that are looked at together, before the dominated ones are left out.
const MOST_AT_ONCE: usize = 2_000_000;
/// Differences of damage, relative to the whole, that count as rounding.
const ROUNDING: f64 = 1e-12;

/// The best choices, or `None` if no choices are within the budget. Each class has a choice.
pub(super) fn solve(classes: &[Vec<Choice>], budget: u64) -> Option<Solution> {
    let relaxed = relax(classes, budget)?;
    let gap = relaxed.solution.damage - relaxed.bound;
    let trifle = ROUNDING * relaxed.solution.damage.abs();
    if gap <= trifle {
        return Some(Solution { bound: relaxed.solution.damage, ..relaxed.solution });
    }
    let mut within = gap / 4096.0;
    let mut bound = relaxed.bound;
    loop {
        within = within.min(gap - trifle);
        let (found, complete) = Search::new(classes, &relaxed, within).run();
        if let Some(picks) = found {
            let better = Solution::of(classes, picks, bound);
            let bound = if complete { better.damage } else { bound };
            let better = if better.damage <= relaxed.solution.damage { better } else { relaxed.solution };
            return Some(Solution { bound, ..better });
        }
        if !complete {
            return Some(Solution { bound, ..relaxed.solution });
        }
        // There is no plan within.
        bound = relaxed.bound + within;
        if within >= gap - trifle {
            return Some(Solution { bound: relaxed.solution.damage, ..relaxed.solution });
        }
        within *= 8.0;
    }
}

impl Solution {
    fn of(classes: &[Vec<Choice>], picks: Vec<usize>, bound: f64) -> Self {
        let picked = || classes.iter().zip(&picks).map(|(class, i)| class[*i]);
        let (cost, damage) = (picked().map(|c| c.cost).sum(), picked().map(|c| c.damage).sum());
        Self { picks, cost, damage, bound }
    }
}

/// What the relaxation gives.
pub(super) struct Relaxed {
    /// A plan that is good but perhaps not the best.
    pub solution: Solution,
    pub bound: f64,
    /// Damage that a bit is worth.
    pub price: f64,
    /// The budget, less what no plan can use.
    budget: u64,
}

/// A step up a class's hull.
struct Step {
    class: usize,
    to: usize,
    cost: u64,
    damage: f64,
    slope: f64,
}

/// The lower convex hull, by rising cost: indices of choices.
fn hull(class: &[Choice]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..class.len()).collect();
    order.sort_by(|a, b| {
        class[*a].cost.cmp(&class[*b].cost).then(class[*a].damage.total_cmp(&class[*b].damage)).then(a.cmp(b))
    });
    let mut hull: Vec<usize> = Vec::new();
    let slope =
        |a: usize, b: usize| (class[a].damage - class[b].damage) / (class[b].cost as f64 - class[a].cost as f64);
    for i in order {
        if hull.last().is_some_and(|last| class[*last].damage <= class[i].damage) {
            continue;
        }
        while let [.., a, b] = hull[..]
            && slope(a, b) <= slope(b, i)
        {
            hull.pop();
        }
        hull.push(i);
    }
    hull
}

/// Bounds and a plan, or `None` if the cheapest choices are beyond the budget.
pub(super) fn relax(classes: &[Vec<Choice>], budget: u64) -> Option<Relaxed> {
    let least: u64 = classes.iter().filter_map(|class| class.iter().map(|c| c.cost).min()).sum();
    let room = budget.checked_sub(least)?;
    // Costs above the least are multiples of this; a remainder of the budget is of no use.
    let unit = classes.iter().fold(0, |unit, class| {
        let first = class.iter().map(|c| c.cost).min().unwrap_or(0);
        class.iter().fold(unit, |unit, c| common_divisor(unit, c.cost - first))
    });
    let budget = least + room.checked_div(unit).unwrap_or(0) * unit;
    let mut picks = Vec::with_capacity(classes.len());
    let mut steps = Vec::new();
    for (class, choices) in classes.iter().enumerate() {
        let hull = hull(choices);
        picks.push(hull[0]);
        steps.extend(hull.windows(2).map(|pair| {
            let (from, to) = (choices[pair[0]], choices[pair[1]]);
            let (cost, damage) = (to.cost - from.cost, from.damage - to.damage);
            Step { class, to: pair[1], cost, damage, slope: damage / cost as f64 }
        }));
    }
    // Stable: steps of one class stay in order.
    steps.sort_by(|a, b| b.slope.total_cmp(&a.slope));
    let start = Solution::of(classes, picks, 0.0);
    let (mut picks, mut cost, mut damage) = (start.picks, start.cost, start.damage);
    let fits = steps
        .iter()
        .position(|step| {
            let fits = cost + step.cost <= budget;
            if fits {
                picks[step.class] = step.to;
                cost += step.cost;
                damage -= step.damage;
            }
            !fits
        })
        .unwrap_or(steps.len());
    let price = steps.get(fits).map_or(0.0, |step| step.slope);
    let whole = Solution::of(classes, picks, 0.0);
    let bound = whole.damage - price * (budget - whole.cost) as f64;
    let (mut picks, mut cost) = (whole.picks, whole.cost);
    let mut stuck = vec![false; classes.len()];
    for step in &steps[fits..] {
        let fits = !stuck[step.class] && cost + step.cost <= budget;
        stuck[step.class] |= !fits;
        if fits {
            picks[step.class] = step.to;
            cost += step.cost;
        }
    }
    exchange(classes, budget, &mut picks, cost);
    let solution = Solution::of(classes, picks, bound);
    Some(Relaxed { solution, bound, price, budget })
}

/// Single choices for better ones that fit, the greatest gain first, as long as there are some.
fn exchange(classes: &[Vec<Choice>], budget: u64, picks: &mut [usize], mut cost: u64) {
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (i, class) in classes.iter().enumerate() {
            let now = class[picks[i]];
            for (j, choice) in class.iter().enumerate() {
                let gain = now.damage - choice.damage;
                if gain > best.map_or(0.0, |b| b.0) && cost - now.cost + choice.cost <= budget {
                    best = Some((gain, i, j));
                }
            }
        }
        let Some((_, i, j)) = best else { return };
        cost = cost - classes[i][picks[i]].cost + classes[i][j].cost;
        picks[i] = j;
    }
}

fn common_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { common_divisor(b, a % b) }
}

/// A partial plan.
#[derive(Clone, Copy)]
struct State {
    /// Bits beyond the cheapest choices that are left.
    cost: u64,
    /// Reduced damage so far.
    excess: f64,
    parent: u32,
    choice: u32,
}

/// A choice that may be in a better plan.
#[derive(Clone, Copy)]
struct Left {
    /// Bits beyond the cheapest that is left.
    cost: u64,
    /// Reduced damage.
    excess: f64,
    choice: usize,
}

/// The exact finish: every plan whose damage is less than `within` above the bound.
struct Search<'a> {
    relaxed: &'a Relaxed,
    within: f64,
    /// The choice of each class that is decided, or the cheapest that is left.
    picks: Vec<usize>,
    /// Classes with several choices left, cheapest first.
    core: Vec<(usize, Vec<Left>)>,
    /// Bits that the cheapest choices leave.
    room: u64,
    /// Whether every class has a choice left.
    possible: bool,
}

impl<'a> Search<'a> {
    fn new(classes: &[Vec<Choice>], relaxed: &'a Relaxed, within: f64) -> Self {
        let mut picks = Vec::with_capacity(classes.len());
        let mut core = Vec::new();
        let mut least = 0;
        for (i, class) in classes.iter().enumerate() {
            let priced = |c: &Choice| c.damage + relaxed.price * c.cost as f64;
            let floor = class.iter().map(priced).fold(f64::INFINITY, f64::min);
            let mut left: Vec<Left> = class
                .iter()
                .enumerate()
                .map(|(choice, c)| Left { cost: c.cost, excess: priced(c) - floor, choice })
                .filter(|left| left.excess < within)
                .collect();
            left.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.excess.total_cmp(&b.excess)).then(a.choice.cmp(&b.choice)));
            // The choice that makes the floor is left in any case.
            let first = left.first().map_or(0, |l| l.cost);
            picks.push(left.first().map_or(0, |l| l.choice));
            least += first;
            left.iter_mut().for_each(|l| l.cost -= first);
            if left.len() > 1 {
                core.push((i, left));
            }
        }
        // Decisive classes first: of those after them, near ties are left, which dominate one another.
        let decisive = |left: &[Left]| left.iter().map(|l| l.excess).filter(|e| *e > 0.0).fold(f64::INFINITY, f64::min);
        core.sort_by(|a, b| decisive(&b.1).total_cmp(&decisive(&a.1)).then(a.0.cmp(&b.0)));
        let room = relaxed.budget.checked_sub(least);
        Self { relaxed, within, picks, core, room: room.unwrap_or(0), possible: room.is_some() }
    }

    /// The best plan within, if there is one, and whether nothing was left out on the way.
    fn run(mut self) -> (Option<Vec<usize>>, bool) {
        if !self.possible {
            return (None, true);
        }
        let widest = self.core.iter().map(|(_, left)| left.len()).max().unwrap_or(1);
        let most = (MOST_STATES / self.core.len().max(1)).min(MOST_AT_ONCE / widest).max(64);
        let mut complete = true;
        let mut rest: u64 = self.core.iter().filter_map(|(_, left)| left.iter().map(|l| l.cost).max()).sum();
        let mut stages = vec![vec![State { cost: 0, excess: 0.0, parent: 0, choice: 0 }]];
        for (_, left) in &self.core {
            rest -= left.iter().map(|l| l.cost).max().unwrap_or(0);
            let before = stages.last().map_or(&[][..], |s| s);
            let mut states = Vec::with_capacity(before.len() * left.len());
            for (choice, more) in left.iter().enumerate() {
                states.extend(before.iter().enumerate().filter_map(|(parent, state)| {
                    let (cost, excess) = (state.cost + more.cost, state.excess + more.excess);
                    // Bits that no choice to come can use are lost at their price.
                    let unused = self.room.checked_sub(cost)?.saturating_sub(rest);
                    let bound = excess + self.relaxed.price * unused as f64;
                    let (parent, choice) = (parent as u32, choice as u32);
                    (bound < self.within).then_some(State { cost, excess, parent, choice })
                }));
            }
            complete &= self.thin(&mut states, most);
            stages.push(states);
        }
        let total = |state: &State| state.excess + self.relaxed.price * (self.room - state.cost) as f64;
        let ends = stages.last().map_or(&[][..], |s| s).iter().enumerate();
        let best = ends.min_by(|a, b| total(a.1).total_cmp(&total(b.1))).filter(|(_, s)| total(s) < self.within);
        let Some((mut at, _)) = best else { return (None, complete) };
        for ((class, left), states) in self.core.iter().zip(&stages[1..]).rev() {
            let state = states[at];
            self.picks[*class] = left[state.choice as usize].choice;
            at = state.parent as usize;
        }
        (Some(self.picks), complete)
    }

    /// Leaves out what is dominated, and the least promising beyond `most`; tells whether there were none of the latter.
    ///
    /// A state dominates another that costs as much or more if its real damage, `excess - price x cost` but for a constant, is
    /// as low.
    fn thin(&self, states: &mut Vec<State>, most: usize) -> bool {
        states.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.excess.total_cmp(&b.excess)));
        let mut least = f64::INFINITY;
        states.retain(|state| {
            let damage = state.excess - self.relaxed.price * state.cost as f64;
            let keep = damage < least;
            least = least.min(damage);
            keep
        });
        if states.len() <= most {
            return true;
        }
        states.select_nth_unstable_by(most, |a, b| a.excess.total_cmp(&b.excess));
        states.truncate(most);
        false
    }
}
