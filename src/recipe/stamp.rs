//! What a finished stage leaves behind: a file with the key of its settings and inputs, and its results.
//!
//! While the stage runs, the file holds that key alone: what stands in the output then belongs to it and is gone on with.
//! A stage whose stamp carries the key that it would be run with is not run again. The key covers the stage's own settings
//! and the keys of the stages that it reads, so a changed setting redoes that stage and everything after it.

use crate::device::{Device, Entry, Op};
use crate::error::{Error, Result};
use crate::output::write_file;
use crate::report::{OperationRow, StageRow};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::time::Instant;

/// The stamp file: `stage-NAME.json`.
#[derive(Serialize, Deserialize)]
pub struct Stamp<T> {
    /// Hash of the settings and inputs, see [`key`].
    pub key: String,
    /// What the stage found out.
    pub result: T,
    /// Its time and work.
    pub row: StageRow,
    /// Its work by operation.
    pub operations: Vec<OperationRow>,
}

/// Hash of a stage's settings and of what it reads.
pub fn key(settings: &impl Serialize, inputs: &[&str]) -> String {
    let mut hash = Sha256::new();
    hash.update(serde_json::to_vec(settings).unwrap_or_default());
    for input in inputs {
        hash.update([0]);
        hash.update(input);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hash of a file's bytes, for [`key`].
pub fn file_key(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    Ok(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
}

/// A stage by name, and the files and directories in the run's output that belong to it.
pub struct Stage<'a> {
    /// Name in the stamp's file name and in the report.
    pub name: &'a str,
    /// What is there when the stage is done.
    pub makes: &'a [&'a str],
    /// What may be there besides.
    pub leaves: &'a [&'a str],
}

impl Stage<'_> {
    /// What the stamp says: done with this key, begun with this key, or something to start anew.
    fn read<T: DeserializeOwned>(&self, output: &Path, path: &Path, key: &str) -> Result<Progressed<T>> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // Nothing says that these are this run's to replace.
                return match self.makes.iter().chain(self.leaves).find(|name| output.join(name).exists()) {
                    None => Ok(Progressed::Nothing),
                    Some(name) => Err(Error::usage(
                        format!("output {}", output.join(name).display()),
                        "a path that does not exist yet (choose another output or remove it)",
                        "one that is not of this run",
                    )),
                };
            }
            Err(e) => return Err(Error::io(path, "read")(e)),
        };
        let stamp: Value = serde_json::from_slice(&text).unwrap_or_default();
        if stamp["begun"] == key {
            return Ok(Progressed::Begun);
        }
        if stamp["key"] == key && self.makes.iter().all(|name| output.join(name).exists()) {
            // A stamp of another version of the program is no stamp.
            return Ok(serde_json::from_value(stamp).map_or(Progressed::Nothing, Progressed::Done));
        }
        Ok(Progressed::Nothing)
    }

    /// Withdraws the stamp of a run with other settings, removes what that left, then marks the stage as begun with `key`: in
    /// this order, so that whatever stands beside a key belongs to it and is whole, at whatever moment the process is killed.
    fn begin(&self, output: &Path, path: &Path, key: &str) -> Result<()> {
        let mark = |key: Option<&str>| {
            write_file(path, |out| serde_json::to_writer_pretty(out, &json!({ "begun": key })).map_err(Into::into))
        };
        mark(None)?;
        for name in self.makes.iter().chain(self.leaves) {
            let old = output.join(name);
            let removed = if old.is_dir() { std::fs::remove_dir_all(&old) } else { std::fs::remove_file(&old) };
            match removed {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io(&old, "remove")(e)),
                _ => {}
            }
        }
        mark(Some(key))
    }
}

/// How far a stage has come.
enum Progressed<T> {
    Done(Stamp<T>),
    Begun,
    Nothing,
}

/// Runs a stage, goes on with it, or returns what it left behind when it is done already. `work` finds either nothing of an
/// earlier run or what was begun with the same key.
pub fn run_stage<T: Serialize + DeserializeOwned>(
    dev: &Device,
    output: &Path,
    stage: Stage,
    key: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<Stamp<T>> {
    let name = stage.name;
    let path = output.join(format!("stage-{name}.json"));
    match stage.read(output, &path, key)? {
        Progressed::Done(stamp) => {
            crate::progress::line(&format!("{name}: done already"));
            return Ok(stamp);
        }
        Progressed::Begun => {}
        Progressed::Nothing => stage.begin(output, &path, key)?,
    }
    crate::interrupt::check()?;
    let (before, tokens, start) = (dev.ledger().snapshot(), dev.ledger().tokens(), Instant::now());
    let result = work()?;
    let seconds = start.elapsed().as_secs_f64();
    let operations: Vec<OperationRow> = dev
        .ledger()
        .snapshot()
        .into_iter()
        .zip(before)
        .map(|((op, after), (_, before))| operation_row(op, after - before))
        .filter(|row| row.calls > 0)
        .collect();
    let row = StageRow {
        name: name.to_string(),
        seconds,
        flops: operations.iter().map(|op| op.flops).sum(),
        tokens: dev.ledger().tokens() - tokens,
        peak_memory: crate::device::peak::peak_memory(),
    };
    let stamp = Stamp { key: key.to_string(), result, row, operations };
    write_file(&path, |out| serde_json::to_writer_pretty(out, &stamp).map_err(Into::into))?;
    Ok(stamp)
}

fn operation_row(op: Op, entry: Entry) -> OperationRow {
    let Entry { calls, flops, bytes, seconds } = entry;
    OperationRow { name: op.name().to_string(), calls, flops, bytes, seconds }
}
