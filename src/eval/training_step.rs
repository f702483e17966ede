//! A training step of given size, to be measured or counted: which sequences, what is trained, what it takes.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::adapter::LoraConfig;
use crate::model::{Config, Projection, Recompute};
use crate::train::{MemoryPlan, Method, Optim, OptimizerOptions, Schedule, SchedulerType, TrainerOptions, pieces};
use std::str::FromStr;

/// Sequences of a training step and tokens of each, written `4x512`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Sequences.
    pub sequences: usize,
    /// Tokens of each.
    pub tokens: usize,
}

impl FromStr for StepShape {
    type Err = String;

    /// Reads `4x512`.
    fn from_str(text: &str) -> std::result::Result<StepShape, String> {
        let sizes = text.split_once('x').and_then(|(s, t)| Some((s.parse().ok()?, t.parse().ok()?)));
        match sizes {
            Some((sequences, tokens)) if sequences > 0 => Ok(StepShape { sequences, tokens }),
            _ => Err("expected SEQUENCESxTOKENS, for instance 4x512".into()),
        }
    }
}

/// A training step: one micro-batch of packed sequences, each token but the last of a sequence predicting the next.
#[derive(Clone, Copy, Debug)]
pub struct TrainingStep {
    /// Its batch.
    pub shape: StepShape,
    /// Rank of an adapter on all seven projections of every block; `None`: every weight is trained.
    pub lora_r: Option<usize>,
    /// How the optimiser keeps its moments.
    pub optim: Optim,
}

impl TrainingStep {
    /// What is trained; alpha is twice the rank, without dropout.
    pub fn method(&self) -> Method {
        self.lora_r.map_or(Method::Full, |r| Method::Lora(all_projections(r)))
    }

    /// `train4x512 lora-r8`, `train4x512 full` or `train4x512 full adamw_8bit`.
    pub fn name(&self) -> String {
        let kind = self.lora_r.map_or("full".to_string(), |r| format!("lora-r{r}"));
        let optim = if self.optim == Optim::Adamw8bit { " adamw_8bit" } else { "" };
        format!("train{}x{} {kind}{optim}", self.shape.sequences, self.shape.tokens)
    }

    /// Tokens of the whole step.
    pub fn tokens(&self) -> usize {
        self.shape.sequences * self.shape.tokens
    }

    /// Token ids of the sequences, the same at every call, spread so that no two rows of the embedding lie together.
    pub fn sequences(&self, config: &Config) -> Vec<Vec<u32>> {
        spread_ids(self.tokens(), config.vocab_size).chunks_exact(self.shape.tokens).map(<[u32]>::to_vec).collect()
    }

    /// Errors unless a sequence has a token to predict and fits the model's context.
    pub fn check(&self, config: &Config) -> Result<()> {
        let longest = config.max_position_embeddings;
        if (2..=longest).contains(&self.shape.tokens) {
            return Ok(());
        }
        let expected = format!("sequences of 2 to {longest} tokens (the model's max_position_embeddings)");
        Err(Error::usage("--train-tokens", expected, self.shape.tokens.to_string()))
    }

    /// Its memory. `recompute`: as named, or [`Recompute::None`] where memory allows. [`Error::Budget`] where the step does not
    /// fit; `weight_bytes` is the size of the weights as loaded.
    pub fn memory(
        &self,
        dev: &Device,
        config: &Config,
        weight_bytes: u64,
        recompute: Option<Recompute>,
    ) -> Result<MemoryPlan> {
        let (method, optim) = (self.method(), self.optim);
        let max_tokens = pieces::largest(dev, self.tokens(), self.shape.tokens);
        let plan = |recompute| MemoryPlan::new(dev, config, &method, optim, weight_bytes, max_tokens, recompute);
        match MemoryPlan::choose(dev, plan, recompute, None) {
            Err(Error::Budget { what, needed, available, .. }) => {
                let instead = "lower --train-tokens, or use --lora-r instead of --full".into();
                Err(Error::Budget { what, needed, available, instead })
            }
            plan => plan,
        }
    }

    /// Options of a trainer for it. Arguments and errors as those of [`TrainingStep::memory`].
    pub fn trainer(
        &self,
        dev: &Device,
        config: &Config,
        weight_bytes: u64,
        recompute: Option<Recompute>,
    ) -> Result<TrainerOptions> {
        let recompute = self.memory(dev, config, weight_bytes, recompute)?.recompute;
        let max_tokens = pieces::largest(dev, self.tokens(), self.shape.tokens);
        let (method, optim) = (self.method(), self.optim);
        let schedule =
            Schedule { learning_rate: 1e-5, kind: SchedulerType::Constant, warmup_steps: 0, total_steps: u64::MAX };
        let optimizer = OptimizerOptions { optim, ..OptimizerOptions::default() };
        Ok(TrainerOptions { method, optimizer, schedule, recompute, max_tokens, seed: 0 })
    }
}

/// `n` ids below `vocab`, the same at every call, no two neighbours close.
pub(super) fn spread_ids(n: usize, vocab: usize) -> Vec<u32> {
    (0..n as u64).map(|i| ((i + 1) * 2_654_435_761 % vocab as u64) as u32).collect()
}

/// An adapter of rank `r` on every projection.
fn all_projections(r: usize) -> LoraConfig {
    LoraConfig {
        r,
        lora_alpha: 2.0 * r as f64,
        lora_dropout: 0.0,
        target_modules: Projection::ALL.to_vec(),
        layers_to_transform: None,
        use_rslora: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_is_two_numbers() {
        assert_eq!("4x512".parse(), Ok(StepShape { sequences: 4, tokens: 512 }));
        for wrong in ["", "4", "x", "0x512", "4x", "4x5x6", "-1x3"] {
            assert!(wrong.parse::<StepShape>().is_err(), "{wrong}");
        }
    }
}
