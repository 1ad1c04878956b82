//! The Hugging Face hub and its cache: the standard layout, shared with every other tool that uses it.
//!
//! ```text
//! models--org--name/blobs/<etag>                   the files' contents
//! models--org--name/snapshots/<commit>/<file>      links to blobs
//! models--org--name/refs/<revision>                the commit a branch or tag stood for
//! .locks/models--org--name/<etag>.lock             held while a blob is fetched
//! ```

mod cache;
mod error;
#[cfg(test)]
mod fake;
mod http;
mod pull;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cache::CachedModel;
pub use error::HubError;

use crate::{Error, Result};

/// The public hub.
pub const PUBLIC_ENDPOINT: &str = "https://huggingface.co";

/// A hub and the cache of what was fetched from it.
#[derive(Clone)]
pub struct Hub {
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    offline: bool,
    retry_unit: Duration,
}

impl Hub {
    /// As the environment says: `HF_HUB_CACHE`, `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN` (or the file `HF_TOKEN_PATH`, or
    /// `$HF_HOME/token`), `HF_HUB_OFFLINE`.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var_os(name).map(|v| v.to_string_lossy().into_owned()))
    }

    /// As the variables found by `lookup` say.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let value = |name: &str| lookup(name).filter(|v| !v.trim().is_empty());
        let path = |name: &str| value(name).map(|v| expand(&v));
        let home = || {
            let home = value("HOME").map(PathBuf::from).or_else(std::env::home_dir);
            home.ok_or_else(|| Error::invalid("hub cache", "there is no home directory; set HF_HUB_CACHE to a folder"))
        };
        let hf_home = match (path("HF_HOME"), path("XDG_CACHE_HOME")) {
            (Some(folder), _) => Ok(folder),
            (None, Some(folder)) => Ok(folder.join("huggingface")),
            (None, None) => home().map(|folder| folder.join(".cache/huggingface")),
        };
        let cache = match path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")) {
            Some(folder) => folder,
            None => hf_home.as_ref().map(|folder| folder.join("hub")).map_err(|e| Error::invalid("hub cache", e))?,
        };
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.ok().map(|folder| folder.join("token")));
        let token = value("HF_TOKEN")
            .or_else(|| value("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| std::fs::read_to_string(token_file?).ok())
            .map(|t| t.trim().to_owned())
            .filter(|t| !t.is_empty());
        let yes = |v: String| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str());
        let mut hub = Self::new(cache);
        hub.token = token;
        hub.offline = value("HF_HUB_OFFLINE").is_some_and(yes);
        Ok(match value("HF_ENDPOINT") {
            Some(endpoint) => hub.with_endpoint(endpoint),
            None => hub,
        })
    }

    /// The public hub with its cache in `cache`, without a token.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            endpoint: PUBLIC_ENDPOINT.to_owned(),
            token: None,
            offline: false,
            retry_unit: Duration::from_secs(1),
        }
    }

    /// Another hub, such as a mirror.
    pub fn with_endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoint = endpoint.into().trim_end_matches('/').to_owned();
        self
    }

    /// With the user's token, sent to the hub itself only, never to where it redirects.
    pub fn with_token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Folder of the cache.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Whether the network must not be used.
    pub fn is_offline(&self) -> bool {
        self.offline
    }
}

/// `~/x` below the home directory.
fn expand(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest),
        _ => PathBuf::from(path),
    }
}

/// A model on the hub: `org/name`, perhaps with `@revision` (a branch, tag or commit).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelId {
    /// `org/name`.
    pub name: String,
    /// `main` unless given.
    pub revision: String,
}

impl ModelId {
    /// Reads `org/name` or `org/name@revision`.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['-', '.'])
                && !part.contains("..")
                && !part.contains("--")
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let parts: Vec<&str> = name.split('/').collect();
        // Branches may contain slashes (refs/pr/1).
        if parts.len() > 2 || !parts.into_iter().all(plain) || !revision.split('/').all(plain) {
            return Err(HubError::BadId(text.to_owned()).into());
        }
        Ok(Self { name: name.to_owned(), revision: revision.to_owned() })
    }

    /// Name of the model's folder in the cache.
    fn folder(&self) -> String {
        format!("models--{}", self.name.replace('/', "--"))
    }
}

impl std::fmt::Display for ModelId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl From<HubError> for Error {
    fn from(error: HubError) -> Self {
        Self::Hub(Box::new(error))
    }
}
