//! Memory of each stage of a recipe, planned before anything is loaded.

use super::chain::finetune_options;
use super::settings::Recipe;
use crate::device::Device;
use crate::error::Result;
use crate::eval::{self, EvalOptions, OwnTextOptions, tasks::TaskOptions};
use crate::generate::{self, EngineOptions};
use crate::model::safetensors::WeightFiles;
use crate::model::{Config, source};
use crate::prune::{self, ScoreOptions};
use crate::train::{MemoryPlan, pieces};
use std::path::PathBuf;

/// A stage's name, and its bytes by purpose.
pub type StagePlan = (&'static str, Vec<(&'static str, u64)>);

/// Bytes by purpose of every stage that runs a model. Students are planned with all the blocks of the base, of which they have fewer.
///
/// [`Error::Budget`](crate::Error::Budget) when training does not fit in any way; its other errors are those of the files.
pub fn memory(dev: &Device, recipe: &Recipe) -> Result<Vec<StagePlan>> {
    let base = source::resolve(&recipe.model)?;
    let options = ScoreOptions { metric: recipe.score.metric, ..ScoreOptions::default() };
    let score = prune::memory(dev, &base, None, &options, recipe.score.sample_tokens)?;
    let engine = EngineOptions { max_batch_size: recipe.distill.max_batch_size, ..EngineOptions::default() };
    let writer = dev.clone().with_compute(recipe.distill.compute)?;
    let distill = generate::memory(&writer, &engine, &base, None, None)?;
    let (config, weight_bytes) = (Config::load(&base)?, WeightFiles::open(&base)?.total_bytes());
    let options = finetune_options(&recipe.finetune, base.clone(), PathBuf::new(), PathBuf::new());
    let tokens = options.per_device_train_batch_size * options.max_length;
    let (method, optim) = (&options.method, options.optimizer.optim);
    let max_tokens = pieces::largest(dev, tokens, options.max_length);
    let plan = |recompute| MemoryPlan::new(dev, &config, method, optim, weight_bytes, max_tokens, recompute);
    let finetune = MemoryPlan::choose(dev, plan, None, None)?;
    let eval = eval::memory(
        dev,
        &EvalOptions {
            model: base.clone(),
            adapter: None,
            base: Some(base),
            perplexity: vec![recipe.eval.perplexity.clone()],
            window: recipe.eval.window_of(config.max_position_embeddings),
            limit_tokens: recipe.eval.limit_tokens,
            own_text: OwnTextOptions::default(),
            tasks: recipe.eval.tasks.clone(),
            task_options: TaskOptions::default(),
        },
    )?;
    Ok(vec![
        ("score", score.parts().to_vec()),
        ("distill", distill.parts().to_vec()),
        ("finetune", finetune.parts().to_vec()),
        ("eval", eval.parts().to_vec()),
    ])
}
