//! AdamW over all trained parameters: its options, and the moments that it keeps (`ops/adamw.rs`, `ops/adamw_8bit.rs`).

use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::ops::adamw::AdamW;
use crate::ops::adamw_8bit::Moments8bit;
use serde::{Deserialize, Serialize};

/// How the optimiser keeps its moments, by the names of transformers and TRL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Optim {
    /// Two F32 moments a parameter, 8 bytes: the numbers of `torch.optim.AdamW`.
    #[default]
    AdamwTorch,
    /// Two moments of 8 bits, 2 bytes, for matrices of 4,096 elements or more: other numbers. The embedding and small tensors
    /// keep F32 moments, as in bitsandbytes and transformers. CPU only.
    #[serde(rename = "adamw_8bit")]
    #[value(name = "adamw_8bit")]
    Adamw8bit,
}

/// Fewest elements of a tensor with moments of 8 bits: `min_8bit_size` of bitsandbytes.
const MIN_8BIT: usize = 4096;

impl Optim {
    /// Whether a parameter's moments have 8 bits.
    fn quantises(self, name: &str, elements: usize, dimensions: usize) -> bool {
        self == Optim::Adamw8bit && dimensions == 2 && elements >= MIN_8BIT && name != "model.embed_tokens.weight"
    }

    /// Bytes of the moments of parameters, each given by name and shape.
    pub fn plan_bytes<'a>(self, parameters: impl Iterator<Item = (&'a str, &'a [usize])>) -> u64 {
        let bytes = |(name, shape): (&str, &[usize])| {
            let elements: usize = shape.iter().product();
            let quantises = self.quantises(name, elements, shape.len());
            if quantises { Moments8bit::plan_bytes(elements as u64) } else { 8 * elements as u64 }
        };
        parameters.map(bytes).sum()
    }

    /// [`Error::Usage`] where the device has no such optimiser.
    pub fn check(self, dev: &Device) -> Result<()> {
        if self == Optim::Adamw8bit && !dev.is_cpu() {
            return Err(Error::usage("--optim", "adamw_torch on a card", "adamw_8bit"));
        }
        Ok(())
    }
}

/// Options of AdamW, named as in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerOptions {
    /// How the moments are kept.
    pub optim: Optim,
    /// Decay of the mean of gradients.
    pub adam_beta1: f64,
    /// Decay of the mean of squared gradients.
    pub adam_beta2: f64,
    /// Added outside the square root.
    pub adam_epsilon: f64,
    /// Decoupled decay of every trained tensor, as `torch.optim.AdamW` does it.
    pub weight_decay: f64,
    /// Leaves norms and biases (tensors of one dimension) out of the decay.
    pub no_decay_norms: bool,
    /// Gradients are scaled down to this total norm; 0: never.
    pub max_grad_norm: f64,
}

impl Default for OptimizerOptions {
    fn default() -> OptimizerOptions {
        OptimizerOptions {
            optim: Optim::default(),
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            weight_decay: 0.0,
            no_decay_norms: false,
            max_grad_norm: 1.0,
        }
    }
}

impl OptimizerOptions {
    /// Whether weight decay applies to a parameter of that shape.
    pub(super) fn decays(&self, shape: &[usize]) -> bool {
        !(self.no_decay_norms && shape.len() == 1)
    }

    /// The step number `step` (from 1).
    pub(super) fn step(&self, step: u64, lr: f64, grad_scale: f32) -> AdamW {
        AdamW {
            lr,
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
            step,
            grad_scale,
        }
    }
}

/// What the optimiser keeps of one parameter.
pub enum Moments {
    /// Running means of the gradient and of its square, F32, shaped like the parameter.
    F32 {
        /// Of the gradient.
        m: Tensor,
        /// Of its square.
        v: Tensor,
    },
    /// The same in 8 bits.
    Quantised(Moments8bit),
}

impl Moments {
    /// Zeros for a parameter of that name and shape.
    pub(super) fn zeros(dev: &Device, optim: Optim, name: &str, shape: &[usize]) -> Result<Moments> {
        let elements = shape.iter().product();
        if optim.quantises(name, elements, shape.len()) {
            return Ok(Moments::Quantised(Moments8bit::zeros(elements)));
        }
        Ok(Moments::F32 { m: dev.zeros(shape, DType::F32)?, v: dev.zeros(shape, DType::F32)? })
    }

    /// Everything kept, by the names that checkpoints use.
    pub(super) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Moments::F32 { m, v } => vec![("exp_avg", m), ("exp_avg_sq", v)],
            Moments::Quantised(Moments8bit { m, m_scale, v, v_scale }) => {
                vec![("exp_avg", m), ("exp_avg_absmax", m_scale), ("exp_avg_sq", v), ("exp_avg_sq_absmax", v_scale)]
            }
        }
    }

    /// [`Moments::tensors`], writable.
    pub(super) fn tensors_mut(&mut self) -> Vec<(&'static str, &mut Tensor)> {
        match self {
            Moments::F32 { m, v } => vec![("exp_avg", m), ("exp_avg_sq", v)],
            Moments::Quantised(Moments8bit { m, m_scale, v, v_scale }) => {
                vec![("exp_avg", m), ("exp_avg_absmax", m_scale), ("exp_avg_sq", v), ("exp_avg_sq_absmax", v_scale)]
            }
        }
    }
}
