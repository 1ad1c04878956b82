//! Which tokens of which sequences the next step computes. Plain data in, plain data out.

use crate::{BlockPool, Error, RequestId, Result, Sequence};
use std::collections::VecDeque;

/// What a step may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that run at the same time.
    pub max_batch: usize,
    /// Tokens of a step. Sequences that need only one token always take part; prompts share what they leave, at least
    /// one token.
    pub chunk: usize,
    /// Tokens of the longest sequence.
    pub context: usize,
}

/// One sequence's part of a step: tokens `cached..cached + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Whose.
    pub id: RequestId,
    /// Tokens computed before.
    pub cached: usize,
    /// Tokens to compute.
    pub len: usize,
    /// Whether these are the last that are known, so that another one is wanted.
    pub sample: bool,
}

/// A step, and what changed to make it possible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to compute: sequences that need one token first, then prompts, the oldest first.
    pub items: Vec<Item>,
    /// Sequences that began to run, with the tokens found in the prefix cache.
    pub admitted: Vec<(RequestId, usize)>,
    /// Sequences whose blocks were taken away; they wait to run again.
    pub preempted: Vec<RequestId>,
}

/// Continuous batching with chunked prefill: first come, first served; when blocks run out, the youngest sequence gives
/// its blocks up and is computed again later. The oldest sequence can always go on, so that every one ends.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    /// In order of arrival.
    waiting: VecDeque<Sequence>,
    /// In order of arrival; all older than those waiting.
    running: Vec<Sequence>,
    preemptions: u64,
}

impl Scheduler {
    /// No sequences.
    pub fn new(limits: Limits, pool: BlockPool) -> Self {
        Self { limits, pool, waiting: VecDeque::new(), running: Vec::new(), preemptions: 0 }
    }

    /// Adds a sequence that will grow to at most `prompt.len() + generate` tokens, if that can ever fit.
    pub fn add(&mut self, id: RequestId, prompt: Vec<u32>, generate: usize) -> Result<()> {
        let (length, context) = (prompt.len(), self.limits.context);
        if length == 0 {
            return Err(Error::EmptyPrompt);
        }
        let total = length.saturating_add(generate);
        if total > context {
            return Err(Error::Context { prompt: length, generated: generate, context });
        }
        let (block_size, blocks) = (self.pool.block_size(), self.pool.total());
        if total.div_ceil(block_size) > blocks {
            return Err(Error::Pool { prompt: length, generated: generate, block_size, blocks });
        }
        self.waiting.push_back(Sequence::new(id, prompt, generate));
        Ok(())
    }

    /// What a step may hold.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// The blocks, for work that is not a sequence's.
    pub fn pool_mut(&mut self) -> &mut BlockPool {
        &mut self.pool
    }

    /// Sequences that hold blocks.
    pub fn running(&self) -> &[Sequence] {
        &self.running
    }

    /// Sequences that do not yet, or no longer, run.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How often a sequence had to give up its blocks.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// A running sequence.
    pub fn sequence(&self, id: RequestId) -> Option<&Sequence> {
        self.running.iter().find(|s| s.id() == id)
    }

    /// The next step, while none is under way. Its blocks are reserved; [`Scheduler::start`] says that it is under way,
    /// [`Scheduler::advance`] that it was carried out.
    pub fn schedule(&mut self) -> Plan {
        self.plan(true).unwrap_or_default()
    }

    /// The step after the one under way, before anybody knows which tokens that chooses and who ends with it; `None` if
    /// it would take blocks from a sequence, for the step under way may yet free some.
    pub fn schedule_ahead(&mut self) -> Option<Plan> {
        self.plan(false)
    }

    fn plan(&mut self, preempts: bool) -> Option<Plan> {
        let mut plan = Plan::default();
        // Which of `running` take part; preemption only ever shortens `running` at its end.
        let mut planned = vec![false; self.running.len()];
        self.plan_decodes(&mut plan, &mut planned, preempts)?;
        let mut budget = self.limits.chunk.saturating_sub(plan.items.len()).max(1);
        let short = self.plan_chunks(&mut plan, &planned, &mut budget, preempts)?;
        if !short && plan.preempted.is_empty() {
            self.admit(&mut plan, budget);
        }
        Some(plan)
    }

    /// Sequences that need one token, the oldest first.
    fn plan_decodes(&mut self, plan: &mut Plan, planned: &mut [bool], preempts: bool) -> Option<()> {
        let mut i = 0;
        while i < self.running.len() {
            let sequence = &mut self.running[i];
            if sequence.remaining() == 1 {
                if !sequence.reserve(sequence.length(), &mut self.pool) {
                    // Everything planned so far is older than the youngest.
                    preempts.then(|| self.preempt_youngest(plan))?;
                    continue;
                }
                planned[i] = true;
                plan.items.push(item(sequence, 1));
            }
            i += 1;
        }
        Some(())
    }

    /// Chunks of running prompts, the oldest first; gives whether one of them lacked blocks.
    fn plan_chunks(&mut self, plan: &mut Plan, planned: &[bool], budget: &mut usize, preempts: bool) -> Option<bool> {
        let mut i = 0;
        while i < self.running.len() && *budget > 0 {
            let sequence = &mut self.running[i];
            if sequence.remaining() > 1 {
                let fits = sequence.room(&self.pool) - sequence.computed();
                let len = sequence.remaining().min(*budget).min(fits);
                if len == 0 {
                    let last = self.running.len() - 1;
                    if last == i || planned[last] {
                        return Some(true);
                    }
                    preempts.then(|| self.preempt_youngest(plan))?;
                    continue;
                }
                sequence.reserve(sequence.computed() + len, &mut self.pool);
                plan.items.push(item(sequence, len));
                *budget -= len;
            }
            i += 1;
        }
        Some(false)
    }

    /// Lets waiting sequences run while there are places, tokens and blocks for all that is known of them.
    fn admit(&mut self, plan: &mut Plan, mut budget: usize) {
        let size = self.pool.block_size();
        let mut promised: usize = self.running.iter().map(|s| blocks_missing(s, size)).sum();
        while budget > 0 && self.running.len() < self.limits.max_batch.max(1) {
            let Some(sequence) = self.waiting.front() else { return };
            // The last token is always computed: its logits are wanted.
            let known = sequence.tokens();
            let found = self.pool.lookup(&known[..known.len() - 1]);
            let unused = found.iter().filter(|(block, _)| self.pool.references(*block) == 0).count();
            // One token more than is known, so that the first answer does not preempt anyone.
            let needed = (known.len() + 1).div_ceil(size) - found.len();
            if !self.running.is_empty() && needed + unused + promised > self.pool.available() {
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            sequence.adopt(&found, &mut self.pool);
            if sequence.generated() == 0 {
                self.pool.count_lookup(sequence.tokens().len(), sequence.computed());
            }
            plan.admitted.push((sequence.id(), sequence.computed()));
            let fits = sequence.room(&self.pool) - sequence.computed();
            let len = sequence.remaining().min(budget).min(fits);
            sequence.reserve(sequence.computed() + len, &mut self.pool);
            if len > 0 {
                plan.items.push(item(&sequence, len));
            }
            budget -= len;
            promised += blocks_missing(&sequence, size);
            self.running.push(sequence);
        }
    }

    fn preempt_youngest(&mut self, plan: &mut Plan) {
        if let Some(mut sequence) = self.running.pop() {
            sequence.release(&mut self.pool);
            plan.preempted.push(sequence.id());
            self.waiting.push_front(sequence);
            self.preemptions += 1;
        }
    }

    /// The plan is under way: its tokens are being computed, others chosen.
    pub fn start(&mut self, plan: &Plan) {
        for item in &plan.items {
            if let Some(sequence) = self.running.iter_mut().find(|s| s.id() == item.id) {
                sequence.start(item.len, item.sample);
            }
        }
    }

    /// The plan's tokens have been computed.
    pub fn advance(&mut self, plan: &Plan) {
        for item in &plan.items {
            if let Some(sequence) = self.running.iter_mut().find(|s| s.id() == item.id) {
                sequence.advance(item.cached + item.len, &mut self.pool);
            }
        }
    }

    /// A token was chosen for a running sequence.
    pub fn push(&mut self, id: RequestId, token: u32) {
        if let Some(sequence) = self.running.iter_mut().find(|s| s.id() == id) {
            sequence.push(token);
        }
    }

    /// Ends a sequence, running or waiting, and gives its blocks back; false if there is none.
    pub fn remove(&mut self, id: RequestId) -> bool {
        if let Some(i) = self.running.iter().position(|s| s.id() == id) {
            self.running.remove(i).release(&mut self.pool);
            return true;
        }
        let found = self.waiting.iter().position(|s| s.id() == id);
        found.and_then(|i| self.waiting.remove(i)).is_some()
    }
}

/// Blocks that a sequence does not yet hold for the tokens it knows.
fn blocks_missing(sequence: &Sequence, block_size: usize) -> usize {
    sequence.length().div_ceil(block_size).saturating_sub(sequence.blocks().len())
}

fn item(sequence: &Sequence, len: usize) -> Item {
    let cached = sequence.computed();
    Item { id: sequence.id(), cached, len, sample: len == sequence.remaining() }
}

#[cfg(test)]
#[path = "tests/scheduler.rs"]
mod tests;
