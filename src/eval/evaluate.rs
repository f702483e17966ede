//! Everything that `ratoon eval` measures, in one report.

use super::log_likelihood::{BATCH_TOKENS, SEQUENCES};
use super::tasks::{self, Metric, Task, TaskOptions, TaskResult};
use super::{Divergence, OwnText, OwnTextOptions, Perplexity, divergence, own_text, perplexity};
use crate::device::{Compute, Device, Weights};
use crate::error::{Error, Result};
use crate::generate::Runtime;
use crate::input::read_text;
use crate::model::{Config, InferencePlan};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to measure.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// Directory of the model.
    pub model: PathBuf,
    /// Directory of a PEFT adapter for the model.
    pub adapter: Option<PathBuf>,
    /// Directory of the model it was cut from; adds the distances and the recovery.
    pub base: Option<PathBuf>,
    /// Text files, joined by an empty line.
    pub perplexity: Vec<PathBuf>,
    /// Tokens in a window of the text.
    pub window: usize,
    /// Use this many tokens of the text, from its start.
    pub limit_tokens: Option<usize>,
    /// What the base writes for the measurement on its own text.
    pub own_text: OwnTextOptions,
    /// Data files or headers of tasks.
    pub tasks: Vec<PathBuf>,
    /// How tasks are run.
    pub task_options: TaskOptions,
}

impl EvalOptions {
    /// Nothing but the model: add what to measure.
    pub fn new(model: impl Into<PathBuf>) -> EvalOptions {
        EvalOptions {
            model: model.into(),
            adapter: None,
            base: None,
            perplexity: Vec::new(),
            window: 1024,
            limit_tokens: None,
            own_text: OwnTextOptions::default(),
            tasks: Vec::new(),
            task_options: TaskOptions::default(),
        }
    }
}

/// A task's results, the base's beside the model's.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskReport {
    /// The model's.
    #[serde(flatten)]
    pub result: TaskResult,
    /// The base's metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_metrics: Option<BTreeMap<String, Metric>>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EvalReport {
    /// Directory of the model.
    pub model: PathBuf,
    /// Directory of the model's adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// Directory of the base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<PathBuf>,
    /// How products were computed.
    pub compute: Compute,
    /// How weights were packed.
    pub weights: Weights,
    /// Perplexity of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<Perplexity>,
    /// The base's perplexity of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_perplexity: Option<Perplexity>,
    /// Distance from the base on the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
    /// Likelihood of the base's own text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own_text: Option<OwnText>,
    /// Tasks, in the order given.
    pub tasks: Vec<TaskReport>,
    /// Mean over tasks of each task's counting metric, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_percent: Option<f64>,
    /// The model's mean over the base's, in percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_percent: Option<f64>,
}

impl EvalReport {
    /// Whether a file's bytes are a report.
    pub fn wrote(bytes: &[u8]) -> bool {
        serde_json::from_slice::<serde_json::Value>(bytes)
            .is_ok_and(|report| report["tasks"].is_array() && report["compute"].is_string())
    }
}

/// Memory of [`evaluate`]: model and base at the same time, passes over 2,048 tokens or a window, and keys and values of two
/// batches of tasks' requests as long as a batch.
pub fn memory(dev: &Device, options: &EvalOptions) -> Result<InferencePlan> {
    let of = |dir: &Path, adapter: Option<&Path>| {
        let config = Config::load(dir)?;
        let cached = if options.tasks.is_empty() { 0 } else { 4 * BATCH_TOKENS };
        let plan = InferencePlan::of(dev, dir, adapter)?;
        let tokens = if options.perplexity.is_empty() { BATCH_TOKENS } else { BATCH_TOKENS.max(options.window) };
        let plan = plan.with_pass(dev, &config, tokens, 0).with_log_probs(dev, &config, tokens);
        let plan = plan.with_cache(dev, &config, cached);
        Ok::<_, Error>(match cached {
            0 => plan,
            _ => plan.with_pages(dev, &config, BATCH_TOKENS, SEQUENCES, BATCH_TOKENS, 1),
        })
    };
    let plan = of(&options.model, options.adapter.as_deref())?;
    options.base.as_deref().map_or(Ok(plan), |base| Ok(plan.and(of(base, None)?)))
}

/// Measures what the options ask for.
///
/// Errors before anything is computed when nothing is asked for or a task's files do not fit their header.
pub fn evaluate(dev: &Device, options: &EvalOptions) -> Result<EvalReport> {
    if options.perplexity.is_empty() && options.tasks.is_empty() {
        return Err(Error::usage("eval", "--perplexity FILE, --tasks FILE or both", "neither"));
    }
    let tasks = options.tasks.iter().map(|path| Task::load(path)).collect::<Result<Vec<Task>>>()?;
    let model = Runtime::load_adapted(dev, &options.model, options.adapter.as_deref())?;
    let base = options.base.as_deref().map(|dir| Runtime::load(dev, dir)).transpose()?;
    let mut report = EvalReport {
        model: options.model.clone(),
        adapter: options.adapter.clone(),
        base: options.base.clone(),
        compute: dev.compute(),
        weights: dev.weights(),
        perplexity: None,
        base_perplexity: None,
        divergence: None,
        own_text: None,
        tasks: Vec::new(),
        mean_percent: None,
        recovery_percent: None,
    };
    if !options.perplexity.is_empty() {
        let limit = options.limit_tokens.unwrap_or(usize::MAX);
        let ids = model.tokenizer.encode_first(&read_texts(&options.perplexity)?, true, limit)?;
        let measure = |subject: &Runtime| {
            perplexity(dev, &subject.model, &ids, options.window)?.with_bytes(&ids, &subject.tokenizer)
        };
        report.perplexity = Some(measure(&model)?);
        if let Some(base) = &base {
            report.base_perplexity = Some(measure(base)?);
            report.divergence = Some(divergence(dev, &base.model, &model.model, &ids, options.window)?);
            report.own_text = own_text(dev, base, &model, &ids, options.own_text)?;
        }
    }
    let mut base_primary = Vec::new();
    for task in &tasks {
        let result = tasks::run(dev, &model, task, &options.task_options)?;
        let base_result = base.as_ref().map(|base| tasks::run(dev, base, task, &options.task_options)).transpose()?;
        base_primary.extend(base_result.as_ref().map(|result| result.primary().value));
        report.tasks.push(TaskReport { result, base_metrics: base_result.map(|result| result.metrics) });
    }
    if !tasks.is_empty() {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let own: Vec<f64> = report.tasks.iter().map(|task| task.result.primary().value).collect();
        report.mean_percent = Some(100.0 * mean(&own));
        if base.is_some() && mean(&base_primary) > 0.0 {
            report.recovery_percent = Some(100.0 * mean(&own) / mean(&base_primary));
        }
    }
    Ok(report)
}

/// The files' texts, joined by an empty line.
fn read_texts(paths: &[PathBuf]) -> Result<String> {
    Ok(paths.iter().map(|path| read_text(path)).collect::<Result<Vec<_>>>()?.join("\n\n"))
}
