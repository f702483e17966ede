//! What a finished stage leaves behind: a file with the key of its settings and inputs, and its results.
//!
//! A stage whose stamp carries the key that it would be run with is not run again. The key covers the stage's own settings
//! and the keys of the stages that it reads, so a changed setting redoes that stage and everything after it.

use crate::device::{Device, Entry, Op};
use crate::error::{Error, Result};
use crate::output::write_file;
use crate::report::{OperationRow, StageRow};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
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

/// Runs a stage, or returns what it left behind when it is done already.
pub fn stage<T: Serialize + DeserializeOwned>(
    dev: &Device,
    output: &Path,
    name: &str,
    key: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<Stamp<T>> {
    let path = output.join(format!("stage-{name}.json"));
    if let Ok(text) = std::fs::read(&path)
        && let Ok(stamp) = serde_json::from_slice::<Stamp<T>>(&text)
        && stamp.key == key
    {
        crate::progress::line(&format!("{name}: done already"));
        return Ok(stamp);
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
