//! Converted models on disk. An entry is a model directory with a manifest that names every file's size and SHA-256; an entry that
//! does not match its manifest is built again.

use super::checksum::{sha256, sha256_file};
use crate::error::{Error, Result};
use crate::model::gguf::{CONVERTER_VERSION, GgufFile, convert_into};
use crate::output::StagedDir;
use crate::{interrupt, progress};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

const MANIFEST: &str = "ratoon_source.json";

/// Where converted models are kept: `$RATOON_CACHE`, else `$XDG_CACHE_HOME/ratoon`, else `~/.cache/ratoon`.
pub fn cache_dir() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("RATOON_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("ratoon")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/ratoon")))
        .ok_or_else(|| Error::usage("RATOON_CACHE", "a directory for converted models", "neither it nor HOME set"))
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    /// Nanoseconds since 1970. While size and time are those recorded the content is taken as unchanged, so that using a model does not
    /// read all of it; any other time means the sum is computed again.
    modified: u64,
    sha256: String,
}

impl FileRecord {
    fn of(path: &Path) -> Result<FileRecord> {
        let (bytes, modified) = size_and_time(path)?;
        Ok(FileRecord { bytes, modified, sha256: sha256_file(path)? })
    }

    fn matches(&self, path: &Path) -> bool {
        match size_and_time(path) {
            Ok((bytes, _)) if bytes != self.bytes => false,
            Ok((_, modified)) if modified == self.modified => true,
            Ok(_) => sha256_file(path).is_ok_and(|sum| sum == self.sha256),
            Err(_) => false,
        }
    }
}

fn size_and_time(path: &Path) -> Result<(u64, u64)> {
    let metadata = path.metadata().map_err(Error::io(path, "read"))?;
    let modified = metadata.modified().map_err(Error::io(path, "read"))?;
    let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64);
    Ok((metadata.len(), modified))
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    /// What was asked for.
    source: String,
    /// SHA-256 of the GGUF file.
    sha256: String,
    converter_version: u32,
    files: BTreeMap<String, FileRecord>,
}

fn manifest(entry: &Path) -> Option<Manifest> {
    serde_json::from_slice(&std::fs::read(entry.join(MANIFEST)).ok()?).ok()
}

/// Whether the entry holds what its manifest says, and the GGUF with sum `sha256` where one is asked for.
fn intact(entry: &Path, sha256: Option<&str>) -> bool {
    manifest(entry).is_some_and(|m| {
        m.converter_version == CONVERTER_VERSION
            && sha256.is_none_or(|wanted| wanted == m.sha256)
            && !m.files.is_empty()
            && m.files.iter().all(|(name, record)| record.matches(&entry.join(name)))
    })
}

/// How long to sleep between looks at another process's work.
const POLL: Duration = Duration::from_millis(200);

/// The cache entry `name`; built first when it is absent or damaged. `fetch` gives the GGUF file and its SHA-256; it may use the
/// directory it is given, which is emptied afterwards. While another process builds the same entry this one waits for it.
pub(super) fn entry(
    name: &str,
    source: &str,
    wanted: Option<&str>,
    fetch: &dyn Fn(&Path) -> Result<(PathBuf, String)>,
) -> Result<PathBuf> {
    let dir = cache_dir()?.join("models").join(format!("{name}-v{CONVERTER_VERSION}"));
    let mut said = false;
    loop {
        if intact(&dir, wanted) {
            return Ok(dir);
        }
        interrupt::check()?;
        let staged = match StagedDir::create(&dir, true) {
            Ok(staged) => staged,
            Err(Error::Locked { .. }) => {
                if !said {
                    progress::line(&format!("{source}: waiting for another process that converts it"));
                    said = true;
                }
                std::thread::sleep(POLL);
                continue;
            }
            Err(e) => return Err(e),
        };
        // The other process may have finished between the look and the lock.
        if intact(&dir, wanted) {
            return Ok(dir);
        }
        if dir.exists() {
            progress::line(&format!("{}: damaged or out of date, built again", dir.display()));
        }
        build(staged, source, wanted, fetch)?;
        return Ok(dir);
    }
}

fn build(
    staged: StagedDir,
    source: &str,
    wanted: Option<&str>,
    fetch: &dyn Fn(&Path) -> Result<(PathBuf, String)>,
) -> Result<()> {
    let download = staged.path().join("download");
    std::fs::create_dir(&download).map_err(Error::io(&download, "create"))?;
    let (gguf, sum) = fetch(&download)?;
    if let Some(wanted) = wanted.filter(|wanted| *wanted != sum) {
        return Err(Error::format(&gguf, "SHA-256", wanted, sum));
    }
    convert_into(&GgufFile::open(&gguf)?, staged.path(), None)?;
    std::fs::remove_dir_all(&download).map_err(Error::io(&download, "remove"))?;
    let mut files = BTreeMap::new();
    for file in std::fs::read_dir(staged.path()).map_err(Error::io(staged.path(), "list"))? {
        let file = file.map_err(Error::io(staged.path(), "list"))?;
        files.insert(file.file_name().to_string_lossy().into_owned(), FileRecord::of(&file.path())?);
    }
    let record = Manifest { source: source.to_string(), sha256: sum, converter_version: CONVERTER_VERSION, files };
    let path = staged.path().join(MANIFEST);
    let bytes = serde_json::to_vec_pretty(&record).map_err(|e| Error::io(&path, "serialise")(e.into()))?;
    std::fs::write(&path, bytes).map_err(Error::io(&path, "write"))?;
    staged.commit()
}

/// The converted form of a local GGUF file, by content: a copy or a renamed file finds the same entry.
pub(super) fn converted_gguf(path: &Path) -> Result<PathBuf> {
    let path = &path.canonicalize().map_err(Error::io(path, "read"))?;
    let sum = known_sum(path)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let stem: String =
        stem.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')).take(80).collect();
    let stem = stem.trim_start_matches('.');
    let fetched = (path.clone(), sum.clone());
    entry(&format!("gguf-{stem}-{}", &sum[..16]), &path.display().to_string(), Some(&sum), &|_| Ok(fetched.clone()))
}

/// The SHA-256 of a GGUF file, remembered by path, size and time so that a file of many gigabytes is read once.
fn known_sum(path: &Path) -> Result<String> {
    let name = sha256(path.as_os_str().as_encoded_bytes());
    let remembered = cache_dir()?.join("sums").join(format!("{name}.json"));
    let (bytes, modified) = size_and_time(path)?;
    let record: Option<FileRecord> =
        std::fs::read(&remembered).ok().and_then(|json| serde_json::from_slice(&json).ok());
    if let Some(record) = record.filter(|r| r.bytes == bytes && r.modified == modified) {
        return Ok(record.sha256);
    }
    if bytes > 1 << 30 {
        progress::line(&format!("{}: computing its SHA-256 ({} MB)", path.display(), bytes / 1_000_000));
    }
    let sha256 = sha256_file(path)?;
    let record = FileRecord { bytes, modified, sha256: sha256.clone() };
    let json = serde_json::to_vec(&record).map_err(|e| Error::io(&remembered, "serialise")(e.into()))?;
    crate::output::write_file(&remembered, |out| out.write_all(&json))?;
    Ok(sha256)
}

/// A model in the cache.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Its directory.
    pub path: PathBuf,
    /// What was asked for when it was made.
    pub source: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// It holds what its manifest says; otherwise the next use builds it again.
    pub intact: bool,
}

/// Every model in the cache, in order of name; empty when there is no cache yet.
pub fn entries() -> Result<Vec<Entry>> {
    let models = cache_dir()?.join("models");
    let Ok(list) = std::fs::read_dir(&models) else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = list.filter_map(|e| e.ok().map(|e| e.path())).collect();
    paths.retain(|p| p.is_dir() && !p.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.')));
    paths.sort();
    let entry = |path: PathBuf| {
        let manifest = manifest(&path);
        let bytes = manifest.as_ref().map_or(0, |m| m.files.values().map(|f| f.bytes).sum());
        let source = manifest.map_or_else(|| "unknown".to_string(), |m| m.source);
        Entry { intact: intact(&path, None), source, bytes, path }
    };
    Ok(paths.into_iter().map(entry).collect())
}
