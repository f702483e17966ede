//! mergekit's passthrough configuration: which runs of layers of one model are stacked.
//!
//! ```yaml
//! slices:
//!   - sources:
//!       - model: SmolLM2
//!         layer_range: [0, 13]
//!   - sources:
//!       - model: SmolLM2
//!         layer_range: [19, 30]
//! merge_method: passthrough
//! dtype: bfloat16
//! ```
//! `layer_range` excludes its end.

use crate::error::{Error, Result};
use crate::input::read_text;
use crate::model::Config;
use serde::Deserialize;
use std::fmt::Write;
use std::path::Path;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    slices: Vec<Slice>,
    merge_method: String,
    dtype: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Slice {
    sources: Vec<Source>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    model: String,
    layer_range: (u64, u64),
}

/// The element type that a model's own `config.json` names.
pub(super) fn dtype(config: &Config) -> Option<&str> {
    config.json.get("dtype").or(config.json.get("torch_dtype")).and_then(serde_json::Value::as_str)
}

/// The blocks that a configuration keeps, in order. `dtype` is the model's own, as mergekit spells it; another one in the
/// file is an error, since cutting changes no number.
pub(super) fn read_kept(path: &Path, num_hidden_layers: usize, dtype: Option<&str>) -> Result<Vec<usize>> {
    let text = read_text(path)?;
    let config: Configuration = serde_saphyr::from_str(&text).map_err(|e| {
        let found = e.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
        Error::format(path, "configuration", "slices, merge_method and dtype of a mergekit passthrough", found)
    })?;
    if config.merge_method != "passthrough" {
        return Err(Error::unsupported(path, format!("merge_method {}", config.merge_method), "passthrough is"));
    }
    if let (Some(asked), Some(own)) = (config.dtype.as_deref(), dtype)
        && asked != own
    {
        return Err(Error::format(path, "dtype", format!("{own}, the model's own"), asked));
    }
    let mut kept: Vec<usize> = Vec::new();
    let mut model: Option<&str> = None;
    for (i, slice) in config.slices.iter().enumerate() {
        let place = format!("slices[{i}]");
        let [source] = slice.sources.as_slice() else {
            return Err(Error::format(path, place, "one source", format!("{}", slice.sources.len())));
        };
        if *model.get_or_insert(&source.model) != source.model {
            return Err(Error::unsupported(path, format!("{place}: a second model {}", source.model), "one model is"));
        }
        let (start, end) = source.layer_range;
        let place = format!("{place}.layer_range");
        let found = format!("[{start}, {end}]");
        if start >= end {
            return Err(Error::format(path, place, "a start before the end", found));
        }
        if end > num_hidden_layers as u64 {
            return Err(Error::format(path, place, format!("an end of at most {num_hidden_layers}"), found));
        }
        if kept.last().is_some_and(|&last| start as usize <= last) {
            return Err(Error::format(path, place, "slices in order that do not overlap", found));
        }
        kept.extend(start as usize..end as usize);
    }
    Ok(kept)
}

/// The configuration that keeps `kept` (in order) of `model`.
pub(super) fn write_kept(model: &str, kept: &[usize], dtype: Option<&str>) -> String {
    let model = serde_json::Value::from(model).to_string();
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &block in kept {
        match runs.last_mut() {
            Some((_, end)) if *end == block => *end += 1,
            _ => runs.push((block, block + 1)),
        }
    }
    let mut text = String::from("slices:\n");
    for (start, end) in runs {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  - sources:\n      - model: {model}\n        layer_range: [{start}, {end}]");
    }
    text.push_str("merge_method: passthrough\n");
    if let Some(dtype) = dtype {
        let _ = writeln!(text, "dtype: {dtype}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn read(text: &str) -> Result<Vec<usize>> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        read_kept(file.path(), 30, Some("bfloat16"))
    }

    const GOOD: &str = "slices:\n- sources:\n  - model: a/b\n    layer_range: [0, 13]\n- sources:\n  - model: a/b\n    \
                        layer_range: [19, 30]\nmerge_method: passthrough\ndtype: bfloat16\n";

    #[test]
    fn a_configuration_as_mergekit_documents_it_is_read() {
        let kept: Vec<usize> = (0..13).chain(19..30).collect();
        assert_eq!(read(GOOD).unwrap(), kept);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let kept: Vec<usize> = (1..13).chain(14..15).chain(19..29).collect();
        let text = write_kept("dir with \"quotes\": and colon", &kept, Some("bfloat16"));
        assert_eq!(read(&text).unwrap(), kept);
        assert_eq!(text.matches("layer_range").count(), 3);
    }

    #[test]
    fn other_merges_and_bad_ranges_are_named() {
        for (from, to, word) in [
            ("passthrough", "linear", "merge_method linear"),
            ("bfloat16", "float32", "dtype"),
            ("[19, 30]", "[19, 31]", "slices[1].layer_range"),
            ("[19, 30]", "[12, 30]", "do not overlap"),
            ("[0, 13]", "[13, 0]", "a start before the end"),
            ("[0, 13]", "[13, 13]", "a start before the end"),
            ("[0, 13]", "[-1, 13]", "configuration"),
            ("merge_method", "merge_how", "configuration"),
        ] {
            let message = read(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(message.contains(word), "{from} -> {to}: {message}");
            assert_eq!(message.lines().count(), 1);
        }
        let second = GOOD.replacen("a/b", "c", 1);
        assert!(read(&second).unwrap_err().to_string().contains("a second model"));
    }
}
