//! How much the engine may hold.

use crate::{Error, Result};
use std::fmt;

/// Settings of an [`Engine`](crate::Engine).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    /// Tokens in a KV block, a power of two.
    pub block_size: usize,
    /// Tokens of KV memory; `None` sizes it by `kv_memory`.
    pub kv_tokens: Option<usize>,
    /// Bytes of KV memory; `None` takes what a few full contexts need, within a part of the memory that is available.
    pub kv_memory: Option<usize>,
    /// Tokens of the longest sequence, at most what the model knows; `None` takes that.
    pub context: Option<usize>,
    /// Sequences that run at the same time.
    pub max_batch: usize,
    /// Tokens of a step; `None` takes what the backend likes best.
    pub prefill_chunk: Option<usize>,
    /// Whether blocks of ended requests are kept for prompts that begin alike.
    pub prefix_cache: bool,
    /// Bytes of logits that scoring asks for at once.
    pub logits_memory: usize,
    /// Whether each step is enqueued before the one before it is read; `None` does so on backends that gain by it. Texts are
    /// the same.
    pub pipeline: Option<bool>,
    /// Whether every linear's output is looked at, and a request whose pass computes something that is not a number fails with
    /// the name of the first such layer. Slow.
    pub guard: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            block_size: 32,
            kv_tokens: None,
            kv_memory: None,
            context: None,
            max_batch: 32,
            prefill_chunk: None,
            prefix_cache: true,
            logits_memory: 32 << 20,
            pipeline: None,
            guard: false,
        }
    }
}

/// The KV memory that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSizing {
    /// Tokens in a block.
    pub block_size: usize,
    /// Blocks.
    pub blocks: u32,
    /// Bytes of a block in all layers.
    pub block_bytes: usize,
    /// Tokens of the longest sequence that fits.
    pub context: usize,
    /// Tokens of the longest sequence that was asked for.
    pub wanted: usize,
}

impl KvSizing {
    /// Tokens the pool holds.
    pub fn tokens(&self) -> usize {
        (self.blocks as usize).saturating_mul(self.block_size)
    }

    /// Bytes the pool takes.
    pub fn bytes(&self) -> usize {
        (self.blocks as usize).saturating_mul(self.block_bytes)
    }

    /// Whether the pool holds less than one full context.
    pub fn is_short(&self) -> bool {
        self.context < self.wanted
    }
}

impl fmt::Display for KvSizing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KV memory for {} tokens ({} MB)", self.tokens(), self.bytes().div_ceil(1_000_000))?;
        if self.is_short() {
            write!(f, "; a full context of {} tokens would take {} MB", self.wanted, {
                self.wanted.div_ceil(self.block_size).saturating_mul(self.block_bytes).div_ceil(1_000_000)
            })?;
        }
        Ok(())
    }
}

/// Full contexts that the default pool holds at most.
const CONTEXTS: usize = 4;

impl EngineOptions {
    /// Refuses settings that make no sense.
    pub fn check(&self) -> Result<()> {
        if !self.block_size.is_power_of_two() || self.block_size > 1 << 16 {
            return Err(Error::setting("block_size", "a power of two up to 65536", self.block_size));
        }
        for (name, value) in [("max_batch", self.max_batch), ("prefill_chunk", self.prefill_chunk.unwrap_or(1))] {
            if value == 0 {
                return Err(Error::setting(name, "at least 1", value));
            }
        }
        Ok(())
    }

    /// Sizes the pool for a model that knows `max_positions` positions, when a block takes `block_bytes` and
    /// `available` bytes of memory are free (`None`: not known).
    pub fn size_kv(&self, max_positions: usize, block_bytes: usize, available: Option<usize>) -> Result<KvSizing> {
        self.check()?;
        let size = self.block_size;
        let wanted = self.context.unwrap_or(max_positions);
        if wanted == 0 || wanted > max_positions {
            return Err(Error::setting("context", format!("1 to {max_positions} tokens"), wanted));
        }
        let one = wanted.div_ceil(size);
        let fitting = |bytes: usize| bytes / block_bytes.max(1);
        let blocks = match (self.kv_tokens, self.kv_memory) {
            (Some(tokens), None) => tokens.div_ceil(size),
            (Some(tokens), Some(bytes)) => tokens.div_ceil(size).min(fitting(bytes)),
            (None, Some(bytes)) => fitting(bytes),
            (None, None) => {
                // One context may take half of what is free, several together a quarter.
                let available = available.unwrap_or(usize::MAX);
                let several = one.saturating_mul(self.max_batch.min(CONTEXTS)).min(fitting(available / 4));
                several.max(one.min(fitting(available / 2)))
            }
        };
        if blocks == 0 {
            let available = self.kv_memory.or(available).unwrap_or(0);
            return Err(Error::NoMemory { available, block_size: size, block_bytes });
        }
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX - 1).min(u32::MAX - 1);
        let context = wanted.min((blocks as usize).saturating_mul(size));
        Ok(KvSizing { block_size: size, blocks, block_bytes, context, wanted })
    }
}

/// Bytes of memory that are free without swapping, where the system tells.
pub(crate) fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: usize = line.split_whitespace().next()?.parse().ok()?;
    let free = kilobytes.saturating_mul(1024);
    // A container may allow less than the machine has.
    let read = |file: &str| std::fs::read_to_string(file).ok();
    let most = read("/sys/fs/cgroup/memory.max").and_then(|text| text.trim().parse::<usize>().ok());
    let taken = read("/sys/fs/cgroup/memory.stat")
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("anon ")?.trim().parse::<usize>().ok()))
        .unwrap_or(0);
    Some(most.map_or(free, |most| free.min(most.saturating_sub(taken))))
}

#[cfg(test)]
#[path = "tests/options.rs"]
mod tests;
