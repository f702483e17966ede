//! What a task is: a data file and a small TOML header that says how a row becomes a prompt, choices and a right answer.
//!
//! `--tasks arc.jsonl` takes `arc.toml` beside it as its header; without one, the fields of the first row tell which built-in
//! format it has. A header may be as short as `format = "arc"`; every key it gives replaces the format's own.
//! The built-in formats are the TOML files of `formats/`, and the best examples of a header.

use crate::error::{Error, Result};
use crate::input::read_text;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The built-in formats, by name.
pub const FORMATS: [(&str, &str); 8] = [
    ("arc", include_str!("formats/arc.toml")),
    ("choices", include_str!("formats/choices.toml")),
    ("gsm8k", include_str!("formats/gsm8k.toml")),
    ("hellaswag", include_str!("formats/hellaswag.toml")),
    ("mmlu", include_str!("formats/mmlu.toml")),
    ("truthfulqa_mc1", include_str!("formats/truthfulqa_mc1.toml")),
    ("truthfulqa_mc2", include_str!("formats/truthfulqa_mc2.toml")),
    ("winogrande", include_str!("formats/winogrande.toml")),
];

/// How a task is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Kind {
    /// One prompt, several continuations; the likeliest is the answer.
    MultipleChoice,
    /// Several contexts, one continuation; the context that makes it likeliest is the answer.
    Partial,
    /// The model writes; the answer is extracted from its text.
    Generate,
}

/// A task's header, defaults filled in. Fields called *template* are Jinja text, those called *expression* Jinja expressions;
/// both see the row's fields.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Built-in format that this header starts from.
    #[serde(default)]
    pub format: Option<String>,
    /// Name in reports; the file's name by default.
    #[serde(default)]
    pub name: String,
    /// Data file, JSONL or Parquet, relative to the header; the file of the same name beside it by default.
    #[serde(default)]
    pub data: Option<PathBuf>,
    /// How it is scored.
    pub kind: Kind,
    /// Template: text before everything, once.
    #[serde(default)]
    pub description: String,
    /// Template: the question.
    #[serde(default)]
    pub prompt: String,
    /// Expression: list of the choices' texts (`multiple_choice`).
    #[serde(default)]
    pub choices: String,
    /// Expression: list of contexts (`partial`).
    #[serde(default)]
    pub contexts: String,
    /// Template: what follows each context (`partial`).
    #[serde(default)]
    pub continuation: String,
    /// Expression: the right choice as an index from 0, as one of `labels`, as its text, or as a list of 0 and 1 per choice.
    #[serde(default)]
    pub gold: String,
    /// Expression: list of the names that `gold` uses for the choices.
    #[serde(default)]
    pub labels: String,
    /// Template: the whole right answer (`generate`), shown in examples; what is extracted from it is compared.
    #[serde(default)]
    pub answer: String,
    /// Between prompt and answer.
    #[serde(default = "space")]
    pub target_delimiter: String,
    /// Between examples.
    #[serde(default = "blank_line")]
    pub fewshot_delimiter: String,
    /// File that examples are taken from, relative to the header; the data itself (without the row in question) by default.
    #[serde(default)]
    pub fewshot: Option<PathBuf>,
    /// Examples before each question; `--num-fewshot` replaces it.
    #[serde(default)]
    pub num_fewshot: usize,
    /// Field that an example must share with the question.
    #[serde(default)]
    pub fewshot_group: Option<String>,
    /// Strings that end the model's text (`generate`).
    #[serde(default)]
    pub stop: Vec<String>,
    /// Most tokens that the model writes (`generate`).
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Regex whose first match (its first group where it has one) is the answer; the whole text by default.
    #[serde(default)]
    pub strict: Option<String>,
    /// Regex whose last match (its first group that matched) is the answer; the last number by default.
    #[serde(default)]
    pub flexible: Option<String>,
    /// Metric that counts in the recovery.
    #[serde(default)]
    pub metric: Option<String>,
}

fn space() -> String {
    " ".into()
}

fn blank_line() -> String {
    "\n\n".into()
}

fn max_tokens() -> usize {
    256
}

/// A task: header and where its rows are.
#[derive(Clone, Debug)]
pub struct Task {
    /// How rows are used.
    pub header: Header,
    /// The rows.
    pub data: PathBuf,
    /// The rows that examples are taken from; `None`: `data`.
    pub fewshot: Option<PathBuf>,
    /// The header's file, or the data's where there is none; named in errors about the header.
    pub path: PathBuf,
}

impl Task {
    /// The task that `path` names: a data file (with or without a header beside it) or a header.
    pub fn load(path: &Path) -> Result<Task> {
        let is_header = path.extension().is_some_and(|e| e == "toml");
        let header_path = if is_header { path.to_path_buf() } else { path.with_extension("toml") };
        let mut table = toml::Table::new();
        if is_header || header_path.exists() {
            let text = read_text(&header_path)?;
            table = text.parse().map_err(|e: toml::de::Error| toml_error(&header_path, &text, &e))?;
        }
        let data = match table.get("data").and_then(toml::Value::as_str) {
            Some(data) if is_header => crate::output::parent(&header_path).join(data),
            _ if !is_header => path.to_path_buf(),
            _ => {
                let beside = ["jsonl", "parquet"].map(|extension| path.with_extension(extension));
                let found = beside.into_iter().find(|candidate| candidate.exists());
                found.ok_or_else(|| {
                    Error::format(path, "data", "a data file, or NAME.jsonl or NAME.parquet beside NAME.toml", "none")
                })?
            }
        };
        let path = if table.is_empty() { data.clone() } else { header_path };
        if !table.contains_key("format") && !table.contains_key("kind") {
            table.insert("format".into(), detect(&data)?.into());
        }
        let mut merged = match table.get("format") {
            None => toml::Table::new(),
            Some(format) => built_in(&path, format)?,
        };
        merged.extend(table);
        let mut header: Header = merged.try_into().map_err(|e: toml::de::Error| {
            Error::format(&path, "task header", "the keys of a task header", e.message().to_string())
        })?;
        header.check(&path)?;
        if header.name.is_empty() {
            header.name = data.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        }
        let fewshot = header.fewshot.as_ref().map(|file| crate::output::parent(&path).join(file));
        Ok(Task { header, data, fewshot, path })
    }
}

impl Header {
    /// The metric that counts in the recovery.
    pub fn primary_metric(&self) -> &str {
        let default = if self.kind == Kind::Generate { "exact_match_strict" } else { "acc" };
        self.metric.as_deref().unwrap_or(default)
    }

    /// The metrics that this kind of task gives.
    pub fn metrics(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::MultipleChoice | Kind::Partial => &["acc", "acc_norm", "acc_bytes", "mc2"],
            Kind::Generate => &["exact_match_strict", "exact_match_flexible"],
        }
    }

    fn check(&self, path: &Path) -> Result<()> {
        let needed: &[(&str, &str)] = match self.kind {
            Kind::MultipleChoice => &[("prompt", &self.prompt), ("choices", &self.choices), ("gold", &self.gold)],
            Kind::Partial => {
                &[("contexts", &self.contexts), ("continuation", &self.continuation), ("gold", &self.gold)]
            }
            Kind::Generate => &[("prompt", &self.prompt), ("answer", &self.answer)],
        };
        if let Some((key, _)) = needed.iter().find(|(_, text)| text.is_empty()) {
            return Err(Error::format(path, *key, format!("this key, which {:?} tasks need", self.kind), "none"));
        }
        if !self.metrics().contains(&self.primary_metric()) {
            let expected = format!("one of {}", self.metrics().join(", "));
            return Err(Error::format(path, "metric", expected, self.primary_metric().to_string()));
        }
        Ok(())
    }
}

fn toml_error(path: &Path, text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
    Error::format(path, format!("line {line}"), "TOML", error.message().to_string())
}

fn built_in(path: &Path, format: &toml::Value) -> Result<toml::Table> {
    let known = FORMATS.iter().find(|(name, _)| Some(*name) == format.as_str());
    let Some((_, text)) = known else {
        let names: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
        return Err(Error::format(path, "format", format!("one of {}", names.join(", ")), format.to_string()));
    };
    text.parse().map_err(|e: toml::de::Error| toml_error(path, text, &e))
}

/// The built-in format whose fields the first row has.
fn detect(data: &Path) -> Result<&'static str> {
    let row: Map<String, Value> = match crate::data::objects(data, false)?.next() {
        Some(row) => row?.1,
        None => return Err(Error::format(data, "file", "at least one row", "none")),
    };
    let has = |fields: &[&str]| fields.iter().all(|field| row.contains_key(*field));
    let format = if has(&["endings", "ctx_a", "label"]) {
        "hellaswag"
    } else if has(&["sentence", "option1", "option2"]) {
        "winogrande"
    } else if has(&["question", "answerKey"]) {
        "arc"
    } else if has(&["question", "mc1_targets"]) {
        "truthfulqa_mc1"
    } else if has(&["question", "choices", "answer", "subject"]) {
        "mmlu"
    } else if has(&["question", "choices", "answer"]) {
        "choices"
    } else if has(&["question", "answer"]) {
        "gsm8k"
    } else {
        let fields: Vec<&str> = row.keys().map(String::as_str).collect();
        let expected = "the fields of a built-in format, or a header NAME.toml beside NAME.jsonl";
        return Err(Error::format(data, "line 1", expected, format!("the fields {}", fields.join(", "))));
    };
    Ok(format)
}
