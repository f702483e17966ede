//! `checkpoint-N/`: weights or adapter, optimiser, `trainer_state.json`. Safetensors and JSON only, whole or not at all.

use super::log::LogEntry;
use super::model_dir::{copy_tokenizer, save_f32};
use super::options::FinetuneOptions;
use super::trainer::{Method, Trainer};
use crate::error::{Error, Result};
use crate::model::safetensors::{TensorSpec, WeightFiles, header_bytes};
use crate::output::{StagedDir, write_file};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};

const STATE: &str = "trainer_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const PREFIX: &str = "checkpoint-";

/// Where a run stands. The order of the data and every random number follow from it and the settings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TrainerState {
    /// Optimiser steps done; the position in the data.
    pub global_step: u64,
    /// Micro-batches done; the position in the random masks.
    pub micro_batches: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Tokens seen that carried a loss.
    pub target_tokens: u64,
    /// Floating-point operations so far.
    pub total_flops: u64,
    /// Seconds so far.
    pub seconds: f64,
    /// Every step's numbers.
    pub log_history: Vec<LogEntry>,
    /// The settings that the result depends on, fingerprints of model and data among them.
    pub settings: Map<String, Value>,
}

/// Writes `output/checkpoint-N` and removes the oldest ones over the limit.
pub fn save(options: &FinetuneOptions, trainer: &mut Trainer, state: &TrainerState) -> Result<PathBuf> {
    trainer.check_finite()?;
    let target = options.output.join(format!("{PREFIX}{}", state.global_step));
    let staged = StagedDir::create(&target, true)?;
    let dir = staged.path();
    match &options.method {
        Method::Lora(config) => trainer.save_adapter(config, dir, &options.model.to_string_lossy())?,
        Method::Full => {
            save_f32(&options.model, trainer, dir)?;
            copy_tokenizer(&options.model, dir)?;
        }
    }
    save_optimizer(trainer, &dir.join(OPTIMIZER))?;
    write_file(&dir.join(STATE), |out| Ok(serde_json::to_writer_pretty(out, state)?))?;
    staged.commit()?;
    if let Some(limit) = options.save_total_limit {
        let all = list(&options.output)?;
        for (_, old) in &all[..all.len().saturating_sub(limit)] {
            fs::remove_dir_all(old).map_err(Error::io(old, "remove"))?;
        }
    }
    Ok(target)
}

/// Checkpoints of an output directory, oldest first.
pub fn list(output: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(output).map_err(Error::io(output, "list"))? {
        let path = entry.map_err(Error::io(output, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = name.strip_prefix(PREFIX).and_then(|n| n.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Reads a checkpoint's state and refuses one that other settings made, naming the setting.
pub fn load_state(dir: &Path, settings: &Map<String, Value>) -> Result<TrainerState> {
    let path = dir.join(STATE);
    let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    let state: TrainerState = serde_json::from_str(&text)
        .map_err(|e| Error::format(&path, format!("line {}", e.line()), "the state of a run", e.to_string()))?;
    for key in settings.keys().chain(state.settings.keys()) {
        let (now, then) = (settings.get(key), state.settings.get(key));
        if now != then {
            let show = |v: Option<&Value>| v.map_or("none".to_string(), Value::to_string);
            return Err(Error::usage(
                format!("--{} (resuming {})", key.replace('_', "-"), dir.display()),
                format!("{}, as the run was started with (or --overwrite to start anew)", show(then)),
                show(now),
            ));
        }
    }
    Ok(state)
}

/// Brings `trainer` to where the checkpoint left it.
pub fn restore(dir: &Path, method: &Method, trainer: &mut Trainer, state: &TrainerState) -> Result<()> {
    let weights = match method {
        Method::Full => WeightFiles::open(dir)?,
        Method::Lora(_) => WeightFiles::open_files(vec![dir.join(crate::model::adapter::WEIGHTS)])?,
    };
    let moments = WeightFiles::open_files(vec![dir.join(OPTIMIZER)])?;
    let mut names = Vec::new();
    for (name, parameter) in trainer.parameters_mut()? {
        copy(&weights, &name, parameter)?;
        names.push(name);
    }
    for (kept, name) in trainer.moments.iter_mut().zip(&names) {
        for (kind, tensor) in kept.tensors_mut() {
            copy(&moments, &format!("{kind}.{name}"), tensor)?;
        }
    }
    trainer.round_masters()?;
    trainer.steps = state.global_step;
    trainer.micro_batches = state.micro_batches;
    Ok(())
}

fn copy(files: &WeightFiles, name: &str, to: &mut crate::device::Tensor) -> Result<()> {
    let from = files.tensor(name)?;
    if from.shape() != to.shape() || from.dtype() != to.dtype() {
        let found = format!("{} {:?}", from.dtype(), from.shape());
        let path = files.tensors.get(name).map(|info| files.path(info)).unwrap_or(Path::new(""));
        return Err(Error::format(path, format!("tensor {name}"), format!("{} {:?}", to.dtype(), to.shape()), found));
    }
    to.copy_from(&from)
}

fn save_optimizer(trainer: &mut Trainer, path: &Path) -> Result<()> {
    let names: Vec<String> = trainer.parameters_mut()?.into_iter().map(|(name, _)| name).collect();
    let kept = || {
        names.iter().zip(&trainer.moments).flat_map(|(name, kept)| {
            kept.tensors().into_iter().map(move |(kind, tensor)| (format!("{kind}.{name}"), tensor))
        })
    };
    let specs: Vec<TensorSpec> = kept().map(|(name, t)| TensorSpec::new(name, t.dtype(), t.shape())).collect();
    write_file(path, |out| {
        out.write_all(&header_bytes(&specs))?;
        kept().try_for_each(|(_, t)| out.write_all(t.host().map_err(std::io::Error::other)?.bytes()))
    })
}
