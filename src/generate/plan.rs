//! Checks of the requests and the size of the cache, before anything is computed.

use super::logits::{self, Logits};
use super::sequence::Sequence;
use super::speculative::Drafter;
use super::{DEFAULT_KV_MEMORY, EngineOptions, Finish, Models, OnOverflow, Request};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{Config, InferencePlan, KvCache, PagedStep, Tokenizer, Workspace, lora};
use std::collections::VecDeque;
use std::path::Path;

/// Largest logit bias, as in the OpenAI interface.
const MOST_BIAS: f32 = 100.0;

/// Most alternatives of a token that are reported, as in the OpenAI interface.
pub(super) const MOST_TOP: usize = 20;

/// Checks every request and decides how much of it fits the context. One that generates nothing is finished already.
pub(super) fn sequences<'a>(
    config: &Config,
    tokenizer: &'a Tokenizer,
    requests: &'a [Request],
    options: &EngineOptions,
) -> Result<Vec<Sequence<'a>>> {
    let context = config.max_position_embeddings;
    let too_long = |request: &Request| match request.max_tokens {
        0 => request.logprobs.prompt && request.prompt.len() > context,
        _ => request.prompt.len() >= context,
    };
    if options.on_overflow == OnOverflow::Error
        && let Some(first) = requests.iter().position(too_long)
    {
        let count = requests.iter().filter(|r| too_long(r)).count();
        return Err(Error::usage(
            requests[first].called(first),
            format!("a prompt of fewer than {context} tokens (the model's context), or --on-overflow drop|truncate"),
            format!("{} tokens; {count} of {} prompts are too long", requests[first].prompt.len(), requests.len()),
        ));
    }
    let plan_one = |(index, request): (usize, &'a Request)| {
        check(index, request, config.vocab_size)?;
        let (mut prompt, mut finish) = (request.prompt.as_slice(), None);
        if too_long(request) {
            match options.on_overflow {
                OnOverflow::Truncate => {
                    let room = request.max_tokens.min((context / 2).max(1));
                    prompt = &prompt[prompt.len() - (context - room).max(1)..];
                }
                _ => finish = Some(Finish::Dropped),
            }
        } else if request.max_tokens == 0 && !request.logprobs.prompt {
            finish = Some(Finish::Length);
        }
        let mut sequence = Sequence::new(index, request, prompt, tokenizer);
        sequence.most_tokens = sequence.most_tokens.min(context);
        sequence.finish = finish;
        Ok(sequence)
    };
    requests.iter().enumerate().map(plan_one).collect()
}

fn check(index: usize, request: &Request, vocab: usize) -> Result<()> {
    let wrong = |expected: &str, found: String| Err(Error::usage(request.called(index), expected, found));
    let vocabulary = format!("ids below {vocab} (the model's vocabulary; do tokenizer and model belong together?)");
    request.sampling.validate()?;
    if request.prompt.is_empty() {
        return wrong("a prompt of at least one token", "a prompt without tokens".into());
    }
    if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= vocab) {
        return wrong(&vocabulary, format!("id {id}"));
    }
    if let Some((id, _)) = request.logit_bias.iter().find(|(id, _)| *id as usize >= vocab) {
        return wrong(&vocabulary, format!("a logit bias of id {id}"));
    }
    if let Some((_, bias)) = request.logit_bias.iter().find(|(_, bias)| !(-MOST_BIAS..=MOST_BIAS).contains(bias)) {
        return wrong(&format!("a logit bias from -{MOST_BIAS} to {MOST_BIAS}"), bias.to_string());
    }
    if request.logprobs.top > MOST_TOP {
        return wrong(&format!("at most {MOST_TOP} alternatives of a token"), request.logprobs.top.to_string());
    }
    Ok(())
}

/// Memory of a call on prompts that are not read yet: as many of the longest sequences that the model takes as run side by side,
/// within the memory for keys and values.
pub fn memory(
    dev: &Device,
    options: &EngineOptions,
    model: &Path,
    adapter: Option<&Path>,
    draft: Option<&Path>,
) -> Result<InferencePlan> {
    let config = Config::load(model)?;
    let ahead = if draft.is_some() { 1 + options.draft_tokens } else { 1 };
    let step_tokens = options.max_batch_size * ahead + options.chunk_tokens;
    let rows = logits::rows(&config, options.max_batch_size * ahead, ahead);
    let context = config.max_position_embeddings as u64;
    let (batch, page_size) = (options.max_batch_size, options.page_size.max(1));
    let pages = config.max_position_embeddings.div_ceil(page_size);
    let of = |dir: &Path, adapter: Option<&Path>, config: &Config| {
        let plan = InferencePlan::of(dev, dir, adapter)?.with_pass(dev, config, step_tokens, rows);
        Ok::<_, Error>(plan.with_pages(dev, config, step_tokens, batch, pages, page_size))
    };
    let (mut plan, mut token_bytes) = (of(model, adapter, &config)?, KvCache::bytes_per_token(dev, &config) as u64);
    if let Some(draft) = draft {
        let config = Config::load(draft)?;
        plan = plan.and(of(draft, None, &config)?);
        token_bytes += KvCache::bytes_per_token(dev, &config) as u64;
    }
    let most = options.kv_memory.unwrap_or(DEFAULT_KV_MEMORY.max(context * token_bytes));
    let kv_cache = most.min(options.max_batch_size as u64 * context * token_bytes);
    Ok(InferencePlan { kv_cache, ..plan })
}

/// Sizes of everything that a call allocates beside the weights.
pub(super) struct Plan {
    /// Pages of the cache.
    pub pages: usize,
    /// Bytes of their keys and values, the draft's included.
    pub kv_bytes: u64,
    /// Most tokens of one forward pass.
    pub step_tokens: usize,
    /// Rows of logits at a time.
    pub logit_rows: usize,
    /// Tokens that a draft proposes; 0 without one.
    pub draft_tokens: usize,
}

impl Plan {
    /// What the requests can use side by side, within the memory budget. The longest request always fits, so with preemption
    /// every mix of requests does.
    pub(super) fn new(
        dev: &Device,
        models: &Models,
        waiting: &VecDeque<Sequence>,
        options: &EngineOptions,
    ) -> Result<Plan> {
        let EngineOptions { max_batch_size: batch, chunk_tokens, page_size, .. } = *options;
        let (target, draft) = (models.target, models.draft.map(|draft| &draft.config));
        let config = &target.config;
        let draft_tokens = draft.map_or(0, |_| options.draft_tokens);
        if [batch, chunk_tokens, page_size].contains(&0) || draft.is_some() && draft_tokens == 0 {
            return Err(Error::usage("engine options", "batch, chunk, page and draft sizes of at least 1", "0"));
        }
        let step_tokens = batch * (1 + draft_tokens) + chunk_tokens;
        let logit_rows = logits::rows(config, batch * (1 + draft_tokens), 1 + draft_tokens);
        let mut wanted: Vec<usize> = waiting.iter().map(|s| s.most_tokens.div_ceil(page_size)).collect();
        wanted.sort_unstable_by_key(|&pages| std::cmp::Reverse(pages));
        let longest = wanted.first().copied().unwrap_or(0);
        let rank = target.lora_rank().unwrap_or(0);
        let scratch = |config: &Config, rank| {
            PagedStep::scratch_bytes(dev, config, rank, step_tokens, batch, longest, page_size)
                + lora::forward_bytes(dev, config, rank, step_tokens)
        };
        let mut buffers = Workspace::plan_bytes(dev, config, step_tokens)
            + Logits::plan_bytes(config, logit_rows)
            + scratch(config, rank);
        let mut token_bytes = KvCache::bytes_per_token(dev, config);
        if let Some(draft) = draft {
            Drafter::check(config, draft)?;
            buffers += Drafter::plan_bytes(dev, draft, options) + scratch(draft, 0);
            token_bytes += KvCache::bytes_per_token(dev, draft);
        }
        let page_bytes = (page_size * token_bytes) as u64;

        let (longest, useful) = (longest as u64, wanted.iter().take(batch).sum::<usize>() as u64);
        let free = dev.free_memory().unwrap_or(u64::MAX).saturating_sub(buffers as u64);
        let budget = options.kv_memory.unwrap_or(DEFAULT_KV_MEMORY.max(longest * page_bytes)).min(free);
        if longest * page_bytes > budget {
            let tokens = waiting.iter().map(|s| s.most_tokens).max().unwrap_or(0);
            return Err(Error::Budget {
                what: format!("the cache of keys and values for one request of {tokens} tokens"),
                needed: longest * page_bytes,
                available: budget,
                instead: "raise --kv-memory, or lower --max-tokens or --chunk-tokens".into(),
            });
        }
        let pages = useful.min(budget / page_bytes);
        let kv_bytes = pages * page_bytes;
        Ok(Plan { pages: pages as usize, kv_bytes, step_tokens, logit_rows, draft_tokens })
    }
}
