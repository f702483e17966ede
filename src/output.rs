//! Outputs that appear whole or not at all: a temporary sibling, fsync, rename, fsync of the directory; one writer at a time.

use crate::error::{Error, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The directory that holds `path` (`.` for a bare name).
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    parent(path).join(format!(".{name}.{suffix}"))
}

/// Makes a finished rename in `dir` survive a power cut.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io(dir, "sync"))
}

/// Holds an output against other writers until dropped. The system releases it even when the process is killed; its file then
/// stays for the next writer.
pub struct OutputLock {
    _file: File,
    name: PathBuf,
}

impl OutputLock {
    /// Locks `path` (which need not exist) through a hidden `.NAME.lock` beside it. [`Error::Locked`] when another process has it.
    pub fn acquire(path: &Path) -> Result<OutputLock> {
        let dir = parent(path);
        fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
        let name = sibling(path, "lock");
        loop {
            let file = File::create(&name).map_err(Error::io(&name, "create"))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(fs::TryLockError::WouldBlock) => return Err(Error::Locked { path: path.to_path_buf() }),
                Err(fs::TryLockError::Error(e)) => return Err(Error::io(&name, "lock")(e)),
            }
            // The last holder may have removed the file after it was opened here: then it holds nobody back.
            let mine = file.metadata().map_err(Error::io(&name, "read"))?;
            match fs::metadata(&name) {
                Ok(named) if (named.dev(), named.ino()) == (mine.dev(), mine.ino()) => {
                    return Ok(OutputLock { _file: file, name });
                }
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&name, "read")(e)),
                _ => {}
            }
        }
    }
}

impl Drop for OutputLock {
    fn drop(&mut self) {
        // While it is still held. On a disk that became read-only it stays, and is taken over by the next writer.
        let _ = fs::remove_file(&self.name);
    }
}

/// Writes one file whole or not at all; an earlier file of that name is replaced.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let dir = parent(path);
    fs::create_dir_all(dir).map_err(Error::io(dir, "create"))?;
    let temporary = sibling(path, "partial");
    let written = File::create(&temporary).and_then(|file| {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out)?;
        out.into_inner().map_err(|e| e.into_error())?.sync_all()
    });
    let named = written
        .map_err(Error::io(path, "write"))
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::io(path, "rename into place")));
    if named.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    named?;
    sync_dir(dir)
}

/// Keeps an output from taking the place of what it is made from: [`Error::Usage`] when `output` is one of the files or directories
/// of `inputs`, or holds one.
pub fn refuse_inputs<'a>(output: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    // What does not exist is no input, and an output that does not exist holds none.
    let Ok(target) = output.canonicalize() else { return Ok(()) };
    match inputs.into_iter().find(|input| input.canonicalize().is_ok_and(|input| input.starts_with(&target))) {
        None => Ok(()),
        Some(input) => {
            let found = format!("one that is or holds the input {}", input.display());
            Err(Error::usage(format!("output {}", output.display()), "another path than its inputs", found))
        }
    }
}

/// The error for an output that would be a file where something else stands: a directory, or a device such as `/dev/null`, which
/// would be replaced by a file for everyone.
pub fn refuse_other_than_file(output: &Path) -> Result<()> {
    // A link in there may lead to a file: `/dev/stdout` does, when that is redirected.
    let among_devices =
        parent(output).canonicalize().is_ok_and(|dir| dir == Path::new("/dev") || dir.starts_with("/proc"));
    let found = match fs::metadata(output) {
        Ok(there) if there.is_dir() => "a directory",
        Ok(there) if !there.is_file() || among_devices => "a device or a pipe",
        _ => return Ok(()),
    };
    Err(Error::usage(format!("output {}", output.display()), "a file to write", found))
}

/// Most bytes of a file that may be an earlier output of [`refuse_foreign_file`].
const MOST_REPORT: u64 = 256 << 20;

/// Keeps a file that this program did not make from being replaced: [`Error::Usage`] when `output` is there, is not empty and
/// `ours` does not know its bytes.
pub fn refuse_foreign_file(output: &Path, ours: impl FnOnce(&[u8]) -> bool) -> Result<()> {
    let mut bytes = Vec::new();
    match File::open(output) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        file => {
            file.and_then(|file| file.take(MOST_REPORT).read_to_end(&mut bytes)).map_err(Error::io(output, "read"))?
        }
    };
    if bytes.is_empty() || ours(&bytes) {
        return Ok(());
    }
    let expected = "an earlier output to replace (remove other things yourself)";
    Err(Error::usage(format!("output {}", output.display()), expected, "another file"))
}

/// Keeps what this program did not make from being replaced: [`Error::Usage`] for a file, and for a directory that holds
/// something but neither a model, an adapter, a checkpoint nor one of this program's records.
pub fn refuse_foreign(output: &Path) -> Result<()> {
    let foreign = |found: &str| {
        let expected = "an earlier output to replace (remove other things yourself)";
        Err(Error::usage(format!("output {} --overwrite", output.display()), expected, found))
    };
    if !output.is_dir() {
        return foreign("a file");
    }
    let mut empty = true;
    for entry in fs::read_dir(output).map_err(Error::io(output, "list"))? {
        let name = entry.map_err(Error::io(output, "list"))?.file_name();
        let name = name.to_string_lossy();
        let record = name.starts_with("ratoon_") && name.ends_with(".json");
        if record || ["config.json", "adapter_config.json", "trainer_state.json"].contains(&&*name) {
            return Ok(());
        }
        empty &= name.starts_with('.');
    }
    if empty { Ok(()) } else { foreign("a directory that holds something else") }
}

/// Removes an output directory. Its name goes first and in one step, so that a kill leaves no part of it under that name; what
/// it leaves under a hidden one goes with the next call.
pub fn remove_output(output: &Path) -> Result<()> {
    let hidden = sibling(output, "removed");
    if hidden.exists() {
        fs::remove_dir_all(&hidden).map_err(Error::io(&hidden, "remove"))?;
    }
    if output.exists() {
        fs::rename(output, &hidden).map_err(Error::io(output, "remove"))?;
        fs::remove_dir_all(&hidden).map_err(Error::io(&hidden, "remove"))?;
    }
    Ok(())
}

/// A directory that is filled under a hidden name and appears under its own when [committed](StagedDir::commit).
pub struct StagedDir {
    target: PathBuf,
    staging: PathBuf,
    _lock: OutputLock,
}

impl StagedDir {
    /// Starts an output directory. Left-overs of a killed run are removed; an existing output is an error unless `overwrite`
    /// and [something that may be replaced](refuse_foreign).
    pub fn create(target: &Path, overwrite: bool) -> Result<StagedDir> {
        if target.exists() {
            if !overwrite {
                let expected = "a path that does not exist yet (or --overwrite)";
                return Err(Error::usage(format!("output {}", target.display()), expected, "an existing one"));
            }
            refuse_foreign(target)?;
        }
        let lock = OutputLock::acquire(target)?;
        let staging = sibling(target, "partial");
        if staging.exists() {
            fs::remove_dir_all(&staging).map_err(Error::io(&staging, "remove"))?;
        }
        fs::create_dir(&staging).map_err(Error::io(&staging, "create"))?;
        Ok(StagedDir { target: target.to_path_buf(), staging, _lock: lock })
    }

    /// Where to write the files.
    pub fn path(&self) -> &Path {
        &self.staging
    }

    /// Syncs every file and gives the directory its name.
    pub fn commit(self) -> Result<()> {
        for entry in fs::read_dir(&self.staging).map_err(Error::io(&self.staging, "list"))? {
            let path = entry.map_err(Error::io(&self.staging, "list"))?.path();
            File::open(&path).and_then(|f| f.sync_all()).map_err(Error::io(&path, "sync"))?;
        }
        sync_dir(&self.staging)?;
        if self.target.exists() {
            self.replace()?;
        } else {
            fs::rename(&self.staging, &self.target).map_err(Error::io(&self.target, "rename into place"))?;
        }
        sync_dir(parent(&self.target))
    }

    /// Changes places with the earlier output in one step, so that one of the two has the name at every moment, and removes
    /// that one.
    fn replace(&self) -> Result<()> {
        match renameat_with(CWD, &self.staging, CWD, &self.target, RenameFlags::EXCHANGE) {
            Ok(()) => fs::remove_dir_all(&self.staging).map_err(Error::io(&self.staging, "remove")),
            // A file system that cannot: a kill between these two leaves neither.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::XDEV) => {
                fs::remove_dir_all(&self.target).map_err(Error::io(&self.target, "replace"))?;
                fs::rename(&self.staging, &self.target).map_err(Error::io(&self.target, "rename into place"))
            }
            Err(e) => Err(Error::io(&self.target, "replace")(e.into())),
        }
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        // Committed, there is none any more.
        let _ = fs::remove_dir_all(&self.staging);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[test]
    fn a_lock_leaves_nothing_and_has_one_holder_however_many_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let (target, holders, turns) = (dir.path().join("out"), AtomicUsize::new(0), AtomicUsize::new(0));
        let take_turns = || {
            while turns.load(SeqCst) < 2000 {
                let Ok(lock) = OutputLock::acquire(&target) else { continue };
                assert_eq!(holders.fetch_add(1, SeqCst), 0, "two writers at once");
                turns.fetch_add(1, SeqCst);
                holders.fetch_sub(1, SeqCst);
                drop(lock);
            }
        };
        std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(take_turns))));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // What a killed process left stands in nobody's way.
        fs::write(dir.path().join(".out.lock"), "").unwrap();
        drop(OutputLock::acquire(&target).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
