//! Requests to the hub: redirects followed by hand, so that the token goes to the hub and nowhere else; retries.

use std::time::Duration;

use ureq::http::{Response, Uri};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::error::backoff;
use super::{Hub, HubError};
use crate::{Error, Progress, Result};

/// How often a request is tried.
pub(super) const ATTEMPTS: u32 = 5;

const REDIRECTS: usize = 10;

/// How a failed attempt ends.
pub(super) enum Failure {
    /// Worth another attempt.
    Passing(Error),
    /// Not.
    Final(Error),
}

/// An answer, and what the hub itself said of the file before it redirected elsewhere.
pub(super) struct Answer {
    pub response: Response<Body>,
    /// The file's hash: `x-linked-etag` or `etag` of the hub's own answer.
    pub etag: Option<String>,
    /// The file's size: `x-linked-size`, or the answer's own length.
    pub size: Option<u64>,
}

/// A client of one hub.
pub(super) struct Client<'a> {
    hub: &'a Hub,
    agent: Agent,
    /// What is fetched, for messages.
    pub id: String,
}

impl<'a> Client<'a> {
    pub fn new(hub: &'a Hub, id: String) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("metal-marlin/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .tls_config(tls());
        // A proxy cannot reach this machine's own addresses.
        let local =
            origin(&hub.endpoint).is_some_and(|o| ["//127.", "//localhost", "//[::1]"].iter().any(|l| o.contains(l)));
        let config = if local { config.proxy(None) } else { config };
        Self { hub, agent: config.build().new_agent(), id }
    }

    /// Asks for `path` of the hub, following redirects. `range` is the first byte wanted, if not the file's first.
    /// With `head`, only the headers, and a redirect to another host is not followed.
    pub fn ask(&self, path: &str, head: bool, range: u64) -> std::result::Result<Answer, Failure> {
        let home = origin(&self.hub.endpoint).unwrap_or_default();
        let mut url = format!("{}{path}", self.hub.endpoint);
        let (mut etag, mut size) = (None, None);
        for _ in 0..REDIRECTS {
            let at_home = origin(&url).as_deref() == Some(home.as_str());
            let mut request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            if let (true, Some(token)) = (at_home, &self.hub.token) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if range > 0 {
                request = request.header("range", format!("bytes={range}-"));
            }
            let response = request.call().map_err(|e| self.network(e))?;
            let text = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
            if at_home {
                let tag = text("x-linked-etag")
                    .or(text("etag"))
                    .map(|t| t.trim_start_matches("W/").trim_matches('"').to_owned());
                etag = tag.or(etag);
                size = text("x-linked-size").and_then(|s| s.parse().ok()).or(size);
            }
            let status = response.status();
            let location = text("location").map(str::to_owned);
            match location.filter(|_| status.is_redirection()) {
                Some(to) => {
                    let next = absolute(&url, &to).ok_or_else(|| self.bad(format!("it redirects to {to:?}")))?;
                    let leaves = origin(&next).as_deref() != Some(home.as_str());
                    if head && leaves && etag.is_some() && size.is_some() {
                        return Ok(Answer { response, etag, size });
                    }
                    if home.starts_with("https:") && !next.starts_with("https:") {
                        return Err(self.bad(format!("it redirects to {to:?}, which is not encrypted")));
                    }
                    url = next;
                }
                None if status.is_success() => {
                    let length = text("content-length").and_then(|s| s.parse().ok());
                    return Ok(Answer { size: size.or(length.filter(|_| status.as_u16() == 200)), response, etag });
                }
                None => return Err(self.status(status.as_u16(), path)),
            }
        }
        Err(self.bad(format!("it redirects more than {REDIRECTS} times")))
    }

    /// Repeats `work` while it fails in passing, up to [`ATTEMPTS`] times, waiting longer each time.
    pub fn retry<T>(
        &self,
        progress: &dyn Progress,
        mut work: impl FnMut(u32) -> std::result::Result<T, Failure>,
    ) -> Result<T> {
        for attempt in 1.. {
            match work(attempt) {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) => self.pause(error, attempt, progress)?,
            }
        }
        Err(Error::Cancelled)
    }

    /// Waits after attempt `attempt` failed in passing; gives up after [`ATTEMPTS`].
    pub fn pause(&self, error: Error, attempt: u32, progress: &dyn Progress) -> Result<()> {
        if attempt >= ATTEMPTS {
            return Err(after(error, attempt));
        }
        progress.note(&format!("{error}; trying again"));
        self.wait(progress, backoff(attempt, self.hub.retry_unit))
    }

    fn wait(&self, progress: &dyn Progress, time: Duration) -> Result<()> {
        let step = Duration::from_millis(50);
        let mut left = time;
        while !left.is_zero() {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            std::thread::sleep(left.min(step));
            left = left.saturating_sub(step);
        }
        Ok(())
    }

    fn network(&self, error: ureq::Error) -> Failure {
        let what = self.id.clone();
        let wrap = |why: String| Error::from(HubError::Network { what, why, attempts: 1 });
        match error {
            ureq::Error::HostNotFound => {
                Failure::Final(wrap(format!("{} cannot be found: no network?", self.hub.endpoint)))
            }
            ureq::Error::BadUri(uri) => Failure::Final(wrap(format!("{uri:?} is no address"))),
            other => Failure::Passing(wrap(format!("{} cannot be reached: {other}", self.hub.endpoint))),
        }
    }

    pub fn bad(&self, why: impl Into<String>) -> Failure {
        Failure::Final(HubError::BadAnswer { what: self.id.clone(), why: why.into() }.into())
    }

    fn status(&self, status: u16, path: &str) -> Failure {
        let id = self.id.clone();
        let page = || format!("{}/{}", self.hub.endpoint, id.split('@').next().unwrap_or(&id));
        match status {
            401 => Failure::Final(HubError::Unauthorized { with_token: self.hub.token.is_some(), id }.into()),
            403 => Failure::Final(HubError::Forbidden { page: page(), id }.into()),
            404 => {
                let file = path.split_once("/resolve/").and_then(|(_, rest)| rest.split_once('/'));
                let what = file.map_or(id.clone(), |(_, file)| format!("{id}: {file}"));
                Failure::Final(HubError::NotFound { what }.into())
            }
            429 | 500..=599 => Failure::Passing(HubError::Status { what: id, status, attempts: 1 }.into()),
            _ => Failure::Final(HubError::Status { what: id, status, attempts: 1 }.into()),
        }
    }
}

/// Certificates: the system's on Apple, Mozilla's elsewhere.
fn tls() -> TlsConfig {
    let config = TlsConfig::builder();
    #[cfg(target_vendor = "apple")]
    let config = config.provider(ureq::tls::TlsProvider::NativeTls).root_certs(ureq::tls::RootCerts::PlatformVerifier);
    config.build()
}

/// Puts the number of attempts into an error.
fn after(error: Error, count: u32) -> Error {
    match error {
        Error::Hub(mut hub) => {
            match &mut *hub {
                HubError::Network { attempts, .. }
                | HubError::Status { attempts, .. }
                | HubError::HalfAFile { attempts, .. } => *attempts = count,
                _ => {}
            }
            Error::Hub(hub)
        }
        other => other,
    }
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?.as_str().to_ascii_lowercase()))
}

/// The address that `location` means on the page `from`.
fn absolute(from: &str, location: &str) -> Option<String> {
    match location {
        full if full.starts_with("http://") || full.starts_with("https://") => Some(full.to_owned()),
        path if path.starts_with('/') && !path.starts_with("//") => Some(format!("{}{path}", origin(from)?)),
        _ => None,
    }
}
