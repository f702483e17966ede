//! The loop: who joins, what a step computes, what is drawn.

use super::pages::PageAllocator;
use super::{Completion, DEFAULT_KV_MEMORY, EngineOptions, Finish, OnOverflow, Order, Request, Stats, ending};
use crate::device::{DType, Device, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::{GenerationConfig, KvCache, Llama, Tokenizer, Workspace};
use crate::ops::gather::gather_rows;
use crate::ops::paged_attention::PagedBatch;
use crate::ops::sample::{Draw, Drawn, sample};
use crate::progress::Progress;
use std::collections::VecDeque;
use std::time::Instant;

/// Most rows of logits that are kept at a time: 32 rows of a 128,256-word vocabulary are 16 MB.
const LOGIT_ROWS: usize = 32;

/// Continues every request; `sink` gets each result with its index in `requests` as soon as it is done.
///
/// Errors before anything is computed: a prompt without tokens or with ids beyond the vocabulary, a prompt too long (with
/// [`OnOverflow::Error`]; all of them are counted), a cache that cannot hold the longest request. An output that would pass the
/// end of the context ends there as [`Finish::Length`].
pub fn generate(
    dev: &Device,
    model: &Llama,
    tokenizer: &Tokenizer,
    generation: &GenerationConfig,
    requests: &[Request],
    options: &EngineOptions,
    sink: &mut dyn FnMut(usize, Completion) -> Result<()>,
) -> Result<Stats> {
    let mut stats = Stats { requests: requests.len(), ..Stats::default() };
    let mut waiting = VecDeque::new();
    for planned in plan(model, requests, options)? {
        stats.dropped += usize::from(planned.finish == Some(Finish::Dropped));
        stats.truncated += usize::from(planned.truncated > 0);
        match planned.finish {
            Some(_) => sink(planned.index, planned.finished(tokenizer, options)?)?,
            None => waiting.push_back(planned),
        }
    }
    if options.order == Order::LongestFirst {
        waiting.make_contiguous().sort_by_key(|s| std::cmp::Reverse(s.most_tokens));
    }
    let Some(longest) = waiting.iter().map(|s| s.most_tokens).max() else { return Ok(stats) };
    let pages = plan_pages(dev, model, options, longest, waiting.len())?;
    stats.kv_bytes = (pages * options.page_size * KvCache::bytes_per_token(dev, &model.config)) as u64;
    let batch = options.max_batch_size.max(1);
    let mut engine = Engine {
        dev,
        model,
        tokenizer,
        eos: &generation.eos_token_ids,
        options,
        cache: KvCache::new(dev, &model.config, pages, options.page_size)?,
        allocator: PageAllocator::new(pages, options.page_size),
        workspace: Workspace::new(dev, &model.config, batch + options.chunk_tokens.max(1))?,
        gathered: dev.zeros(&[LOGIT_ROWS.min(batch), model.config.hidden_size], dev.activation())?,
        logits: dev.zeros(&[LOGIT_ROWS.min(batch), model.config.vocab_size], DType::F32)?,
        running: Vec::new(),
    };
    let progress = Progress::start(&options.label, waiting.len() as u64, "requests");
    let start = Instant::now();
    while !(waiting.is_empty() && engine.running.is_empty()) {
        interrupt::check()?;
        while engine.running.len() < batch {
            let Some(next) = waiting.front_mut() else { break };
            let Some(pages) = engine.allocator.take(next.most_tokens) else { break };
            next.pages = pages;
            engine.running.extend(waiting.pop_front());
        }
        let (read, drawn) = engine.step()?;
        stats.steps += 1;
        stats.prompt_tokens += read;
        stats.generated_tokens += drawn;
        let rate = stats.generated_tokens as f64 / start.elapsed().as_secs_f64();
        progress.message(format!("{} running, {rate:.1} tokens/s", engine.running.len()));
        for i in (0..engine.running.len()).rev() {
            if engine.running[i].finish.is_some() {
                let mut done = engine.running.remove(i);
                engine.allocator.give_back(std::mem::take(&mut done.pages));
                sink(done.index, done.finished(tokenizer, options)?)?;
                progress.add(1);
            }
        }
    }
    stats.seconds = start.elapsed().as_secs_f64();
    Ok(stats)
}

/// A request on its way.
struct Sequence<'a> {
    index: usize,
    request: &'a Request,
    /// Prompt and generated ids.
    ids: Vec<u32>,
    prompt_tokens: usize,
    truncated: usize,
    /// Prompt and output at their longest: the pages taken hold as many.
    most_tokens: usize,
    /// Tokens whose keys and values are in the cache.
    cached: usize,
    pages: Vec<u32>,
    logprobs: Vec<f32>,
    finish: Option<Finish>,
    /// Text up to the stop string, when one ended it.
    stopped: Option<String>,
}

impl Sequence<'_> {
    fn finished(self, tokenizer: &Tokenizer, options: &EngineOptions) -> Result<Completion> {
        let ids = self.ids[self.prompt_tokens..].to_vec();
        let finish = self.finish.unwrap_or(Finish::Length);
        let text = match self.stopped {
            Some(text) => text,
            None => ending::text(tokenizer, &ids, finish == Finish::Length)?,
        };
        let logprobs = options.logprobs.then_some(self.logprobs);
        Ok(Completion { ids, text, finish, prompt_tokens: self.prompt_tokens, truncated: self.truncated, logprobs })
    }
}

/// Checks every request and decides how much of it fits the context.
fn plan<'a>(model: &Llama, requests: &'a [Request], options: &EngineOptions) -> Result<Vec<Sequence<'a>>> {
    let (context, vocab) = (model.config.max_position_embeddings, model.config.vocab_size);
    let too_long = |request: &Request| request.prompt.len() >= context && request.max_tokens > 0;
    if options.on_overflow == OnOverflow::Error
        && let Some(first) = requests.iter().position(too_long)
    {
        let count = requests.iter().filter(|r| too_long(r)).count();
        return Err(Error::usage(
            format!("request {first}"),
            format!("a prompt of fewer than {context} tokens (the model's context), or --on-overflow drop|truncate"),
            format!("{} tokens; {count} of {} prompts are too long", requests[first].prompt.len(), requests.len()),
        ));
    }
    let plan_one = |(index, request): (usize, &'a Request)| {
        request.sampling.validate()?;
        if request.prompt.is_empty() {
            let found = "a prompt without tokens";
            return Err(Error::usage(format!("request {index}"), "a prompt of at least one token", found));
        }
        if let Some(id) = request.prompt.iter().find(|&&id| id as usize >= vocab) {
            let expected =
                format!("ids below {vocab} (the model's vocabulary; do tokenizer and model belong together?)");
            return Err(Error::usage(format!("request {index}"), expected, format!("id {id}")));
        }
        let (mut prompt, mut finish) = (request.prompt.as_slice(), None);
        if too_long(request) {
            match options.on_overflow {
                OnOverflow::Truncate => {
                    let room = request.max_tokens.min((context / 2).max(1));
                    prompt = &prompt[prompt.len() - (context - room).max(1)..];
                }
                _ => finish = Some(Finish::Dropped),
            }
        } else if request.max_tokens == 0 {
            finish = Some(Finish::Length);
        }
        Ok(Sequence {
            index,
            request,
            ids: prompt.to_vec(),
            prompt_tokens: prompt.len(),
            truncated: request.prompt.len() - prompt.len(),
            most_tokens: prompt.len().saturating_add(request.max_tokens).min(context),
            cached: 0,
            pages: Vec::new(),
            logprobs: Vec::new(),
            finish,
            stopped: None,
        })
    };
    requests.iter().enumerate().map(plan_one).collect()
}

/// How many pages the cache gets: what the requests can use, within the budget.
fn plan_pages(dev: &Device, model: &Llama, options: &EngineOptions, longest: usize, requests: usize) -> Result<usize> {
    if options.page_size == 0 || options.chunk_tokens == 0 || options.max_batch_size == 0 {
        return Err(Error::usage("engine options", "a batch, chunk and page size of at least 1", "0"));
    }
    let page_bytes = (options.page_size * KvCache::bytes_per_token(dev, &model.config)) as u64;
    let one = longest.div_ceil(options.page_size) as u64;
    let useful = one * options.max_batch_size.min(requests) as u64;
    let budget = options.kv_memory.unwrap_or(DEFAULT_KV_MEMORY.max(one * page_bytes));
    if one * page_bytes > budget {
        return Err(Error::Budget {
            what: format!("the keys and values of one request of {longest} tokens"),
            needed: one * page_bytes,
            available: budget,
            instead: "raise --kv-memory or lower --max-tokens".into(),
        });
    }
    Ok(useful.min(budget / page_bytes) as usize)
}

struct Engine<'a> {
    dev: &'a Device,
    model: &'a Llama,
    tokenizer: &'a Tokenizer,
    eos: &'a [u32],
    options: &'a EngineOptions,
    cache: KvCache,
    allocator: PageAllocator,
    workspace: Workspace,
    /// Hidden states of the rows that draw, `[rows, hidden]`.
    gathered: Tensor,
    logits: Tensor,
    running: Vec<Sequence<'a>>,
}

impl Engine<'_> {
    /// One forward pass over a token of each decoding sequence and a chunk of the prompts that are being read; then a draw for
    /// each sequence that has been read to its end. Gives the numbers of prompt tokens read and of tokens drawn.
    fn step(&mut self) -> Result<(u64, u64)> {
        let page_size = self.options.page_size;
        let (mut ids, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let (mut offsets, mut context_lens) = (vec![0u32], Vec::new());
        // Which running sequences take part, and the row of the last token where it draws.
        let (mut members, mut drawing) = (Vec::new(), Vec::new());
        let (mut budget, mut read) = (self.options.chunk_tokens, 0);
        for (i, sequence) in self.running.iter_mut().enumerate() {
            let left = sequence.ids.len() - sequence.cached;
            let reading = sequence.cached < sequence.prompt_tokens;
            let take = if reading { left.min(budget) } else { left };
            if take == 0 {
                continue;
            }
            if reading {
                budget -= take;
                read += take as u64;
            }
            for position in sequence.cached..sequence.cached + take {
                ids.push(sequence.ids[position]);
                positions.push(position as u32);
                slots.push(sequence.pages[position / page_size] * page_size as u32 + (position % page_size) as u32);
            }
            sequence.cached += take;
            offsets.push(ids.len() as u32);
            context_lens.push(sequence.cached as u32);
            members.push(i);
            if take == left {
                drawing.push((i, ids.len() - 1));
            }
        }
        let width = members.iter().map(|&i| self.running[i].pages.len()).max().unwrap_or(1);
        let mut page_table = Tensor::zeros(&[members.len(), width], DType::U32);
        for (row, &i) in page_table.u32_mut().chunks_exact_mut(width).zip(&members) {
            row[..self.running[i].pages.len()].copy_from_slice(&self.running[i].pages);
        }
        let batch = PagedBatch {
            cu_seqlens: &Tensor::from_u32(&offsets),
            context_lens: &Tensor::from_u32(&context_lens),
            page_table: &page_table,
            page_size,
        };
        let (ids, positions, slots) = (Tensor::from_u32(&ids), Tensor::from_u32(&positions), Tensor::from_u32(&slots));
        let (cache, workspace) = (&mut self.cache, &mut self.workspace);
        self.model.forward_paged(self.dev, &ids, &positions, &slots, &batch, cache, workspace)?;
        for rows in drawing.chunks(LOGIT_ROWS) {
            self.draw(rows)?;
        }
        Ok((read, drawing.len() as u64))
    }

    /// Draws the next token of the sequences `(index, row of the hidden states)`.
    fn draw(&mut self, rows: &[(usize, usize)]) -> Result<()> {
        self.gathered.set_rows(rows.len())?;
        self.logits.set_rows(rows.len())?;
        let last: Vec<u32> = rows.iter().map(|&(_, row)| row as u32).collect();
        gather_rows(self.dev, &mut self.gathered, &self.workspace.hidden, &Tensor::from_u32(&last))?;
        self.model.logits(self.dev, &mut self.logits, &self.gathered)?;
        let draw = |&(i, _): &(usize, usize)| {
            let Sequence { request, ids, .. } = &self.running[i];
            Draw { sampling: request.sampling, request: request.id, position: ids.len() as u32 }
        };
        let draws: Vec<Draw> = rows.iter().map(draw).collect();
        let mut drawn = vec![Drawn::default(); rows.len()];
        sample(self.dev, &mut drawn, &self.logits, &draws)?;
        for (&(i, _), drawn) in rows.iter().zip(drawn) {
            let sequence = &mut self.running[i];
            sequence.ids.push(drawn.id);
            sequence.logprobs.push(drawn.log_prob);
            let output = &sequence.ids[sequence.prompt_tokens..];
            if self.eos.contains(&drawn.id) {
                sequence.finish = Some(Finish::Stop);
                continue;
            }
            sequence.stopped = ending::stopped(self.tokenizer, output, &sequence.request.stop)?;
            if sequence.stopped.is_some() {
                sequence.finish = Some(Finish::Stop);
            } else if sequence.ids.len() >= sequence.most_tokens {
                sequence.finish = Some(Finish::Length);
            }
        }
        Ok(())
    }
}
