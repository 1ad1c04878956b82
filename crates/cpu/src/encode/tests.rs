use super::search::{LEAD, TRIES};
use super::*;
use crate::Level;

const BOOKS: [Codebook; 3] = [Codebook::Mul1, Codebook::ThreeInst, Codebook::Mcg];

fn values(book: Codebook) -> Vec<f32> {
    (0..=u16::MAX).map(|w| book.value(w).to_f32()).collect()
}

/// The cheapest ways as they are written down: from `start`, or from anywhere, `lead` steps to position 0 and once around
/// from there. Costs of the states after each step, and the word that led there.
fn forward(
    values: &[f32],
    bits: usize,
    targets: &[f32],
    lead: usize,
    start: Option<usize>,
) -> (Vec<Vec<f32>>, Vec<Vec<usize>>) {
    let (states, upper) = (65_536 >> bits, 16 - bits);
    let mut costs = vec![vec![if start.is_some() { f32::INFINITY } else { 0.0 }; states]];
    start.into_iter().for_each(|s| costs[0][s] = 0.0);
    let mut words = vec![vec![0; states]];
    for i in 0..lead + TILE {
        let target = targets[(i + TILE - lead) % TILE];
        let (mut next, mut from) = (vec![f32::INFINITY; states], vec![0; states]);
        for state in 0..states {
            for word in (0..1 << bits).map(|symbol| symbol << upper | state) {
                let error = values[word] - target;
                let cost = error.mul_add(error, costs[i][word >> bits]);
                if cost < next[state] {
                    (next[state], from[state]) = (cost, word);
                }
            }
        }
        costs.push(next);
        words.push(from);
    }
    (costs, words)
}

/// The words that lead to `state` after step `to`, and the state after step `from`.
fn way(words: &[Vec<usize>], bits: usize, from: usize, to: usize, mut state: usize) -> (usize, Vec<u16>) {
    let mut way = Vec::new();
    for words in words[from + 1..=to].iter().rev() {
        way.push(words[state] as u16);
        state = words[state] >> bits;
    }
    way.reverse();
    (state, way)
}

fn cheapest(costs: &[f32]) -> usize {
    (1..costs.len()).fold(0, |best, s| if costs[s] < costs[best] { s } else { best })
}

/// The search of this module, with ways noted step by step.
fn plainly(values: &[f32], bits: usize, targets: &[f32]) -> Vec<u16> {
    let (_, words) = forward(values, bits, targets, LEAD, None);
    let mut start = 0;
    for _ in 0..TRIES {
        let (before, found) = way(&words, bits, LEAD, LEAD + TILE, start);
        if before == start {
            return found;
        }
        start = before;
    }
    let (_, words) = forward(values, bits, targets, 0, Some(start));
    way(&words, bits, 0, TILE, start).1
}

/// The two passes of QTIP and EXL3.
fn in_two_passes(values: &[f32], bits: usize, targets: &[f32]) -> Vec<u16> {
    let (costs, words) = forward(values, bits, targets, TILE / 2, None);
    let (start, _) = way(&words, bits, TILE / 2, TILE, cheapest(&costs[TILE]));
    let (_, words) = forward(values, bits, targets, 0, Some(start));
    way(&words, bits, 0, TILE, start).1
}

/// Numbers with a mean of zero and a variance of about one.
fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n).map(|_| 2.0 * (next() + next() + next())).collect()
}

fn is_closed(words: &[u16], bits: usize) -> bool {
    (0..TILE).all(|i| words[i] >> bits == words[(i + TILE - 1) % TILE] & (0xffff >> bits))
}

/// The sum of squared errors.
fn cost(values: &[f32], targets: &[f32], words: &[u16]) -> f64 {
    let errors = targets.iter().zip(words).map(|(t, w)| f64::from(values[usize::from(*w)]) - f64::from(*t));
    errors.map(|e| e * e).sum()
}

#[test]
fn every_level_finds_what_the_plain_algorithm_finds() {
    for bits in 1..=8 {
        let book = BOOKS[bits % 3];
        let targets = numbers(TILE, bits as u64);
        let want = plainly(&values(book), bits, &targets);
        assert!(is_closed(&want, bits));
        for level in Level::ALL.into_iter().filter(|l| l.available()) {
            let mut words = vec![0; TILE];
            encode(&Cpu::with_level(1, level), Mode::Exact, book, bits, &targets, &mut words).unwrap();
            assert!(words == want, "{bits} bits, {level}");
        }
    }
}

#[test]
fn errors_are_not_larger_than_those_of_two_passes() {
    for (bits, tiles) in [(2, 8), (4, 12)] {
        let values = values(Codebook::Mul1);
        let targets = numbers(tiles * TILE, 9);
        let (mut one, mut two) = (vec![0; targets.len()], Vec::new());
        encode(&Cpu::new(1), Mode::Exact, Codebook::Mul1, bits, &targets, &mut one).unwrap();
        targets.chunks(TILE).for_each(|tile| two.extend(in_two_passes(&values, bits, tile)));
        let [one, two] = [one, two].map(|words| cost(&values, &targets, &words));
        assert!(one < 1.001 * two, "{bits} bits: {one}, in two passes {two}");
    }
}

#[test]
fn rounding_costs_to_halves_costs_next_to_nothing() {
    let cpu = Cpu::new(0);
    for bits in 1..=HALF_BITS {
        let (book, tiles) = (BOOKS[bits % 3], 16);
        let values = values(book);
        let targets = numbers(tiles * TILE, 5);
        let [exact, fast] = [Mode::Exact, Mode::Fast].map(|mode| {
            let mut words = vec![0; targets.len()];
            encode(&cpu, mode, book, bits, &targets, &mut words).unwrap();
            words.chunks(TILE).for_each(|tile| assert!(is_closed(tile, bits)));
            cost(&values, &targets, &words)
        });
        // Which walk is closed through may differ, for the better or the worse.
        assert!(fast < 1.002 * exact, "{bits} bits: {fast}, in f32 {exact}");
    }
}

#[test]
fn threads_and_neighbours_do_not_matter() {
    let (bits, tiles) = (6, 7);
    for mode in [Mode::Exact, Mode::Fast] {
        let mut targets = numbers(tiles * TILE, 1);
        // One that is out of the reach of `f16`.
        targets[3 * TILE + 5] = 9.0;
        let mut all = vec![0; tiles * TILE];
        encode(&Cpu::new(3), mode, Codebook::Mul1, bits, &targets, &mut all).unwrap();
        for (targets, words) in targets.chunks(TILE).zip(all.chunks(TILE)) {
            let mut alone = vec![0; TILE];
            encode(&Cpu::new(1), mode, Codebook::Mul1, bits, targets, &mut alone).unwrap();
            assert_eq!(alone, words);
            assert!(is_closed(words, bits));
        }
    }
}

#[test]
fn targets_far_out_get_the_farthest_values() {
    let (bits, book) = (4, Codebook::Mul1);
    let values = values(book);
    let most = values.iter().fold(0.0f32, |most, v| most.max(*v));
    let with = |far: f32| {
        let mut targets = numbers(TILE, 2);
        (targets[30], targets[200]) = (far, -far);
        targets
    };
    let want = plainly(&values, bits, &with(256.0));
    let value = |at: usize| values[usize::from(want[at])];
    assert!(value(30) > 0.9 * most && value(200) < -0.9 * most, "{} and {}", value(30), value(200));
    for far in [257.0, 1e18, 1e25, f32::MAX] {
        for mode in [Mode::Exact, Mode::Fast] {
            let mut words = vec![0; TILE];
            encode(&Cpu::new(1), mode, book, bits, &with(far), &mut words).unwrap();
            assert!(words == want, "{far}");
        }
    }
}

#[test]
fn what_cannot_be_encoded() {
    let cpu = Cpu::new(1);
    let mut words = [0; TILE];
    let mut targets = [0.0; TILE];
    let mut found = |bits, targets: &[f32]| {
        encode(&cpu, Mode::Exact, Codebook::Mcg, bits, targets, &mut words).err().map(|e| e.found)
    };
    assert_eq!(found(8, &targets), None);
    assert_eq!(found(0, &targets), Some(0));
    assert_eq!(found(9, &targets), Some(9));
    assert_eq!(found(8, &targets[..100]), Some(100));
    for bad in [f32::NAN, f32::INFINITY] {
        targets[77] = bad;
        assert_eq!(found(8, &targets), Some(77));
    }
}
