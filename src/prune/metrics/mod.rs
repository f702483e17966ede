//! How much a model loses with a run of blocks. Every metric is a number that is lower where less is lost.
//!
//! | file | metric | compares |
//! |-|-|-|
//! | `residual.rs` | `angular`, `bi` | the residual stream before and after (one pass over the data for all sizes) |
//! | `perplexity.rs` | `perplexity` | the model without each run |
//! | `magnitude.rs` | `magnitude` | sum of |W| of a block |
//! | `taylor.rs` | `taylor` | sum of |W dL/dW| of a block |
//! | `passes.rs` | | the data as forward passes |
//! | `baseline.rs` | `random`, `first`, `last` | nothing: what the others have to beat |

mod baseline;
mod magnitude;
mod passes;
mod perplexity;
mod residual;
mod taylor;

use super::{Calibration, plan};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Activations, Config, InferencePlan, Llama, Recompute};
use crate::ops::cross_entropy;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How blocks are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// arccos(cos(h_l, h_{l+n})) / pi, where h_l is the input of block l (Gromov et al. 2024).
    Angular,
    /// Block influence: 1 - E[cos(h_l, h_{l+1})] (ShortGPT, Men et al. 2024). Ranks single blocks.
    Bi,
    /// Perplexity of the data without the run (Shortened LLaMA, Kim et al. 2024).
    Perplexity,
    /// Sum of |W| over a block's projections. Ranks single blocks.
    Magnitude,
    /// Sum of |W dL/dW| over a block's projections (Shortened LLaMA, Kim et al. 2024). Ranks single blocks.
    Taylor,
    /// A uniform random number for each run.
    Random,
    /// Blocks from the end: distance of the run from the last block.
    Last,
    /// Blocks from the start: distance of the run from the first block.
    First,
}

impl Metric {
    /// Scores single blocks, of which the n lowest are cut wherever they stand, instead of runs of n.
    pub fn ranks_blocks(self) -> bool {
        matches!(self, Metric::Bi | Metric::Magnitude | Metric::Taylor)
    }

    /// Needs calibration data.
    pub fn needs_data(self) -> bool {
        matches!(self, Metric::Angular | Metric::Bi | Metric::Perplexity | Metric::Taylor)
    }

    /// Looks at the weights themselves, which an adapter beside them would change.
    fn reads_weights(self) -> bool {
        matches!(self, Metric::Magnitude | Metric::Taylor)
    }

    /// Name in titles.
    pub fn title(self) -> &'static str {
        match self {
            Metric::Angular => "Angular distance",
            Metric::Bi => "Block influence",
            Metric::Perplexity => "Perplexity after the cut",
            Metric::Magnitude => "Sum of weight magnitudes",
            Metric::Taylor => "Sum of |weight x gradient|",
            Metric::Random => "Random score",
            Metric::Last => "Distance from the last block",
            Metric::First => "Distance from the first block",
        }
    }
}

/// Which tokens of a sequence the residual metrics look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Tokens {
    /// The last token of each sequence.
    Last,
    /// The mean over all tokens.
    Mean,
}

/// What to score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoreOptions {
    /// How blocks are compared.
    pub metric: Metric,
    /// Tokens that angular distance and block influence look at.
    pub tokens: Tokens,
    /// Numbers of blocks to cut.
    pub block_sizes: Vec<usize>,
    /// Leading blocks that are never cut.
    pub protect_first: usize,
    /// Trailing blocks that are never cut.
    pub protect_last: usize,
    /// Seed of the random metric.
    pub seed: u64,
}

impl Default for ScoreOptions {
    fn default() -> Self {
        ScoreOptions {
            metric: Metric::Angular,
            tokens: Tokens::Last,
            block_sizes: vec![2, 4, 6, 8, 10],
            protect_first: 0,
            protect_last: 0,
            seed: 0,
        }
    }
}

/// Value of one run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// First block of the run, from 0.
    #[serde(rename = "block_start")]
    pub start: usize,
    /// The block after its last.
    #[serde(rename = "block_end")]
    pub end: usize,
    /// The metric; lower means less is lost.
    #[serde(rename = "average_distance")]
    pub value: f64,
}

/// The best cut of one size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cut {
    /// Blocks cut.
    pub block_size: usize,
    /// Which ones, in order.
    pub blocks: Vec<usize>,
    /// The run's score, or the sum of its blocks' where the metric ranks single blocks.
    pub score: f64,
}

/// Every score of a model, and the best cut for each size.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Scores {
    /// How blocks were compared.
    pub metric: Metric,
    /// The settings.
    pub options: ScoreOptions,
    /// Blocks of the model.
    pub num_hidden_layers: usize,
    /// What the metric read, where it read data.
    pub calibration: Option<Calibration>,
    /// The best cut for each size, in the order asked for.
    pub best: Vec<Cut>,
    /// Candidates: runs of each size, or single blocks where the metric ranks those. Protected blocks have none.
    pub rows: Vec<Score>,
}

/// Memory of [`score`] on samples of so many tokens, planned before anything is loaded.
pub fn memory(
    dev: &Device,
    model: &Path,
    adapter: Option<&Path>,
    options: &ScoreOptions,
    sample_tokens: usize,
) -> Result<InferencePlan> {
    let (config, tokens) = (Config::load(model)?, passes::PASS_TOKENS.max(sample_tokens));
    if !options.metric.needs_data() {
        return Ok(InferencePlan::default()); // Weights are looked at where they are mapped.
    }
    let plan = InferencePlan::of(dev, model, adapter)?;
    if options.metric != Metric::Taylor {
        let plan = plan.with_pass(dev, &config, tokens, 0);
        let states = (tokens * config.hidden_size * dev.activation().size()) as u64;
        return Ok(match options.metric {
            Metric::Perplexity => plan.with_log_probs(dev, &config, tokens),
            _ => InferencePlan { activations: plan.activations + states, ..plan },
        });
    }
    // A backward pass, with the gradients of every weight of the blocks.
    let blocks = config.num_hidden_layers;
    let backward = Activations::plan_bytes(dev, &config, tokens, Recompute::Block, blocks)
        + cross_entropy::plan_bytes(dev, tokens, config.hidden_size, config.vocab_size) as u64;
    Ok(InferencePlan { activations: backward + 4 * config.parameters(), ..plan })
}

/// Scores the blocks of a model on the host. `calibration` may be `None` for metrics that read no data.
///
/// Errors: a size that leaves no candidate or no block; data missing, or longer than the model's context; an adapter beside weights that are looked at; a residual stream or loss that is not finite.
pub fn score(dev: &Device, model: &Llama, calibration: Option<&Calibration>, options: &ScoreOptions) -> Result<Scores> {
    let layers = model.blocks.len();
    check_sizes(options, layers)?;
    if options.metric.reads_weights() && model.lora_rank().is_some() {
        let expected =
            "a metric that runs the model (angular, bi, perplexity), or the adapter merged before (ratoon merge)";
        return Err(Error::usage("--metric with --adapter", expected, options.metric.title()));
    }
    let sequences = match (calibration, options.metric.needs_data()) {
        (Some(calibration), true) if !calibration.sequences.is_empty() => calibration.sequences.as_slice(),
        (_, true) => return Err(Error::usage("--data", "calibration data for this metric", "none")),
        (_, false) => &[],
    };
    let (longest, context) = (sequences.iter().map(Vec::len).max(), model.config.max_position_embeddings);
    if let Some(tokens) = longest.filter(|&tokens| tokens > context) {
        let expected = format!("at most {context}, the model's max_position_embeddings");
        return Err(Error::usage("--sample-tokens", expected, tokens.to_string()));
    }
    let last = layers - options.protect_last;
    let sizes: &[usize] = if options.metric.ranks_blocks() { &[1] } else { &options.block_sizes };
    let candidates: Vec<(usize, usize)> = sizes
        .iter()
        .flat_map(|&n| (options.protect_first..=last.saturating_sub(n)).map(move |start| (start, start + n)))
        .filter(|&(_, end)| end <= last)
        .collect();
    let mut placed = model.clone();
    if options.metric.needs_data() {
        placed.place(dev)?;
    }
    let model = &placed;
    let values = match options.metric {
        Metric::Angular => residual::angular(dev, model, sequences, options.tokens, &candidates)?,
        Metric::Bi => residual::block_influence(dev, model, sequences, options.tokens, &candidates)?,
        Metric::Perplexity => perplexity::perplexity(dev, model, sequences, &candidates)?,
        Metric::Magnitude => magnitude::magnitude(model, &candidates)?,
        Metric::Taylor => taylor::taylor(dev, model, sequences, &candidates)?,
        Metric::Random => baseline::random(options.seed, &candidates),
        Metric::Last => baseline::last(layers, &candidates),
        Metric::First => baseline::first(layers, &candidates),
    };
    let mut rows = Vec::with_capacity(values.len());
    for (&(start, end), value) in candidates.iter().zip(values) {
        if !value.is_finite() {
            let place = format!("score of blocks {start} to {}", end - 1);
            let instead = "look for NaN in the weights, or blocks that overflow".to_string();
            return Err(Error::NotFinite { place, value: value as f32, instead });
        }
        rows.push(Score { start, end, value });
    }
    let best = options.block_sizes.iter().filter_map(|&block_size| {
        let chosen = plan::choose(&rows, block_size)?;
        let mut blocks: Vec<usize> = chosen.iter().flat_map(|row| row.start..row.end).collect();
        blocks.sort_unstable();
        Some(Cut { block_size, blocks, score: chosen.iter().map(|row| row.value).sum() })
    });
    Ok(Scores {
        metric: options.metric,
        options: options.clone(),
        num_hidden_layers: layers,
        calibration: calibration.filter(|_| options.metric.needs_data()).cloned(),
        best: best.collect(),
        rows,
    })
}

/// Every size must have a candidate.
fn check_sizes(options: &ScoreOptions, layers: usize) -> Result<()> {
    let free = layers.saturating_sub(options.protect_first.saturating_add(options.protect_last));
    let most = free.min(layers.saturating_sub(1));
    if options.block_sizes.is_empty() {
        return Err(Error::usage("--block-size", "at least one size", "none"));
    }
    for (i, &size) in options.block_sizes.iter().enumerate() {
        if size == 0 || size > most || options.block_sizes[..i].contains(&size) {
            let expected = format!(
                "different sizes from 1 to {most} ({layers} blocks, {} protected)",
                options.protect_first.saturating_add(options.protect_last)
            );
            return Err(Error::usage("--block-size", expected, size.to_string()));
        }
    }
    Ok(())
}
