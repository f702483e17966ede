//! Options that describe a training step, for the verbs that measure and count one.

use ratoon::eval::training_step::{StepShape, TrainingStep};
use ratoon::train::Optim;

/// A training step on random tokens.
#[derive(clap::Args)]
pub(super) struct TrainStepArgs {
    /// Training steps too: forward, backward, clipping and AdamW.
    #[arg(long)]
    train: bool,
    /// Sequences of a training step and tokens of each.
    #[arg(long, value_name = "SEQUENCESxTOKENS", default_value = "4x512", requires = "train")]
    train_tokens: StepShape,
    /// Rank of the trained adapter, on all seven projections.
    #[arg(long, default_value_t = 8, requires = "train")]
    lora_r: usize,
    /// Train every weight instead of an adapter.
    #[arg(long, requires = "train", conflicts_with = "lora_r")]
    full: bool,
    /// Moments of AdamW in F32, or in 8 bits.
    #[arg(long, value_enum, default_value = "adamw_torch", requires = "train")]
    optim: Optim,
}

impl TrainStepArgs {
    /// The step, if one is asked for.
    pub(super) fn step(&self) -> Option<TrainingStep> {
        let lora_r = (!self.full).then_some(self.lora_r);
        self.train.then_some(TrainingStep { shape: self.train_tokens, lora_r, optim: self.optim })
    }
}
