//! Speed of training steps.

use super::bench::{Bench, BenchRow};
use crate::error::{Error, Result};
use crate::model::Projection;
use crate::model::adapter::LoraConfig;
use crate::train::{MemoryPlan, Method, OptimizerOptions, Schedule, SchedulerType, Trainer, TrainerOptions};
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

/// Which training step is measured.
#[derive(Clone, Copy, Debug)]
pub struct TrainBenchOptions {
    /// Its batch: one micro-batch of packed sequences, each token but the last of a sequence predicting the next.
    pub shape: StepShape,
    /// Rank of an adapter on all seven projections of every block; `None`: every weight is trained.
    pub lora_r: Option<usize>,
}

impl TrainBenchOptions {
    /// What is trained; alpha is twice the rank, without dropout.
    pub fn method(&self) -> Method {
        self.lora_r.map_or(Method::Full, |r| Method::Lora(all_projections(r)))
    }
}

/// An adapter of rank `r` on every projection.
pub(super) fn all_projections(r: usize) -> LoraConfig {
    LoraConfig {
        r,
        lora_alpha: 2.0 * r as f64,
        lora_dropout: 0.0,
        target_modules: Projection::ALL.to_vec(),
        layers_to_transform: None,
        use_rslora: false,
    }
}

impl Bench<'_> {
    /// `train4x512 lora-r8` or `train4x512 full`: whole steps with forward and backward pass, clipping and AdamW. Nothing is
    /// written. The backward pass computes blocks again only where memory does not allow to keep them.
    ///
    /// The model must not be packed ([`Llama::load`](crate::model::Llama::load)). Errors: [`Error::Usage`] for sequences
    /// beyond the model's context, [`Error::Budget`] where the step does not fit into memory.
    pub fn train(&self, options: &TrainBenchOptions) -> Result<BenchRow> {
        let StepShape { sequences, tokens } = options.shape;
        let (option, config) = ("--train-tokens", &self.model.config);
        self.check_length(option, tokens)?;
        if tokens < 2 {
            return Err(Error::usage(option, "sequences of two tokens or more", tokens.to_string()));
        }
        let method = options.method();
        let total = sequences * tokens;
        let plan = |recompute| MemoryPlan::new(config, &method, self.template.model_size, total, recompute);
        let recompute = match MemoryPlan::choose(plan, None, None) {
            Err(Error::Budget { what, needed, available, .. }) => {
                let instead = "lower --train-tokens, or use --lora-r instead of --full".into();
                return Err(Error::Budget { what, needed, available, instead });
            }
            plan => plan?.recompute,
        };
        let schedule =
            Schedule { learning_rate: 1e-5, kind: SchedulerType::Constant, warmup_steps: 0, total_steps: u64::MAX };
        let optimizer = OptimizerOptions::default();
        let trainer = TrainerOptions { method, optimizer, schedule, recompute, max_tokens: total, seed: 0 };
        let mut trainer = Trainer::new(self.dev, self.model.clone(), trainer)?;
        let ids = self.tokens(total);
        let batch: Vec<Vec<u32>> = ids.chunks_exact(tokens).map(<[u32]>::to_vec).collect();
        let kind = options.lora_r.map_or("full".to_string(), |r| format!("lora-r{r}"));
        let test = format!("train{sequences}x{tokens} {kind}");
        let row = self.measure(test, total, || trainer.step(&batch).map(drop))?;
        Ok(BenchRow { n_prompt: tokens, n_seqs: sequences, ..row })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::eval::bench::BenchOptions;
    use crate::model::Llama;
    use std::path::Path;

    #[test]
    fn a_shape_is_two_numbers() {
        assert_eq!("4x512".parse(), Ok(StepShape { sequences: 4, tokens: 512 }));
        for wrong in ["", "4", "x", "0x512", "4x", "4x5x6", "-1x3"] {
            assert!(wrong.parse::<StepShape>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn training_steps_are_measured_and_leave_the_model_as_it_was() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/gqa");
        let (dev, model) = (Device::cpu(), Llama::load(&dir).unwrap());
        let before = model.blocks[0].q.weight.bytes().to_vec();
        let options =
            BenchOptions { n_prompt: vec![], n_gen: vec![], batches: vec![], repetitions: 2, all_logits: false };
        let bench = Bench::new(&dev, &model, &dir, &options).unwrap();
        let shape = StepShape { sequences: 2, tokens: 16 };
        for (lora_r, name) in [(Some(4), "train2x16 lora-r4"), (None, "train2x16 full")] {
            let row = bench.train(&TrainBenchOptions { shape, lora_r }).unwrap();
            assert_eq!((row.test.as_str(), row.samples_ns.len(), row.n_seqs), (name, 2, 2));
            // Forward and input gradients of every weight: more than twice the forward pass's products in either case.
            let forward = (model.config.flops_matmul() * 32) as f64;
            assert!(row.flops_per_token * 32.0 > 1.9 * forward && row.mfu > 0.0, "{row:?}");
        }
        assert!(model.blocks[0].q.weight.bytes() == before);
        for tokens in [1, model.config.max_position_embeddings + 1] {
            let shape = StepShape { sequences: 1, tokens };
            let error = bench.train(&TrainBenchOptions { shape, lora_r: None }).unwrap_err().to_string();
            assert!(error.starts_with("--train-tokens"), "{error}");
        }
    }
}
