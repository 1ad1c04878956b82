use super::*;

fn computed(prompt: u32, answer: u32, pool: &mut BlockPool) -> Sequence {
    let mut s = Sequence::new(RequestId(0), (0..prompt).collect(), 100);
    for token in 0..answer {
        s.push(100 + token);
    }
    assert!(s.reserve(s.tokens().len(), pool));
    s.start(s.tokens().len(), false);
    s.advance(s.tokens().len(), pool);
    s
}

#[test]
fn full_blocks_become_known() {
    let mut pool = BlockPool::new(8, 4, true);
    let mut s = computed(6, 3, &mut pool);
    assert_eq!((s.blocks().len(), s.computed(), s.remaining()), (3, 9, 0));
    assert_eq!(pool.lookup(s.tokens()).len(), 2);
    let tokens = s.tokens().to_vec();
    s.release(&mut pool);
    assert_eq!((s.computed(), pool.stats().used), (0, 0));
    let found = pool.lookup(&tokens);
    s.adopt(&found, &mut pool);
    assert_eq!((s.computed(), s.remaining()), (8, 1));
    s.release(&mut pool);
    assert_eq!(pool.available(), 8);
}

#[test]
fn truncation_within_the_open_block_keeps_it() {
    let mut pool = BlockPool::new(8, 4, true);
    let mut s = computed(4, 3, &mut pool);
    let blocks = s.blocks().to_vec();
    s.truncate(2, &mut pool);
    assert_eq!((s.tokens().len(), s.computed(), s.blocks()), (5, 5, &blocks[..]));
}

#[test]
fn truncation_through_a_known_block_leaves_it_alone() {
    let mut pool = BlockPool::new(8, 4, true);
    let mut s = computed(4, 9, &mut pool);
    assert_eq!(s.blocks().len(), 4);
    let known = s.blocks()[..3].to_vec();
    s.truncate(7, &mut pool);
    // Six tokens are left; the second block belongs to the cache, so its two are computed anew.
    assert_eq!((s.tokens().len(), s.computed(), s.remaining()), (6, 4, 2));
    assert_eq!(s.blocks(), &known[..1]);
    assert!(s.reserve(6, &mut pool));
    assert!(!known.contains(&s.blocks()[1]));
    s.push(7);
    s.push(8);
    assert!(s.reserve(8, &mut pool));
    s.start(4, false);
    s.advance(8, &mut pool);
    let other: Vec<u32> = s.tokens().to_vec();
    assert_eq!(pool.lookup(&other).len(), 2);
    s.release(&mut pool);
    assert_eq!(pool.available(), 8);
}

#[test]
fn truncation_never_reaches_the_prompt() {
    let mut pool = BlockPool::new(8, 4, true);
    let mut s = computed(5, 2, &mut pool);
    s.truncate(100, &mut pool);
    assert_eq!(s.tokens().len(), 5);
}

#[test]
fn reserving_too_much_changes_nothing() {
    let mut pool = BlockPool::new(2, 4, true);
    let mut s = Sequence::new(RequestId(0), vec![1; 9], 1);
    assert!(!s.reserve(9, &mut pool));
    assert_eq!((s.blocks().len(), pool.available()), (0, 2));
}

/// A token that nobody has read yet takes a place, but fills no block that others may find.
#[test]
fn a_pending_token_is_computed_but_not_known() {
    let mut pool = BlockPool::new(8, 4, true);
    let mut s = Sequence::new(RequestId(0), vec![1, 2, 3], 3);
    assert!(s.reserve(5, &mut pool));
    let state = |s: &Sequence| (s.tokens().len(), s.length(), s.computed(), s.remaining());
    s.start(3, true);
    assert_eq!(state(&s), (3, 4, 3, 1));
    s.start(1, true);
    assert_eq!((state(&s), s.pending()), ((3, 5, 4, 1), 2));
    s.push(9);
    s.advance(3, &mut pool);
    assert_eq!(state(&s), (4, 5, 4, 1));
    assert_eq!(pool.lookup(&[1, 2, 3, 9]).len(), 0, "the step that computes the fourth token is not done");
    s.start(1, true);
    assert_eq!(state(&s), (4, 6, 5, 0), "it only waits for its last token");
    s.push(8);
    s.advance(4, &mut pool);
    assert_eq!(pool.lookup(&[1, 2, 3, 9]).len(), 1);
    s.push(7);
    assert_eq!((state(&s), s.pending()), ((6, 6, 5, 1), 0));
    s.release(&mut pool);
    assert_eq!(pool.available(), 8);
}
