//! The loop: plan, steps, draws, results.

use super::logits::Logits;
use super::options::StepTokens;
use super::phases::Meter;
use super::schedule::{Part, Scheduler};
use super::sequence::Sequence;
use super::speculative::Drafter;
use super::{Completion, EngineOptions, Finish, Order, Request, Stats, plan};
use crate::device::{DType, Device, Phase, Tensor};
use crate::error::Result;
use crate::interrupt;
use crate::model::{GenerationConfig, KvCache, Llama, PagedStep, Tokenizer, Workspace};
use crate::ops::log_probs::log_probs;
use crate::ops::sample::{Verification, verify};
use crate::progress::Progress;
use std::collections::VecDeque;
use std::time::Instant;

/// What generates: a model, its tokenizer and end-of-text ids, and perhaps a smaller model that drafts for it.
#[derive(Clone, Copy)]
pub struct Models<'a> {
    /// Whose text it is.
    pub target: &'a Llama,
    /// Ids to text, for stop strings and results.
    pub tokenizer: &'a Tokenizer,
    /// Ids that end an output.
    pub generation: &'a GenerationConfig,
    /// Proposes tokens (speculative decoding): the same greedy tokens, other samples of the same distribution.
    pub draft: Option<&'a Llama>,
}

/// Continues every request; `sink` gets each result with its index in `requests` as soon as it is done.
///
/// Errors before anything is computed: a prompt without tokens or with ids beyond the vocabulary, a prompt too long (with
/// [`OnOverflow::Error`](super::OnOverflow::Error); all of them are counted), a cache that cannot hold the longest request, a
/// draft that does not fit its target. An output that would pass the end of the context ends there as [`Finish::Length`]. An error
/// of `sink` ends the call.
pub fn generate(
    dev: &Device,
    models: Models,
    requests: &[Request],
    options: &EngineOptions,
    sink: &mut dyn FnMut(usize, Completion) -> Result<()>,
) -> Result<Stats> {
    let mut stats = Stats { requests: requests.len(), ..Stats::default() };
    let mut waiting = VecDeque::new();
    for planned in plan::sequences(&models.target.config, models.tokenizer, requests, options)? {
        stats.dropped += usize::from(planned.finish == Some(Finish::Dropped));
        stats.truncated += usize::from(planned.truncated > 0);
        match planned.finish {
            Some(_) => sink(planned.index, planned.finished(models.tokenizer)?)?,
            None => waiting.push_back(planned),
        }
    }
    if waiting.is_empty() {
        return Ok(stats);
    }
    if options.order == Order::LongestFirst {
        waiting.make_contiguous().sort_by_key(|s| std::cmp::Reverse(s.most_tokens));
    }
    let progress = Progress::start(&options.label, waiting.len() as u64, "requests");
    let mut engine = Engine::new(dev, models, waiting, options, &mut stats)?;
    let work = || [Phase::Prefill, Phase::Decode].map(|phase| dev.ledger().phase(phase));
    let (start, [read_before, written_before]) = (Instant::now(), work());
    while !engine.scheduler.is_idle() {
        interrupt::check()?;
        stats += engine.step()?;
        (stats.preemptions, stats.shared_tokens) = (engine.scheduler.preemptions, engine.scheduler.shared_tokens);
        stats.seconds = start.elapsed().as_secs_f64();
        progress.message(rates(engine.scheduler.running.len(), &stats));
        for done in engine.scheduler.take_finished() {
            sink(done.index, done.finished(models.tokenizer)?)?;
            progress.add(1);
        }
    }
    let [read, written] = work();
    (stats.prefill, stats.decode) = (read - read_before, written - written_before);
    Ok(stats)
}

/// `12 running, prompt 801.2 tokens/s, generated 95.3 tokens/s`, over all seconds so far.
fn rates(running: usize, stats: &Stats) -> String {
    let rate = |tokens: u64| tokens as f64 / stats.seconds.max(1e-9);
    let (prompt, generated) = (rate(stats.prompt_tokens + stats.shared_tokens), rate(stats.generated_tokens));
    let mut text = format!("{running} running, prompt {prompt:.1} tokens/s, generated {generated:.1} tokens/s");
    if let Some(acceptance) = stats.acceptance() {
        text += &format!(", {:.0} % of the draft kept", 100.0 * acceptance);
    }
    text
}

struct Engine<'a> {
    dev: &'a Device,
    models: Models<'a>,
    scheduler: Scheduler<'a>,
    drafter: Option<Drafter<'a>>,
    cache: KvCache,
    step: PagedStep,
    workspace: Workspace,
    logits: Logits,
    meter: Meter<'a>,
    parts: Vec<Part>,
    /// Sequences that draw in this step; `rows` holds the rows of each, one after the other.
    drawing: Vec<usize>,
    rows: Vec<u32>,
}

impl<'a> Engine<'a> {
    fn new(
        dev: &'a Device,
        models: Models<'a>,
        waiting: VecDeque<Sequence<'a>>,
        options: &EngineOptions,
        stats: &mut Stats,
    ) -> Result<Engine<'a>> {
        let config = &models.target.config;
        let plan = plan::Plan::new(dev, &models, &waiting, options)?;
        stats.kv_bytes = plan.kv_bytes;
        let longest = waiting.iter().map(|s| s.most_tokens.div_ceil(options.page_size)).max().unwrap_or(0);
        let drafter = models.draft.map(|draft| Drafter::new(dev, draft, plan.pages, longest, options)).transpose()?;
        Ok(Engine {
            dev,
            models,
            scheduler: Scheduler::new(waiting, plan.pages, plan.draft_tokens, options),
            drafter,
            cache: KvCache::new(dev, config, plan.pages, options.page_size)?,
            step: PagedStep::new(plan.step_tokens, options.max_batch_size, longest, options.page_size),
            workspace: Workspace::new(dev, config, plan.step_tokens)?,
            logits: Logits::new(dev, config, plan.logit_rows)?,
            meter: Meter::new(dev),
            parts: Vec::new(),
            drawing: Vec::new(),
            rows: Vec::new(),
        })
    }

    /// One forward pass over a token of each decoding sequence, with the proposals behind it, and a chunk of what is being read;
    /// then draws for each sequence that has been read to its end.
    fn step(&mut self) -> Result<StepTokens> {
        let mut tokens = self.scheduler.schedule(&mut self.parts)?;
        if let Some(drafter) = &mut self.drafter {
            drafter.propose(self.dev, &mut self.scheduler.running, &self.parts, &mut self.meter)?;
        }
        self.step.clear();
        self.drawing.clear();
        self.rows.clear();
        let mut scored = Vec::new();
        for part in &self.parts {
            let sequence = &self.scheduler.running[part.index];
            let end = part.first + part.tokens + sequence.proposals.len();
            let row = self.step.push(&sequence.ids[part.first..end], part.first, &sequence.pages)?;
            if sequence.request.logprobs.prompt {
                let last = end.min(sequence.prompt_tokens - 1);
                let first = part.first.max(sequence.prompt_logprobs.len());
                scored.extend((first..last).map(|at| (part.index, row + at - part.first, sequence.ids[at + 1])));
            }
            if part.draws {
                self.drawing.push(part.index);
                let last = row + part.tokens - 1;
                self.rows.extend((last..=last + sequence.proposals.len()).map(|row| row as u32));
            }
        }
        self.step.forward(self.dev, self.models.target, &mut self.cache, &mut self.workspace)?;
        self.meter.book_pass(&self.step, self.parts.iter().map(|part| part.reading));
        for scored in scored.chunks(self.logits.capacity) {
            self.score(scored)?;
        }
        self.meter.book(Phase::Prefill);
        for part in self.parts.iter().filter(|part| !part.draws) {
            let sequence = &mut self.scheduler.running[part.index];
            if sequence.cached == sequence.ids.len() {
                sequence.finish = Some(Finish::Length); // Nothing but its prompt's log-probabilities was asked for.
            }
        }
        self.draw(&mut tokens)?;
        self.meter.book(Phase::Decode);
        Ok(tokens)
    }

    /// Log-probabilities of prompt tokens: `(sequence, row that predicts, id)`, in the order of positions.
    fn score(&mut self, scored: &[(usize, usize, u32)]) -> Result<()> {
        let rows: Vec<u32> = scored.iter().map(|&(_, row, _)| row as u32).collect();
        let targets: Vec<u32> = scored.iter().map(|&(.., id)| id).collect();
        let mut out = self.dev.zeros(&[scored.len()], DType::F32)?;
        let hidden = self.logits.gather(self.dev, &self.workspace.hidden, &rows)?;
        log_probs(self.dev, &mut out, hidden, self.models.target.head_weight(), &Tensor::from_u32(&targets))?;
        for (&(index, ..), &log_prob) in scored.iter().zip(out.host()?.f32()) {
            self.scheduler.running[index].prompt_logprobs.push(log_prob);
        }
        Ok(())
    }

    /// Draws the next tokens of the sequences that are due.
    fn draw(&mut self, tokens: &mut StepTokens) -> Result<()> {
        let running = &mut self.scheduler.running;
        let (mut members, mut rows) = (self.drawing.as_slice(), self.rows.as_slice());
        while !members.is_empty() {
            // As many whole sequences as there is room for.
            let (mut count, mut taken) = (0, 0);
            while let Some(&index) = members.get(count)
                && taken + running[index].proposals.len() < self.logits.capacity
            {
                taken += running[index].proposals.len() + 1;
                count += 1;
            }
            let ((now, later), (now_rows, later_rows)) = (members.split_at(count), rows.split_at(taken));
            let logits = self.logits.of(self.dev, self.models.target, &self.workspace.hidden, now_rows)?;
            let draws: Vec<Verification> = now.iter().map(|&index| running[index].verification()).collect();
            let drawn = verify(self.dev, logits, &draws)?;
            for (&index, drawn) in now.iter().zip(drawn) {
                let sequence = &mut running[index];
                tokens.proposed += sequence.proposals.len() as u64;
                tokens.accepted += drawn.len() as u64 - 1;
                tokens.drawn += sequence.accept(drawn, &self.models.generation.eos_token_ids)? as u64;
            }
            (members, rows) = (later, later_rows);
        }
        Ok(())
    }
}
