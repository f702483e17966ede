//! `ratoon run`: a recipe file, its chain of stages, resumed where it stopped.
//!
//! | file | subject |
//! |-|-|
//! | `settings.rs` | the recipe file: every key with its default |
//! | `stamp.rs` | what a finished stage leaves behind, so that it is not done twice |
//! | `chain.rs` | the stages in their order |
//! | `memory.rs` | the memory that each stage takes, planned |
//! | `summary.rs` | the stages' results as one report |

mod chain;
mod memory;
mod settings;
mod stamp;
mod summary;

pub use chain::run;
pub use memory::{StagePlan, memory};
pub use settings::{DistillSettings, EvalSettings, FinetuneSettings, PruneSettings, Recipe, ScoreSettings};
