//! Which blocks to cut, and cutting them.
//!
//! | file | subject |
//! |-|-|
//! | `metrics/` | importance of blocks, one metric a file; [`score`] |
//! | `calibration.rs` | the token sequences that the metrics read |
//! | `scores_csv.rs` | scores as CSV, with a JSON record and a heat map beside it |
//! | `plan.rs` | a checked choice of blocks |
//! | `mergekit.rs` | the same choice as mergekit's passthrough YAML |
//! | `writer.rs` | [`prune`]: the model directory without those blocks |
//! | `shard.rs` | one weight file of it: header, long ranges copied by the system |
//!
//! Blocks are counted from 0 and ranges exclude their end: `block_start..block_end`.

mod calibration;
mod mergekit;
mod metrics;
mod plan;
mod scores_csv;
mod shard;
mod writer;

pub use calibration::{Calibration, CalibrationOptions};
pub use metrics::{Cut, Metric, Score, ScoreOptions, Scores, Tokens, memory, score};
pub use plan::{Plan, describe};
pub use scores_csv::{check_output, heat_map, write_scores};
pub use writer::{PROVENANCE, PruneReport, prune};
