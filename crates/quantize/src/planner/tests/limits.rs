use std::collections::BTreeSet;

use super::super::{Choice, Limits, Module, margins, plan};
use super::{experts, module};

fn tuples(modules: &[Module], bits: &[u32]) -> BTreeSet<Vec<u32>> {
    assert_eq!(modules.len(), bits.len());
    bits.chunks(3).map(<[u32]>::to_vec).collect()
}

#[test]
fn few_tuples() {
    let modules = experts(3, 16, &[2, 3, 4, 6], 3);
    let budget = 3 * 96 * modules.len() as u64;
    let free = plan(&modules, &Limits { budget, ..Limits::default() }).unwrap();
    assert!(tuples(&modules, &free.bits).len() > 6);
    let mut last = f64::INFINITY;
    for most in [1, 2, 3, 4, 6, 64] {
        let limits = Limits { budget, max_tuples: Some(most), ..Limits::default() };
        let planned = plan(&modules, &limits).unwrap();
        assert!(tuples(&modules, &planned.bits).len() <= most && planned.stored <= budget, "{most}");
        assert!(planned.damage <= last && planned.damage >= free.damage - 1e-12, "{most}: {}", planned.damage);
        last = planned.damage;
    }
    assert!((last - free.damage).abs() < 1e-12);
    // Four tuples are most of the way from one to any number.
    let damage = |most| plan(&modules, &Limits { budget, max_tuples: Some(most), ..Limits::default() }).unwrap().damage;

    assert!(damage(4) - free.damage < 0.05 * (damage(1) - free.damage));
}

/// Every pair of tuples tried for a small model.
#[test]
fn two_tuples_of_all() {
    let mut good = 0;
    for seed in 0..20 {
        let modules = experts(1, 4, &[2, 3, 4], seed);
        let budget = 96 * 3 * 12 - 96 * (seed % 5);
        let all: Vec<[usize; 3]> = (0..27).map(|i| [i / 9, i / 3 % 3, i % 3]).collect();
        let of = |expert: usize, t: &[usize; 3]| {
            let picked = || (0..3).map(|p| modules[3 * expert + p].choices[t[p]]);
            (picked().map(|c| c.stored).sum::<u64>(), picked().map(|c| c.damage).sum::<f64>())
        };
        let mut best = f64::INFINITY;
        for a in &all {
            for b in &all {
                for mask in 0..16 {
                    let parts = (0..4).map(|e| of(e, if mask >> e & 1 == 0 { a } else { b }));
                    let (stored, damage) = parts.fold((0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
                    if stored <= budget {
                        best = best.min(damage);
                    }
                }
            }
        }
        let limits = Limits { budget, max_tuples: Some(2), ..Limits::default() };
        let found = plan(&modules, &limits).unwrap();
        assert!(tuples(&modules, &found.bits).len() <= 2);
        assert!(
            found.damage >= best - 1e-12 && found.damage < 1.05 * best,
            "{seed}: {} instead of {best}",
            found.damage
        );
        good += usize::from(found.damage < best * (1.0 + 1e-9));
    }

    assert!(good >= 17, "{good} of 20 as good as can be");
}

#[test]
fn gate_and_up_alike() {
    let mut modules = experts(2, 4, &[2, 3, 4, 5], 5);
    modules.push(module("model.layers.0.mlp.gate_proj", 300, 2.0, &[2, 3, 4, 5]));
    modules.push(module("model.layers.0.mlp.up_proj", 300, 20.0, &[3, 4, 5]));
    modules.push(module("model.layers.0.mlp.down_proj", 300, 5.0, &[2, 3, 4, 5]));
    let weights: u64 = modules.iter().map(|m| m.weights).sum();
    for max_tuples in [None, Some(3)] {
        let budget = 3 * weights + 100;
        let limits = Limits { budget, equal_gate_up: true, max_tuples, ..Limits::default() };
        let planned = plan(&modules, &limits).unwrap();
        assert!(planned.bits.chunks(3).all(|t| t[0] == t[1]) && planned.stored <= budget);
        let apart = plan(&modules, &Limits { equal_gate_up: false, ..limits }).unwrap();
        assert!(apart.damage < planned.damage);
    }
    modules[25].choices.retain(|c| c.bits == 5);
    modules[25].choices.push(Choice { bits: 7, stored: 2100, damage: 0.0 });
    modules[24].choices.retain(|c| c.bits < 5);
    let refused = plan(&modules, &Limits { budget: 1 << 30, equal_gate_up: true, ..Limits::default() });
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("model.layers.0.mlp.up_proj: has no choice of bits in common"), "{refused}");
}

#[test]
fn experts_of_a_stack_alike() {
    let modules = experts(2, 4, &[2, 3, 4, 5], 5);
    let weights: u64 = modules.iter().map(|m| m.weights).sum();
    let limits = Limits { budget: 7 * weights / 2, equal_experts: true, ..Limits::default() };
    // The best of all ways, layer by layer and projection by projection: gate, up and down of one layer and of the other.
    let sums = |stack: usize, bits: usize| -> f64 {
        let (layer, part) = (stack / 3, stack % 3);
        (0..4).map(|e| modules[12 * layer + 3 * e + part].choices[bits].damage).sum()
    };
    let ways = (0..4usize.pow(6)).map(|n| std::array::from_fn::<usize, 6, _>(|i| n >> (2 * i) & 3));
    let within = ways.filter(|way| way.iter().map(|bits| 4 * 96 * (*bits as u64 + 2)).sum::<u64>() <= limits.budget);
    let best = within.map(|way| (0..6).map(|i| sums(i, way[i])).sum::<f64>()).fold(f64::INFINITY, f64::min);
    let planned = plan(&modules, &limits).unwrap();
    assert!((planned.damage - best).abs() < 1e-12 * best, "{} {best}", planned.damage);
    for layer in planned.bits.chunks(12) {
        assert!(layer.chunks(3).all(|expert| expert == &layer[..3]), "{layer:?}");
    }
    let both = plan(&modules, &Limits { equal_gate_up: true, ..limits.clone() }).unwrap();
    assert!(both.bits.chunks(3).all(|t| t[0] == t[1]) && both.bits[..12].chunks(3).all(|t| t == &both.bits[..3]));
    assert!(both.damage > planned.damage);
    let refused = plan(&modules, &Limits { max_tuples: Some(2), ..limits }).unwrap_err().to_string();
    assert!(refused.contains("tuples: expected no limit"), "{refused}");
}

/// One bit costs 10 and saves 4 or 1, a second 2 or 0.3: the budget of 30 takes both bits of the first module and one of the
/// second, at a price of 0.03 a unit, which is what the last step would have gained.
#[test]
fn narrow_choices_are_found() {
    let module = |name: &str, damages: [f64; 3]| {
        let choices = damages.into_iter().zip([2, 3, 4]);
        let choice = |(damage, bits)| Choice { bits, stored: 10 * u64::from(bits) - 20, damage };
        Module { name: name.to_owned(), weights: 10, choices: choices.map(choice).collect() }
    };
    let modules = [module("a", [7.0, 3.0, 1.0]), module("b", [1.5, 0.5, 0.2]), module("c", [1.0; 3])];
    let limits = Limits { budget: 30, ..Limits::default() };
    let planned = plan(&modules, &limits).unwrap();
    assert_eq!(planned.bits, [4, 3, 2]);
    let found = margins(&modules, &limits, &planned.bits).unwrap();
    // a at 3 bits: 2 more damage, 0.3 saved, of 2 apart. b at 4 bits: 0.3 more for cost, 0.3 saved.
    assert!((found[0] - 1.7 / 2.0).abs() < 1e-12 && found[1].abs() < 1e-12, "{found:?}");
    assert_eq!(found[2], f64::INFINITY);
}

#[test]
fn bits_within_limits_but_for_the_protected() {
    let mut modules = experts(1, 6, &[2, 3, 4, 5, 6], 6);
    modules.push(module("lm_head", 500, 100.0, &[16]));
    let budget = 18 * 96 * 4 + 16 * 500;
    let limits = Limits { budget, min_bits: Some(3), max_bits: Some(5), ..Limits::default() };
    let planned = plan(&modules, &limits).unwrap();
    let (head, rest) = planned.bits.split_last().unwrap();
    assert_eq!(*head, 16);
    assert!(rest.iter().all(|b| (3..=5).contains(b)) && rest.contains(&3) && rest.contains(&5));
    let refused = plan(&modules, &Limits { min_bits: Some(7), ..limits }).unwrap_err().to_string();
    assert!(refused.contains("experts.0.gate_proj: none of its choices of [2, 3, 4, 5, 6] bits"), "{refused}");
}

#[test]
fn what_cannot_be_planned() {
    let modules = experts(1, 2, &[2, 4], 8);
    let least = 6 * 96 * 2;
    for max_tuples in [None, Some(1)] {
        let limits = Limits { budget: least - 1, max_tuples, ..Limits::default() };
        let refused = plan(&modules, &limits).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("at least {least} stored bits")) && refused.contains("found 1151 bits"),
            "{refused}"
        );
        let planned = plan(&modules, &Limits { budget: least, ..limits }).unwrap();
        assert_eq!(planned.bits, [2; 6]);
    }
    let mut bad = modules.clone();
    bad[3].choices[1].damage = f64::NAN;
    let limits = Limits { budget: 1 << 20, ..Limits::default() };
    assert!(
        plan(&bad, &limits).unwrap_err().to_string().contains("experts.1.gate_proj: expected damage of at least 0")
    );
    bad[3].choices[1] = bad[3].choices[0];
    assert!(plan(&bad, &limits).unwrap_err().to_string().contains("two choices of 2 bits"));
    bad[3].choices.clear();
    assert!(plan(&bad, &limits).unwrap_err().to_string().contains("no choices"));
    let none = Limits { max_tuples: Some(0), ..limits };
    assert!(plan(&modules, &none).unwrap_err().to_string().contains("tuples: expected at least 1"));
}
