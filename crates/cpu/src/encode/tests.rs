use super::*;
use crate::Level;

/// The algorithm as it is written down: every step notes for each state where the cheapest way to it came from.
fn plainly(values: &[f32], bits: usize, targets: &[f32]) -> Vec<u16> {
    let (states, upper) = (65_536 >> bits, 16 - bits);
    let pass = |first: usize, start: Option<usize>| {
        let mut costs = vec![if start.is_some() { f32::INFINITY } else { 0.0 }; states];
        start.into_iter().for_each(|s| costs[s] = 0.0);
        let mut from = vec![vec![0; states]; TILE];
        for i in 0..TILE {
            let target = targets[(first + i) % TILE];
            let mut next = vec![f32::INFINITY; states];
            for state in 0..states {
                for word in (0..1 << bits).map(|symbol| symbol << upper | state) {
                    let error = values[word] - target;
                    let cost = error.mul_add(error, costs[word >> bits]);
                    if cost < next[state] {
                        (next[state], from[i][state]) = (cost, word);
                    }
                }
            }
            costs = next;
        }
        (costs, from)
    };
    let (costs, from) = pass(TILE / 2, None);
    let mut state = (1..states).fold(0, |best, s| if costs[s] < costs[best] { s } else { best });
    for i in (TILE / 2..TILE).rev() {
        state = from[i][state] >> bits;
    }
    let (_, from) = pass(0, Some(state));
    let mut words = vec![0; TILE];
    for i in (0..TILE).rev() {
        words[i] = from[i][state] as u16;
        state = from[i][state] >> bits;
    }
    words
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

#[test]
fn every_level_finds_what_the_plain_algorithm_finds() {
    for bits in 1..=8 {
        let book = [Codebook::Mul1, Codebook::ThreeInst, Codebook::Mcg][bits % 3];
        let targets = numbers(TILE, bits as u64);
        let values: Vec<f32> = (0..=u16::MAX).map(|w| book.value(w).to_f32()).collect();
        let want = plainly(&values, bits, &targets);
        assert!(is_closed(&want, bits));
        for level in Level::ALL.into_iter().filter(|l| l.available()) {
            let mut words = vec![0; TILE];
            encode(&Cpu::with_level(1, level), book, bits, &targets, &mut words).unwrap();
            assert!(words == want, "{bits} bits, {level}");
        }
    }
}

#[test]
fn threads_and_neighbours_do_not_matter() {
    let (bits, tiles) = (6, 7);
    let targets = numbers(tiles * TILE, 1);
    let mut all = vec![0; tiles * TILE];
    encode(&Cpu::new(3), Codebook::Mul1, bits, &targets, &mut all).unwrap();
    for (targets, words) in targets.chunks(TILE).zip(all.chunks(TILE)) {
        let mut alone = vec![0; TILE];
        encode(&Cpu::new(1), Codebook::Mul1, bits, targets, &mut alone).unwrap();
        assert_eq!(alone, words);
        assert!(is_closed(words, bits));
    }
}

#[test]
fn what_cannot_be_encoded() {
    let cpu = Cpu::new(1);
    let mut words = [0; TILE];
    let mut targets = [0.0; TILE];
    let mut found =
        |bits, targets: &[f32]| encode(&cpu, Codebook::Mcg, bits, targets, &mut words).err().map(|e| e.found);
    assert_eq!(found(8, &targets), None);
    assert_eq!(found(0, &targets), Some(0));
    assert_eq!(found(9, &targets), Some(9));
    assert_eq!(found(8, &targets[..100]), Some(100));
    for bad in [f32::NAN, f32::INFINITY] {
        targets[77] = bad;
        assert_eq!(found(8, &targets), Some(77));
    }
}
