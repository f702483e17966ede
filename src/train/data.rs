//! Rows of a dataset as token sequences with their targets; packing, order, batches.

use super::trainer::count_targets;
use crate::data::{Example, Row};
use crate::device::Tensor;
use crate::error::{Error, Result};
use crate::model::tokenizer::CHEAP_BYTES;
use crate::model::{Batch, ChatTemplate, GenerationConfig, Tokenizer};
use crate::ops::log_probs::IGNORE;
use crate::ops::philox;
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::path::Path;

/// What happens to a row that is longer than `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnOverflow {
    /// The run ends and names the row.
    Error,
    /// The row is left out and counted.
    Drop,
    /// The row is cut at its end and counted. Of a row of more than 1 MiB only the part that is kept is tokenized.
    Truncate,
}

/// A token sequence and what each position is to predict.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each position the next id, or [`IGNORE`].
    pub targets: Vec<u32>,
}

impl Sequence {
    /// Every next token is a target.
    pub fn text(ids: Vec<u32>) -> Sequence {
        Sequence::masked(ids, 0)
    }

    /// Only tokens from index `prompt` on are targets.
    pub fn masked(ids: Vec<u32>, prompt: usize) -> Sequence {
        let next = |t: usize| if t + 1 < prompt { IGNORE } else { ids.get(t + 1).copied().unwrap_or(IGNORE) };
        let targets = (0..ids.len()).map(next).collect();
        Sequence { ids, targets }
    }

    /// Positions that carry a loss.
    pub fn target_tokens(&self) -> u64 {
        count_targets(&self.targets)
    }

    /// Keeps the first `len` tokens; what was predicted after them is no target any more.
    fn truncate(&mut self, len: usize) {
        self.ids.truncate(len);
        self.targets.truncate(len);
        if let Some(last) = self.targets.last_mut() {
            *last = IGNORE;
        }
    }
}

/// How rows become sequences.
#[derive(Clone, Copy, Debug)]
pub struct TokenizeOptions {
    /// Most tokens of a sequence.
    pub max_length: usize,
    /// Prompts carry no loss.
    pub completion_only_loss: bool,
    /// What happens to longer rows.
    pub on_overflow: OnOverflow,
}

/// What became of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Rows read.
    pub rows: u64,
    /// Rows that are trained on.
    pub used: u64,
    /// Rows left out because they are too long.
    pub dropped_too_long: u64,
    /// Rows cut at their end.
    pub truncated: u64,
    /// Rows left out because a cut left no token with a loss.
    pub dropped_without_target: u64,
    /// Tokens of the rows that are trained on.
    pub tokens: u64,
    /// Those of them that carry a loss.
    pub target_tokens: u64,
}

/// The tokenizer side of a model: text, template, where outputs end.
struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    eos: Vec<u32>,
    dir: std::path::PathBuf,
}

impl Encoder {
    fn load(dir: &Path) -> Result<Encoder> {
        Ok(Encoder {
            tokenizer: Tokenizer::load(dir)?,
            template: ChatTemplate::load(dir)?,
            eos: GenerationConfig::load(dir)?.eos_token_ids,
            dir: dir.to_path_buf(),
        })
    }

    /// What follows the prompt: up to and with the last end-of-text id, which is added where there is none. Nothing stays
    /// nothing.
    fn finish(&self, mut completion: Vec<u32>) -> Vec<u32> {
        match completion.iter().rposition(|id| self.eos.contains(id)) {
            Some(last) => completion.truncate(last + 1),
            None if completion.is_empty() => {}
            None => completion.extend(self.eos.first()),
        }
        completion
    }

    /// What a row's prompt and completion are encoded from.
    fn texts<'a>(&self, path: &Path, row: &'a Row) -> Result<Texts<'a>> {
        let place = || format!("row {} (line {})", row.id, row.line);
        match &row.example {
            Example::Text(text) => Ok(Texts { prompt: None, completion: text.into(), chat: false }),
            Example::Completion { prompt, completion } => {
                Ok(Texts { prompt: Some(prompt.into()), completion: completion.into(), chat: false })
            }
            Example::Chat(messages) => {
                let template = self.template.as_ref().ok_or_else(|| {
                    Error::format(&self.dir, "chat template", "one, for rows of messages", "none in this model")
                })?;
                let Some((_, before)) = messages.split_last().filter(|(last, _)| last.role == "assistant") else {
                    let last = messages.last().map_or("no message", |m| m.role.as_str());
                    return Err(Error::format(path, place(), "a last message of the assistant", last));
                };
                let prompt = template.render(before, true)?;
                let whole = template.render(messages, false)?;
                let Some(rest) = whole.strip_prefix(&prompt) else {
                    let expected = "a chat template that only appends when the answer is added";
                    return Err(Error::format(path, place(), expected, "one that changes what came before"));
                };
                let completion = rest.to_string().into();
                Ok(Texts { prompt: Some(prompt.into()), completion, chat: true })
            }
        }
    }

    /// A number of tokens that the row certainly has, without encoding it. Of a completion with end-of-text tokens only what
    /// stands before the first one certainly counts, see [`finish`](Encoder::finish).
    fn least_tokens(&self, texts: &Texts) -> usize {
        if texts.bytes() <= CHEAP_BYTES {
            return 0;
        }
        let ends = self.eos.iter().filter_map(|&id| texts.completion.find(&self.tokenizer.token(id)?));
        let kept = &texts.completion[..ends.min().unwrap_or(texts.completion.len())];
        let prompt = texts.prompt.as_ref().map_or(0, |prompt| self.tokenizer.least_tokens(prompt));
        prompt + self.tokenizer.least_tokens(kept)
    }

    /// Prompt and completion ids of a row; the first `most` ids or more of one that has more.
    fn encode(&self, texts: &Texts, most: usize) -> Result<(Vec<u32>, Vec<u32>)> {
        let Texts { prompt, completion, chat } = texts;
        let prompt_ids = match prompt {
            Some(prompt) => self.tokenizer.encode_first(prompt, !chat, most)?,
            None => Vec::new(),
        };
        let left = (most - prompt_ids.len()).max(1);
        let completion_ids = self.tokenizer.encode_first(completion, !chat && prompt.is_none(), left)?;
        Ok((prompt_ids, self.finish(completion_ids)))
    }
}

/// A row as text.
struct Texts<'a> {
    /// None before plain text.
    prompt: Option<Cow<'a, str>>,
    completion: Cow<'a, str>,
    /// Rendered by the chat template, which puts the special tokens.
    chat: bool,
}

impl Texts<'_> {
    fn bytes(&self) -> usize {
        self.prompt.as_ref().map_or(0, |prompt| prompt.len()) + self.completion.len()
    }
}

/// Token sequences of the rows, in their order, and what became of each. `path` is named in errors.
pub fn tokenize(
    model: &Path,
    path: &Path,
    rows: &[Row],
    options: TokenizeOptions,
) -> Result<(Vec<Sequence>, RowCounts)> {
    let encoder = Encoder::load(model)?;
    let mut counts = RowCounts { rows: rows.len() as u64, ..RowCounts::default() };
    let mut sequences = Vec::with_capacity(rows.len());
    let progress = Progress::start("tokenize", rows.len() as u64, "rows");
    for row in rows {
        crate::interrupt::check()?;
        progress.add(1);
        let place = || format!("row {} (line {})", row.id, row.line);
        let texts = encoder.texts(path, row)?;
        let too_long = |found: String| {
            let most = options.max_length;
            let expected =
                format!("at most {most} tokens (--max-length and the model's context; or --on-overflow drop|truncate)");
            Error::format(path, place(), expected, found)
        };
        // A row of a hundred megabytes is not encoded to find out that it is too long, nor is more of it than is kept. One without
        // a completion is another error, however long its prompt is.
        let least = encoder.least_tokens(&texts);
        let certain = least > options.max_length && !texts.completion.is_empty();
        match options.on_overflow {
            OnOverflow::Error if certain => return Err(too_long(format!("{least} or more"))),
            OnOverflow::Drop if certain => {
                counts.dropped_too_long += 1;
                continue;
            }
            _ => {}
        }
        let most = if certain { options.max_length + 1 } else { usize::MAX };
        let (prompt, completion) = encoder.encode(&texts, most)?;
        let masked = if options.completion_only_loss { prompt.len() } else { 0 };
        let mut sequence = Sequence::masked([prompt, completion].concat(), masked);
        if sequence.target_tokens() == 0 {
            let found = format!("{} tokens, none of them with a loss", sequence.ids.len());
            return Err(Error::format(path, place(), "a completion to learn from", found));
        }
        let len = sequence.ids.len();
        if len > options.max_length {
            match options.on_overflow {
                OnOverflow::Error => return Err(too_long(len.to_string())),
                OnOverflow::Drop => {
                    counts.dropped_too_long += 1;
                    continue;
                }
                OnOverflow::Truncate => {
                    sequence.truncate(options.max_length);
                    if sequence.target_tokens() == 0 {
                        counts.dropped_without_target += 1;
                        continue;
                    }
                    counts.truncated += 1;
                }
            }
        }
        counts.used += 1;
        counts.tokens += sequence.ids.len() as u64;
        counts.target_tokens += sequence.target_tokens();
        sequences.push(sequence);
    }
    if sequences.is_empty() {
        let (rows, long) = (counts.rows, counts.dropped_too_long);
        let found = format!("none of {rows} ({long} too long, {} cut before a target)", counts.dropped_without_target);
        return Err(Error::format(path, "rows", "at least one row to train on", found));
    }
    Ok((sequences, counts))
}

/// Groups sequences (by index) into packs of at most `max_length` tokens: each goes to the first pack with room. Without
/// packing each is alone. Sequences of a pack never see each other.
pub fn pack(lengths: &[usize], max_length: usize, packing: bool) -> Vec<Vec<usize>> {
    if !packing {
        return (0..lengths.len()).map(|i| vec![i]).collect();
    }
    let mut packs: Vec<(usize, Vec<usize>)> = Vec::new();
    // Packs before `open` are full; without this, first fit looks at every pack for every row.
    let mut open = 0;
    let shortest = lengths.iter().copied().min().unwrap_or(0);
    for (i, &len) in lengths.iter().enumerate() {
        while packs.get(open).is_some_and(|(used, _)| used + shortest > max_length) {
            open += 1;
        }
        match packs[open..].iter_mut().find(|(used, _)| used + len <= max_length) {
            Some((used, members)) => {
                *used += len;
                members.push(i);
            }
            None => packs.push((len, vec![i])),
        }
    }
    packs.into_iter().map(|(_, members)| members).collect()
}

/// First stream of the shuffles; see [`philox`].
const SHUFFLE_STREAM: u64 = 3 << 61;

/// A permutation of `0 .. n` that depends on (seed, epoch) alone (Fisher-Yates).
pub fn shuffled(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let [low, high, ..] = philox::block(seed, SHUFFLE_STREAM + epoch, i as u64);
        let word = u64::from(low) | u64::from(high) << 32;
        // Uniform in 0 ..= i up to 2^-64 i.
        order.swap(i, ((u128::from(word) * (i as u128 + 1)) >> 64) as usize);
    }
    order
}

/// Sequences packed end to end with their targets.
pub(super) fn collate(sequences: &[&Sequence], room: usize) -> (Batch, Tensor) {
    let ids: Vec<&[u32]> = sequences.iter().map(|s| s.ids.as_slice()).collect();
    let targets: Vec<u32> = sequences.iter().flat_map(|s| s.targets.iter().copied()).collect();
    (Batch::pack_in(&ids, room), Tensor::from_u32(&targets))
}

/// The order in which a run sees its packs: a function of the step, so that it needs no state.
pub struct Order {
    /// Sequences (by index) of each pack.
    pub packs: Vec<Vec<usize>>,
    /// Packs of a micro-batch.
    pub batch_size: usize,
    /// Micro-batches of a step.
    pub accumulation: usize,
    /// Seed of the shuffles.
    pub seed: u64,
}

impl Order {
    /// Optimiser steps of an epoch; its last step may have fewer micro-batches.
    pub fn steps_per_epoch(&self) -> u64 {
        self.packs.len().div_ceil(self.batch_size).div_ceil(self.accumulation) as u64
    }

    /// Sequences (by index) of each micro-batch of optimiser step `step`, counted from 0.
    pub fn step(&self, step: u64) -> Vec<Vec<usize>> {
        let (epoch, at) = (step / self.steps_per_epoch(), (step % self.steps_per_epoch()) as usize);
        let order = shuffled(self.packs.len(), self.seed, epoch);
        let micro_batches = order.chunks(self.batch_size).skip(at * self.accumulation).take(self.accumulation);
        micro_batches.map(|packs| packs.iter().flat_map(|&p| self.packs[p].iter().copied()).collect()).collect()
    }

    /// Tokens of the largest micro-batch that `steps` steps can see.
    pub fn max_tokens(&self, lengths: &[usize]) -> usize {
        let mut sizes: Vec<usize> = self.packs.iter().map(|p| p.iter().map(|&i| lengths[i]).sum()).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        sizes.iter().take(self.batch_size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_carries_no_loss_and_its_last_token_predicts_the_first_of_the_completion() {
        let sequence = Sequence::masked(vec![5, 6, 7, 8, 9], 3);
        assert_eq!(sequence.targets, [IGNORE, IGNORE, 8, 9, IGNORE]);
        assert_eq!(sequence.target_tokens(), 2);
        assert_eq!(Sequence::text(vec![5, 6]).targets, [6, IGNORE]);
    }

    #[test]
    fn a_cut_row_predicts_nothing_past_the_cut() {
        let mut sequence = Sequence::text(vec![1, 2, 3, 4]);
        sequence.truncate(2);
        assert_eq!((sequence.ids, sequence.targets), (vec![1, 2], vec![2, IGNORE]));
    }

    #[test]
    fn first_fit_keeps_every_row_once_and_no_pack_overflows() {
        let lengths = [5, 7, 3, 10, 2, 4, 6, 1];
        let packs = pack(&lengths, 10, true);
        assert_eq!(packs, [vec![0, 2, 4], vec![1, 7], vec![3], vec![5, 6]]);
        assert_eq!(pack(&lengths[..2], 10, false), [[0], [1]]);
    }

    #[test]
    fn an_epoch_sees_every_row_once_in_an_order_of_its_own() {
        let order = Order { packs: pack(&[1; 23], 1, false), batch_size: 2, accumulation: 3, seed: 9 };
        assert_eq!(order.steps_per_epoch(), 4);
        let epoch = |e: u64| -> Vec<usize> { (4 * e..4 * e + 4).flat_map(|s| order.step(s).concat()).collect() };
        assert_ne!(epoch(0), epoch(1));
        for e in 0..2 {
            let mut seen = epoch(e);
            seen.sort_unstable();
            assert_eq!(seen, (0..23).collect::<Vec<_>>());
        }
        assert_eq!(order.step(3).len(), 3, "the last micro-batches: 23 = 3 * 6 + 5");
    }
}
