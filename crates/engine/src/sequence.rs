//! A request's tokens, and the blocks that hold what has been computed of them.

use crate::{BlockPool, Chain, RequestId};

/// Tokens known so far, and the part of them whose KV is in the pool or will be once the steps under way are done.
///
/// The last tokens may be *pending*: steps under way choose them, and nobody has read them yet.
#[derive(Clone, Debug)]
pub struct Sequence {
    id: RequestId,
    tokens: Vec<u32>,
    pending: usize,
    prompt: usize,
    /// Tokens that it ends with at the latest.
    most: usize,
    computed: usize,
    blocks: Vec<u32>,
    /// Leading blocks that are full and known to the cache, and the chain they end.
    sealed: usize,
    chain: Chain,
}

impl Sequence {
    /// A sequence of which nothing has been computed, and whose answer has at most `generate` tokens.
    pub fn new(id: RequestId, prompt: Vec<u32>, generate: usize) -> Self {
        let (length, most) = (prompt.len(), prompt.len().saturating_add(generate));
        let (blocks, chain) = (Vec::new(), Chain::ROOT);
        Self { id, tokens: prompt, pending: 0, prompt: length, most, computed: 0, blocks, sealed: 0, chain }
    }

    /// Whose it is.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Prompt and answer, without what is pending.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the prompt.
    pub fn prompt_len(&self) -> usize {
        self.prompt
    }

    /// Tokens of the answer.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Tokens that steps under way choose.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Tokens, pending ones included.
    pub fn length(&self) -> usize {
        self.tokens.len() + self.pending
    }

    /// Leading tokens whose KV is in the pool, or will be once the steps under way are done.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// Tokens still to be computed; none of a sequence that only waits to know its last one.
    pub fn remaining(&self) -> usize {
        if self.pending > 0 && self.length() >= self.most { 0 } else { self.length() - self.computed }
    }

    /// The block table.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Adds a chosen token: the first pending one, if there is one.
    pub fn push(&mut self, token: u32) {
        self.tokens.push(token);
        self.pending = self.pending.saturating_sub(1);
    }

    /// Takes over the cached blocks that hold a prefix, for a sequence that has none.
    pub fn adopt(&mut self, found: &[(u32, Chain)], pool: &mut BlockPool) {
        for &(block, chain) in found {
            pool.acquire(block);
            self.blocks.push(block);
            self.chain = chain;
        }
        self.sealed = self.blocks.len();
        self.computed = self.sealed * pool.block_size();
    }

    /// Tokens that fit into the blocks held and those available.
    pub fn room(&self, pool: &BlockPool) -> usize {
        (self.blocks.len() + pool.available()) * pool.block_size()
    }

    /// Holds blocks for the first `tokens` tokens; false, and nothing changed, if there are too few.
    pub fn reserve(&mut self, tokens: usize, pool: &mut BlockPool) -> bool {
        let missing = tokens.div_ceil(pool.block_size()).saturating_sub(self.blocks.len());
        match pool.allocate(missing) {
            Some(blocks) => {
                self.blocks.extend(blocks);
                true
            }
            None => false,
        }
    }

    /// A step is under way that computes `count` more tokens and, if so, chooses one.
    pub fn start(&mut self, count: usize, chooses: bool) {
        self.computed = (self.computed + count).min(self.length());
        self.pending += usize::from(chooses);
    }

    /// The first `count` tokens are known to have been computed well; blocks that are full of them become known to the
    /// cache.
    pub fn advance(&mut self, count: usize, pool: &mut BlockPool) {
        let size = pool.block_size();
        let count = count.min(self.computed).min(self.tokens.len());
        while (self.sealed + 1) * size <= count {
            let content = &self.tokens[self.sealed * size..(self.sealed + 1) * size];
            let (block, chain) = pool.seal(self.blocks[self.sealed], self.chain, content);
            self.blocks[self.sealed] = block;
            self.chain = chain;
            self.sealed += 1;
        }
    }

    /// Takes the last `count` tokens of the answer back, as speculation does with rejected ones. A block that the
    /// cache knows is never written again: if the cut goes through one, its remaining tokens will be computed anew.
    pub fn truncate(&mut self, count: usize, pool: &mut BlockPool) {
        let count = count.min(self.generated());
        self.tokens.truncate(self.tokens.len() - count);
        self.computed = self.computed.min(self.tokens.len());
        let size = pool.block_size();
        let whole = self.computed / size;
        if whole < self.sealed {
            let found = pool.lookup(&self.tokens[..whole * size]);
            self.computed = whole * size;
            self.sealed = whole;
            self.chain = found.last().map_or(Chain::ROOT, |f| f.1);
        }
        let keep = self.computed.div_ceil(size);
        pool.release(&self.blocks[keep..]);
        self.blocks.truncate(keep);
    }

    /// Gives all blocks back; what was computed must be computed, or found, again.
    pub fn release(&mut self, pool: &mut BlockPool) {
        pool.release(&self.blocks);
        self.blocks.clear();
        (self.computed, self.sealed, self.chain) = (0, 0, Chain::ROOT);
    }
}

#[cfg(test)]
#[path = "tests/sequence.rs"]
mod tests;
