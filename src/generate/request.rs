//! What is asked for, and what comes out.

use crate::ops::sample::Sampling;

/// One prompt to continue.
#[derive(Clone, Debug)]
pub struct Request {
    /// Number of its random stream; see [`stream_of`].
    pub id: u64,
    /// What errors call it; empty: its index in the call.
    pub name: String,
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Added to the logits of these ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Texts that end the output; they are not part of it.
    pub stop: Vec<String>,
    /// Which log-probabilities are reported.
    pub logprobs: Logprobs,
}

impl Request {
    /// A greedy continuation that ends at an end-of-text id or the limit.
    pub fn new(id: u64, prompt: Vec<u32>, max_tokens: usize) -> Request {
        Request {
            id,
            name: String::new(),
            prompt,
            max_tokens,
            sampling: Sampling::GREEDY,
            logit_bias: Vec::new(),
            stop: Vec::new(),
            logprobs: Logprobs::default(),
        }
    }

    /// What errors call the request at `index`.
    pub(super) fn called(&self, index: usize) -> String {
        if self.name.is_empty() { format!("request {index}") } else { self.name.clone() }
    }
}

/// Which log-probabilities a request reports. All are those of the model, before bias, penalty, temperature and cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Logprobs {
    /// Of each generated token.
    pub output: bool,
    /// Of so many likeliest tokens at the place of each generated one.
    pub top: usize,
    /// Of each prompt token but the first.
    pub prompt: bool,
}

/// The random stream of sample `sample` of a row: the same row gets the same tokens wherever it stands in whichever file.
pub fn stream_of(row_id: &str, sample: usize) -> u64 {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new_with_prefix(row_id);
    if sample > 0 {
        hash.update(format!("\0{sample}"));
    }
    // A SHA-256 digest has 32 bytes.
    hash.finalize().iter().take(8).fold(0, |word, &byte| (word << 8) | u64::from(byte))
}

/// Why an output ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// An end-of-text id or a stop string.
    Stop,
    /// `max_tokens`, or the end of the model's context.
    Length,
    /// Nothing was generated: the prompt does not fit the context and [`OnOverflow::Drop`](super::OnOverflow::Drop) was asked
    /// for.
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
#[non_exhaustive]
pub struct Completion {
    /// Generated ids, the end-of-text id or the tokens of the stop string included.
    pub ids: Vec<u32>,
    /// Their text without special tokens and stop string. A character that the length limit cut in half is left out.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt that the model read.
    pub prompt_tokens: usize,
    /// Tokens that [`OnOverflow::Truncate`](super::OnOverflow::Truncate) took from the prompt's start.
    pub truncated: usize,
    /// Log-probability of each id in `ids`, with [`Logprobs::output`].
    pub logprobs: Option<Vec<f32>>,
    /// The likeliest ids at each place of `ids` with their log-probabilities, with [`Logprobs::top`].
    pub top_logprobs: Option<Vec<Vec<(u32, f32)>>>,
    /// Log-probability of each prompt token that was read but the first, with [`Logprobs::prompt`].
    pub prompt_logprobs: Option<Vec<f32>>,
}
