//! The model's own answer, extracted from what it writes.

use super::{Header, Items, Task, TaskOptions, Values};
use crate::data::answer::{self, Style};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::generate::{EngineOptions, OnOverflow, Request, Runtime, generate};
use crate::model::Message;
use regex::Regex;

/// Metrics of each item, and how many prompts were cut from the left.
pub(super) fn run(
    dev: &Device,
    subject: &Runtime,
    task: &Task,
    items: &Items,
    options: &TaskOptions,
) -> Result<(Values, usize)> {
    let header = &task.header;
    let extractor = Extractor::new(task)?;
    let requests = items.items.iter().enumerate().map(|(index, item)| {
        let mut prompt = format!("{}{}", items.preamble(header, item), item.contexts[0]);
        if options.apply_chat_template {
            prompt = subject.render_chat(&[Message::new("user", prompt)])?;
        }
        let inside = subject.tokenizer.tail(&prompt, subject.model.config.max_position_embeddings);
        let prompt = subject.tokenizer.encode(inside, !options.apply_chat_template)?;
        let request = Request::new(index as u64, prompt, header.max_tokens);
        Ok(Request { stop: header.stop.clone(), ..request })
    });
    let requests = requests.collect::<Result<Vec<Request>>>()?;
    let engine =
        EngineOptions { on_overflow: OnOverflow::Truncate, label: header.name.clone(), ..EngineOptions::default() };
    let mut texts = vec![String::new(); requests.len()];
    let stats = generate(dev, subject.models(), &requests, &engine, &mut |index, completion| {
        texts[index] = completion.text;
        Ok(())
    })?;
    let mut values = Values::new();
    for (item, text) in items.items.iter().zip(&texts) {
        let reference = extractor.reference(&item.answer);
        for (name, found) in
            [("exact_match_strict", extractor.strict(text)), ("exact_match_flexible", extractor.flexible(text))]
        {
            let right = found.is_some_and(|found| answer::same(&found, &reference));
            values.entry(name).or_default().push(f64::from(right));
        }
    }
    Ok((values, stats.truncated))
}

/// The two filters of a header.
struct Extractor {
    strict: Option<Regex>,
    flexible: Option<Regex>,
}

impl Extractor {
    fn new(task: &Task) -> Result<Extractor> {
        let Header { strict, flexible, .. } = &task.header;
        let compile = |key: &str, pattern: &Option<String>| {
            let compiled = pattern.as_deref().map(Regex::new).transpose();
            compiled.map_err(|e| Error::format(&task.path, key, "a regular expression", e.to_string()))
        };
        Ok(Extractor { strict: compile("strict", strict)?, flexible: compile("flexible", flexible)? })
    }

    /// The first match of the strict filter, or the whole text where the task has none.
    fn strict(&self, text: &str) -> Option<String> {
        match &self.strict {
            Some(regex) => regex.captures(text).map(|captures| first_group(&captures)),
            None => answer::extract(text, Style::Exact),
        }
    }

    /// The last match of the flexible filter, or the last number where the task has none.
    fn flexible(&self, text: &str) -> Option<String> {
        match &self.flexible {
            Some(regex) => regex.captures_iter(text).last().map(|captures| first_group(&captures)),
            None => answer::extract(text, Style::Flexible),
        }
    }

    /// The answer that a row marks: what the strict filter finds, else the whole text.
    fn reference(&self, answer: &str) -> String {
        self.strict(answer).unwrap_or_else(|| answer.trim().to_string())
    }
}

/// The first group that took part in a match, or the whole match.
fn first_group(captures: &regex::Captures) -> String {
    let group = captures.iter().skip(1).flatten().next().or(captures.get(0));
    group.map(|m| m.as_str().to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extractor(strict: Option<&str>, flexible: Option<&str>) -> Extractor {
        let compile = |pattern: &str| Regex::new(pattern).expect("a pattern of this test");
        Extractor { strict: strict.map(compile), flexible: flexible.map(compile) }
    }

    #[test]
    fn strict_needs_the_mark_and_flexible_takes_the_last_number() {
        let gsm8k = extractor(Some(r"#### (-?[0-9.,]+)"), Some(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"));
        let reference = gsm8k.reference("5 x 200 = <<5*200=1000>>1000\n#### 1,000");
        let judged = |text: &str| {
            let same = |found: Option<String>| found.is_some_and(|found| answer::same(&found, &reference));
            (same(gsm8k.strict(text)), same(gsm8k.flexible(text)))
        };
        assert_eq!(judged("so it is\n#### 1000"), (true, true));
        assert_eq!(judged("The answer is $1,000."), (false, true));
        assert_eq!(judged("#### 1000 or rather 7"), (true, false));
        assert_eq!(judged("#### 999"), (false, false));
        assert_eq!(judged("I do not know"), (false, false));
    }

    #[test]
    fn without_filters_the_whole_text_counts_and_the_last_number() {
        let plain = extractor(None, None);
        assert_eq!(plain.strict(" Paris \n").as_deref(), Some("Paris"));
        assert_eq!(plain.flexible("3 apples and 12 pears").as_deref(), Some("12"));
    }
}
