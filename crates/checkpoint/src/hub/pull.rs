//! Fetching a model into the cache. What is half fetched is resumed; a blob appears under its name only when it is
//! complete and its hash agrees; the revision's name appears last.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::http::{Client, Failure};
use super::{Hub, HubError, ModelId};
use crate::write::{check_space, write_error};
use crate::{Error, Progress, Result};

/// Small files a model may need.
const SMALL: [&str; 16] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "quantization_config.json",
    "quantize_config.json",
    "hf_quant_config.json",
    "model.safetensors.index.json",
    "preprocessor_config.json",
];

/// What the hub says of a model.
#[derive(Deserialize)]
struct ModelInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
}

impl Hub {
    /// Fetches the model's configuration, tokenizer, template and safetensors (what is in the cache is not fetched again)
    /// and returns the snapshot's folder.
    pub fn pull(&self, id: &str, progress: &dyn Progress) -> Result<PathBuf> {
        let id = ModelId::parse(id)?;
        if self.offline {
            return Err(HubError::Offline { id: id.to_string() }.into());
        }
        let client = Client::new(self, id.to_string());
        let path = format!("/api/models/{}/revision/{}?blobs=true", id.name, id.revision.replace('/', "%2F"));
        let info: ModelInfo = client.retry(progress, |_| {
            let mut body = client.ask(&path, false, 0)?.response.into_body();
            let text = body.with_config().limit(64 << 20).read_to_string();
            let text = text.map_err(|e| client.bad(format!("the list of files: {e}")))?;
            serde_json::from_str(&text).map_err(|e| client.bad(format!("the list of files: {e}")))
        })?;
        if !is_hex(&info.sha) {
            return Err(final_error(client.bad(format!("its commit is {:?}", info.sha))));
        }
        let files = wanted(&id, &info.siblings)?;
        let model = self.cache.join(id.folder());
        for part in
            ["blobs", "refs"].map(|p| model.join(p)).into_iter().chain([model.join("snapshots").join(&info.sha)])
        {
            std::fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
        }
        let snapshot = model.join("snapshots").join(&info.sha);
        let missing = files.iter().filter(|f| !snapshot.join(&f.rfilename).exists());
        let needed = missing.filter_map(|f| f.size).fold(0, u64::saturating_add);
        check_space(&self.cache, needed.saturating_sub(fetched_halfway(&model.join("blobs"))))?;
        for file in files {
            self.fetch(&client, &id, &info.sha, &file.rfilename, &model, progress)?;
        }
        if id.revision != info.sha {
            let name = model.join("refs").join(&id.revision);
            put(&name, info.sha.as_bytes())?;
        }
        Ok(snapshot)
    }

    /// One file: its blob, unless there already, and the link to it.
    fn fetch(
        &self,
        client: &Client,
        id: &ModelId,
        commit: &str,
        file: &str,
        model: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        let link = model.join("snapshots").join(commit).join(file);
        if link.exists() {
            return Ok(());
        }
        let path = format!("/{}/resolve/{commit}/{file}", id.name);
        let (etag, size) = client.retry(progress, |_| {
            let answer = client.ask(&path, true, 0)?;
            match (answer.etag, answer.size) {
                (Some(etag), Some(size))
                    if !etag.is_empty() && etag.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') =>
                {
                    Ok((etag, size))
                }
                (etag, Some(_)) => Err(client.bad(format!("{file} has the etag {:?}", etag.unwrap_or_default()))),
                (_, None) => Err(client.bad(format!("it does not tell the size of {file}"))),
            }
        })?;
        let blob = model.join("blobs").join(&etag);
        let locks = self.cache.join(".locks").join(id.folder());
        let _lock = lock(&locks, &etag, file, progress)?;
        if !blob.exists() {
            let part = Part {
                client,
                path: &path,
                file,
                etag: &etag,
                size,
                at: model.join("blobs").join(format!("{etag}.incomplete")),
            };
            part.complete(progress)?;
            std::fs::rename(&part.at, &blob).map_err(|e| Error::io(&blob, e))?;
        }
        // Another pull may have placed it meanwhile, and whoever reads it must not find it gone.
        if link.exists() { Ok(()) } else { place(&blob, &link, &etag) }
    }
}

/// A blob on its way.
struct Part<'a> {
    client: &'a Client<'a>,
    path: &'a str,
    file: &'a str,
    etag: &'a str,
    size: u64,
    at: PathBuf,
}

impl Part<'_> {
    /// Fetches what is missing of the blob and checks the whole.
    fn complete(&self, progress: &dyn Progress) -> Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&self.at)
            .map_err(|e| Error::io(&self.at, e))?;
        let (mut hash, mut have) = self.hash_of(&mut file, progress)?;
        if have > self.size {
            (hash, have) = self.start_over(&mut file)?;
        }
        progress.start(self.file, have, self.size);
        // An attempt that brings the file further than any before earns a new series of attempts.
        let (mut furthest, mut failed) = (have, 0);
        while have < self.size {
            match self.some(&mut file, &mut hash, &mut have, progress) {
                Ok(()) => {}
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing(error)) => {
                    failed = if have > furthest { 1 } else { failed + 1 };
                    furthest = furthest.max(have);
                    self.client.pause(error, failed, progress)?;
                }
            }
        }
        file.sync_all().map_err(|e| write_error(&self.at, 0, e))?;
        if have != self.size {
            self.start_over(&mut file)?;
            return Err(HubError::WrongSize { file: self.file.to_owned(), expected: self.size, found: have }.into());
        }
        let found = hex(&hash.finalize());
        if self.etag.len() == 64 && is_hex(self.etag) && !found.eq_ignore_ascii_case(self.etag) {
            drop(file);
            std::fs::remove_file(&self.at).map_err(|e| Error::io(&self.at, e))?;
            return Err(
                HubError::WrongHash { file: self.file.to_owned(), expected: self.etag.to_owned(), found }.into()
            );
        }
        progress.finish(self.file);
        Ok(())
    }

    /// One request for the rest of the blob; what comes is written as it comes.
    fn some(
        &self,
        file: &mut File,
        hash: &mut Sha256,
        have: &mut u64,
        progress: &dyn Progress,
    ) -> std::result::Result<(), Failure> {
        let answer = self.client.ask(self.path, false, *have)?;
        if *have > 0 && answer.response.status().as_u16() != 206 {
            // The server knows no ranges: everything comes again.
            (*hash, *have) = self.start_over(file).map_err(Failure::Final)?;
            progress.start(self.file, 0, self.size);
        }
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            if progress.cancelled() {
                return Err(Failure::Final(Error::Cancelled));
            }
            match body.read(&mut buffer) {
                Ok(0) if *have >= self.size => return Ok(()),
                Ok(n) if n > 0 => {
                    file.write_all(&buffer[..n])
                        .map_err(|e| Failure::Final(write_error(&self.at, self.size.saturating_sub(*have), e)))?;
                    hash.update(&buffer[..n]);
                    *have += n as u64;
                    progress.advance(self.file, n as u64);
                    if *have > self.size {
                        return Ok(());
                    }
                }
                // The end before the end, said politely or not.
                _ => {
                    let (file, expected, found) = (self.file.to_owned(), self.size, *have);
                    return Err(Failure::Passing(HubError::HalfAFile { file, expected, found, attempts: 1 }.into()));
                }
            }
        }
    }

    fn start_over(&self, file: &mut File) -> Result<(Sha256, u64)> {
        file.set_len(0).and_then(|()| file.rewind()).map_err(|e| Error::io(&self.at, e))?;
        Ok((Sha256::new(), 0))
    }

    /// Hash and length of what was fetched before.
    fn hash_of(&self, file: &mut File, progress: &dyn Progress) -> Result<(Sha256, u64)> {
        let (mut hash, mut have) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        if file.metadata().is_ok_and(|m| m.len() > 512 << 20) {
            progress.note(&format!("{}: checking what was fetched before", self.file));
        }
        loop {
            if progress.cancelled() {
                return Err(Error::Cancelled);
            }
            match file.read(&mut buffer).map_err(|e| Error::io(&self.at, e))? {
                0 => return Ok((hash, have)),
                n => {
                    hash.update(&buffer[..n]);
                    have += n as u64;
                }
            }
        }
    }
}

/// The files to fetch: small ones first.
fn wanted<'a>(id: &ModelId, siblings: &'a [Sibling]) -> Result<Vec<&'a Sibling>> {
    // Names with a folder (original/, onnx/, ...) are other forms of the model.
    let plain = |f: &&Sibling| {
        let name = &f.rfilename;
        !name.is_empty()
            && !name.starts_with('.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-+".contains(c))
    };
    let mut small: Vec<&Sibling> =
        siblings.iter().filter(plain).filter(|f| SMALL.contains(&f.rfilename.as_str())).collect();
    let weights = |f: &&Sibling| f.rfilename.ends_with(".safetensors");
    let mut large: Vec<&Sibling> = siblings.iter().filter(plain).filter(weights).collect();
    // Some models come with a second copy under another name (consolidated.safetensors).
    if large.iter().any(|f| f.rfilename.starts_with("model")) {
        large.retain(|f| f.rfilename.starts_with("model"));
    }
    if large.is_empty() {
        let names: Vec<&str> = siblings.iter().take(8).map(|f| f.rfilename.as_str()).collect();
        return Err(HubError::NoWeights { id: id.to_string(), found: names.join(", ") }.into());
    }
    small.sort_by(|a, b| a.rfilename.cmp(&b.rfilename));
    large.sort_by(|a, b| a.rfilename.cmp(&b.rfilename));
    Ok([small, large].concat())
}

/// Holds off other processes that fetch the same blob, huggingface_hub's included.
fn lock(folder: &Path, etag: &str, file: &str, progress: &dyn Progress) -> Result<File> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let path = folder.join(format!("{etag}.lock"));
    let lock =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| Error::io(&path, e))?;
    let mut told = false;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if progress.cancelled() => return Err(Error::Cancelled),
            Err(TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut told, true) {
                    progress.note(&format!("{file}: another process is fetching it; waiting"));
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            // Some network file systems know no locks; then two processes may fetch the same bytes, no more.
            Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => return Ok(lock),
            Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
        }
    }
}

/// Makes the snapshot's file stand for the blob.
fn place(blob: &Path, link: &Path, etag: &str) -> Result<()> {
    // A dangling link may be left from a blob somebody removed.
    let _ = std::fs::remove_file(link);
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(Path::new("../../blobs").join(etag), link);
    #[cfg(not(unix))]
    let linked: std::io::Result<()> = Err(std::io::ErrorKind::Unsupported.into());
    let _ = etag;
    linked
        .or_else(|e| if link.exists() { Ok(()) } else { Err(e) })
        .or_else(|_| std::fs::hard_link(blob, link))
        .or_else(|_| std::fs::copy(blob, link).map(|_| ()))
        .map_err(|e| Error::io(link, e))
}

/// Writes a small file in one step.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let aside = path.with_file_name(format!(".{}.partial", std::process::id()));
    std::fs::write(&aside, bytes).map_err(|e| write_error(&aside, bytes.len() as u64, e))?;
    std::fs::rename(&aside, path).map_err(|e| Error::io(path, e))
}

/// Bytes that earlier attempts left, which need not be fetched again.
fn fetched_halfway(blobs: &Path) -> u64 {
    let Ok(list) = std::fs::read_dir(blobs) else { return 0 };
    let incomplete = list.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "incomplete"));
    incomplete.filter_map(|e| Some(e.metadata().ok()?.len())).sum()
}

fn final_error(failure: Failure) -> Error {
    match failure {
        Failure::Passing(error) | Failure::Final(error) => error,
    }
}

/// Whether `text` can be a hash.
pub(super) fn is_hex(text: &str) -> bool {
    (4..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
