//! Speed of training steps.

use super::bench::{Bench, BenchRow};
use super::training_step::TrainingStep;
use crate::error::Result;
use crate::train::Trainer;

impl Bench<'_> {
    /// `train4x512 lora-r8` or `train4x512 full`: whole steps with forward and backward pass, clipping and AdamW. Nothing is
    /// written. The backward pass computes blocks again only where memory does not allow to keep them.
    ///
    /// The model must not be packed ([`Llama::load`](crate::model::Llama::load)). Errors: [`Error::Usage`](crate::Error::Usage) for sequences
    /// beyond the model's context, [`Error::Budget`](crate::Error::Budget) where the step does not fit into memory.
    pub fn train(&self, step: &TrainingStep) -> Result<BenchRow> {
        let config = &self.model.config;
        step.check(config)?;
        let options = step.trainer(self.dev, config, self.template.model_size, None)?;
        let mut trainer = Trainer::new(self.dev, self.model.clone(), options)?;
        let batch = step.sequences(config);
        let row = self.measure(step.name(), step.tokens(), || trainer.step(&batch).map(drop))?;
        Ok(BenchRow { n_prompt: step.shape.tokens, n_seqs: step.shape.sequences, ..row })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Device;
    use crate::eval::bench::BenchOptions;
    use crate::eval::training_step::StepShape;
    use crate::model::Llama;
    use crate::train::Optim;
    use std::path::Path;

    #[test]
    fn training_steps_are_measured_and_leave_the_model_as_it_was() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/gqa");
        let (dev, model) = (Device::cpu(), Llama::load(&dir).unwrap());
        let before = model.blocks[0].q.weight.bytes().to_vec();
        let options = BenchOptions {
            adapter: None,
            n_prompt: vec![],
            n_gen: vec![],
            batches: vec![],
            repetitions: 2,
            all_logits: false,
        };
        let bench = Bench::new(&dev, &model, &dir, &options).unwrap();
        let shape = StepShape { sequences: 2, tokens: 16 };
        for (lora_r, name) in [(Some(4), "train2x16 lora-r4"), (None, "train2x16 full")] {
            let row = bench.train(&TrainingStep { shape, lora_r, optim: Optim::AdamwTorch }).unwrap();
            assert_eq!((row.test.as_str(), row.samples_ns.len(), row.n_seqs), (name, 2, 2));
            // Forward and input gradients of every weight: more than twice the forward pass's products in either case.
            let forward = (model.config.flops_matmul() * 32) as f64;
            assert!(row.flops_per_token * 32.0 > 1.9 * forward && row.mfu > 0.0, "{row:?}");
        }
        assert!(model.blocks[0].q.weight.bytes() == before);
        for tokens in [1, model.config.max_position_embeddings + 1] {
            let shape = StepShape { sequences: 1, tokens };
            let error =
                bench.train(&TrainingStep { shape, lora_r: None, optim: Optim::Adamw8bit }).unwrap_err().to_string();
            assert!(error.starts_with("--train-tokens"), "{error}");
        }
    }
}
