//! What the engine counts.

use crate::PoolStats;

/// What the engine is doing and has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that hold KV blocks.
    pub running: usize,
    /// Requests that do not yet, or no longer, run.
    pub waiting: usize,
    /// KV blocks and prefix cache.
    pub pool: PoolStats,
    /// Times a request gave its blocks up for older ones.
    pub preemptions: u64,
    /// Steps carried out.
    pub steps: u64,
    /// Of these, steps that were enqueued before the one before them was read.
    pub steps_ahead: u64,
    /// Steps that could not be enqueued so, because something had to be known first.
    pub waits: Waits,
    /// Tokens computed ahead for requests that turned out to have ended.
    pub discarded_tokens: u64,
    /// Tokens computed, those computed again included.
    pub computed_tokens: u64,
    /// Tokens of all prompts accepted.
    pub prompt_tokens: u64,
    /// Tokens chosen.
    pub generated_tokens: u64,
    /// Requests that ended by a stop token or string.
    pub stopped: u64,
    /// Requests that ended by their length.
    pub full: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// Why a step was not enqueued before the one before it had been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The choice of a token depends on the tokens before it (repetition, presence and frequency penalties).
    Penalties,
    /// The most probable tokens were asked for, which this backend finds on the host.
    LogProbabilities,
    /// This backend chooses tokens so on the host.
    HostSampling,
    /// KV blocks are lacking, and whoever ends with the step under way frees some.
    Blocks,
}

impl Wait {
    /// Every reason.
    pub const ALL: [Self; 4] = [Self::Penalties, Self::LogProbabilities, Self::HostSampling, Self::Blocks];

    /// Its code in reports.
    pub fn code(self) -> &'static str {
        match self {
            Self::Penalties => "penalties",
            Self::LogProbabilities => "log_probabilities",
            Self::HostSampling => "host_sampling",
            Self::Blocks => "kv_blocks",
        }
    }
}

/// How often each reason was met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits([u64; Wait::ALL.len()]);

impl Waits {
    /// How often this one was.
    pub fn of(&self, wait: Wait) -> u64 {
        self.0[wait as usize]
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Those that were met at all.
    pub fn iter(&self) -> impl Iterator<Item = (Wait, u64)> + '_ {
        Wait::ALL.into_iter().map(|wait| (wait, self.of(wait))).filter(|(_, n)| *n > 0)
    }

    pub(crate) fn note(&mut self, wait: Wait) {
        self.0[wait as usize] += 1;
    }
}
