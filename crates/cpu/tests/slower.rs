//! What takes a slower path is counted, with its reason, and only in fast mode.
#![allow(clippy::unwrap_used)]

use marlin_backend::blocks::{RouterRule, Scoring};
use marlin_backend::fallback::{Fallback, Reason, Snapshot};
use marlin_backend::{Backend, Expert};
use marlin_checkpoint::weight::{ScaleTree, ScaleType, Scales, ValueMap, Zero};
use marlin_checkpoint::{Grouped, Linear, Weight};
use marlin_cpu::{CpuBackend, CpuOptions};

/// `[rows, cols]` of 4-bit codes in groups of `group`.
fn linear(name: &str, [rows, cols]: [usize; 2], group: usize, map: ValueMap) -> Linear {
    let scales: Vec<u8> = (0..rows * cols.div_ceil(group)).flat_map(|_| 0.1f32.to_le_bytes()).collect();
    let scales = ScaleTree::flat(Scales::new(ScaleType::F32, rows, cols, (1, group), scales.into()).unwrap());
    let codes = vec![0x7a; rows * cols / 2];
    let weight = Grouped::new([rows, cols], 4, codes.into(), map, scales, None).unwrap();
    Linear::new(name, Weight::Grouped(Box::new(weight)), None)
}

fn eights() -> ValueMap {
    ValueMap::Integer(Zero::Constant(8))
}

fn backend(exact: bool) -> CpuBackend {
    CpuBackend::new(CpuOptions { threads: 1, exact, ..CpuOptions::default() })
}

fn found(b: &CpuBackend, linear: Linear, rows: usize) -> Snapshot {
    let cols = linear.in_features();
    let w = b.linear(linear).unwrap();
    b.linears(&[&w], &b.write(rows, cols, vec![0.5; rows * cols]).unwrap()).unwrap();
    b.fallbacks().snapshot()
}

#[test]
fn groups_without_kernels_and_codes_that_are_no_integers() {
    let b = backend(false);
    assert_eq!(found(&b, linear("four", [32, 64], 32, eights()), 3), Snapshot::default());
    let snapshot = found(&b, linear("small", [32, 64], 8, eights()), 3);
    assert_eq!((snapshot.total, snapshot.by_reason["unsupported_group"]), (1, 1));
    let last = Fallback { reason: Reason::UnsupportedGroup, module: "small".into(), batch: 3, top_k: 0, experts: 0 };
    assert_eq!(snapshot.last, Some(last));
    let odd = ValueMap::Table(Box::new(std::array::from_fn(|i| i as f32 * 0.37 - 2.0)));
    let snapshot = found(&b, linear("odd", [32, 64], 32, odd), 2);
    assert_eq!((snapshot.total, snapshot.by_reason["float_codes"]), (2, 1));
    b.fallbacks().reset();
    assert_eq!(b.fallbacks().snapshot(), Snapshot::default());
    assert_eq!(found(&backend(true), linear("small", [32, 64], 8, eights()), 3), Snapshot::default());
}

/// Two experts, the second one's gate in groups of `group`; a step of 3 rows that go to both.
fn mixture(group: usize) -> Snapshot {
    let b = backend(false);
    let (wide, tall) = ([32, 64], [64, 32]);
    let expert = |name: &str, group| Expert {
        gate: linear(name, wide, group, eights()),
        up: linear("up", wide, 32, eights()),
        down: linear("down", tall, 32, eights()),
    };
    let experts = b.experts(vec![expert("first", 32), expert("second", group)]).unwrap();
    let gate = b.linear(linear("router", [2, 64], 32, eights())).unwrap();
    let x = b.write(3, 64, (0..192).map(|i| (i as f32).sin()).collect()).unwrap();
    let rule =
        RouterRule { scoring: Scoring::Softmax, top_k: 2, normalise: true, scale: 1.0, groups: 1, top_groups: 1 };
    let routing = b.route(&x, &gate, None, &rule).unwrap();
    b.apply_experts(&x, &experts, &routing).unwrap();
    b.fallbacks().snapshot()
}

#[test]
fn experts_that_share_no_region() {
    assert_eq!(mixture(16), Snapshot::default());
    let snapshot = mixture(8);
    // The region of the gates falls apart, and one of them has no kernel.
    assert_eq!((snapshot.by_reason["mixed_experts"], snapshot.by_reason["unsupported_group"]), (1, 1));
    assert_eq!((snapshot.total, snapshot.last.unwrap().module.as_str()), (2, "second"));
}
