//! Why a model could not be fetched or found.

use std::time::Duration;

/// What can go wrong between the hub and its cache. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is no model's.
    #[error("{0:?} is no model id; expected org/name or org/name@revision (or the path of a folder)")]
    BadId(String),
    /// The model is not in the cache.
    #[error("{id} is not in the cache ({cache}); fetch it first: metal-marlin pull {id}")]
    NotCached {
        /// The model, with its revision.
        id: String,
        /// The cache's folder.
        cache: String,
    },
    /// The user asked for no network.
    #[error("{id} cannot be fetched: HF_HUB_OFFLINE is set; unset it and try again")]
    Offline {
        /// The model.
        id: String,
    },
    /// 401.
    #[error("{id}: the hub answers 401 (not authorised): {}", unauthorized(*.with_token))]
    Unauthorized {
        /// The model.
        id: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// 403.
    #[error(
        "{id}: the hub answers 403 (forbidden): the model is gated; accept its terms at {page} and set HF_TOKEN to a token that may read it"
    )]
    Forbidden {
        /// The model.
        id: String,
        /// Its page.
        page: String,
    },
    /// 404.
    #[error("{what}: the hub answers 404 (not found); check the spelling of the name and the revision")]
    NotFound {
        /// The model or file.
        what: String,
    },
    /// Any other status that is an error.
    #[error("{what}: the hub answers {status}{}; try again later", after(*.attempts))]
    Status {
        /// The model or file.
        what: String,
        /// The HTTP status.
        status: u16,
        /// How often it was asked.
        attempts: u32,
    },
    /// The network failed.
    #[error("{what}: {why}{}; check the network (and HF_ENDPOINT, if set) and run the command again: it resumes", after(*.attempts))]
    Network {
        /// The model or file.
        what: String,
        /// What failed.
        why: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The connection ended before the file did, again and again.
    #[error("{file}: only {found} of {expected} bytes came{}; run the command again: it resumes", after(*.attempts))]
    HalfAFile {
        /// The file.
        file: String,
        /// Its size.
        expected: u64,
        /// What came.
        found: u64,
        /// How often it was tried.
        attempts: u32,
    },
    /// More came than the file has.
    #[error("{file}: expected {expected} bytes, found {found}; the download was discarded, run the command again")]
    WrongSize {
        /// The file.
        file: String,
        /// Its size according to the hub.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// The contents are not what the hub promised.
    #[error(
        "{file}: expected SHA-256 {expected}, found {found}; the download was damaged and discarded, run the command again"
    )]
    WrongHash {
        /// The file.
        file: String,
        /// Hash according to the hub.
        expected: String,
        /// Hash of what came.
        found: String,
    },
    /// The answer makes no sense.
    #[error("{what}: the hub's answer is not understood: {why}; check HF_ENDPOINT, if set")]
    BadAnswer {
        /// The model or file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The model has no files this program can use.
    #[error("{id} has no safetensors files (its files: {found}); look for a version of the model that does")]
    NoWeights {
        /// The model.
        id: String,
        /// Some of the files it has.
        found: String,
    },
}

fn unauthorized(with_token: bool) -> &'static str {
    if with_token {
        "it does not accept the token; check HF_TOKEN, and the spelling of the name"
    } else {
        "the model does not exist, or is private or gated; check the spelling, and set HF_TOKEN if it is gated"
    }
}

fn after(attempts: u32) -> String {
    if attempts > 1 { format!(" (after {attempts} attempts)") } else { String::new() }
}

/// How long to wait before attempt `n` (from 1) is repeated.
pub(super) fn backoff(n: u32, unit: Duration) -> Duration {
    unit * (1 << n.min(6)) / 2
}
