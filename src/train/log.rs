//! Training logs: `log.jsonl`, one object a step, and TensorBoard events.

use super::tensorboard::EventWriter;
use crate::error::{Error, Result};
use crate::output::write_file;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Optimiser step, from 1.
    pub step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss over the step's target tokens, in nats.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens of the step.
    pub tokens: u64,
    /// Tokens of the step that carried a loss.
    pub target_tokens: u64,
}

/// Both logs of a run.
pub struct Log {
    path: PathBuf,
    jsonl: File,
    events: EventWriter,
}

impl Log {
    /// Opens the logs in `output`; `log.jsonl` starts again with `history`, so that a resumed run repeats no step.
    pub fn open(output: &Path, history: &[LogEntry], logging_steps: u64) -> Result<Log> {
        let path = output.join("log.jsonl");
        write_file(&path, |out| {
            for entry in history.iter().filter(|e| e.step.is_multiple_of(logging_steps)) {
                serde_json::to_writer(&mut *out, entry)?;
                writeln!(out)?;
            }
            Ok(())
        })?;
        let jsonl = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path, "open"))?;
        Ok(Log { path, jsonl, events: EventWriter::create(output)? })
    }

    /// Adds a step to both.
    pub fn write(&mut self, entry: &LogEntry) -> Result<()> {
        let mut line = serde_json::to_vec(entry).map_err(|e| Error::io(&self.path, "write")(e.into()))?;
        line.push(b'\n');
        self.jsonl.write_all(&line).map_err(Error::io(&self.path, "write"))?;
        let scalars = [
            ("train/loss", entry.loss as f32),
            ("train/grad_norm", entry.grad_norm as f32),
            ("train/learning_rate", entry.learning_rate as f32),
        ];
        self.events.scalars(entry.step, &scalars)
    }
}
