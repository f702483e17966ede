//! Memory of a run, planned before anything is loaded.

use super::optimizer::Optim;
use super::trainer::Method;
use crate::device::Device;
use crate::device::peak::available_memory;
use crate::error::{Error, Result};
use crate::model::{Activations, Config, Llama, Recompute};
use crate::ops::{cross_entropy, grad_norm};
use serde::{Deserialize, Serialize};

/// Bytes that a run needs, by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// On the CPU F32 masters, or the mapped file of frozen weights and the adapter; on a card all weights in BF16 and F32
    /// masters of the trained ones.
    pub weights: u64,
    /// F32 gradients of what is trained.
    pub gradients: u64,
    /// The moments of what is trained.
    pub optimizer: u64,
    /// Activations and their gradients, the logits of one chunk, and what single operations need.
    pub activations: u64,
    /// What the backward pass computes again.
    pub recompute: Recompute,
}

impl MemoryPlan {
    /// Plans passes over at most `tokens` tokens at a time; `weight_bytes` is the size of the weight files.
    pub fn new(
        dev: &Device,
        config: &Config,
        method: &Method,
        optim: Optim,
        weight_bytes: u64,
        tokens: usize,
        recompute: Recompute,
    ) -> MemoryPlan {
        let blocks = config.num_hidden_layers;
        let (trained, weights, blocks_kept) = match method {
            Method::Full => (config.parameters(), 4 * config.parameters(), blocks),
            Method::Lora(lora) => {
                let trained = lora.parameters(config);
                let lowest = lora.places(blocks).next().map_or(blocks, |(l, _)| l);
                (trained, weight_bytes + 4 * trained, blocks - lowest)
            }
        };
        let weights = match method {
            _ if dev.is_cpu() => weights,
            Method::Full => Llama::placed_bytes(config, dev) + 4 * trained,
            Method::Lora(_) => Llama::placed_bytes(config, dev) + 6 * trained,
        };
        let logits = cross_entropy::plan_bytes(dev, tokens, config.hidden_size, config.vocab_size);
        let optimizer = match method {
            Method::Full => optim.plan_bytes(config.expected_tensors().iter().map(|(n, s)| (n.as_str(), s.as_slice()))),
            Method::Lora(lora) => {
                let factors = lora.places(blocks).flat_map(|(_, p)| {
                    let [out, inputs] = config.projection_shape(p);
                    [[lora.r, inputs], [out, lora.r]]
                });
                factors.map(|shape| optim.plan_bytes(std::iter::once(("", shape.as_slice())))).sum()
            }
        };
        let (scratch, tensors) = match method {
            Method::Full => (Activations::full_scratch_bytes(dev, config, tokens), config.expected_tensors().len()),
            Method::Lora(lora) => (lora.training_bytes(dev, config, tokens), 2 * lora.places(blocks).count()),
        };
        let scratch = (logits + scratch) as u64 + grad_norm::scratch_bytes(dev, tensors, trained);
        let activations = Activations::plan_bytes(dev, config, tokens, recompute, blocks_kept) + scratch;
        MemoryPlan { weights, gradients: 4 * trained, optimizer, activations, recompute }
    }

    /// Each purpose by name.
    pub fn parts(&self) -> [(&'static str, u64); 4] {
        let MemoryPlan { weights, gradients, optimizer, activations, .. } = *self;
        [("weights", weights), ("gradients", gradients), ("optimizer", optimizer), ("activations", activations)]
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// The plan that fits `budget` (by default what the device has free): what `wanted` says, else without recomputation when
    /// that fits.
    pub fn choose(
        dev: &Device,
        plan: impl Fn(Recompute) -> MemoryPlan,
        wanted: Option<Recompute>,
        budget: Option<u64>,
    ) -> Result<MemoryPlan> {
        let available = budget.or_else(|| dev.memory_budget()).or_else(available_memory).unwrap_or(u64::MAX);
        let candidates = wanted.map_or(vec![Recompute::None, Recompute::Block], |r| vec![r]);
        let plans: Vec<MemoryPlan> = candidates.into_iter().map(plan).collect();
        if let Some(fits) = plans.iter().find(|p| p.total() <= available) {
            return Ok(*fits);
        }
        let smallest = plans.iter().map(MemoryPlan::total).min().unwrap_or(0);
        Err(Error::Budget {
            what: "training".into(),
            needed: smallest,
            available,
            instead:
                "lower --per-device-train-batch-size or --max-length, use --recompute block, or LoRA instead of --full"
                    .into(),
        })
    }
}
