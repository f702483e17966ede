//! Fine-tuning: LoRA or full, resumable with the same bits.
//!
//! | file | subject |
//! |-|-|
//! | `finetune.rs` | a run from a dataset to a finished output directory |
//! | `options.rs` | its settings |
//! | `data.rs` | rows as token sequences with targets; packing, order, batches |
//! | `trainer.rs` | one step: micro-batches, clipping, AdamW |
//! | `schedule.rs` | learning rate over the steps |
//! | `memory.rs` | what a run needs, planned before anything is loaded |
//! | `checkpoint.rs` | `checkpoint-N/`, and going on from one |
//! | `model_dir.rs` | model directories that training writes |
//! | `log.rs`, `tensorboard.rs` | JSONL and TensorBoard logs |
//! | `merge_lora.rs` | an adapter merged into its weights |
//! | `slerp.rs` | two models merged along the arc between their weights |

mod checkpoint;
pub mod data;
mod finetune;
mod log;
mod memory;
pub mod merge_lora;
mod model_dir;
mod optimizer;
mod options;
pub(crate) mod pieces;
mod schedule;
pub mod slerp;
mod tensorboard;
mod trainer;

pub use checkpoint::TrainerState;
pub use data::{OnOverflow, RowCounts, Sequence};
pub use finetune::{FinetuneReport, MANIFEST, Prepared, finetune, prepare};
pub use log::LogEntry;
pub use memory::MemoryPlan;
pub use optimizer::{Optim, OptimizerOptions};
pub use options::{FinetuneOptions, Resume};
pub use schedule::{Schedule, SchedulerType};
pub use trainer::{Method, StepReport, Trainer, TrainerOptions};
