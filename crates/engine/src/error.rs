//! Why a request was refused or a step failed.

use crate::RequestId;

/// What went wrong, with the numbers.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not run the step.
    #[error(transparent)]
    Model(#[from] marlin_models::Error),
    /// The device refused an operation.
    #[error(transparent)]
    Backend(#[from] marlin_backend::Error),
    /// There is nothing to continue.
    #[error("the prompt is empty; a model needs at least one token to continue from")]
    EmptyPrompt,
    /// A prompt token that the model does not have.
    #[error("prompt token {index} is {token}, but the model's vocabulary has {vocab} tokens")]
    UnknownToken {
        /// Index into the prompt.
        index: usize,
        /// The token.
        token: u32,
        /// Tokens the model has.
        vocab: usize,
    },
    /// More tokens than the model's context holds.
    #[error(
        "{prompt} prompt tokens and {generated} to generate are {}, but the context is {context} tokens; shorten the prompt or lower max_tokens",
        prompt + generated
    )]
    Context {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate at most.
        generated: usize,
        /// Tokens the context holds.
        context: usize,
    },
    /// More tokens than there is KV memory for.
    #[error(
        "{prompt} prompt tokens and {generated} to generate need {} KV blocks of {block_size} tokens, but the pool has {blocks} ({} tokens); shorten the prompt, lower max_tokens or give the KV pool more memory",
        (prompt + generated).div_ceil(*block_size),
        blocks * block_size
    )]
    Pool {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens to generate at most.
        generated: usize,
        /// Tokens in a block.
        block_size: usize,
        /// Blocks in the pool.
        blocks: usize,
    },
    /// A setting of a request or of the engine that makes no sense.
    #[error("{name}: expected {expected}, found {found}")]
    Setting {
        /// The setting.
        name: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What it was.
        found: String,
    },
    /// Not even a few tokens of KV memory fit.
    #[error("{available} bytes for KV memory do not hold one block: {block_size} tokens take {block_bytes} bytes")]
    NoMemory {
        /// Bytes there are.
        available: usize,
        /// Tokens in a block.
        block_size: usize,
        /// Bytes of a block.
        block_bytes: usize,
    },
    /// The model computed something that is not a number.
    #[error(
        "request {id}: the logits after token {position} are not finite; the checkpoint may be damaged, or a kernel wrong (metal-marlin doctor checks them)"
    )]
    NotFinite {
        /// The request.
        id: RequestId,
        /// Tokens before the one that was to be chosen.
        position: usize,
    },
    /// Scoring needs blocks that running requests hold.
    #[error("scoring {tokens} tokens needs {needed} KV blocks of {block_size}, but {available} are free")]
    Busy {
        /// Tokens of the window.
        tokens: usize,
        /// Blocks they take.
        needed: usize,
        /// Tokens in a block.
        block_size: usize,
        /// Blocks not held by requests.
        available: usize,
    },
    /// The device gave another number of results than it was asked for.
    #[error("{what}: expected {expected}, found {found}")]
    Results {
        /// What was asked for.
        what: &'static str,
        /// How many.
        expected: usize,
        /// How many came.
        found: usize,
    },
    /// The receiver of scores gave up.
    #[error("{0}")]
    Receiver(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// [`Error::Setting`] from anything printable.
    pub(crate) fn setting(name: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Setting { name, expected: expected.to_string(), found: found.to_string() }
    }
}

/// Result of an engine's operation.
pub type Result<T> = std::result::Result<T, Error>;
