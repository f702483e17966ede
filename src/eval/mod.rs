//! What a model is worth: perplexity, distance from the model that it was cut from, tasks.
//!
//! | file | subject |
//! |-|-|
//! | `perplexity.rs` | perplexity and bits per byte of a text in windows |
//! | `divergence.rs` | KL(base, model) and top-1 agreement on a text |
//! | `own_text.rs` | how likely the model finds what its base writes |
//! | `log_likelihood.rs` | log-likelihoods of continuations, shared prefixes computed once |
//! | `tasks/` | multiple choice and generative tasks |
//! | `evaluate.rs` | all of it, as `ratoon eval` does it |
//! | `flops.rs` | FLOPs in three conventions, checked against the ledger |
//! | `training_step.rs`, `training_flops.rs` | a training step of given size, and its FLOPs |
//! | `bench.rs`, `bench_training.rs` | prefill, decode and training speed |
//! | `operations.rs`, `operations/` | speed of single operations |
//! | `ceiling.rs` | what the device can do at most |

pub mod bench;
mod bench_training;
pub mod ceiling;
mod divergence;
mod evaluate;
pub mod flops;
mod log_likelihood;
pub mod operations;
mod own_text;
mod perplexity;
pub mod tasks;
pub mod training_flops;
pub mod training_step;

pub use divergence::{Divergence, divergence};
pub use evaluate::{EvalOptions, EvalReport, TaskReport, evaluate, memory};
pub use log_likelihood::{Request, log_likelihoods};
pub use own_text::{OwnText, OwnTextOptions, own_text};
pub use perplexity::{Perplexity, default_window, perplexity};
