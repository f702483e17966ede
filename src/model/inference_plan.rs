//! Memory that running a model forward takes, planned before anything is loaded.

use super::adapter::{self, LoraConfig};
use super::safetensors::WeightFiles;
use super::{Config, KvCache, Llama, PagedStep, Workspace, lora};
use crate::device::{Compute, Device, Weights};
use crate::error::{Error, Result};
use crate::ops::attention::scratch_bytes;
use crate::ops::log_probs;
use crate::ops::matmul::PackedWeight;
use crate::ops::sample::DRAW_BYTES;
use serde::Serialize;
use std::path::Path;

/// Bytes at their most, by purpose. Several stages of one command take the largest of theirs: see [`InferencePlan::or`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InferencePlan {
    /// Weights and adapters as the device keeps them: on a card BF16; on the CPU packed for products, beside mapped files that the
    /// system may drop.
    pub weights: u64,
    /// Keys and values. Where memory is short fewer pages do, down to those of the longest request.
    pub kv_cache: u64,
    /// Buffers of a forward pass.
    pub activations: u64,
    /// Logits that are held at a time.
    pub logits: u64,
    /// Rank of the adapter, 0 without one.
    #[serde(skip)]
    pub(crate) rank: usize,
}

impl InferencePlan {
    /// The weights of a model directory, with those of an adapter.
    pub fn of(dev: &Device, dir: &Path, adapter: Option<&Path>) -> Result<InferencePlan> {
        let config = Config::load(dir)?;
        let stored = || Ok(WeightFiles::open(dir)?.total_bytes());
        let weights = match (dev.is_cpu(), dev.weights(), dev.compute()) {
            (false, ..) => Llama::placed_bytes(&config, dev),
            (true, Weights::Int8, _) => config.parameters() * 17 / 16,
            (true, _, Compute::Bf16) => PackedWeight::plan_bytes(config.parameters()),
            (true, _, Compute::F32) => stored()?,
        };
        let Some(adapter) = adapter else { return Ok(InferencePlan { weights, ..InferencePlan::default() }) };
        adapter::weights_path(adapter)?;
        let lora = LoraConfig::load(adapter)?;
        let factors = lora.parameters(&config) * dev.activation().size() as u64;
        Ok(InferencePlan { weights: weights + factors, rank: lora.r, ..InferencePlan::default() })
    }

    /// And a forward pass over so many tokens at a time, with the hidden states and logits of `rows` of them.
    pub fn with_pass(self, dev: &Device, config: &Config, tokens: usize, rows: usize) -> InferencePlan {
        let pass = Workspace::plan_bytes(dev, config, tokens) + scratch_bytes(dev, tokens, config.heads);
        let adapters = lora::forward_bytes(dev, config, self.rank, tokens);
        // Ids, positions and offsets.
        let batch = if dev.is_cpu() { 0 } else { 12 * tokens + 48 };
        let row = 4 * config.vocab_size + dev.activation().size() * config.hidden_size + DRAW_BYTES;
        InferencePlan {
            activations: self.activations + (pass + adapters + batch) as u64,
            logits: self.logits + (rows * row) as u64,
            ..self
        }
    }

    /// And log-probabilities of the tokens of such a pass.
    pub fn with_log_probs(self, dev: &Device, config: &Config, tokens: usize) -> InferencePlan {
        let logits = log_probs::scratch_bytes(dev, tokens, config.hidden_size, config.vocab_size);
        InferencePlan { logits: self.logits + logits as u64, ..self }
    }

    /// And what [`PagedStep`] needs beside it.
    pub fn with_pages(
        self,
        dev: &Device,
        config: &Config,
        tokens: usize,
        sequences: usize,
        max_pages: usize,
        page_size: usize,
    ) -> InferencePlan {
        let scratch = PagedStep::scratch_bytes(dev, config, self.rank, tokens, sequences, max_pages, page_size);
        InferencePlan { activations: self.activations + scratch as u64, ..self }
    }

    /// And keys and values of so many tokens.
    pub fn with_cache(self, dev: &Device, config: &Config, tokens: usize) -> InferencePlan {
        let bytes = (tokens * KvCache::bytes_per_token(dev, config)) as u64;
        InferencePlan { kv_cache: self.kv_cache + bytes, ..self }
    }

    /// And a second model, which is there at the same time.
    pub fn and(self, other: InferencePlan) -> InferencePlan {
        InferencePlan {
            weights: self.weights + other.weights,
            kv_cache: self.kv_cache + other.kv_cache,
            activations: self.activations + other.activations,
            logits: self.logits + other.logits,
            ..self
        }
    }

    /// The larger of two that are not there at the same time.
    pub fn or(self, other: InferencePlan) -> InferencePlan {
        if other.total() > self.total() { other } else { self }
    }

    /// Each purpose by name.
    pub fn parts(&self) -> [(&'static str, u64); 4] {
        let InferencePlan { weights, kv_cache, activations, logits, .. } = *self;
        [("weights", weights), ("kv_cache", kv_cache), ("activations", activations), ("logits", logits)]
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// [`Error::Budget`] when what cannot shrink does not fit the device's free memory: everything but `kv_cache`.
    pub fn check(&self, dev: &Device, what: &str, instead: &str) -> Result<()> {
        let (needed, available) = (self.total() - self.kv_cache, dev.free_memory().unwrap_or(u64::MAX));
        if needed <= available {
            return Ok(());
        }
        Err(Error::Budget { what: what.to_string(), needed, available, instead: instead.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_what_is_there_at_the_same_time() {
        let (dev, dir) = (Device::cpu(), Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny/gqa"));
        let config = Config::load(&dir).unwrap();
        let plan = InferencePlan::of(&dev, &dir, None).unwrap();
        // 4 blocks of 64 x (64 + 2 x 32 + 64) + 3 x 64 x 160 and two norms, two tables of 256 x 64, one norm; all bf16.
        let parameters = 4 * (64 * 192 + 3 * 64 * 160 + 128) + 2 * 256 * 64 + 64;
        assert_eq!(plan.weights, 2 * parameters);
        let whole = plan.with_pass(&dev, &config, 10, 3).with_cache(&dev, &config, 7);
        // Logits, hidden states and draws.
        assert_eq!(whole.logits, 3 * (4 * 256 + 4 * 64 + 64));
        // Keys and values in f32: 2 heads of 16, twice, in 4 blocks.
        assert_eq!(whole.kv_cache, 7 * 4 * 2 * 2 * 16 * 4);
        assert_eq!(whole.and(plan).total(), whole.total() + plan.weights);
        assert_eq!(plan.or(whole), whole);
        let adapted = InferencePlan::of(&dev, &dir, Some(&dir.join("../../lora"))).unwrap();
        assert!(adapted.weights > plan.weights);
        whole.check(&dev, "a model", "nothing").unwrap();
        let huge = InferencePlan { weights: u64::MAX / 2, ..whole };
        let error = huge.check(&dev, "a model", "cut more blocks").unwrap_err().to_string();
        assert!(error.contains("cut more blocks"), "{error}");
    }
}
