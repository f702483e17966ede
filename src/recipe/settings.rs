//! The recipe file: every key with its default. Keys are the options of the verbs, paths are relative to the recipe.

use crate::device::Compute;
use crate::error::{Error, Result};
use crate::eval::default_window;
use crate::input::read_text;
use crate::model::Projection;
use crate::prune::{Metric, Tokens};
use crate::train::SchedulerType;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A recipe. Unknown keys are errors.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Recipe {
    /// Heading of the report.
    pub title: String,
    /// The uncut model: a directory, a `.gguf`, `pypi:NAME==VERSION` or `hf:ORG/NAME`.
    pub model: String,
    /// Directory of everything that the run writes, relative to the working directory.
    pub output: PathBuf,
    /// Seed of sampling, shuffling and adapter initialisation.
    #[serde(default)]
    pub seed: u64,
    /// Which blocks to cut.
    pub score: ScoreSettings,
    /// How many.
    pub prune: PruneSettings,
    /// The rewriting of the training answers.
    pub distill: DistillSettings,
    /// The training of both students.
    pub finetune: FinetuneSettings,
    /// What is measured on all four models.
    pub eval: EvalSettings,
}

/// `[score]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ScoreSettings {
    /// Calibration text or rows.
    pub data: PathBuf,
    /// Numbers of adjacent blocks to score.
    #[serde(default = "defaults::block_sizes")]
    pub block_size: Vec<usize>,
    /// How blocks are compared.
    #[serde(default = "defaults::metric")]
    pub metric: Metric,
    /// Which tokens of a sample the distance is taken at.
    #[serde(default = "defaults::tokens")]
    pub tokens: Tokens,
    /// Number of samples.
    #[serde(default = "defaults::samples")]
    pub samples: usize,
    /// Tokens of one sample.
    #[serde(default = "defaults::sample_tokens")]
    pub sample_tokens: usize,
}

/// `[prune]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PruneSettings {
    /// Number of blocks to cut where the scores are best; one of `[score] block-size`.
    pub block_size: usize,
}

/// `[distill]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct DistillSettings {
    /// Training rows: questions with reference answers.
    pub data: PathBuf,
    /// `math`, `general` or a template file.
    #[serde(default = "defaults::template")]
    pub template: String,
    /// Sampling temperature; 0 is greedy.
    #[serde(default = "defaults::temperature")]
    pub temperature: f32,
    /// Nucleus sampling: the least set of tokens with this probability.
    #[serde(default = "defaults::top_p")]
    pub top_p: f32,
    /// Longest rewrite, in tokens.
    #[serde(default = "defaults::max_tokens")]
    pub max_tokens: usize,
    /// Only the first rows.
    pub limit: Option<usize>,
    /// Sequences generated side by side.
    #[serde(default = "defaults::generate_batch")]
    pub max_batch_size: usize,
    /// Precision of products.
    #[serde(default = "defaults::compute")]
    pub compute: Compute,
}

/// `[finetune]`: the same for the student on plain answers and the student on rewritten ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct FinetuneSettings {
    /// Train every weight instead of a LoRA adapter.
    #[serde(default)]
    pub full: bool,
    /// Rank of the adapter.
    #[serde(default = "defaults::lora_r")]
    pub lora_r: usize,
    /// Scale of the adapter: `lora-alpha / lora-r`.
    #[serde(default = "defaults::lora_alpha")]
    pub lora_alpha: f64,
    /// Dropout before the adapter.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Projections with an adapter.
    #[serde(default = "defaults::lora_target_modules")]
    pub lora_target_modules: Vec<Projection>,
    /// Peak learning rate.
    #[serde(default = "defaults::learning_rate")]
    pub learning_rate: f64,
    /// Shape of the learning rate after warm-up.
    #[serde(default = "defaults::lr_scheduler_type")]
    pub lr_scheduler_type: SchedulerType,
    /// Steps of rising learning rate; below 1, a share of all steps.
    #[serde(default)]
    pub warmup_steps: f64,
    /// AdamW's decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    #[serde(default = "defaults::max_grad_norm")]
    pub max_grad_norm: f64,
    /// Optimiser steps of each student.
    pub max_steps: u64,
    /// Rows of one batch.
    #[serde(default = "defaults::batch")]
    pub per_device_train_batch_size: usize,
    /// Batches of one optimiser step.
    #[serde(default = "defaults::one")]
    pub gradient_accumulation_steps: usize,
    /// Longest row, in tokens; longer ones are dropped and counted.
    #[serde(default = "defaults::max_length")]
    pub max_length: usize,
    /// Steps between checkpoints.
    #[serde(default = "defaults::save_steps")]
    pub save_steps: u64,
    /// Precision of products.
    #[serde(default = "defaults::compute")]
    pub compute: Compute,
}

/// `[eval]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EvalSettings {
    /// Held-out text for perplexity and the distance from the base.
    pub perplexity: PathBuf,
    /// Tokens of one window; the first of each is not scored. 1024, or the model's context if that is less.
    pub window: Option<usize>,
    /// Only the first tokens of the text.
    pub limit_tokens: Option<usize>,
    /// Task files.
    #[serde(default)]
    pub tasks: Vec<PathBuf>,
    /// Worked examples before each item.
    #[serde(default)]
    pub num_fewshot: usize,
    /// Only the first items of each task.
    pub limit: Option<usize>,
    /// Sequence length at which FLOPs with attention are stated.
    #[serde(default = "defaults::seq_len")]
    pub seq_len: usize,
}

impl EvalSettings {
    /// Tokens of one window for a model of that context.
    pub fn window_of(&self, context: usize) -> usize {
        self.window.unwrap_or(default_window(context))
    }
}

mod defaults {
    use super::{Compute, Metric, Projection, SchedulerType, Tokens};

    pub fn compute() -> Compute {
        Compute::Bf16
    }
    pub fn block_sizes() -> Vec<usize> {
        vec![2, 4, 6, 8, 10]
    }
    pub fn metric() -> Metric {
        Metric::Angular
    }
    pub fn tokens() -> Tokens {
        Tokens::Last
    }
    pub fn samples() -> usize {
        16
    }
    pub fn sample_tokens() -> usize {
        256
    }
    pub fn template() -> String {
        "general".into()
    }
    pub fn temperature() -> f32 {
        0.9
    }
    pub fn top_p() -> f32 {
        0.95
    }
    pub fn max_tokens() -> usize {
        512
    }
    pub fn generate_batch() -> usize {
        32
    }
    pub fn lora_r() -> usize {
        8
    }
    pub fn lora_alpha() -> f64 {
        16.0
    }
    pub fn lora_target_modules() -> Vec<Projection> {
        Projection::ALL.to_vec()
    }
    pub fn learning_rate() -> f64 {
        1e-4
    }
    pub fn lr_scheduler_type() -> SchedulerType {
        SchedulerType::Cosine
    }
    pub fn max_grad_norm() -> f64 {
        1.0
    }
    pub fn batch() -> usize {
        8
    }
    pub fn one() -> usize {
        1
    }
    pub fn max_length() -> usize {
        1024
    }
    pub fn save_steps() -> u64 {
        50
    }
    pub fn seq_len() -> usize {
        1024
    }
}

impl Recipe {
    /// Reads a recipe; its data paths become relative to the working directory.
    pub fn load(path: &Path) -> Result<Recipe> {
        let text = read_text(path)?;
        let mut recipe: Recipe = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Error::format(path, format!("line {line}"), "a recipe", e.message().to_string())
        })?;
        if !recipe.score.block_size.contains(&recipe.prune.block_size) {
            let found = format!("{} ([score] block-size is {:?})", recipe.prune.block_size, recipe.score.block_size);
            return Err(Error::format(path, "[prune] block-size", "one of the sizes that are scored", found));
        }
        let folder = crate::output::parent(path);
        let data = [
            ("[score] data", &mut recipe.score.data),
            ("[distill] data", &mut recipe.distill.data),
            ("[eval] perplexity", &mut recipe.eval.perplexity),
        ];
        for (key, file) in data.into_iter().chain(recipe.eval.tasks.iter_mut().map(|file| ("[eval] tasks", file))) {
            *file = folder.join(&*file);
            if !file.is_file() {
                return Err(Error::format(path, key, "a file that exists", file.display().to_string()));
            }
        }
        let template = folder.join(&recipe.distill.template);
        if template.is_file() {
            recipe.distill.template = template.display().to_string();
        }
        Ok(recipe)
    }
}
