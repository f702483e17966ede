//! Options of every verb that generates.

use super::{Context, Precision, WeightFormat};
use clap::builder::RangedU64ValueParser;
use ratoon::Result;
use ratoon::device::Device;
use ratoon::generate::{EngineOptions, Order, Sampling};
use ratoon::model::source;
use std::path::PathBuf;

/// How tokens are drawn, the temperature and top-p apart, whose defaults differ.
#[derive(clap::Args)]
pub(super) struct SamplingArgs {
    /// Draw from this many likeliest ids; 0: from all.
    #[arg(long, default_value_t = 0)]
    top_k: usize,
    /// Draw from ids with at least this share of the likeliest one's probability; 0: from all.
    #[arg(long, default_value_t = 0.0)]
    min_p: f32,
    /// Divides positive logits of ids that stand in the prompt or the output already, multiplies the others; 1: for none.
    #[arg(long, default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Key of the random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SamplingArgs {
    /// As the library takes them.
    pub(super) fn with(&self, temperature: f32, top_p: f32) -> Sampling {
        let SamplingArgs { top_k, min_p, repetition_penalty, seed } = *self;
        Sampling { temperature, top_k, top_p, min_p, repetition_penalty, seed }
    }
}

/// Limits of the engine.
#[derive(clap::Args)]
pub(super) struct EngineArgs {
    /// Inputs of matrix products and attention: bf16 (sums in f32; the fastest), or f32 throughout.
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    compute: Precision,
    /// Weights in memory: as stored, or int8 (8.5 bits each, activations quantised too: faster, less exact).
    #[arg(long, value_enum, default_value_t = WeightFormat::Stored)]
    weights: WeightFormat,
    /// Most sequences in one step.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = count(65_536))]
    max_batch_size: usize,
    /// Most prompt tokens in one step.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = count(1 << 20))]
    chunk_tokens: usize,
    /// Tokens in one page of the cache; a multiple of 16 is read in place by the CPU, others are copied in each step.
    #[arg(long, value_name = "TOKENS", default_value_t = 16, value_parser = count(65_536))]
    page_size: usize,
    /// Memory for keys and values in MiB [default: what --max-batch-size can use, at most 2048].
    #[arg(long, value_name = "MIB")]
    kv_memory: Option<u64>,
    /// Compute every prompt in full, also what it has in common with others.
    #[arg(long)]
    no_prefix_sharing: bool,
    /// Start the longest requests first: fewer half-empty steps at the end.
    #[arg(long)]
    longest_first: bool,
    /// A smaller model with the same tokens, such as a cut one, that drafts (speculative decoding): greedy output stays the
    /// same, samples stay draws from the model's distribution. It pays where few sequences run side by side and the draft is
    /// far cheaper than the model: K proposals cost K of its steps, and with a share A of them right they bring
    /// (1 - A^(K+1)) / (1 - A) tokens.
    #[arg(long, value_name = "MODEL")]
    draft: Option<String>,
    /// Tokens that the draft proposes at a time.
    #[arg(long, value_name = "K", default_value_t = 4, requires = "draft", value_parser = count(1024))]
    draft_tokens: usize,
}

/// A whole number from 1 to `most`: sizes of buffers come from it, so one that cannot be meant is refused.
fn count(most: u64) -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=most)
}

impl EngineArgs {
    /// The device with this precision.
    pub(super) fn device(&self, context: &Context) -> Result<Device> {
        context.device.clone().with_compute(self.compute.into())?.with_weights(self.weights.into())
    }

    /// As the library takes them.
    pub(super) fn options(&self) -> EngineOptions {
        EngineOptions {
            max_batch_size: self.max_batch_size,
            chunk_tokens: self.chunk_tokens,
            page_size: self.page_size,
            kv_memory: self.kv_memory.map(|mib| mib.saturating_mul(1 << 20)),
            prefix_sharing: !self.no_prefix_sharing,
            draft_tokens: self.draft_tokens,
            order: if self.longest_first { Order::LongestFirst } else { Order::Input },
            ..EngineOptions::default()
        }
    }

    /// Directory of the draft model.
    pub(super) fn draft(&self) -> Result<Option<PathBuf>> {
        self.draft.as_deref().map(source::resolve).transpose()
    }
}
