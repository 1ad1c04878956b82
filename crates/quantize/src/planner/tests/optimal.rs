use super::super::knapsack::{Choice, relax, solve};
use super::super::{Limits, plan, uniform};
use super::{Random, module};

/// The least damage within the budget, by trying everything.
fn brute(classes: &[Vec<Choice>], budget: u64) -> Option<f64> {
    let mut best: Option<f64> = None;
    let mut picks = vec![0; classes.len()];
    loop {
        let picked = || classes.iter().zip(&picks).map(|(class, i): (&Vec<Choice>, &usize)| class[*i]);
        if picked().map(|c| c.cost).sum::<u64>() <= budget {
            let damage = picked().map(|c| c.damage).sum();
            best = Some(best.map_or(damage, |b: f64| b.min(damage)));
        }
        let Some(next) = (0..classes.len()).find(|i| picks[*i] + 1 < classes[*i].len()) else { return best };
        picks[..next].fill(0);
        picks[next] += 1;
    }
}

/// Damages that are no function of costs, let alone a convex one.
#[test]
fn as_good_as_trying_everything() {
    let mut random = Random(1);
    let (mut plain, mut impossible) = (0, 0);
    for case in 0..1500 {
        let kinds = [7, 40, 1000][case % 3];
        let classes: Vec<Vec<Choice>> = (0..1 + random.below(6))
            .map(|_| {
                let one =
                    |random: &mut Random| Choice { cost: random.below(kinds), damage: (random.unit() * 50.0).round() };
                (0..1 + random.below(5)).map(|_| one(&mut random)).collect()
            })
            .collect();
        let most: u64 = classes.iter().map(|class| class.iter().map(|c| c.cost).max().unwrap()).sum();
        let budget = random.below(most + 2);
        let found = solve(&classes, budget);
        let Some(expected) = brute(&classes, budget) else {
            assert!(found.is_none(), "{case}");
            impossible += 1;
            continue;
        };
        let found = found.unwrap();
        let picked = || classes.iter().zip(&found.picks).map(|(class, i)| class[*i]);
        assert_eq!(picked().map(|c| c.cost).sum::<u64>(), found.cost, "{case}");
        assert!(found.cost <= budget, "{case}");
        assert!((picked().map(|c| c.damage).sum::<f64>() - found.damage).abs() < 1e-9, "{case}");
        assert!((found.damage - expected).abs() < 1e-9, "{case}: {} instead of {expected}", found.damage);
        assert!((found.bound - expected).abs() < 1e-9, "{case}: proven {} of {expected}", found.bound);
        let relaxed = relax(&classes, budget).unwrap();
        assert!(relaxed.bound <= expected + 1e-9 && relaxed.solution.damage >= expected - 1e-9, "{case}");
        plain += usize::from((relaxed.solution.damage - expected).abs() < 1e-9);
    }
    // The finish matters in some cases, and some cannot be had at all.
    assert!(plain < 1400 && impossible > 50, "{plain} {impossible}");
}

/// Two experts, of which one matters sixteen times as much: 18 bits for six modules.
#[test]
fn two_experts() {
    let bits = [2, 3, 4, 5, 6];
    let modules: Vec<_> =
        [("0.gate", 8.0), ("0.up", 8.0), ("0.down", 32.0), ("1.gate", 0.5), ("1.up", 0.5), ("1.down", 2.0)]
            .into_iter()
            .map(|(name, c)| module(name, 1, c, &bits))
            .collect();
    let limits = Limits { budget: 18, ..Limits::default() };
    let planned = plan(&modules, &limits).unwrap();
    assert_eq!((planned.damage, planned.stored), (0.375, 18));
    assert!((planned.bound - 0.375).abs() < 1e-12);
    let same = uniform(&modules, 18).unwrap();
    assert_eq!(same, [3; 6]);
    let damage: f64 = modules.iter().map(|m| m.choices[1].damage).sum();
    assert!((damage - 0.797).abs() < 5e-4);
}

/// Thousands of modules of unlike sizes: the bound says how close the plan is.
#[test]
fn large_plans_are_close() {
    let mut random = Random(7);
    let modules: Vec<_> = (0..2000)
        .map(|i| {
            let weights = 1000 + random.below(100_000);
            let sensitivity = (10.0 * random.unit()).exp();
            let mut module = module(&format!("m{i}"), weights, sensitivity, &[2, 3, 4, 5, 6, 8]);
            module.choices.iter_mut().for_each(|c| {
                c.stored += 16 * random.below(200);
                c.damage *= 0.8 + 0.4 * random.unit();
            });
            module
        })
        .collect();
    let weights: u64 = modules.iter().map(|m| m.weights).sum();
    for bits in [2.2, 3.0, 4.5] {
        let budget = (bits * weights as f64) as u64;
        let planned = plan(&modules, &Limits { budget, ..Limits::default() }).unwrap();
        assert!(planned.stored <= budget);
        assert!(planned.bound <= planned.damage * (1.0 + 1e-12), "{bits}");
        assert!(planned.damage - planned.bound < 1e-6 * planned.damage, "{bits}: {planned:?}");
    }
}
