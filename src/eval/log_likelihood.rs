//! Log-likelihoods of continuations. What requests have in common is computed once: few-shot examples, the context of several
//! choices.
//!
//! Requests are sorted by their ids, so neighbours share the longest prefixes, and run through a paged cache in batches. Within a
//! forward step every key is stored before any query reads it, so a sequence can lean on pages that a neighbour fills in the
//! same step; the last sequence's pages stay for the next batch.

use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{KvCache, Llama, PagedStep, Workspace};
use crate::ops::gather::gather_rows;
use crate::ops::log_probs::log_probs;
use crate::progress::Progress;

/// Tokens in a page of the cache: prefixes are shared to the token, so a choice costs its own tokens alone.
const PAGE: usize = 1;
/// Most sequences of one forward step: they bound the table of pages.
pub(super) const SEQUENCES: usize = 256;
/// New tokens of one forward step: enough for full-speed matrix products, few enough that buffers stay small.
pub const BATCH_TOKENS: usize = 2048;

/// A continuation to be scored after a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Context ids, at least one, then the continuation's.
    pub ids: Vec<u32>,
    /// How many of the last ids are the continuation, at least one.
    pub continuation: usize,
}

impl Request {
    /// The ids that the model reads: all but the last, which is only predicted.
    fn inputs(&self) -> &[u32] {
        &self.ids[..self.ids.len() - 1]
    }
}

/// A sequence of one forward step: `inputs[shared..]` are new, what precedes lies in pages already.
struct Sequence<'a> {
    inputs: &'a [u32],
    shared: usize,
    pages: Vec<u32>,
    /// Requests that read exactly these inputs; they differ in the last id.
    requests: Vec<usize>,
}

/// `log p(continuation | context)` in nats for each request, in their order; 0 for an empty continuation. [`Error::Usage`] for a request
/// without context.
pub fn log_likelihoods(dev: &Device, model: &Llama, requests: &[Request], progress: &Progress) -> Result<Vec<f64>> {
    if let Some(at) = requests.iter().position(|r| r.continuation >= r.ids.len()) {
        let Request { ids, continuation } = &requests[at];
        let found = format!("{} ids, {continuation} of them the continuation", ids.len());
        return Err(Error::usage(format!("request {at}"), "at least one id of context before the continuation", found));
    }
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by(|&a, &b| requests[a].ids.cmp(&requests[b].ids));
    let longest = requests.iter().map(|r| r.ids.len()).max().unwrap_or(0);
    let budget = BATCH_TOKENS.max(longest);
    // A batch holds its new tokens, rounded up to pages per sequence, and one sequence kept from the batch before.
    let pages = 2 * (budget + longest).div_ceil(PAGE) + 1;
    let mut run = Run {
        dev,
        model,
        step: PagedStep::new(budget, SEQUENCES, longest.div_ceil(PAGE), PAGE),
        ws: Workspace::new(dev, &model.config, budget)?,
        cache: KvCache::new(dev, &model.config, pages, PAGE)?,
        free: (0..pages as u32).rev().collect(),
        kept: Vec::new(),
        kept_ids: &[],
    };
    let mut scores = vec![0.0; requests.len()];
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        interrupt::check()?;
        let (batch, taken) = run.next_batch(requests, rest, budget);
        run.score(requests, &batch, &mut scores)?;
        run.keep_last(batch);
        progress.add(taken as u64);
        rest = &rest[taken..];
    }
    Ok(scores)
}

/// The state between batches.
struct Run<'a> {
    dev: &'a Device,
    model: &'a Llama,
    step: PagedStep,
    ws: Workspace,
    cache: KvCache,
    free: Vec<u32>,
    /// Pages and ids of the last sequence computed.
    kept: Vec<u32>,
    kept_ids: &'a [u32],
}

impl<'a> Run<'a> {
    /// As many of the sorted requests as the budget takes, at least one, with their pages.
    fn next_batch(&mut self, requests: &'a [Request], order: &[usize], budget: usize) -> (Vec<Sequence<'a>>, usize) {
        let mut batch: Vec<Sequence> = Vec::new();
        let (mut tokens, mut taken) = (0, 0);
        for &index in order {
            let inputs = requests[index].inputs();
            // Every scored position needs its hidden state, so tokens are computed anew from the first of them on.
            let unscored = requests[index].ids.len() - requests[index].continuation - 1;
            if let Some(last) = batch.last_mut()
                && last.inputs == inputs
                && last.shared <= unscored
            {
                last.requests.push(index);
                taken += 1;
                continue;
            }
            let (neighbour, neighbour_pages) = match batch.last() {
                Some(last) => (last.inputs, &last.pages),
                None => (self.kept_ids, &self.kept),
            };
            let common = neighbour.iter().zip(inputs).take_while(|(a, b)| a == b).count();
            let shared = common.min(unscored) / PAGE * PAGE;
            let new = inputs.len() - shared;
            let new_pages = new.div_ceil(PAGE);
            let full = batch.len() == SEQUENCES || tokens + new > budget || new_pages > self.free.len();
            if full && !batch.is_empty() {
                break;
            }
            let mut pages = neighbour_pages[..shared / PAGE].to_vec();
            pages.extend(self.free.split_off(self.free.len() - new_pages));
            batch.push(Sequence { inputs, shared, pages, requests: vec![index] });
            tokens += new;
            taken += 1;
        }
        (batch, taken)
    }

    /// One forward step over the batch, and the log-probabilities of all its continuations.
    fn score(&mut self, requests: &[Request], batch: &[Sequence], scores: &mut [f64]) -> Result<()> {
        self.step.clear();
        // Which row of the hidden states predicts which id of which request.
        let mut scored: Vec<(usize, u32, usize)> = Vec::new();
        for sequence in batch {
            let row = self.step.push(&sequence.inputs[sequence.shared..], sequence.shared, &sequence.pages)?;
            for &index in &sequence.requests {
                let request = &requests[index];
                let first = request.ids.len() - request.continuation;
                for (position, &target) in request.ids.iter().enumerate().skip(first) {
                    scored.push((row + position - 1 - sequence.shared, target, index));
                }
            }
        }
        self.step.forward(self.dev, self.model, &mut self.cache, &mut self.ws)?;
        // Only the rows that predict a continuation go through the output head.
        let (dev, from) = (self.dev, &self.ws.hidden);
        let rows: Vec<u32> = scored.iter().map(|&(row, ..)| row as u32).collect();
        let mut hidden = dev.zeros(&[scored.len(), from.row_len()], from.dtype())?;
        gather_rows(dev, &mut hidden, from, &Tensor::from_u32(&rows))?;
        let targets: Vec<u32> = scored.iter().map(|&(_, target, _)| target).collect();
        let mut out = dev.zeros(&[scored.len()], DType::F32)?;
        log_probs(dev, &mut out, &hidden, self.model.head_weight(), &Tensor::from_u32(&targets))?;
        for (&log_prob, &(_, _, index)) in out.host()?.f32().iter().zip(&scored) {
            scores[index] += f64::from(log_prob);
        }
        Ok(())
    }

    /// Frees every page but those of the last sequence.
    fn keep_last(&mut self, batch: Vec<Sequence<'a>>) {
        let Some(last) = batch.last() else { return };
        let mut pages: Vec<u32> = batch.iter().flat_map(|s| s.pages.iter().copied()).collect();
        pages.append(&mut self.kept);
        pages.sort_unstable();
        pages.dedup();
        self.free.extend(pages.into_iter().filter(|page| !last.pages.contains(page)));
        self.kept = last.pages.clone();
        self.kept_ids = last.inputs;
    }
}
