//! A fine-tuning run from a dataset to a finished output directory.

use super::checkpoint::{self, TrainerState};
use super::data::{Order, RowCounts, Sequence, TokenizeOptions, pack, tokenize};
use super::log::{Log, LogEntry};
use super::memory::MemoryPlan;
use super::model_dir::{copy_tokenizer, fingerprint, hex, save_like};
use super::options::{FinetuneOptions, Resume};
use super::pieces;
use super::schedule::Schedule;
use super::trainer::{Method, Trainer, TrainerOptions};
use crate::data;
use crate::device::{Device, peak::peak_memory};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::adapter;
use crate::model::safetensors::WeightFiles;
use crate::model::{Config, Llama};
use crate::output::{OutputLock, StagedDir, refuse_foreign, refuse_inputs, remove_output, sync_dir, write_file};
use crate::progress::{Progress, line};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Record of a finished run, written last: an output that has it is whole.
pub const MANIFEST: &str = "ratoon_finetune.json";
/// Marks a directory as a run's output while it is not finished.
const MARKER: &str = "ratoon_run.json";

/// What a run did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FinetuneReport {
    /// Output directory.
    pub output: PathBuf,
    /// Optimiser steps.
    pub steps: u64,
    /// Passes over the data.
    pub epochs: f64,
    /// Mean loss of each step, in nats.
    pub losses: Vec<f64>,
    /// What became of the rows.
    pub rows: RowCounts,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Those of them that carried a loss.
    pub target_tokens: u64,
    /// Parameters that were trained.
    pub trained_parameters: u64,
    /// Floating-point operations that the ledger counted.
    pub flops: u64,
    /// Seconds in training steps and checkpoints, all runs together.
    pub seconds: f64,
    /// Most memory that the process held, in bytes.
    pub peak_memory: Option<u64>,
    /// What was planned.
    pub plan: MemoryPlan,
    /// The settings that the result depends on.
    pub settings: Map<String, Value>,
}

/// Data, order and memory of a run: everything that is known before the weights are loaded.
pub struct Prepared {
    /// Sequences in the order of the dataset.
    pub sequences: Vec<Sequence>,
    /// What became of the rows.
    pub rows: RowCounts,
    /// Order of the steps.
    pub order: Order,
    /// Optimiser steps of the run.
    pub total_steps: u64,
    /// Bytes of the run.
    pub plan: MemoryPlan,
    max_tokens: usize,
}

/// Reads and tokenises the data and plans the steps and the memory. [`Error::Budget`] when it does not fit.
pub fn prepare(dev: &Device, options: &FinetuneOptions) -> Result<Prepared> {
    options.check()?;
    let config = Config::load(&options.model)?;
    if let Method::Lora(lora) = &options.method {
        lora.check(config.num_hidden_layers)?;
    }
    let rows = data::read(&options.data, &data::ReadOptions { limit: options.limit, ..Default::default() })?;
    let tokenize_options = TokenizeOptions {
        max_length: options.max_length.min(config.max_position_embeddings),
        completion_only_loss: options.completion_only_loss,
        on_overflow: options.on_overflow,
    };
    let (sequences, rows) = tokenize(&options.model, &options.data, &rows, tokenize_options)?;
    let lengths: Vec<usize> = sequences.iter().map(|s| s.ids.len()).collect();
    let order = Order {
        packs: pack(&lengths, options.max_length, options.packing),
        batch_size: options.per_device_train_batch_size,
        accumulation: options.gradient_accumulation_steps,
        seed: options.seed,
    };
    let total_steps = options
        .max_steps
        .unwrap_or_else(|| ((options.num_train_epochs * order.steps_per_epoch() as f64).ceil() as u64).max(1));
    let longest = lengths.iter().copied().max().unwrap_or(0);
    let max_tokens = pieces::largest(dev, order.max_tokens(&lengths), longest);
    let weight_bytes = WeightFiles::open(&options.model)?.total_bytes();
    let (method, optim) = (&options.method, options.optimizer.optim);
    optim.check(dev)?;
    let plan = |recompute| MemoryPlan::new(dev, &config, method, optim, weight_bytes, max_tokens, recompute);
    let plan = MemoryPlan::choose(dev, plan, options.recompute, options.memory_budget)?;
    Ok(Prepared { sequences, rows, order, total_steps, plan, max_tokens })
}

/// Fine-tunes a model. An interrupted or killed run is continued by the same call, with the bits of an unbroken one.
///
/// Errors: [`Error::Usage`] for settings that contradict each other or the run that is continued, [`Error::Budget`],
/// [`Error::NotFinite`] when loss or gradients diverge, [`Error::Interrupted`] after a signal, with a checkpoint written.
pub fn finetune(dev: &Device, options: &FinetuneOptions) -> Result<FinetuneReport> {
    let FinetuneOptions { model, data, adapter, output, .. } = options;
    refuse_inputs(output, [model, data].into_iter().chain(adapter).map(PathBuf::as_path))?;
    let prepared = prepare(dev, options)?;
    let settings = settings(dev, options, &prepared.sequences)?;
    let _lock = OutputLock::acquire(&options.output)?;
    if let Some(report) = start_output(options, &settings)? {
        return Ok(report);
    }
    let steps_per_epoch = prepared.order.steps_per_epoch() as f64;
    let (mut trainer, mut state) = start_trainer(dev, options, &prepared, settings)?;
    let record = json!({ "settings": state.settings });
    write_file(&options.output.join(MARKER), |out| Ok(serde_json::to_writer_pretty(out, &record)?))?;
    let mut log = Log::open(&options.output, &state.log_history, options.logging_steps)?;
    let progress = Progress::start("finetune", prepared.total_steps, "steps");
    progress.add(state.global_step);
    while state.global_step < prepared.total_steps {
        let (start, flops) = (Instant::now(), dev.ledger().flops());
        let micro_batches: Vec<Vec<&Sequence>> = prepared
            .order
            .step(state.global_step)
            .into_iter()
            .map(|members| members.into_iter().map(|i| &prepared.sequences[i]).collect())
            .collect();
        let step = trainer.step_on(&micro_batches)?;
        state.global_step = trainer.steps;
        state.micro_batches = trainer.micro_batches;
        state.tokens += step.tokens;
        state.target_tokens += step.target_tokens;
        state.total_flops += dev.ledger().flops() - flops;
        let entry = LogEntry {
            step: state.global_step,
            epoch: state.global_step as f64 / steps_per_epoch,
            loss: step.loss,
            grad_norm: step.grad_norm,
            learning_rate: step.learning_rate,
            tokens: step.tokens,
            target_tokens: step.target_tokens,
        };
        state.log_history.push(entry);
        if entry.step.is_multiple_of(options.logging_steps) {
            log.write(&entry)?;
        }
        state.seconds += start.elapsed().as_secs_f64();
        progress.message(format!(
            "loss {:.4}, {:.0} tokens/s",
            step.loss,
            step.tokens as f64 / start.elapsed().as_secs_f64()
        ));
        progress.add(1);
        let stopped = interrupt::check();
        let last = state.global_step == prepared.total_steps;
        let due = options.save_steps.is_some_and(|n| state.global_step.is_multiple_of(n));
        if !last && (due || stopped.is_err()) {
            checkpoint::save(options, &mut trainer, &state)?;
        }
        if !last {
            stopped?;
        }
    }
    finish(options, &prepared, &mut trainer, &state)
}

/// The decisive settings with fingerprints of model, tokens and initial adapter.
fn settings(dev: &Device, options: &FinetuneOptions, sequences: &[Sequence]) -> Result<Map<String, Value>> {
    let mut settings = options.decisive();
    settings.insert("compute".into(), json!(dev.compute()));
    if !dev.is_cpu() {
        settings.insert("device".into(), dev.description().into());
    }
    let mut hash = Sha256::new();
    for sequence in sequences {
        hash.update((sequence.ids.len() as u64).to_le_bytes());
        sequence.ids.iter().chain(&sequence.targets).for_each(|id| hash.update(id.to_le_bytes()));
    }
    settings.insert("data".into(), hex(&hash.finalize()).into());
    settings.insert("model".into(), fingerprint(&options.model)?.into());
    if let Some(dir) = &options.adapter {
        let path = adapter::weights_path(dir)?;
        let bytes = fs::read(&path).map_err(Error::io(&path, "read"))?;
        settings.insert("adapter".into(), hex(&Sha256::digest(bytes)).into());
    }
    Ok(settings)
}

/// Whether there is more than the hidden files of a run that was killed at its very start.
fn holds_files(dir: &Path) -> Result<bool> {
    for entry in fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let entry = entry.map_err(Error::io(dir, "list"))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Makes the output directory ready. Returns the report of a run that was finished before with the same settings.
fn start_output(options: &FinetuneOptions, settings: &Map<String, Value>) -> Result<Option<FinetuneReport>> {
    let output = &options.output;
    let (manifest, marker) = (output.join(MANIFEST), output.join(MARKER));
    let occupied = output.exists() && (!output.is_dir() || holds_files(output)?);
    if options.overwrite {
        if occupied {
            refuse_foreign(output)?;
        }
        remove_output(output)?;
    } else if occupied {
        if options.resume == Resume::Never || !(manifest.exists() || marker.exists()) {
            let expected = "a path that does not exist yet (or --overwrite)";
            return Err(Error::usage(format!("output {}", output.display()), expected, "an existing one"));
        }
        if manifest.exists() {
            let text = fs::read_to_string(&manifest).map_err(Error::io(&manifest, "read"))?;
            let report: FinetuneReport = serde_json::from_str(&text)
                .map_err(|e| Error::format(&manifest, format!("line {}", e.line()), "a run's record", e.to_string()))?;
            if report.settings == *settings {
                remove_traces(output)?;
                line(&format!("{}: finished before with the same settings", output.display()));
                return Ok(Some(report));
            }
            let expected = "a new path (or --overwrite)";
            return Err(Error::usage(
                format!("output {}", output.display()),
                expected,
                "a finished run with other settings",
            ));
        }
    }
    fs::create_dir_all(output).map_err(Error::io(output, "create"))?;
    Ok(None)
}

/// The model with its adapter and optimiser, at the start or where the newest checkpoint left it.
fn start_trainer(
    dev: &Device,
    options: &FinetuneOptions,
    prepared: &Prepared,
    settings: Map<String, Value>,
) -> Result<(Trainer, TrainerState)> {
    let newest = checkpoint::list(&options.output)?.pop();
    let state = match &newest {
        Some((_, dir)) => checkpoint::load_state(dir, &settings)?,
        None => TrainerState { settings, ..TrainerState::default() },
    };
    let mut model = Llama::load(&options.model)?;
    if let Some(dir) = &options.adapter {
        model = model.with_adapter(dir)?;
    }
    let total_steps = prepared.total_steps;
    let warmup = options.warmup_steps;
    let warmup_steps = if warmup < 1.0 { (warmup * total_steps as f64).ceil() } else { warmup } as u64;
    let trainer_options = TrainerOptions {
        method: options.method.clone(),
        optimizer: options.optimizer,
        schedule: Schedule {
            learning_rate: options.learning_rate,
            kind: options.lr_scheduler_type,
            warmup_steps,
            total_steps,
        },
        recompute: prepared.plan.recompute,
        max_tokens: prepared.max_tokens,
        seed: options.seed,
    };
    let mut trainer = Trainer::new(dev, model, trainer_options)?;
    if let Some((step, dir)) = &newest {
        checkpoint::restore(dir, &options.method, &mut trainer, &state)?;
        line(&format!("resuming after step {step} of {total_steps}"));
    }
    Ok((trainer, state))
}

/// Writes the result: staged, then each file moved into place, what makes the directory loadable and the manifest last.
fn finish(
    options: &FinetuneOptions,
    prepared: &Prepared,
    trainer: &mut Trainer,
    state: &TrainerState,
) -> Result<FinetuneReport> {
    let output = &options.output;
    trainer.check_finite()?;
    let staged = StagedDir::create(&output.join("final"), true)?;
    match &options.method {
        Method::Lora(config) => trainer.save_adapter(config, staged.path(), &options.model.to_string_lossy())?,
        Method::Full => save_like(&options.model, trainer, staged.path())?,
    }
    copy_tokenizer(&options.model, staged.path())?;
    move_files(staged.path(), output)?;
    let report = FinetuneReport {
        output: output.clone(),
        steps: state.global_step,
        epochs: state.global_step as f64 / prepared.order.steps_per_epoch() as f64,
        losses: state.log_history.iter().map(|e| e.loss).collect(),
        rows: prepared.rows,
        tokens: state.tokens,
        target_tokens: state.target_tokens,
        trained_parameters: trainer.trained_parameters(),
        flops: state.total_flops,
        seconds: state.seconds,
        peak_memory: peak_memory(),
        plan: prepared.plan,
        settings: state.settings.clone(),
    };
    write_file(&output.join(MANIFEST), |out| Ok(serde_json::to_writer_pretty(out, &report)?))?;
    drop(staged);
    remove_traces(output)?;
    Ok(report)
}

/// Removes the marker, the locks of checkpoints and what killed runs left half-written: the run is finished.
fn remove_traces(output: &Path) -> Result<()> {
    for entry in fs::read_dir(output).map_err(Error::io(output, "list"))? {
        let path = entry.map_err(Error::io(output, "list"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name == MARKER || (name.starts_with('.') && (name.ends_with(".lock") || name.ends_with(".partial"))) {
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io(&path, "remove"))?;
        }
    }
    Ok(())
}

fn move_files(from: &Path, to: &Path) -> Result<()> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(from).map_err(Error::io(from, "list"))? {
        files.push(entry.map_err(Error::io(from, "list"))?.path());
    }
    let config = |p: &PathBuf| p.ends_with("config.json") || p.ends_with(adapter::CONFIG);
    files.sort_by_key(|p| (config(p), p.clone()));
    for file in files {
        let target = to.join(file.file_name().unwrap_or_default());
        fs::rename(&file, &target).map_err(Error::io(&target, "rename into place"))?;
    }
    sync_dir(to)
}
