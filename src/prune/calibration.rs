//! Token sequences for the metrics, cut from a text file or taken from the rows of a dataset.

use crate::error::{Error, Result};
use crate::model::Tokenizer;
use serde::Serialize;
use serde_json::Value;
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
    /// 16 sequences of 256 tokens: fewer than 16 make the best cut depend on single sequences.
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
    /// Tokens in all sequences.
    pub tokens: usize,
    /// Rows that were longer than `sample_tokens` and lost their tails.
    pub truncated: usize,
    /// Rows without text, passed over.
    pub empty: usize,
}

impl Calibration {
    /// Reads `path` for the model in `dir`. A `.txt` is one stream of tokens cut into windows from its beginning, a `.jsonl`
    /// has one sequence a row. Errors when no sequence comes out.
    pub fn read(dir: &Path, path: &Path, options: CalibrationOptions) -> Result<Calibration> {
        if options.samples == 0 || options.sample_tokens < 2 {
            let found = format!("{} x {}", options.samples, options.sample_tokens);
            return Err(Error::usage("--samples, --sample-tokens", "at least 1 sample of at least 2 tokens", found));
        }
        let tokenizer = Tokenizer::load(dir)?;
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        let calibration = if path.extension().is_some_and(|e| e == "txt") {
            let ids = tokenizer.encode(&text, true)?;
            let windows = ids.chunks_exact(options.sample_tokens).take(options.samples);
            Calibration::new(windows.map(<[u32]>::to_vec).collect())
        } else {
            let mut rows = Vec::new();
            for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).take(options.samples)
            {
                let place = format!("line {}", i + 1);
                let row: Value = serde_json::from_str(line)
                    .map_err(|e| Error::format(path, &place, "a JSON object", e.to_string()))?;
                let text =
                    row["text"].as_str().ok_or_else(|| Error::format(path, &place, "a string \"text\"", line))?;
                rows.push(tokenizer.encode(text, true)?);
            }
            Calibration::from_rows(rows, options.sample_tokens)
        };
        if calibration.sequences.is_empty() {
            let expected = format!("text for at least one sequence of {} tokens", options.sample_tokens);
            return Err(Error::format(path, "data", expected, format!("{} bytes", text.len())));
        }
        Ok(calibration)
    }

    /// Whole sequences as they are.
    pub fn new(sequences: Vec<Vec<u32>>) -> Calibration {
        let tokens = sequences.iter().map(Vec::len).sum();
        Calibration { sequences, tokens, truncated: 0, empty: 0 }
    }

    fn from_rows(mut rows: Vec<Vec<u32>>, sample_tokens: usize) -> Calibration {
        let truncated = rows.iter().filter(|row| row.len() > sample_tokens).count();
        let empty = rows.iter().filter(|row| row.is_empty()).count();
        rows.retain(|row| !row.is_empty());
        rows.iter_mut().for_each(|row| row.truncate(sample_tokens));
        Calibration { truncated, empty, ..Calibration::new(rows) }
    }
}
