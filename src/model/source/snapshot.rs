//! Snapshots of models on the Hugging Face hub, in the cache that other tools share.
//!
//! Files come one by one: the settings, then the weights, each checked against the size that the hub lists. The note of what a
//! revision stands for (`refs/REVISION`) is written last, so that a revision which the cache knows is whole.

use super::hub::Repository;
use crate::error::{Error, Result};
use crate::model::pickle;
use crate::model::safetensors::{INDEX, Index, SINGLE};
use crate::output::{OutputLock, write_file};
use crate::progress::{self, Progress};
use crate::{interrupt, output};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync, RepoTypeModel};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

/// How long a signal may wait, and a look at another process's work.
const POLL: Duration = Duration::from_millis(100);

/// The directory of a snapshot, fetched first as far as the cache lacks it.
pub(super) fn resolve(repository: &Repository) -> Result<PathBuf> {
    let snapshot = Snapshot::new(repository)?;
    let offline = std::env::var("HF_HUB_OFFLINE")
        .is_ok_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"));
    if offline {
        progress::line(&format!("{repository}: from the cache"));
        let absent = || format!("not whole in the cache {}, and HF_HUB_OFFLINE is set", snapshot.cache.display());
        return snapshot.cached().ok_or_else(|| snapshot.failed(absent()));
    }
    progress::line(&format!("{repository}: asking the hub"));
    let _lock = snapshot.lock()?;
    // The transfer has a thread of its own, so that a signal ends the wait for it.
    let (events, received) = mpsc::channel();
    std::thread::spawn(move || events.send(Event::Done(snapshot.fetch(&events))));
    let mut bar = None;
    loop {
        interrupt::check()?;
        match received.recv_timeout(POLL) {
            Ok(Event::Weights(bytes)) => bar = Some(Progress::start(&repository.to_string(), bytes, "bytes")),
            Ok(Event::Bytes(bytes)) => bar.iter().for_each(|bar| bar.add(bytes)),
            Ok(Event::Done(result)) => return result,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                let message = "the download stopped without a result".to_string();
                return Err(Error::Program { program: repository.to_string(), message });
            }
        }
    }
}

/// What the transfer tells.
enum Event {
    /// Bytes of weights that are going to come.
    Weights(u64),
    /// Bytes that came.
    Bytes(u64),
    Done(Result<PathBuf>),
}

/// Passes on how much of a file came.
struct Received {
    events: Sender<Event>,
    bytes: AtomicU64,
}

impl ProgressHandler for Received {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let bytes = match event {
            DownloadEvent::Progress { files } => files.iter().map(|file| file.bytes_completed).sum(),
            DownloadEvent::AggregateProgress { bytes_completed, .. } => *bytes_completed,
            _ => return,
        };
        let before = self.bytes.fetch_max(bytes, Relaxed);
        // Nobody listens any more after an interruption.
        let _ = self.events.send(Event::Bytes(bytes.saturating_sub(before)));
    }
}

struct Snapshot {
    repository: Repository,
    model: HFRepositorySync<RepoTypeModel>,
    cache: PathBuf,
    /// The repository's directory in the cache.
    home: PathBuf,
}

impl Snapshot {
    fn new(repository: &Repository) -> Result<Snapshot> {
        let failed = |e: HFError| Error::Program { program: repository.to_string(), message: reason(&e) };
        let client = HFClient::new().map_err(failed)?;
        let cache = client.cache_dir().to_path_buf();
        let Repository { owner, name, .. } = repository;
        let home = cache.join(format!("models--{owner}--{name}"));
        let model = HFClientSync::from_inner(client).map_err(failed)?.model(owner.as_str(), name.as_str());
        Ok(Snapshot { repository: repository.clone(), model, cache, home })
    }

    fn failed(&self, message: String) -> Error {
        Error::Program { program: self.repository.to_string(), message }
    }

    /// Waits for other processes that fetch from the same repository. The lock lies among those of other tools, which list what
    /// else stands in the cache.
    fn lock(&self) -> Result<OutputLock> {
        let locks = self.cache.join(".locks").join(self.home.file_name().unwrap_or_default());
        let mut said = false;
        loop {
            match OutputLock::acquire(&locks.join("ratoon")) {
                Err(Error::Locked { .. }) if !said => {
                    progress::line(&format!("{}: waiting for another process that fetches it", self.repository));
                    said = true;
                }
                Err(Error::Locked { .. }) => std::thread::sleep(POLL),
                other => return other,
            }
            interrupt::check()?;
        }
    }

    /// The snapshot as the cache has it; `None` when the cache does not know the revision or lacks one of its weight files.
    fn cached(&self) -> Option<PathBuf> {
        let revision = &self.repository.revision;
        let commit = match is_commit(revision) {
            true => revision.clone(),
            false => std::fs::read_to_string(self.home.join("refs").join(revision)).ok()?,
        };
        let dir = self.home.join("snapshots").join(commit.trim());
        let exists = |name: &str| dir.join(name).exists();
        let index = || Index::load(&dir.join(INDEX)).is_ok_and(|index| index.shards().into_iter().all(exists));
        (exists("config.json") && (exists(SINGLE) || index())).then_some(dir)
    }

    fn fetch(&self, events: &Sender<Event>) -> Result<PathBuf> {
        let revision = self.repository.revision.as_str();
        let commit = match self.model.info().revision(revision).send() {
            Ok(info) => info.sha.filter(|sha| is_commit(sha)),
            Err(e) => {
                let cached = if is_out_of_reach(&e) { self.cached() } else { None };
                let dir = cached.ok_or_else(|| self.failed(reason(&e)))?;
                progress::line(&format!("{}: from the cache, the hub gave: {}", self.repository, reason(&e)));
                return Ok(dir);
            }
        };
        let commit = commit.ok_or_else(|| self.failed("the hub names no commit".into()))?;
        let tree = self.model.list_tree().revision(commit.as_str()).send().map_err(|e| self.failed(reason(&e)))?;
        let files = tree.into_iter().filter_map(|entry| match entry {
            RepoTreeEntry::File { path, size, .. } if !path.contains('/') => Some((path, size)),
            _ => None,
        });
        let sizes: BTreeMap<String, u64> = files.collect();
        let dir = self.home.join("snapshots").join(&commit);
        for name in sizes.keys().filter(|name| name.ends_with(".json") || name.ends_with(".jinja")) {
            self.file(&commit, name, sizes[name], &dir, events)?;
        }
        let weights = self.weights(&sizes, &dir)?;
        let missing = weights.iter().filter(|(name, size)| !is_whole(&dir.join(name), **size));
        match missing.map(|(_, size)| size).sum() {
            0 => {}
            bytes => drop(events.send(Event::Weights(bytes))),
        }
        for (name, size) in weights {
            self.file(&commit, &name, size, &dir, events)?;
        }
        if !is_commit(revision) {
            write_file(&self.home.join("refs").join(revision), |out| out.write_all(commit.as_bytes()))?;
        }
        Ok(dir)
    }

    /// The weight files that a model directory needs, with their sizes.
    fn weights(&self, sizes: &BTreeMap<String, u64>, dir: &Path) -> Result<BTreeMap<String, u64>> {
        if let Some(&size) = sizes.get(SINGLE) {
            return Ok(BTreeMap::from([(SINGLE.to_string(), size)]));
        }
        if !sizes.contains_key(INDEX) {
            let place = PathBuf::from(self.repository.to_string());
            if let Some(name) = sizes.keys().find(|name| pickle::is_pickle(name)) {
                return Err(pickle::refuse_model(&place.join(name)));
            }
            let files = sizes.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Err(Error::format(&place, "repository", format!("{SINGLE} or {INDEX}"), files));
        }
        let path = dir.join(INDEX);
        let size = |name: &str| {
            let absent = || Error::format(&path, "weight_map", "shards that the repository has", name);
            Ok((name.to_string(), *sizes.get(name).ok_or_else(absent)?))
        };
        Index::load(&path)?.shards().into_iter().map(size).collect()
    }

    /// Fetches one file, unless it is there. What came with another size than the hub lists (a proxy's page, a connection that ended
    /// early) is removed.
    fn file(&self, commit: &str, name: &str, size: u64, dir: &Path, events: &Sender<Event>) -> Result<()> {
        let path = dir.join(name);
        if is_whole(&path, size) {
            return Ok(());
        }
        remove(&path)?;
        let progress = Received { events: events.clone(), bytes: AtomicU64::new(0) };
        let download = self.model.download_file().filename(name).revision(commit).progress(progress);
        download.send().map_err(|e| self.failed(format!("{name}: {}", reason(&e))))?;
        if is_whole(&path, size) {
            return output::sync_dir(dir);
        }
        let found = path.metadata().map_or(0, |file| file.len());
        remove(&path)?;
        Err(self.failed(format!("{name}: {size} bytes are listed, {found} came")))
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_whole(path: &Path, size: u64) -> bool {
    path.metadata().is_ok_and(|file| file.len() == size)
}

/// Removes a file of a snapshot with the content that it is a link to.
fn remove(path: &Path) -> Result<()> {
    for path in path.canonicalize().iter().map(PathBuf::as_path).chain([path]) {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(path, "remove")(e)),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the hub did not answer, or not for itself.
fn is_out_of_reach(error: &HFError) -> bool {
    match error {
        HFError::Request { .. } => true,
        HFError::Http { context } => context.status.is_server_error(),
        _ => false,
    }
}

/// One line: what happened, its cause, and what helps.
fn reason(error: &HFError) -> String {
    let mut text = error.to_string();
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    if let Some(cause) = causes.last().map(ToString::to_string).filter(|cause| !text.contains(cause.as_str())) {
        text += &format!(": {cause}");
    }
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if matches!(error, HFError::AuthRequired { .. } | HFError::Forbidden { .. }) {
        text += "; set HF_TOKEN to a token that may read it, and accept the model's terms on its page";
    }
    text
}
