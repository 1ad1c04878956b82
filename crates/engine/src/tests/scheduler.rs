use super::*;

fn scheduler(blocks: u32, chunk: usize, max_batch: usize) -> Scheduler {
    let limits = Limits { max_batch, chunk, context: 1000 };
    Scheduler::new(limits, BlockPool::new(blocks, 4, true))
}

fn prompt(id: u64, len: usize) -> Vec<u32> {
    (0..len as u32).map(|t| t + 1000 * id as u32).collect()
}

fn lens(plan: &Plan) -> Vec<(u64, usize, usize, bool)> {
    plan.items.iter().map(|i| (i.id.0, i.cached, i.len, i.sample)).collect()
}

/// Carries a plan out at once.
fn carry_out(s: &mut Scheduler, plan: &Plan) {
    s.start(plan);
    land(s, plan);
}

/// The end of a plan under way: every sampled sequence that is still there gets a token that depends on its own state only.
fn land(s: &mut Scheduler, plan: &Plan) {
    s.advance(plan);
    for item in plan.items.iter().filter(|i| i.sample) {
        let Some(sequence) = s.sequence(item.id) else { continue };
        let token = sequence.tokens().iter().fold(7u32, |h, t| h.wrapping_mul(31).wrapping_add(*t)) % 50_000;
        s.push(item.id, token);
    }
}

#[test]
fn prompts_share_the_budget_and_decodes_come_first() {
    let mut s = scheduler(100, 8, 4);
    s.add(RequestId(1), prompt(1, 5), 10).unwrap();
    s.add(RequestId(2), prompt(2, 12), 10).unwrap();
    let plan = s.schedule();
    assert_eq!(plan.admitted, [(RequestId(1), 0), (RequestId(2), 0)]);
    assert_eq!(lens(&plan), [(1, 0, 5, true), (2, 0, 3, false)]);
    carry_out(&mut s, &plan);
    let plan = s.schedule();
    assert_eq!(lens(&plan), [(1, 5, 1, true), (2, 3, 7, false)]);
    carry_out(&mut s, &plan);
    let plan = s.schedule();
    assert_eq!(lens(&plan), [(1, 6, 1, true), (2, 10, 2, true)]);
}

#[test]
fn prompts_go_on_beside_as_many_decodes_as_the_budget_has_tokens() {
    let mut s = scheduler(100, 1, 4);
    s.add(RequestId(1), prompt(1, 1), 50).unwrap();
    s.add(RequestId(2), prompt(2, 3), 50).unwrap();
    for expected in [&[(1, 0, 1, true)][..], &[(1, 1, 1, true), (2, 0, 1, false)], &[(1, 2, 1, true), (2, 1, 1, false)]]
    {
        let plan = s.schedule();
        assert_eq!(lens(&plan), expected);
        carry_out(&mut s, &plan);
    }
}

#[test]
fn at_most_max_batch_run() {
    let mut s = scheduler(100, 64, 2);
    for id in 0..5 {
        s.add(RequestId(id), prompt(id, 4), 8).unwrap();
    }
    assert_eq!(s.schedule().items.len(), 2);
    assert_eq!((s.running().len(), s.waiting()), (2, 3));
    assert!(s.remove(RequestId(0)) && s.remove(RequestId(4)) && !s.remove(RequestId(4)));
    assert_eq!((s.running().len(), s.waiting()), (1, 2));
}

#[test]
fn refusals_name_the_numbers() {
    let mut s = scheduler(5, 64, 2);
    let text = |e: Result<()>| e.unwrap_err().to_string();
    assert!(text(s.add(RequestId(1), vec![], 1)).contains("empty"));
    let long = text(s.add(RequestId(1), prompt(0, 900), 101));
    assert!(
        long.contains("900 prompt tokens and 101 to generate are 1001") && long.contains("context is 1000"),
        "{long}"
    );
    let large = text(s.add(RequestId(1), prompt(0, 15), 6));
    assert!(large.contains("need 6 KV blocks of 4") && large.contains("pool has 5 (20 tokens)"), "{large}");
    s.add(RequestId(1), prompt(0, 15), 5).unwrap();
}

#[test]
fn the_youngest_gives_way_and_comes_back_first() {
    // Each of three sequences needs 4 blocks in the end; there are 8.
    let mut s = scheduler(8, 64, 3);
    for id in 1..=3 {
        s.add(RequestId(id), prompt(id, 4), 12).unwrap();
    }
    let mut preempted = Vec::new();
    let mut order = Vec::new();
    let mut finished = Vec::new();
    for _ in 0..200 {
        let plan = s.schedule();
        preempted.extend(plan.preempted.iter().map(|p| p.0));
        order.extend(plan.admitted.iter().map(|a| a.0.0));
        carry_out(&mut s, &plan);
        let done: Vec<_> = s.running().iter().filter(|r| r.generated() == 12).map(Sequence::id).collect();
        for id in done {
            s.remove(id);
            finished.push(id.0);
        }
    }
    assert!(s.is_idle());
    assert_eq!(preempted.first(), Some(&3));
    assert_eq!(finished, [1, 2, 3]);
    assert!(order.len() > 3, "someone was admitted again: {order:?}");
    assert_eq!(s.pool().available(), 8);
}

#[test]
fn known_prefixes_are_not_computed_again() {
    let mut s = scheduler(20, 64, 2);
    s.add(RequestId(1), prompt(1, 10), 3).unwrap();
    for _ in 0..3 {
        let plan = s.schedule();
        carry_out(&mut s, &plan);
    }
    let mut next = s.sequence(RequestId(1)).unwrap().tokens().to_vec();
    assert_eq!(next.len(), 13);
    s.remove(RequestId(1));
    next.extend([5; 4]);
    s.add(RequestId(2), next, 3).unwrap();
    let plan = s.schedule();
    // 12 tokens were computed, three whole blocks; the last token chosen never was.
    assert_eq!(plan.admitted, [(RequestId(2), 12)]);
    assert_eq!(lens(&plan), [(2, 12, 5, true)]);
    let stats = s.pool().stats();
    assert_eq!((stats.queries, stats.hits), (27, 12));
}

#[test]
fn of_a_wholly_known_prompt_the_last_token_is_computed() {
    let mut s = scheduler(20, 64, 2);
    s.add(RequestId(1), prompt(1, 8), 3).unwrap();
    let plan = s.schedule();
    carry_out(&mut s, &plan);
    s.add(RequestId(2), prompt(1, 8), 3).unwrap();
    let plan = s.schedule();
    assert_eq!(lens(&plan), [(1, 8, 1, true), (2, 4, 4, true)]);
}

/// A small generator for the random tests (Marsaglia 2003).
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// Blocks and references add up, and no block that may be written has two owners.
fn check_pool(s: &Scheduler) {
    let mut owners = vec![0; s.pool().total()];
    for sequence in s.running() {
        let size = s.pool().block_size();
        assert!(sequence.blocks().len() * size >= sequence.computed());
        sequence.blocks().iter().for_each(|b| owners[*b as usize] += 1);
        if let Some(open) = sequence.blocks().get(sequence.computed() / size) {
            assert_eq!(s.pool().references(*open), 1, "a block being written is shared");
        }
    }
    for (block, owners) in owners.iter().enumerate() {
        assert_eq!(s.pool().references(block as u32), *owners, "block {block}");
    }
    let stats = s.pool().stats();
    assert_eq!(stats.used, owners.iter().filter(|n| **n > 0).count());
    assert_eq!(stats.used + stats.cached + stats.free, stats.total);
}

/// A hundred random workloads on small pools: nothing leaks, everyone ends, and what each computes does not depend on
/// the others, on chunks, on caching or on preemption.
#[test]
fn random_workloads_end_without_leaks_and_with_the_same_tokens() {
    workloads(false);
}

/// The same when every step is planned before the one before it is known.
#[test]
fn random_workloads_planned_ahead_end_without_leaks_and_with_the_same_tokens() {
    workloads(true);
}

fn workloads(ahead: bool) {
    let (mut together, mut waited) = (0, 0);
    for seed in 1..=100u64 {
        let mut random = Xorshift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let blocks = 6 + random.below(12) as u32;
        let limits = Limits { max_batch: 1 + random.below(6), chunk: 1 + random.below(20), context: 1000 };
        let mut s = Scheduler::new(limits, BlockPool::new(blocks, 4, seed % 3 > 0));
        let mut wanted = std::collections::HashMap::new();
        let (mut next, mut ended, mut cancelled) = (0u64, 0, 0);
        let mut under_way: Option<Plan> = None;
        for steps in 0.. {
            assert!(steps < 20_000, "seed {seed}: no end");
            if next < 20 && random.below(3) == 0 {
                let most = blocks as usize * 4;
                let len = 1 + random.below(most - 1);
                let generate = 1 + random.below(most - len);
                // Half of the prompts begin alike.
                let ids = prompt(if random.below(2) == 0 { 1 } else { next + 10 }, len);
                s.add(RequestId(next), ids.clone(), generate).unwrap();
                wanted.insert(RequestId(next), (ids, generate));
                next += 1;
            }
            if random.below(40) == 0 && next > 0 && s.remove(RequestId(random.below(next as usize) as u64)) {
                cancelled += 1;
            }
            let plan = match &under_way {
                Some(_) => s.schedule_ahead(),
                None => Some(s.schedule()),
            };
            check_pool(&s);
            if let Some(plan) = &plan {
                assert!(!plan.items.is_empty() || under_way.is_some() || s.is_idle(), "seed {seed}: stuck");
                assert!(plan.items.len() <= limits.max_batch);
                assert!(plan.preempted.is_empty() || (plan.admitted.is_empty() && under_way.is_none()));
                s.start(plan);
                check_pool(&s);
            }
            waited += u32::from(plan.is_none());
            let plan = plan.filter(|p| !p.items.is_empty());
            together += u32::from(plan.is_some() && under_way.is_some());
            let before = std::mem::replace(&mut under_way, plan);
            let done = if ahead { before } else { under_way.take() };
            if let Some(done) = done {
                land(&mut s, &done);
            }
            check_pool(&s);
            let done: Vec<RequestId> =
                s.running().iter().filter(|r| r.generated() == wanted[&r.id()].1).map(Sequence::id).collect();
            for id in done {
                let (mut ids, generate) = wanted[&id].clone();
                for _ in 0..generate {
                    ids.push(ids.iter().fold(7u32, |h, t| h.wrapping_mul(31).wrapping_add(*t)) % 50_000);
                }
                assert_eq!(s.sequence(id).unwrap().tokens(), ids);
                s.remove(id);
                ended += 1;
            }
            if next == 20 && s.is_idle() {
                break;
            }
        }
        assert_eq!(ended + cancelled, 20, "seed {seed}");
        assert_eq!(s.pool().available(), blocks as usize);
    }
    assert_eq!((together > 1000, waited > 100), (ahead, ahead), "{together} {waited}");
}
