//! A fixed pool of KV blocks, and the prefix cache over them.

use std::collections::HashMap;
use std::sync::Arc;

/// A prefix of whole blocks that the cache knows: equal chains mean equal tokens from the first on.
///
/// A cached block is found by the chain before it and its own tokens, which are compared in full. So unlike a lookup by
/// hash, a lookup cannot give another text's block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Chain(u64);

impl Chain {
    /// The empty prefix.
    pub const ROOT: Self = Self(0);
}

const NONE: u32 = u32::MAX;

#[derive(Clone, Debug)]
struct Block {
    /// Sequences that use the block.
    references: u32,
    /// Where the block can be found, if it is cached.
    cached: Option<Cached>,
    /// Neighbours in the list of cached blocks that nobody uses.
    older: u32,
    newer: u32,
}

#[derive(Clone, Debug)]
struct Cached {
    parent: Chain,
    tokens: Arc<[u32]>,
    chain: Chain,
}

/// What the pool holds and what its cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Blocks in the pool.
    pub total: usize,
    /// Blocks that sequences use.
    pub used: usize,
    /// Blocks that nobody uses but that still hold a known prefix.
    pub cached: usize,
    /// Blocks that hold nothing.
    pub free: usize,
    /// Prompt tokens looked up.
    pub queries: u64,
    /// Of these, tokens found.
    pub hits: u64,
    /// Cached blocks given up for new ones.
    pub evictions: u64,
}

/// Block ids with reference counts. A block that nobody uses is *free* or, if its content is known, *cached*; cached
/// blocks are given up last, the longest unused first.
///
/// A sequence that uses a cached block also uses those before it in its chain, and releases them after it. So a block
/// is always given up before those it depends on, and no cached block is ever out of reach.
#[derive(Clone, Debug)]
pub struct BlockPool {
    block_size: usize,
    caching: bool,
    blocks: Vec<Block>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
    unused_cached: usize,
    children: HashMap<Chain, HashMap<Arc<[u32]>, u32>>,
    next_chain: u64,
    queries: u64,
    hits: u64,
    evictions: u64,
}

impl BlockPool {
    /// `blocks` blocks of `block_size` tokens, all free; without `caching` nothing is ever found again.
    pub fn new(blocks: u32, block_size: usize, caching: bool) -> Self {
        let block = Block { references: 0, cached: None, older: NONE, newer: NONE };
        Self {
            block_size: block_size.max(1),
            caching,
            blocks: vec![block; blocks as usize],
            // Low ids first, so that memory of a large pool is touched only as it is needed.
            free: (0..blocks).rev().collect(),
            oldest: NONE,
            newest: NONE,
            unused_cached: 0,
            children: HashMap::new(),
            next_chain: 1,
            queries: 0,
            hits: 0,
            evictions: 0,
        }
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks in the pool.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`BlockPool::allocate`] could give: free ones, and cached ones that nobody uses.
    pub fn available(&self) -> usize {
        self.free.len() + self.unused_cached
    }

    /// Counts.
    pub fn stats(&self) -> PoolStats {
        PoolStats {
            total: self.total(),
            used: self.total() - self.available(),
            cached: self.unused_cached,
            free: self.free.len(),
            queries: self.queries,
            hits: self.hits,
            evictions: self.evictions,
        }
    }

    /// Sequences that use `block`.
    pub fn references(&self, block: u32) -> u32 {
        self.blocks[block as usize].references
    }

    /// `count` blocks for one user, or none at all if there are too few.
    pub fn allocate(&mut self, count: usize) -> Option<Vec<u32>> {
        if count > self.available() {
            return None;
        }
        let mut given = Vec::with_capacity(count);
        while given.len() < count {
            let block = self.free.pop().or_else(|| self.evict())?;
            self.blocks[block as usize].references = 1;
            given.push(block);
        }
        Some(given)
    }

    /// The cached blocks that hold the longest known prefix of `tokens`, whole blocks only, with the chains they end.
    /// They are not yet used: see [`BlockPool::acquire`].
    pub fn lookup(&self, tokens: &[u32]) -> Vec<(u32, Chain)> {
        let mut found = Vec::new();
        let mut chain = Chain::ROOT;
        for content in tokens.chunks_exact(self.block_size) {
            let Some(&block) = self.children.get(&chain).and_then(|c| c.get(content)) else { break };
            let Some(cached) = &self.blocks[block as usize].cached else { break };
            chain = cached.chain;
            found.push((block, chain));
        }
        found
    }

    /// Counts a lookup of a new request.
    pub fn count_lookup(&mut self, queried: usize, hit: usize) {
        self.queries += queried as u64;
        self.hits += hit as u64;
    }

    /// One more user of a block.
    pub fn acquire(&mut self, block: u32) {
        if self.blocks[block as usize].references == 0 {
            self.unlink(block);
        }
        self.blocks[block as usize].references += 1;
    }

    /// One user fewer for each of a sequence's blocks, the last block first.
    pub fn release(&mut self, blocks: &[u32]) {
        for &block in blocks.iter().rev() {
            let state = &mut self.blocks[block as usize];
            debug_assert!(state.references > 0, "block {block} released too often");
            state.references = state.references.saturating_sub(1);
            if state.references == 0 {
                match state.cached {
                    Some(_) => self.link_newest(block),
                    None => self.free.push(block),
                }
            }
        }
    }

    /// Says that `block`, used by one sequence, now holds the KV of `tokens`, a whole block after the prefix `parent`.
    /// Gives the block to use from now on and the chain it ends: if the cache already has that content, the user is
    /// moved to the block that is there.
    pub fn seal(&mut self, block: u32, parent: Chain, tokens: &[u32]) -> (u32, Chain) {
        if !self.caching || tokens.len() != self.block_size {
            return (block, Chain::ROOT);
        }
        let children = self.children.entry(parent).or_default();
        if let Some(&known) = children.get(tokens)
            && let Some(cached) = &self.blocks[known as usize].cached
        {
            let chain = cached.chain;
            if known != block {
                self.acquire(known);
                self.release(&[block]);
            }
            return (known, chain);
        }
        let chain = Chain(self.next_chain);
        self.next_chain += 1;
        let tokens: Arc<[u32]> = tokens.into();
        children.insert(tokens.clone(), block);
        self.blocks[block as usize].cached = Some(Cached { parent, tokens, chain });
        (block, chain)
    }

    /// Forgets every prefix that no sequence uses.
    pub fn clear_cache(&mut self) {
        while let Some(block) = self.evict() {
            self.free.push(block);
        }
    }

    /// Takes the block that has been unused for longest out of the cache.
    fn evict(&mut self) -> Option<u32> {
        let block = self.oldest;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        if let Some(cached) = self.blocks[block as usize].cached.take()
            && let Some(children) = self.children.get_mut(&cached.parent)
        {
            children.remove(&cached.tokens);
            if children.is_empty() {
                self.children.remove(&cached.parent);
            }
            debug_assert!(!self.children.contains_key(&cached.chain), "block {block} evicted before its successor");
        }
        self.evictions += 1;
        Some(block)
    }

    fn link_newest(&mut self, block: u32) {
        let before = self.newest;
        let state = &mut self.blocks[block as usize];
        (state.older, state.newer) = (before, NONE);
        match before {
            NONE => self.oldest = block,
            _ => self.blocks[before as usize].newer = block,
        }
        self.newest = block;
        self.unused_cached += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { older, newer, .. } = self.blocks[block as usize];
        match older {
            NONE => self.oldest = newer,
            _ => self.blocks[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            _ => self.blocks[newer as usize].older = older,
        }
        let state = &mut self.blocks[block as usize];
        (state.older, state.newer) = (NONE, NONE);
        self.unused_cached -= 1;
    }
}

#[cfg(test)]
#[path = "tests/block_pool.rs"]
mod tests;
