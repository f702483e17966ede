//! Limits of the engine, and what a call did.

use crate::device::PhaseWork;
use std::ops::AddAssign;

/// What to do with a prompt that leaves no room for a token in the model's context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnOverflow {
    /// End with an error before anything is generated.
    #[default]
    Error,
    /// Leave the request out; it ends as `dropped` and is counted.
    Drop,
    /// Leave out the start of the prompt, so that `max_tokens` (or half the context, if that is less) fit; counted. Of a text of
    /// more than 1 MiB only its end is tokenized.
    Truncate,
}

/// Which waiting request joins first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As given.
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
    /// Compute what prompts have in common once.
    pub prefix_sharing: bool,
    /// Most tokens that a draft model proposes at a time.
    pub draft_tokens: usize,
    /// Order of admission.
    pub order: Order,
    /// What to do with prompts that are too long.
    pub on_overflow: OnOverflow,
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
            prefix_sharing: true,
            draft_tokens: 4,
            order: Order::Input,
            on_overflow: OnOverflow::Error,
            label: "generate".into(),
        }
    }
}

/// What a call did.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Requests given.
    pub requests: usize,
    /// Prompt tokens that the model computed.
    pub prompt_tokens: u64,
    /// Prompt tokens whose keys and values were there already, from another request's prompt.
    pub shared_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Tokens computed again after a preemption.
    pub recomputed_tokens: u64,
    /// Requests that lost their pages to older ones and were taken up again later.
    pub preemptions: u64,
    /// Steps (forward passes).
    pub steps: u64,
    /// Tokens that a draft model proposed.
    pub proposed_tokens: u64,
    /// Of these, tokens that the model kept.
    pub accepted_tokens: u64,
    /// Requests left out because their prompt was too long.
    pub dropped: usize,
    /// Requests whose prompt was cut at its start.
    pub truncated: usize,
    /// Bytes planned for keys and values.
    pub kv_bytes: u64,
    /// Work of reading prompts, a draft model's included; see [`Phase`](crate::device::Phase).
    pub prefill: PhaseWork,
    /// Work of writing.
    pub decode: PhaseWork,
    /// Seconds from the first step to the last.
    pub seconds: f64,
}

impl Stats {
    /// Share of the proposed tokens that were kept; `None` without a draft model.
    pub fn acceptance(&self) -> Option<f64> {
        (self.proposed_tokens > 0).then(|| self.accepted_tokens as f64 / self.proposed_tokens as f64)
    }
}

/// Tokens of one step by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct StepTokens {
    /// Prompt tokens read for the first time.
    pub prompt: u64,
    /// Tokens read again after a preemption.
    pub recomputed: u64,
    /// Tokens drawn, kept proposals included.
    pub drawn: u64,
    /// Tokens that a draft model proposed.
    pub proposed: u64,
    /// Of these, tokens that were kept.
    pub accepted: u64,
}

impl AddAssign<StepTokens> for Stats {
    fn add_assign(&mut self, step: StepTokens) {
        self.steps += 1;
        self.prompt_tokens += step.prompt;
        self.recomputed_tokens += step.recomputed;
        self.generated_tokens += step.drawn;
        self.proposed_tokens += step.proposed;
        self.accepted_tokens += step.accepted;
    }
}
