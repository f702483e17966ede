//! The likeliest choice, by log-likelihood.

use super::{Item, Items, Task, TaskOptions, Values};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::eval::log_likelihood::{Request, log_likelihoods};
use crate::generate::Runtime;
use crate::model::{GenerationConfig, Message};
use crate::progress::Progress;
use rayon::prelude::*;

/// Metrics of each item, and how many contexts were cut from the left.
pub(super) fn run(
    dev: &Device,
    subject: &Runtime,
    task: &Task,
    items: &Items,
    options: &TaskOptions,
) -> Result<(Values, usize)> {
    let header = &task.header;
    // After a rendered template the answer opens the assistant's turn, without a blank before it.
    let delimiter = if options.apply_chat_template { "" } else { &header.target_delimiter };
    let requests = items.items.par_iter().map(|item| -> Result<Vec<(Request, bool)>> {
        let preamble = items.preamble(header, item);
        let pairs = item.contexts.iter().zip(&item.choices).map(|(context, choice)| {
            let mut context = format!("{preamble}{context}");
            if options.apply_chat_template {
                context = subject.render_chat(&[Message::new("user", context)])?;
            }
            request(subject, &context, &format!("{delimiter}{choice}"), !options.apply_chat_template)
                .map_err(|e| e.unwrap_or_else(|| empty(task, item)))
        });
        pairs.collect()
    });
    let requests = requests.collect::<Result<Vec<_>>>()?;
    let truncated = requests.iter().flatten().filter(|(_, truncated)| *truncated).count();
    let flat: Vec<Request> = requests.into_iter().flatten().map(|(request, _)| request).collect();
    let progress = Progress::start(&header.name, flat.len() as u64, "choices");
    let scores = log_likelihoods(dev, &subject.model, &flat, &progress)?;
    let mut values = Values::new();
    let mut rest = scores.as_slice();
    for item in &items.items {
        let (own, others) = rest.split_at(item.choices.len());
        rest = others;
        for (name, value) in metrics(item, own) {
            values.entry(name).or_default().push(value);
        }
    }
    Ok((values, truncated))
}

fn empty(task: &Task, item: &Item) -> Error {
    Error::format(&task.data, item.place.clone(), "choices that become one token or more", "one without")
}

/// `acc`: the likeliest choice is right; `acc_norm`, `acc_bytes`: the likeliest per character, per byte; `mc2`: the share of
/// probability on right choices.
fn metrics(item: &Item, log_likelihoods: &[f64]) -> [(&'static str, f64); 4] {
    let right_by = |score: &dyn Fn(f64, &str) -> f64| {
        let scores: Vec<f64> = log_likelihoods.iter().zip(&item.choices).map(|(&ll, c)| score(ll, c)).collect();
        // Ties go to the first choice.
        let best = (1..scores.len()).fold(0, |best, i| if scores[i] > scores[best] { i } else { best });
        f64::from(item.gold[best])
    };
    let max = log_likelihoods.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mass = |keep: &dyn Fn(usize) -> bool| -> f64 {
        log_likelihoods.iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, ll)| (ll - max).exp()).sum()
    };
    [
        ("acc", right_by(&|ll, _| ll)),
        ("acc_norm", right_by(&|ll, choice| ll / choice.chars().count() as f64)),
        ("acc_bytes", right_by(&|ll, choice| ll / choice.len() as f64)),
        ("mc2", mass(&|i| item.gold[i]) / mass(&|_| true)),
    ]
}

/// The request for a pair of texts, and whether its context was cut from the left to fit the model. The error is `None` when the
/// continuation has no token.
fn request(
    subject: &Runtime,
    context: &str,
    continuation: &str,
    add_special_tokens: bool,
) -> Result<(Request, bool), Option<Error>> {
    let (mut ids, continuation) = encode_pair(subject, context, continuation, add_special_tokens)?;
    // The last id is predicted, not read.
    let longest = subject.model.config.max_position_embeddings + 1;
    let excess = ids.len().saturating_sub(longest);
    if continuation == 0 || ids.len() - excess <= continuation {
        return Err(None);
    }
    ids.drain(..excess);
    Ok((Request { ids, continuation }, excess > 0))
}

/// Ids of context and continuation together, and how many of them are the continuation's.
///
/// Both are tokenised as one text, as the model would meet them; blanks at the context's end belong to the continuation, since
/// tokenisers join them to the next word. A context without text becomes the model's BOS (or end-of-text) token.
pub fn encode_pair(
    subject: &Runtime,
    context: &str,
    continuation: &str,
    add_special_tokens: bool,
) -> Result<(Vec<u32>, usize)> {
    let trimmed = context.trim_end();
    let continuation = format!("{}{continuation}", &context[trimmed.len()..]);
    let encode = |text: &str| subject.tokenizer.encode(text, add_special_tokens);
    if trimmed.is_empty() {
        let config = &subject.model.config;
        let bos = config.json.get("bos_token_id").and_then(|id| id.as_u64()).map(|id| id as u32);
        let first = match bos {
            Some(bos) => bos,
            None => GenerationConfig::load(crate::output::parent(&config.path))?
                .eos_token_ids
                .first()
                .copied()
                .ok_or_else(|| Error::format(&config.path, "bos_token_id", "a token id", "none"))?,
        };
        let rest = subject.tokenizer.encode(&continuation, false)?;
        let count = rest.len();
        return Ok((std::iter::once(first).chain(rest).collect(), count));
    }
    let ids = encode(&format!("{trimmed}{continuation}"))?;
    let context_len = encode(trimmed)?.len().min(ids.len());
    let count = ids.len() - context_len;
    Ok((ids, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(choices: &[&str], gold: &[bool]) -> Item {
        let choices = choices.iter().map(|c| c.to_string()).collect();
        Item { choices, gold: gold.to_vec(), ..Item::default() }
    }

    #[test]
    fn raw_and_length_normalised_accuracy_differ_where_lengths_do() {
        // Per character: -4/2 = -2 against -6/6 = -1. Per byte "ééé" is 6 bytes long, 3 characters.
        let item = item(&["no", "ééé"], &[false, true]);
        let by_name = metrics(&item, &[-4.0, -6.0]);
        assert_eq!(by_name[0], ("acc", 0.0));
        assert_eq!(by_name[1], ("acc_norm", 0.0), "-2 against -2: the first of equals");
        assert_eq!(by_name[2], ("acc_bytes", 1.0), "-2 against -1");
        let expected = (-6f64).exp() / ((-6f64).exp() + (-4f64).exp());
        assert!((by_name[3].1 - expected).abs() < 1e-12);
    }
}
