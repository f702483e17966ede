//! One training step: micro-batches through the model, clipping, AdamW.

use super::data::Sequence;
use super::optimizer::{Moments, OptimizerOptions};
use super::pieces::pieces;
use super::schedule::Schedule;
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::model::adapter::{self, LoraConfig};
use crate::model::lora::DropoutKey;
use crate::model::safetensors::check::first_not_finite;
use crate::model::{Activations, Adapter, Gradients, Llama, Recompute, Trainable};
use crate::ops::adamw::{Parameter, adamw};
use crate::ops::adamw_8bit::adamw_8bit;
use crate::ops::grad_norm::grad_norm;
use crate::ops::log_probs::IGNORE;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Method {
    /// Every tensor, in F32 master weights.
    Full,
    /// Low-rank adapters beside frozen, memory-mapped weights.
    Lora(LoraConfig),
}

/// Everything a [`Trainer`] is made from.
#[derive(Clone, Debug)]
pub struct TrainerOptions {
    /// What is trained.
    pub method: Method,
    /// AdamW.
    pub optimizer: OptimizerOptions,
    /// Learning rate of each step.
    pub schedule: Schedule,
    /// What the backward pass computes again.
    pub recompute: Recompute,
    /// Most tokens that go through the model at a time: of a micro-batch or, on the CPU, of the pieces of 512 tokens in which it
    /// is worked off, or of the longest sequence where that is more.
    pub max_tokens: usize,
    /// Seed of new adapters and of dropout.
    pub seed: u64,
}

/// What one optimiser step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean loss over the target tokens of all micro-batches, in nats.
    pub loss: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Tokens that went through the model.
    pub tokens: u64,
    /// Tokens that carried a loss.
    pub target_tokens: u64,
}

/// A model in training: weights, gradients, optimiser state and activations, all planned at the start.
///
/// Trained parameters are F32. The CPU computes with them; a card computes with BF16 copies, which every step rounds anew.
///
/// ```no_run
/// use ratoon::device::Device;
/// use ratoon::model::{Llama, Recompute};
/// use ratoon::train::{Method, OptimizerOptions, Schedule, SchedulerType, Trainer, TrainerOptions};
/// let model = Llama::load("model".as_ref())?;
/// let schedule = Schedule { learning_rate: 1e-5, kind: SchedulerType::Constant, warmup_steps: 0, total_steps: 1 };
/// let options = TrainerOptions {
///     method: Method::Full,
///     optimizer: OptimizerOptions::default(),
///     schedule,
///     recompute: Recompute::Block,
///     max_tokens: 4 * 512,
///     seed: 0,
/// };
/// let mut trainer = Trainer::new(&Device::cpu(), model, options)?;
/// let loss = trainer.step(&vec![vec![1; 512]; 4])?;
/// # Ok::<(), ratoon::Error>(())
/// ```
pub struct Trainer {
    dev: Device,
    /// The model with its current weights.
    pub model: Llama,
    options: TrainerOptions,
    trainable: Trainable,
    grads: Gradients,
    /// F32 masters of the trained parameters, listed like their gradients; `None` where the model's own are F32.
    masters: Option<Gradients>,
    /// What the optimiser keeps of each parameter.
    pub(super) moments: Vec<Moments>,
    ws: Activations,
    /// Optimiser steps done.
    pub(super) steps: u64,
    /// Pieces of micro-batches done: numbers the masks of dropout.
    pub(super) micro_batches: u64,
}

impl Trainer {
    /// Prepares a model from the host: F32 master weights for a full run, new adapters for LoRA unless the model already
    /// carries some.
    pub fn new(dev: &Device, mut model: Llama, options: TrainerOptions) -> Result<Trainer> {
        options.optimizer.optim.check(dev)?;
        let trainable = match &options.method {
            Method::Full => {
                if dev.is_cpu() {
                    model = model.into_f32();
                }
                Trainable::All
            }
            Method::Lora(config) => {
                config.check(model.blocks.len())?;
                let carries = config.places(model.blocks.len()).all(|(l, p)| {
                    model.blocks[l].projection(p).lora.as_ref().is_some_and(|lora| lora.rank() == config.r)
                });
                if !carries {
                    Adapter::new(config.clone(), &model, options.seed)?.attach(&mut model);
                }
                Trainable::Lora
            }
        };
        let grads = Gradients::new(dev, &model, trainable)?;
        let mut masters = None;
        if !dev.is_cpu() {
            masters = Some(Gradients::made(&model, trainable, |parameter| dev.upload(parameter, DType::F32))?);
            model.place(dev)?;
        }
        // By now no clone of the model shares a parameter: each was copied, to F32 or to the card.
        let moments = model
            .parameters_mut(trainable)?
            .iter()
            .map(|(name, p)| Moments::zeros(dev, options.optimizer.optim, name, p.shape()))
            .collect::<Result<_>>()?;
        let ws = Activations::new(dev, &model, options.max_tokens, options.recompute, grads.lowest_block())?;
        let dev = dev.clone();
        Ok(Trainer { dev, model, options, trainable, grads, masters, moments, ws, steps: 0, micro_batches: 0 })
    }

    /// Optimiser steps done.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The trained parameters in F32 with their names. What is changed through them reaches a card's copies with
    /// [`Trainer::round_masters`].
    pub fn parameters_mut(&mut self) -> Result<Vec<(String, &mut Tensor)>> {
        let mut parameters = self.model.parameters_mut(self.trainable)?;
        let masters = self.masters.iter_mut().flat_map(Gradients::tensors_mut);
        for ((_, parameter), master) in parameters.iter_mut().zip(masters) {
            *parameter = master;
        }
        Ok(parameters)
    }

    /// Rounds the F32 masters into the parameters that a card computes with.
    pub fn round_masters(&mut self) -> Result<()> {
        let masters = self.masters.iter().flat_map(Gradients::tensors);
        for ((_, parameter), master) in self.model.parameters_mut(self.trainable)?.into_iter().zip(masters) {
            parameter.convert_from(&*master.host()?)?;
        }
        Ok(())
    }

    /// The gradients of the last step, before clipping, in the order of [`Trainer::parameters_mut`].
    pub fn gradients(&self) -> Vec<&Tensor> {
        self.grads.tensors()
    }

    /// Number of trained parameters.
    pub fn trained_parameters(&self) -> u64 {
        self.grads.tensors().iter().map(|t| t.elements() as u64).sum()
    }

    /// One optimiser step on plain sequences, every next token a target. Returns the mean loss in nats.
    pub fn step(&mut self, sequences: &[Vec<u32>]) -> Result<f32> {
        let batch: Vec<Sequence> = sequences.iter().map(|ids| Sequence::text(ids.clone())).collect();
        Ok(self.step_on(&[batch.iter().collect()])?.loss as f32)
    }

    /// One optimiser step on the given micro-batches. The loss is the mean over the target tokens of all of them, so that
    /// accumulation gives what one large batch gives.
    ///
    /// [`Error::NotFinite`] for a loss or gradient that is NaN or infinite, before any weight is changed; [`Error::Usage`] when
    /// no token is a target.
    pub fn step_on(&mut self, micro_batches: &[Vec<&Sequence>]) -> Result<StepReport> {
        let targets: u64 = micro_batches.iter().flatten().map(|s| s.target_tokens()).sum();
        if targets == 0 {
            return Err(Error::usage(
                format!("training step {}", self.steps + 1),
                "at least one token with a loss",
                "a batch in which every token is masked",
            ));
        }
        self.grads.zero(&self.dev)?;
        let scale = (1.0 / targets as f64) as f32;
        let (mut sum, mut tokens) = (0.0, 0);
        for piece in micro_batches.iter().flat_map(|micro_batch| pieces(&self.dev, micro_batch)) {
            let (batch, next) = super::data::collate(&piece, self.options.max_tokens);
            tokens += batch.tokens() as u64;
            let key = self.dropout_key();
            let (ws, grads) = (&mut self.ws, &mut self.grads);
            sum += self.model.forward_backward(&self.dev, &batch, &next, scale, key, ws, grads)?;
            self.micro_batches += 1;
        }
        let loss = sum / targets as f64;
        self.finite("loss", loss)?;
        let grads = self.grads.tensors();
        let norm = grad_norm(&self.dev, &grads)?;
        self.finite("gradient norm", norm)?;
        let optimizer = self.options.optimizer;
        let max = optimizer.max_grad_norm;
        let clip = if max > 0.0 { (max / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let learning_rate = self.options.schedule.at(self.steps);
        let parameters = self.model.parameters_mut(self.trainable)?;
        let mut masters = self.masters.iter_mut().flat_map(Gradients::tensors_mut);
        let settings = optimizer.step(self.steps + 1, learning_rate, clip as f32);
        let mut in_f32 = Vec::with_capacity(parameters.len());
        for (((_, p), moments), g) in parameters.into_iter().zip(&mut self.moments).zip(grads) {
            let (master, decayed) = (masters.next(), optimizer.decays(p.shape()));
            match moments {
                Moments::F32 { m, v } => in_f32.push(Parameter { p, master, m, v, g, decayed }),
                // Matrices, which decay.
                Moments::Quantised(moments) => adamw_8bit(&self.dev, p, moments, g, settings)?,
            }
        }
        adamw(&self.dev, &mut in_f32, settings)?;
        self.steps += 1;
        Ok(StepReport { loss, grad_norm: norm, learning_rate, tokens, target_tokens: targets })
    }

    /// [`Error::NotFinite`] with the name of a trained parameter that is NaN or infinite: asked before anything is written.
    pub fn check_finite(&mut self) -> Result<()> {
        let steps = self.steps;
        for (name, parameter) in self.parameters_mut()? {
            if let Some((at, value)) = first_not_finite(&*parameter.host()?) {
                let place = format!("{name}, element {at}, after step {steps}");
                return Err(Error::NotFinite { place, value, instead: "lower --learning-rate".into() });
            }
        }
        Ok(())
    }

    /// Writes the trained adapter in PEFT's format; only for [`Method::Lora`].
    pub(super) fn save_adapter(&mut self, config: &LoraConfig, dir: &Path, base: &str) -> Result<()> {
        let factors = self.parameters_mut()?;
        adapter::save(dir, config, base, factors.iter().map(|(name, tensor)| (name.clone(), &**tensor)).collect())
    }

    fn dropout_key(&self) -> Option<DropoutKey> {
        let Method::Lora(config) = &self.options.method else { return None };
        let stream = self.micro_batches * DropoutKey::streams(self.model.blocks.len());
        let key = DropoutKey { p: config.lora_dropout as f32, seed: self.options.seed, stream };
        (config.lora_dropout > 0.0).then_some(key)
    }

    fn finite(&self, what: &str, value: f64) -> Result<()> {
        if value.is_finite() {
            return Ok(());
        }
        Err(Error::NotFinite {
            place: format!("{what} of step {}", self.steps + 1),
            value: value as f32,
            instead: "lower --learning-rate, or check the data and the model; nothing of this step was kept".into(),
        })
    }
}

/// Number of targets that are not [`IGNORE`].
pub(super) fn count_targets(targets: &[u32]) -> u64 {
    targets.iter().filter(|&&t| t != IGNORE).count() as u64
}
