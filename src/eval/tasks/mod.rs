//! Tasks: questions with known answers, in the published files of the field or in files of one's own.
//!
//! | file | subject |
//! |-|-|
//! | `header.rs`, `formats/` | the TOML header of a task and the built-in formats |
//! | `item.rs` | rows as prompts, choices and right answers; examples before a question |
//! | `multiple_choice.rs` | the likeliest choice, by log-likelihood |
//! | `generative.rs` | the model's own answer, extracted from its text |

mod generative;
mod header;
mod item;
mod multiple_choice;

pub use header::{FORMATS, Header, Kind, Task};
pub use item::{Item, Items};
pub use multiple_choice::encode_pair;

use crate::device::Device;
use crate::error::Result;
use crate::generate::Runtime;
use serde::Serialize;
use std::collections::BTreeMap;

/// How tasks are run.
#[derive(Clone, Debug, Default)]
pub struct TaskOptions {
    /// Examples before each question, instead of the header's number.
    pub num_fewshot: Option<usize>,
    /// At most this many rows of each task, from the first.
    pub limit: Option<usize>,
    /// Put description, examples and question into a user's turn of the model's chat template.
    pub apply_chat_template: bool,
}

/// Mean over the items of a task.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metric {
    /// Mean.
    pub value: f64,
    /// Standard error of the mean (sample deviation / sqrt n); 0 for a single item.
    pub stderr: f64,
}

impl Metric {
    /// Mean and standard error of one value per item.
    pub fn of(values: &[f64]) -> Metric {
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - value).powi(2)).sum();
        let stderr = if values.len() > 1 { (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
        Metric { value, stderr }
    }
}

/// What a model reached in a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TaskResult {
    /// Name of the task.
    pub name: String,
    /// How it was scored.
    pub kind: Kind,
    /// Rows asked.
    pub items: usize,
    /// Examples before each question.
    pub num_fewshot: usize,
    /// Requests whose context was cut from the left to fit the model.
    pub truncated: usize,
    /// The metric that counts in the recovery.
    pub metric: String,
    /// Every metric.
    pub metrics: BTreeMap<String, Metric>,
}

impl TaskResult {
    /// The metric that counts in the recovery.
    pub fn primary(&self) -> Metric {
        self.metrics[&self.metric]
    }
}

/// Runs one task.
pub fn run(dev: &Device, subject: &Runtime, task: &Task, options: &TaskOptions) -> Result<TaskResult> {
    let num_fewshot = options.num_fewshot.unwrap_or(task.header.num_fewshot);
    let items = Items::load(task, num_fewshot, options.limit)?;
    let (values, truncated) = match task.header.kind {
        Kind::MultipleChoice | Kind::Partial => multiple_choice::run(dev, subject, task, &items, options)?,
        Kind::Generate => generative::run(dev, subject, task, &items, options)?,
    };
    Ok(TaskResult {
        name: task.header.name.clone(),
        kind: task.header.kind,
        items: items.items.len(),
        num_fewshot,
        truncated,
        metric: task.header.primary_metric().to_string(),
        metrics: values.iter().map(|(name, values)| (name.to_string(), Metric::of(values))).collect(),
    })
}

/// Values of each metric, one per item.
type Values = BTreeMap<&'static str, Vec<f64>>;
