//! Settings of a fine-tuning run.

use super::data::OnOverflow;
use super::optimizer::OptimizerOptions;
use super::schedule::SchedulerType;
use super::trainer::Method;
use crate::error::{Error, Result};
use crate::model::Recompute;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Whether an unfinished run in the output directory is continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Resume {
    /// From its newest checkpoint, when there is one.
    Auto,
    /// Never: an existing output is an error.
    Never,
}

/// Settings of a run, named as the command line names them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FinetuneOptions {
    /// Model directory.
    pub model: PathBuf,
    /// Dataset (JSONL or Parquet).
    pub data: PathBuf,
    /// Output directory.
    pub output: PathBuf,
    /// Replaces an existing output.
    pub overwrite: bool,
    /// Continues an unfinished run.
    pub resume: Resume,
    /// What is trained.
    pub method: Method,
    /// PEFT adapter to start from instead of a new one.
    pub adapter: Option<PathBuf>,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Shape of the learning rate.
    pub lr_scheduler_type: SchedulerType,
    /// Steps of warm-up; below 1: share of all steps.
    pub warmup_steps: f64,
    /// AdamW.
    pub optimizer: OptimizerOptions,
    /// Passes over the data.
    pub num_train_epochs: f64,
    /// Optimiser steps; overrides the epochs.
    pub max_steps: Option<u64>,
    /// Sequences (packs) of a micro-batch.
    pub per_device_train_batch_size: usize,
    /// Micro-batches of a step.
    pub gradient_accumulation_steps: usize,
    /// Most tokens of a sequence, which never has more than the model's context, and of a pack.
    pub max_length: usize,
    /// Short rows share a pack, without seeing each other.
    pub packing: bool,
    /// Prompts carry no loss.
    pub completion_only_loss: bool,
    /// What happens to rows longer than `max_length` or the model's context.
    pub on_overflow: OnOverflow,
    /// First rows of the dataset only.
    pub limit: Option<usize>,
    /// Seed of the order, of new adapters and of dropout.
    pub seed: u64,
    /// Steps between checkpoints.
    pub save_steps: Option<u64>,
    /// Checkpoints kept; older ones are removed.
    pub save_total_limit: Option<usize>,
    /// Steps between log lines.
    pub logging_steps: u64,
    /// What the backward pass computes again; `None`: nothing if memory allows.
    pub recompute: Option<Recompute>,
    /// Most memory in bytes; `None`: what the system has free.
    pub memory_budget: Option<u64>,
}

impl FinetuneOptions {
    /// The defaults of the command line for a LoRA run.
    pub fn new(model: PathBuf, data: PathBuf, output: PathBuf, method: Method) -> FinetuneOptions {
        let learning_rate = if method == Method::Full { 2e-5 } else { 1e-4 };
        FinetuneOptions {
            model,
            data,
            output,
            overwrite: false,
            resume: Resume::Auto,
            method,
            adapter: None,
            learning_rate,
            lr_scheduler_type: SchedulerType::Linear,
            warmup_steps: 0.0,
            optimizer: OptimizerOptions::default(),
            num_train_epochs: 3.0,
            max_steps: None,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            max_length: 1024,
            packing: false,
            completion_only_loss: true,
            on_overflow: OnOverflow::Error,
            limit: None,
            seed: 42,
            save_steps: None,
            save_total_limit: None,
            logging_steps: 1,
            recompute: None,
            memory_budget: None,
        }
    }

    /// Checks what can be checked without the model and the data.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("--per-device-train-batch-size", self.per_device_train_batch_size),
            ("--gradient-accumulation-steps", self.gradient_accumulation_steps),
            ("--logging-steps", self.logging_steps as usize),
            ("--save-steps", self.save_steps.map_or(1, |n| n as usize)),
            ("--save-total-limit", self.save_total_limit.unwrap_or(1)),
            ("--max-steps", self.max_steps.map_or(1, |n| n as usize)),
        ];
        if let Some((option, _)) = positive.into_iter().find(|&(_, n)| n == 0) {
            return Err(Error::usage(option, "1 or more", "0"));
        }
        if self.max_length < 2 {
            return Err(Error::usage("--max-length", "2 tokens or more", self.max_length.to_string()));
        }
        let o = self.optimizer;
        let below_one = |v: f64| (0.0..1.0).contains(&v);
        let not_negative = |v: f64| v >= 0.0 && v.is_finite();
        for (option, right, expected, value) in [
            ("--learning-rate", not_negative(self.learning_rate), "a number of 0 or more", self.learning_rate),
            ("--warmup-steps", not_negative(self.warmup_steps), "a number of 0 or more", self.warmup_steps),
            ("--weight-decay", not_negative(o.weight_decay), "a number of 0 or more", o.weight_decay),
            ("--max-grad-norm", not_negative(o.max_grad_norm), "a number of 0 or more", o.max_grad_norm),
            ("--adam-beta1", below_one(o.adam_beta1), "a number in [0, 1)", o.adam_beta1),
            ("--adam-beta2", below_one(o.adam_beta2), "a number in [0, 1)", o.adam_beta2),
            ("--adam-epsilon", not_negative(o.adam_epsilon), "a number of 0 or more", o.adam_epsilon),
            (
                "--num-train-epochs",
                self.num_train_epochs > 0.0 && self.num_train_epochs.is_finite(),
                "a number above 0",
                self.num_train_epochs,
            ),
        ] {
            if !right {
                return Err(Error::usage(option, expected, value.to_string()));
            }
        }
        if self.adapter.is_some() && self.method == Method::Full {
            return Err(Error::usage("--adapter", "a LoRA run", "--full"));
        }
        Ok(())
    }

    /// The settings that the result depends on, by the names of the options. A run is continued only with the same ones.
    pub fn decisive(&self) -> Map<String, Value> {
        /// Places, logging, and what changes no bit of the result. Model and data count by their content.
        const FREE: [&str; 11] = [
            "model",
            "data",
            "output",
            "overwrite",
            "resume",
            "adapter",
            "save_steps",
            "save_total_limit",
            "logging_steps",
            "recompute",
            "memory_budget",
        ];
        let Ok(Value::Object(all)) = serde_json::to_value(self) else { return Map::new() };
        let mut settings = Map::new();
        for (key, value) in all.into_iter().filter(|(key, _)| !FREE.contains(&key.as_str())) {
            match (key.as_str(), value) {
                ("optimizer", Value::Object(inner)) => settings.extend(inner),
                ("method", Value::Object(inner)) => {
                    for (kind, lora) in inner {
                        if let Value::Object(lora) = lora {
                            settings.extend(lora.into_iter().map(|(k, v)| {
                                let bare = k.trim_start_matches("lora_").to_string();
                                (format!("lora_{bare}"), v)
                            }));
                        }
                        settings.insert("method".into(), kind.into());
                    }
                }
                (_, value) => {
                    settings.insert(key, value);
                }
            }
        }
        settings
    }
}
