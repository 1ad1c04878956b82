use super::*;

fn tokens(block: u32) -> Vec<u32> {
    (block * 4..block * 4 + 4).collect()
}

/// Allocates and seals a chain of blocks with contents `ids`.
fn sealed(pool: &mut BlockPool, ids: &[u32]) -> Vec<u32> {
    let mut blocks = pool.allocate(ids.len()).unwrap();
    let mut chain = Chain::ROOT;
    for (block, id) in blocks.iter_mut().zip(ids) {
        (*block, chain) = pool.seal(*block, chain, &tokens(*id));
    }
    blocks
}

fn text(ids: &[u32]) -> Vec<u32> {
    ids.iter().flat_map(|id| tokens(*id)).collect()
}

#[test]
fn allocates_all_or_nothing_low_ids_first() {
    let mut pool = BlockPool::new(3, 4, true);
    assert_eq!(pool.allocate(2), Some(vec![0, 1]));
    assert_eq!(pool.allocate(2), None);
    assert_eq!(pool.available(), 1);
    pool.release(&[0, 1]);
    assert_eq!(pool.stats(), PoolStats { total: 3, free: 3, ..PoolStats::default() });
}

#[test]
fn finds_the_longest_known_prefix() {
    let mut pool = BlockPool::new(8, 4, true);
    let blocks = sealed(&mut pool, &[1, 2, 3]);
    let found = |pool: &BlockPool, ids: &[u32]| pool.lookup(&text(ids)).iter().map(|f| f.0).collect::<Vec<_>>();
    assert_eq!(found(&pool, &[1, 2, 3, 4]), blocks);
    assert_eq!(found(&pool, &[1, 2]), blocks[..2]);
    assert_eq!(found(&pool, &[1, 3]), blocks[..1]);
    // The same tokens after another prefix are another text.
    assert!(found(&pool, &[2, 3]).is_empty());
    assert_eq!(pool.lookup(&text(&[1, 2])[..7]).len(), 1);
    pool.release(&blocks);
    assert_eq!(found(&pool, &[1, 2, 3]), blocks);
    assert_eq!(pool.stats().cached, 3);
    assert_eq!(pool.stats().used, 0);
}

#[test]
fn evicts_the_longest_unused_and_ends_before_beginnings() {
    let mut pool = BlockPool::new(4, 4, true);
    let a = sealed(&mut pool, &[1, 2]);
    let b = sealed(&mut pool, &[7, 8]);
    pool.release(&b);
    pool.release(&a);
    let taken = pool.allocate(1).unwrap();
    assert_eq!(taken, [b[1]], "the end of what was released first");
    assert_eq!(pool.lookup(&text(&[7, 8])).len(), 1);
    assert_eq!(pool.lookup(&text(&[1, 2])).len(), 2);
    pool.allocate(2).unwrap();
    assert_eq!(pool.lookup(&text(&[7])).len(), 0);
    assert_eq!(pool.lookup(&text(&[1, 2])).len(), 1);
    assert_eq!(pool.stats().evictions, 3);
}

#[test]
fn used_blocks_are_not_evicted() {
    let mut pool = BlockPool::new(3, 4, true);
    let a = sealed(&mut pool, &[1, 2]);
    pool.release(&a);
    for (block, _) in pool.lookup(&text(&[1])) {
        pool.acquire(block);
    }
    assert_eq!(pool.available(), 2);
    let rest = pool.allocate(2).unwrap();
    assert!(!rest.contains(&a[0]));
    assert_eq!(pool.allocate(1), None);
    assert_eq!(pool.lookup(&text(&[1, 2])).len(), 1);
}

#[test]
fn equal_contents_share_a_block() {
    let mut pool = BlockPool::new(6, 4, true);
    let a = sealed(&mut pool, &[1, 2]);
    let b = sealed(&mut pool, &[1, 2]);
    assert_eq!(a, b);
    assert_eq!(pool.references(a[0]), 2);
    assert_eq!(pool.stats().free, 4);
    pool.release(&a);
    pool.release(&b);
    assert_eq!(pool.stats().used, 0);
    assert_eq!(pool.stats().cached, 2);
}

#[test]
fn without_caching_nothing_is_found() {
    let mut pool = BlockPool::new(4, 4, false);
    let a = sealed(&mut pool, &[1, 2]);
    assert!(pool.lookup(&text(&[1, 2])).is_empty());
    pool.release(&a);
    assert_eq!(pool.stats().free, 4);
}

#[test]
fn clearing_keeps_what_is_used() {
    let mut pool = BlockPool::new(4, 4, true);
    let a = sealed(&mut pool, &[1]);
    let b = sealed(&mut pool, &[2]);
    pool.release(&b);
    pool.clear_cache();
    assert_eq!(pool.lookup(&text(&[1])).len(), 1);
    assert!(pool.lookup(&text(&[2])).is_empty());
    pool.release(&a);
    assert_eq!(pool.available(), 4);
}
