//! Speculative decoding: a draft model proposes some tokens one by one, the target reads them all in one pass and keeps those
//! that it would have drawn (Leviathan et al. 2023, Chen et al. 2023; see [`crate::ops::sample`]).
//!
//! How many tokens are proposed depends on the request alone, and random numbers on its id and positions, so a request's tokens
//! do not depend on what runs beside it here either. The draft's keys and values lie in the same pages as the target's.

use super::EngineOptions;
use super::logits::{self, Logits};
use super::phases::Meter;
use super::schedule::Part;
use super::sequence::Sequence;
use crate::device::{Device, Phase};
use crate::error::{Error, Result};
use crate::model::{Config, KvCache, Llama, PagedStep, Workspace};
use crate::ops::sample::{Draw, propose};

/// A draft model and its buffers.
pub(super) struct Drafter<'a> {
    model: &'a Llama,
    cache: KvCache,
    step: PagedStep,
    workspace: Workspace,
    logits: Logits,
    /// Sequences that draw in a round, and the rows of their last ids.
    drawing: Vec<usize>,
    rows: Vec<u32>,
}

/// Most new tokens of one pass: a prompt chunk, and two for each sequence, whose last proposal the draft has not read when all
/// were kept.
fn most_tokens(options: &EngineOptions) -> usize {
    2 * options.max_batch_size + options.chunk_tokens
}

/// Rows of logits of one pass.
fn logit_rows(config: &Config, options: &EngineOptions) -> usize {
    logits::rows(config, options.max_batch_size, 1)
}

impl<'a> Drafter<'a> {
    /// Errors when the two models do not have one vocabulary and context.
    pub(super) fn check(target: &Config, draft: &Config) -> Result<()> {
        if draft.vocab_size != target.vocab_size {
            let expected = format!("a model with the vocabulary of {} ids", target.vocab_size);
            return Err(Error::usage("--draft", expected, draft.vocab_size.to_string()));
        }
        if draft.max_position_embeddings < target.max_position_embeddings {
            let expected = format!("a model with a context of {} tokens", target.max_position_embeddings);
            return Err(Error::usage("--draft", expected, draft.max_position_embeddings.to_string()));
        }
        Ok(())
    }

    /// Buffers beside `pages` pages, `longest` of which a sequence has at most.
    pub(super) fn new(
        dev: &Device,
        model: &'a Llama,
        pages: usize,
        longest: usize,
        options: &EngineOptions,
    ) -> Result<Drafter<'a>> {
        let (config, tokens) = (&model.config, most_tokens(options));
        Ok(Drafter {
            model,
            cache: KvCache::new(dev, config, pages, options.page_size)?,
            step: PagedStep::new(tokens, options.max_batch_size, longest, options.page_size),
            workspace: Workspace::new(dev, config, tokens)?,
            logits: Logits::new(dev, config, logit_rows(config, options))?,
            drawing: Vec::new(),
            rows: Vec::new(),
        })
    }

    /// Bytes of the buffers beside the pages.
    pub(super) fn plan_bytes(dev: &Device, config: &Config, options: &EngineOptions) -> usize {
        Workspace::plan_bytes(dev, config, most_tokens(options))
            + Logits::plan_bytes(config, logit_rows(config, options))
    }

    /// Reads what the target reads in this step, and proposes tokens behind the sequences that decode.
    pub(super) fn propose(
        &mut self,
        dev: &Device,
        running: &mut [Sequence],
        parts: &[Part],
        meter: &mut Meter,
    ) -> Result<()> {
        let rounds = parts.iter().map(|part| part.proposals.max(usize::from(part.reading))).max().unwrap_or(0);
        for round in 0..rounds {
            self.step.clear();
            self.drawing.clear();
            self.rows.clear();
            for part in parts {
                let sequence = &mut running[part.index];
                let end = match part.reading {
                    true if round == 0 => part.first + part.tokens,
                    false if round < part.proposals => sequence.ids.len(),
                    _ => continue,
                };
                let ids = &sequence.ids[sequence.draft_cached..end];
                let row = self.step.push(ids, sequence.draft_cached, &sequence.pages)?;
                if !part.reading {
                    self.drawing.push(part.index);
                    self.rows.push((row + ids.len() - 1) as u32);
                }
                sequence.draft_cached = end;
            }
            self.step.forward(dev, self.model, &mut self.cache, &mut self.workspace)?;
            let pushed = parts.iter().filter(|part| if part.reading { round == 0 } else { round < part.proposals });
            meter.book_pass(&self.step, pushed.map(|part| part.reading));
            let capacity = self.logits.capacity;
            for (members, rows) in self.drawing.chunks(capacity).zip(self.rows.chunks(capacity)) {
                let logits = self.logits.of(dev, self.model, &self.workspace.hidden, rows)?;
                let draw = |&index: &usize| running[index].draw(running[index].ids.len());
                let draws: Vec<Draw> = members.iter().map(draw).collect();
                let proposals = propose(dev, logits, &draws)?;
                for (&index, proposal) in members.iter().zip(proposals) {
                    running[index].ids.push(proposal.id);
                    running[index].proposals.push(proposal);
                }
            }
            meter.book(Phase::Decode);
        }
        Ok(())
    }
}
