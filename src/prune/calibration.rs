//! Token sequences for the metrics, cut from a text file or taken from the rows of a dataset.

use crate::data::{self, Example, ReadOptions};
use crate::error::{Error, Result};
use crate::input::read_text;
use crate::model::{ChatTemplate, Tokenizer};
use serde::Serialize;
use std::path::Path;

/// How many sequences of which length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CalibrationOptions {
    /// Most sequences.
    pub samples: usize,
    /// Tokens of a sequence: exactly for windows of a text, at most for rows.
    pub sample_tokens: usize,
}

impl Default for CalibrationOptions {
    /// 16 sequences of 256 tokens: with fewer, the best cut depends on single sequences.
    fn default() -> Self {
        CalibrationOptions { samples: 16, sample_tokens: 256 }
    }
}

/// The sequences, and what was left out to get them.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// Token ids of each sequence.
    #[serde(skip)]
    pub sequences: Vec<Vec<u32>>,
    /// Number of sequences.
    pub samples: usize,
    /// Tokens in all sequences.
    pub tokens: usize,
    /// Rows that were longer than `sample_tokens` and lost their tails.
    pub truncated: usize,
    /// Rows without a token, passed over.
    pub empty: usize,
}

impl Calibration {
    /// Reads `path` for the model in `dir`. A `.txt` is one stream of tokens, cut into windows from its beginning; JSONL and
    /// Parquet give one sequence a row: text, prompt with completion, or the conversation in the model's template.
    /// Errors when no sequence comes out.
    pub fn read(dir: &Path, path: &Path, options: CalibrationOptions) -> Result<Calibration> {
        if options.samples == 0 || options.sample_tokens < 2 {
            let found = format!("{} of {}", options.samples, options.sample_tokens);
            return Err(Error::usage("--samples, --sample-tokens", "at least 1 sample of at least 2 tokens", found));
        }
        let tokenizer = Tokenizer::load(dir)?;
        let calibration = if path.extension().is_some_and(|e| e == "txt") {
            let wanted = options.samples.saturating_mul(options.sample_tokens);
            let ids = tokenizer.encode_first(&read_text(path)?, true, wanted)?;
            let windows = ids.chunks_exact(options.sample_tokens).take(options.samples);
            let calibration = Calibration::new(windows.map(<[u32]>::to_vec).collect());
            if calibration.samples == 0 {
                let expected = format!("at least {} tokens (--sample-tokens)", options.sample_tokens);
                return Err(Error::format(path, "text", expected, ids.len().to_string()));
            }
            calibration
        } else {
            Calibration::from_rows(read_rows(dir, path, &tokenizer, options)?, options.sample_tokens)
        };
        if calibration.samples == 0 {
            return Err(Error::format(path, "rows", "at least one with text", format!("{} empty", calibration.empty)));
        }
        Ok(calibration)
    }

    /// Whole sequences as they are.
    pub fn new(sequences: Vec<Vec<u32>>) -> Calibration {
        let (samples, tokens) = (sequences.len(), sequences.iter().map(Vec::len).sum());
        Calibration { sequences, samples, tokens, truncated: 0, empty: 0 }
    }

    fn from_rows(mut rows: Vec<Vec<u32>>, sample_tokens: usize) -> Calibration {
        let truncated = rows.iter().filter(|row| row.len() > sample_tokens).count();
        let empty = rows.iter().filter(|row| row.is_empty()).count();
        rows.retain(|row| !row.is_empty());
        rows.iter_mut().for_each(|row| row.truncate(sample_tokens));
        Calibration { truncated, empty, ..Calibration::new(rows) }
    }
}

fn read_rows(dir: &Path, path: &Path, tokenizer: &Tokenizer, options: CalibrationOptions) -> Result<Vec<Vec<u32>>> {
    let template = ChatTemplate::load(dir)?;
    let rows = data::read(path, &ReadOptions { limit: Some(options.samples), ..ReadOptions::default() })?;
    // One more than is kept, which says that the row is longer.
    let some = options.sample_tokens.saturating_add(1);
    let encode = |row: data::Row| match row.example {
        Example::Text(text) => tokenizer.encode_first(&text, true, some),
        Example::Completion { prompt, completion } => tokenizer.encode_first(&(prompt + &completion), true, some),
        Example::Chat(messages) => match &template {
            Some(template) => tokenizer.encode_first(&template.render(&messages, false)?, false, some),
            None => {
                Err(Error::unsupported(path, "a conversation for a model without chat template", "{text} rows are"))
            }
        },
    };
    rows.into_iter().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_are_cut_and_counted_and_empty_ones_passed_over_and_counted() {
        let calibration = Calibration::from_rows(vec![vec![1; 5], vec![], vec![2; 3], vec![3; 4]], 3);
        assert_eq!(calibration.sequences, [vec![1; 3], vec![2; 3], vec![3; 3]]);
        assert_eq!((calibration.samples, calibration.tokens), (3, 9));
        assert_eq!((calibration.truncated, calibration.empty), (2, 1));
    }
}
