//! What is shown at the end of a run: one self-contained HTML page and the same numbers as JSON.
//!
//! | file | subject |
//! |-|-|
//! | `heatmap.rs` | distances of all candidate cuts as SVG |
//! | `charts.rs` | loss curves, quality against FLOPs, roofline as SVG |
//! | `page.rs`, `page.html` | the page |

pub mod charts;
pub mod heatmap;
pub mod page;

use serde::{Deserialize, Serialize};

/// Everything that `report.json` holds and `report.html` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Heading of the page.
    pub title: String,
    /// Version of the program that wrote it.
    pub ratoon_version: String,
    /// Processor and thread count.
    pub machine: String,
    /// Measured peak of the device in FLOP/s: dot products of bf16 pairs, all threads.
    pub peak_flops: f64,
    /// The same of F32 fused multiply-adds.
    pub peak_f32_flops: f64,
    /// Measured read bandwidth of the device's memory in bytes per second.
    pub peak_bandwidth: f64,
    /// Tokens of the sequence for which FLOPs with attention are stated.
    pub seq_len: usize,
    /// Base, cut, and the students, in this order.
    pub models: Vec<ModelRow>,
    /// The blocks that were cut, 0-based.
    pub dropped_blocks: Vec<usize>,
    /// Heat map of the candidate cuts, SVG.
    pub heatmap_svg: String,
    /// Loss curves of the students.
    pub losses: Vec<LossCurve>,
    /// What became of each training row in distillation: reason and count.
    pub distilled: Vec<(String, u64)>,
    /// Time, work and memory of each stage.
    pub stages: Vec<StageRow>,
    /// Work by operation over the whole run.
    pub operations: Vec<OperationRow>,
    /// The recipe with every default written out.
    pub settings: String,
}

/// One model of the comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelRow {
    /// `base`, `cut`, `cut + SFT`, `cut + self-distilled`.
    pub name: String,
    /// Decoder blocks.
    pub layers: usize,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of the weights on disk.
    pub weight_bytes: u64,
    /// FLOPs per token: twice all parameters.
    pub flops_params_2n: f64,
    /// FLOPs per token: the matrix products really done.
    pub flops_matmul: f64,
    /// FLOPs per token with attention at [`Report::seq_len`].
    pub flops_total: f64,
    /// Measured prefill speed in tokens per second; the students have the speed of the cut model.
    pub prefill_tokens_per_second: Option<f64>,
    /// Held-out perplexity.
    pub perplexity: f64,
    /// Mean KL(base || model) per token on the held-out text, in nats.
    pub kl: Option<f64>,
    /// Share of positions where the most likely token is the base's.
    pub top1_agreement: Option<f64>,
    /// Mean negative log-likelihood of text that the base wrote, in nats per token.
    pub base_text_nll: Option<f64>,
    /// Task scores.
    pub tasks: Vec<TaskScore>,
    /// Mean task score over the base's mean task score.
    pub recovery: Option<f64>,
}

/// One task's score.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TaskScore {
    /// Task name.
    pub task: String,
    /// Which of its metrics is shown (`acc_norm`, `strict`).
    pub metric: String,
    /// Score from 0 to 1.
    pub value: f64,
    /// Standard error of the score.
    pub stderr: f64,
}

/// Training loss over the steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LossCurve {
    /// Student.
    pub name: String,
    /// Step and mean loss per target token, in nats.
    pub points: Vec<(u64, f64)>,
}

/// One stage of the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StageRow {
    /// Stage name.
    pub name: String,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Floating-point operations, from the ledger.
    pub flops: u64,
    /// Tokens that went through a model.
    pub tokens: u64,
    /// Highest resident memory of the process by the end of the stage, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
}

/// One operation's total work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OperationRow {
    /// Operation name.
    pub name: String,
    /// Calls.
    pub calls: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// Fewest bytes that had to move.
    pub bytes: u64,
    /// Seconds inside the operation.
    pub seconds: f64,
}
