//! Finding, listing and removing what is in the cache, without the network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Hub, HubError, ModelId};
use crate::{Error, Result};

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedModel {
    /// `org/name`.
    pub name: String,
    /// Bytes of all its blobs, fetched or half-fetched.
    pub bytes: u64,
    /// Bytes of half-fetched blobs.
    pub incomplete: u64,
    /// Commit of each branch or tag.
    pub refs: BTreeMap<String, String>,
    /// Folder of each commit.
    pub snapshots: BTreeMap<String, PathBuf>,
}

impl Hub {
    /// Folder of a model that was fetched before: the commit its revision stood for then, or the commit itself.
    pub fn resolve(&self, id: &str) -> Result<PathBuf> {
        let id = ModelId::parse(id)?;
        let model = self.cache.join(id.folder());
        let commit = std::fs::read_to_string(model.join("refs").join(&id.revision));
        let commit = commit.map_or(id.revision.clone(), |text| text.trim().to_owned());
        let snapshot = model.join("snapshots").join(&commit);
        if super::pull::is_hex(&commit) && snapshot.is_dir() {
            return Ok(snapshot);
        }
        Err(HubError::NotCached { id: id.to_string(), cache: self.cache.display().to_string() }.into())
    }

    /// Every model in the cache, by name.
    pub fn list(&self) -> Result<Vec<CachedModel>> {
        let mut models = Vec::new();
        for folder in entries(&self.cache)? {
            let Some(name) = folder.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("models--"))
            else {
                continue;
            };
            let (mut bytes, mut incomplete) = (0, 0);
            for blob in entries(&folder.join("blobs"))? {
                let size = blob.metadata().map_or(0, |m| m.len());
                bytes += size;
                if blob.extension().is_some_and(|e| e == "incomplete") {
                    incomplete += size;
                }
            }
            let mut refs = BTreeMap::new();
            read_refs(&folder.join("refs"), "", &mut refs)?;
            let snapshots = entries(&folder.join("snapshots"))?
                .into_iter()
                .filter_map(|p| Some((p.file_name()?.to_str()?.to_owned(), p)))
                .collect();
            models.push(CachedModel { name: name.replace("--", "/"), bytes, incomplete, refs, snapshots });
        }
        models.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(models)
    }

    /// Removes a model, all its revisions, and returns the bytes that were freed.
    pub fn remove(&self, id: &str) -> Result<u64> {
        let id = ModelId::parse(id)?;
        let folder = self.cache.join(id.folder());
        let not_there = || HubError::NotCached { id: id.to_string(), cache: self.cache.display().to_string() };
        if !folder.is_dir() {
            return Err(not_there().into());
        }
        let model = self.list()?.into_iter().find(|m| m.name == id.name).ok_or_else(not_there)?;
        if id.revision != "main" {
            let why =
                "all revisions of a model share their files; name the model without a revision to remove them all";
            return Err(Error::invalid(id, why));
        }
        std::fs::remove_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        // Locks of what no longer exists; another process may hold one, so this may fail.
        let _ = std::fs::remove_dir_all(self.cache.join(".locks").join(id.folder()));
        Ok(model.bytes)
    }
}

/// What is in a folder; nothing, if there is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(folder) {
        Ok(list) => Ok(list.filter_map(|e| Some(e.ok()?.path())).collect()),
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(e) => Err(Error::io(folder, e)),
    }
}

fn read_refs(folder: &Path, prefix: &str, refs: &mut BTreeMap<String, String>) -> Result<()> {
    for path in entries(folder)? {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            read_refs(&path, &format!("{name}/"), refs)?;
        } else if let Ok(commit) = std::fs::read_to_string(&path) {
            refs.insert(name, commit.trim().to_owned());
        }
    }
    Ok(())
}
