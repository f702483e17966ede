//! Generation: many requests at once over a paged cache of keys and values.
//!
//! Requests join and leave the running batch at every step (continuous batching, Yu et al. 2022, "Orca"), prompts are read in
//! chunks beside running decodes, and the cache is cut in pages (Kwon et al. 2023, arXiv 2309.06180) that requests with the same
//! beginning share. A request gets pages as it grows; the youngest gives its own up when there are none left, and is read again
//! later. Operations give each row the same numbers whatever runs beside it, and random numbers are keyed by (seed, request,
//! position): the tokens are the same whatever the batch, chunk and page sizes, whoever shares and whoever is preempted.
//!
//! | file | subject |
//! |-|-|
//! | `request.rs`, `options.rs` | what is asked for and given; limits and statistics |
//! | `engine.rs` | the loop: steps, draws, results |
//! | `plan.rs` | checks of the requests, sizes of all buffers |
//! | `schedule.rs`, `sequence.rs` | who takes part in a step, admission and preemption; a request on its way |
//! | `pages.rs`, `prefix.rs` | which request uses which pages, and which pages hold the beginning of a prompt |
//! | `speculative.rs` | proposals of a draft model |
//! | `logits.rs` | logits of the rows that need them |
//! | `phases.rs` | the ledger's work divided into prefill and decode |
//! | `ending.rs` | where an output ends: stop strings, half characters |
//! | `prompts.rs`, `batch_line.rs` | rows of a prompt file to requests and completions to result lines; OpenAI batches |
//! | `shard.rs`, `join.rs` | one run as several, and their results as one |
//! | `runtime.rs` | a model with its tokenizer, chat template and end-of-text ids |
//! | `provenance.rs` | which model and data a result came from |
//! | `resume.rs` | result files that are appended to in input order and survive a kill |

mod batch_line;
mod ending;
mod engine;
mod join;
mod logits;
mod options;
mod pages;
mod phases;
mod plan;
mod prefix;
mod prompts;
pub mod provenance;
mod request;
pub mod resume;
mod runtime;
mod schedule;
mod sequence;
mod shard;
mod speculative;

pub use crate::ops::sample::Sampling;
pub use engine::{Models, generate};
pub use join::join;
pub use options::{DEFAULT_KV_MEMORY, EngineOptions, OnOverflow, Order, Stats};
pub use plan::memory;
pub use prompts::{GenerateOptions, GenerateReport, generate_file};
pub use request::{Completion, Finish, Logprobs, Request, stream_of};
pub use runtime::Runtime;
pub use shard::Shard;
