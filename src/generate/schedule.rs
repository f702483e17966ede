//! Who takes part in a step, with how many tokens, in which pages.
//!
//! Decoding requests take part in every step. Prompts are read beside them in chunks, the oldest request first. A request gets
//! pages as it grows; when there are none left, the youngest one loses its own and waits at the head of the queue, to be read again
//! later (preemption by recomputation, Kwon et al. 2023). The oldest request always goes on, and the cache holds at least one
//! request at its longest, so every request ends.

use super::EngineOptions;
use super::options::StepTokens;
use super::pages::PagePool;
use super::sequence::Sequence;
use crate::error::{Error, Result};
use std::collections::VecDeque;

/// What one running sequence does in a step: its ids from `first` on are computed, `tokens` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Place in `running`.
    pub index: usize,
    pub first: usize,
    pub tokens: usize,
    /// Whether a token is drawn behind the last one.
    pub draws: bool,
    /// Whether it is read (a prompt, or all of it again) and does not decode.
    pub reading: bool,
    /// Most tokens that may be proposed behind it.
    pub proposals: usize,
}

pub(super) struct Scheduler<'a> {
    pub waiting: VecDeque<Sequence<'a>>,
    /// The oldest first.
    pub running: Vec<Sequence<'a>>,
    pool: PagePool,
    page_size: usize,
    max_batch_size: usize,
    chunk_tokens: usize,
    prefix_sharing: bool,
    draft_tokens: usize,
    /// Requests that lost their pages so far.
    pub preemptions: u64,
    /// Prompt tokens found in the cache so far.
    pub shared_tokens: u64,
}

impl<'a> Scheduler<'a> {
    pub(super) fn new(waiting: VecDeque<Sequence<'a>>, pages: usize, draft_tokens: usize, o: &EngineOptions) -> Self {
        Scheduler {
            waiting,
            running: Vec::new(),
            pool: PagePool::new(pages, o.page_size),
            page_size: o.page_size,
            max_batch_size: o.max_batch_size,
            chunk_tokens: o.chunk_tokens,
            prefix_sharing: o.prefix_sharing,
            draft_tokens,
            preemptions: 0,
            shared_tokens: 0,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Fills `parts` for the next step, in the order of `running`.
    pub(super) fn schedule(&mut self, parts: &mut Vec<Part>) -> Result<StepTokens> {
        parts.clear();
        let (mut tokens, mut budget) = (StepTokens::default(), self.chunk_tokens);
        let mut index = 0;
        while index < self.running.len() || budget > 0 && self.admit() {
            parts.extend(self.part(index, &mut budget, &mut tokens));
            if index == self.running.len() {
                break; // It has lost its own pages: there is no memory for anyone else either.
            }
            index += 1;
        }
        if parts.is_empty() {
            let (pages, waiting) = (self.pool.available(), self.waiting.len());
            let found = format!("{pages} pages for {waiting} waiting requests");
            return Err(Error::shape("generate", "pages", "room for one request", found));
        }
        Ok(tokens)
    }

    /// What the sequence at `index` does; `None` when it waits for its turn to read or has lost its pages.
    fn part(&mut self, index: usize, budget: &mut usize, tokens: &mut StepTokens) -> Option<Part> {
        let sequence = &self.running[index];
        let (first, (left, reading)) = (sequence.cached, sequence.left());
        let take = if reading { left.min(*budget) } else { left };
        // A token is drawn behind the proposals too, so the last place is never proposed for.
        let room = sequence.most_tokens.saturating_sub(sequence.ids.len() + 1);
        let proposals = if reading { 0 } else { self.draft_tokens.min(room) };
        if take == 0 || !self.grow(index, first + take + proposals) {
            return None;
        }
        let sequence = &mut self.running[index];
        sequence.cached += take;
        let draws = sequence.cached == sequence.ids.len() && sequence.ids.len() < sequence.most_tokens;
        if reading {
            *budget -= take;
            let again = sequence.computed.clamp(first, sequence.cached) - first;
            tokens.recomputed += again as u64;
            tokens.prompt += (take - again) as u64;
        }
        sequence.computed = sequence.computed.max(sequence.cached);
        // What is read in this step can be found by those that join in it: a step stores all keys before it reads any.
        if reading {
            self.publish(index, first + take);
        }
        Some(Part { index, first, tokens: take, draws, reading, proposals })
    }

    /// Pages for `tokens` tokens of the sequence at `index`, if need be from younger ones. When there are none it is the youngest
    /// itself and loses its own.
    fn grow(&mut self, index: usize, tokens: usize) -> bool {
        while self.running[index].pages.len() < tokens.div_ceil(self.page_size) {
            match self.pool.take() {
                Some(page) => self.running[index].pages.push(page),
                None => {
                    self.preempt_youngest();
                    if self.running.len() <= index {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// The youngest sequence waits at the head of the queue. Its full pages can be found as long as nobody needs their memory.
    fn preempt_youngest(&mut self) {
        let Some(index) = self.running.len().checked_sub(1) else { return };
        self.publish(index, self.running[index].cached.min(self.running[index].draft_cached));
        let mut youngest = self.running.remove(index);
        self.pool.release_all(&mut youngest.pages);
        (youngest.cached, youngest.draft_cached, youngest.published) = (0, 0, 0);
        self.preemptions += 1;
        self.waiting.push_front(youngest);
    }

    /// Lets others find the full pages of the first `tokens` tokens.
    pub(super) fn publish(&mut self, index: usize, tokens: usize) {
        let sequence = &mut self.running[index];
        if self.prefix_sharing {
            for page in sequence.published..tokens / self.page_size {
                let range = page * self.page_size..(page + 1) * self.page_size;
                self.pool.publish(&mut sequence.pages, page, &sequence.ids[range]);
                sequence.published = page + 1;
            }
        }
    }

    /// Lets the next waiting request join when there is a place and memory for all of its ids, with a page to grow for everyone.
    fn admit(&mut self) -> bool {
        let Some(next) = self.waiting.front_mut() else { return false };
        if self.running.len() >= self.max_batch_size {
            return false;
        }
        let mut pages = if self.prefix_sharing { self.pool.find(&next.ids[..next.shareable()]) } else { Vec::new() };
        let needed = (next.ids.len() + 1).div_ceil(self.page_size) - pages.len();
        if !self.running.is_empty() && needed + self.running.len() > self.pool.available() {
            self.pool.release_all(&mut pages);
            return false;
        }
        let Some(mut next) = self.waiting.pop_front() else { return false };
        next.cached = pages.len() * self.page_size;
        next.draft_cached = next.cached;
        next.published = pages.len();
        next.pages = pages;
        let shared = next.cached.min(next.prompt_tokens).saturating_sub(next.computed);
        self.shared_tokens += shared as u64;
        next.computed = next.computed.max(next.cached);
        self.running.push(next);
        true
    }

    /// Takes out the finished sequences.
    pub(super) fn take_finished(&mut self) -> Vec<Sequence<'a>> {
        let mut finished: Vec<Sequence> = self.running.extract_if(.., |s| s.finish.is_some()).collect();
        for sequence in &mut finished {
            self.pool.release_all(&mut sequence.pages);
        }
        finished
    }
}
