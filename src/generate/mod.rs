//! Generation: many requests at once over a paged cache of keys and values.
//!
//! Requests join and leave the running batch at every step (continuous batching, Yu et al. 2022, "Orca"), prompts are read in
//! chunks beside running decodes, and the cache is cut in pages (Kwon et al. 2023, arXiv 2309.06180). A request gets all the
//! pages it can ever need when it joins, so that nothing runs out of memory half-way. Operations give each row the same
//! numbers whatever runs beside it, and random numbers are keyed by (seed, request, position): the tokens are the
//! same whatever the batch, chunk and page sizes.
//!
//! | file | subject |
//! |-|-|
//! | `engine.rs` | the loop: admission, steps, sampling |
//! | `pages.rs` | the page allocator |
//! | `ending.rs` | where an output ends: end-of-text ids, stop strings, half characters |
//! | `prompts.rs` | rows of a prompt file to requests and completions to result lines, OpenAI batches included |
//! | `runtime.rs` | a model with its tokenizer, chat template and end-of-text ids |
//! | `provenance.rs` | which model and data a result came from |
//! | `resume.rs` | result files that are appended to in input order and survive a kill |

mod ending;
mod engine;
mod pages;
mod prompts;
pub mod provenance;
pub mod resume;
mod runtime;

pub use crate::ops::sample::Sampling;
pub use engine::generate;
pub use prompts::{GenerateOptions, GenerateReport, generate_file};
pub use runtime::Runtime;

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of its random stream; see [`stream_of`].
    pub id: u64,
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Texts that end the output; they are not part of it.
    pub stop: Vec<String>,
}

/// The random stream of a row id: the same row gets the same tokens wherever it stands in whichever file.
pub fn stream_of(row_id: &str) -> u64 {
    use sha2::Digest;
    let digest = sha2::Sha256::digest(row_id.as_bytes());
    // A SHA-256 digest has 32 bytes.
    digest.iter().take(8).fold(0, |word, &byte| (word << 8) | u64::from(byte))
}

/// Why an output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-text id or a stop string.
    Stop,
    /// `max_tokens`, or the end of the model's context.
    Length,
    /// Nothing was generated: the prompt does not fit the context and [`OnOverflow::Drop`] was asked for.
    Dropped,
}

impl Finish {
    /// `stop`, `length` or `dropped`.
    pub fn name(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Dropped => "dropped",
        }
    }
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Generated ids, the end-of-text id or the tokens of the stop string included.
    pub ids: Vec<u32>,
    /// Their text without special tokens and stop string. A character that the length limit cut in half is left out.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that the model read.
    pub prompt_tokens: usize,
    /// Tokens that [`OnOverflow::Truncate`] took from the prompt's start.
    pub truncated: usize,
    /// `log softmax(logits)` of each id in `ids`, with [`EngineOptions::logprobs`].
    pub logprobs: Option<Vec<f32>>,
}

/// What to do with a prompt that leaves no room for a token in the model's context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnOverflow {
    /// End with an error before anything is generated.
    #[default]
    Error,
    /// Leave the request out; it ends as [`Finish::Dropped`] and is counted.
    Drop,
    /// Leave out the start of the prompt, so that `max_tokens` (or half the context, if that is less) fit; counted.
    Truncate,
}

/// Which waiting request joins first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As given: results come nearly in order, and a resumable output loses least.
    #[default]
    Input,
    /// The longest first: fewest half-empty steps at the end.
    LongestFirst,
}

/// Limits of the engine. None of them changes a token.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Most requests in one step.
    pub max_batch_size: usize,
    /// Most prompt tokens in one step.
    pub chunk_tokens: usize,
    /// Tokens in one page of the cache.
    pub page_size: usize,
    /// Bytes for keys and values; `None`: enough for `max_batch_size` of the longest requests, at most
    /// [`DEFAULT_KV_MEMORY`] unless a single request needs more.
    pub kv_memory: Option<u64>,
    /// Order of admission.
    pub order: Order,
    /// What to do with prompts that are too long.
    pub on_overflow: OnOverflow,
    /// Give the log-probability of each token.
    pub logprobs: bool,
    /// Label of the progress line.
    pub label: String,
}

/// Bytes of keys and values where no limit is given: 2 GiB.
pub const DEFAULT_KV_MEMORY: u64 = 2 << 30;

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            max_batch_size: 32,
            chunk_tokens: 512,
            page_size: 16,
            kv_memory: None,
            order: Order::Input,
            on_overflow: OnOverflow::Error,
            logprobs: false,
            label: "generate".into(),
        }
    }
}

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Stats {
    /// Requests given.
    pub requests: usize,
    /// Prompt tokens that the model read.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Steps (forward passes).
    pub steps: u64,
    /// Requests left out because their prompt was too long.
    pub dropped: usize,
    /// Requests whose prompt was cut at its start.
    pub truncated: usize,
    /// Bytes planned for keys and values.
    pub kv_bytes: u64,
    /// Seconds from the first step to the last.
    pub seconds: f64,
}
