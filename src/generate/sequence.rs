//! A request on its way.

use super::{Completion, Finish, Request, ending};
use crate::error::Result;
use crate::model::Tokenizer;
use crate::ops::sample::{Draw, Drawn, Proposal, Verification};

/// A request on its way. What it needs to go on after a preemption is its ids alone.
pub(super) struct Sequence<'a> {
    pub index: usize,
    pub request: &'a Request,
    /// What errors call it.
    name: String,
    /// Prompt and generated ids; during a step of speculative decoding, proposals behind them.
    pub ids: Vec<u32>,
    pub prompt_tokens: usize,
    /// Tokens that were cut from the prompt's start.
    pub truncated: usize,
    /// Prompt and output at their longest.
    pub most_tokens: usize,
    /// Tokens whose keys and values are in the cache.
    pub cached: usize,
    /// The same of the draft model's; equal to `cached` while the sequence is read.
    pub draft_cached: usize,
    /// Tokens that were computed at any time: what is computed again below is the cost of a preemption.
    pub computed: usize,
    pub pages: Vec<u32>,
    /// Pages that others can find.
    pub published: usize,
    /// What a draft model proposed in this step; their ids stand at the end of `ids`.
    pub proposals: Vec<Proposal>,
    drawn: Vec<Drawn>,
    /// Log-probabilities of the prompt tokens from the second on, as far as they are known.
    pub prompt_logprobs: Vec<f32>,
    pub finish: Option<Finish>,
    stop_search: Option<ending::Search<'a>>,
}

impl<'a> Sequence<'a> {
    /// A request with the ids of its prompt that are read.
    pub(super) fn new(index: usize, request: &'a Request, prompt: &[u32], tokenizer: &'a Tokenizer) -> Sequence<'a> {
        Sequence {
            index,
            request,
            name: request.called(index),
            ids: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            truncated: request.prompt.len() - prompt.len(),
            most_tokens: prompt.len().saturating_add(request.max_tokens),
            cached: 0,
            draft_cached: 0,
            computed: 0,
            pages: Vec::new(),
            published: 0,
            proposals: Vec::new(),
            drawn: Vec::new(),
            prompt_logprobs: Vec::new(),
            finish: None,
            stop_search: ending::Search::new(tokenizer, &request.stop),
        }
    }

    /// How many ids are to be computed next, and whether they are read (a prompt, or what a preemption took) and not decoded. What
    /// was drawn before a preemption is read up to its last id, from which decoding goes on as if nothing had happened.
    pub(super) fn left(&self) -> (usize, bool) {
        let missing = self.ids.len() - self.cached;
        match self.drawn.is_empty() {
            true => (missing, true),
            false if missing > 1 => (missing - 1, true),
            false => (missing, false),
        }
    }

    /// How many ids at the start may be taken from other requests' pages: the last one must be computed, for its logits, and so
    /// must those that predict prompt tokens whose log-probability is asked for.
    pub(super) fn shareable(&self) -> usize {
        let scored = if self.request.logprobs.prompt { self.prompt_logprobs.len() } else { usize::MAX };
        scored.min(self.ids.len() - 1)
    }

    /// The draw of the token at `position`, with the ids before it as those that were seen.
    pub(super) fn draw(&self, position: usize) -> Draw<'_> {
        Draw {
            sampling: self.request.sampling,
            request: self.request.id,
            name: &self.name,
            position: position as u32,
            logit_bias: &self.request.logit_bias,
            seen: &self.ids[..position],
            top: self.request.logprobs.top,
        }
    }

    /// The draws behind the known ids and behind each proposal.
    pub(super) fn verification(&self) -> Verification<'_> {
        let known = self.ids.len() - self.proposals.len();
        Verification { draws: (known..=self.ids.len()).map(|at| self.draw(at)).collect(), proposals: &self.proposals }
    }

    /// Takes in what a verification gave: the proposals that were kept and one more token. Gives how many were taken.
    pub(super) fn accept(&mut self, drawn: Vec<Drawn>, eos: &[u32]) -> Result<usize> {
        let known = self.ids.len() - self.proposals.len();
        let kept = drawn.len() - 1;
        self.ids.truncate(known);
        self.proposals.clear();
        // Keys and values of the kept proposals are right; those of the others will be written over.
        self.cached += kept;
        self.computed = self.computed.max(self.cached);
        self.draft_cached = self.draft_cached.min(known + kept);
        for (taken, drawn) in drawn.into_iter().enumerate() {
            self.push(drawn, eos)?;
            if self.finish.is_some() {
                return Ok(taken + 1);
            }
        }
        Ok(kept + 1)
    }

    /// Takes in a drawn token and looks whether it ends the output.
    fn push(&mut self, drawn: Drawn, eos: &[u32]) -> Result<()> {
        let id = drawn.id;
        self.ids.push(id);
        self.drawn.push(drawn);
        let stops = |search: &mut ending::Search| search.push(id);
        if eos.contains(&id) || self.stop_search.as_mut().map_or(Ok(false), stops)? {
            self.finish = Some(Finish::Stop);
        } else if self.ids.len() >= self.most_tokens {
            self.finish = Some(Finish::Length);
        }
        Ok(())
    }

    /// What the request gave.
    pub(super) fn finished(self, tokenizer: &Tokenizer) -> Result<Completion> {
        let ids = self.ids[self.prompt_tokens..].to_vec();
        let finish = self.finish.unwrap_or(Finish::Length);
        let text = match self.stop_search.and_then(ending::Search::text) {
            Some(text) => text,
            None => ending::text(tokenizer, &ids, finish == Finish::Length)?,
        };
        let wanted = self.request.logprobs;
        Ok(Completion {
            text,
            finish,
            prompt_tokens: self.prompt_tokens,
            truncated: self.truncated,
            logprobs: wanted.output.then(|| self.drawn.iter().map(|drawn| drawn.log_prob).collect()),
            top_logprobs: (wanted.top > 0).then(|| self.drawn.into_iter().map(|drawn| drawn.top).collect()),
            prompt_logprobs: wanted.prompt.then_some(self.prompt_logprobs),
            ids,
        })
    }
}
