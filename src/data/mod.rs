//! Datasets in the formats that users have: JSONL and Parquet, normalised to one row type.
//!
//! | file | subject |
//! |-|-|
//! | `jsonl.rs` | one JSON object a line, streamed; what is wrong with a file is told by line |
//! | `parquet.rs` | rows of a Parquet file as the same objects (feature `parquet`) |
//! | `format.rs` | which of the known shapes an object has: text, messages, prompt and completion, Alpaca, ShareGPT, GSM8K |
//! | `answer.rs` | final answers: extraction, normalisation, comparison |

pub mod answer;
mod format;
mod jsonl;
#[cfg(feature = "parquet")]
mod parquet;

pub use format::{FORMATS, messages};

use crate::error::{Error, Result};
use crate::input::refuse_lfs_pointer;
use crate::model::Message;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

/// What a row teaches.
#[derive(Clone, Debug, PartialEq)]
pub enum Example {
    /// Plain text: every token is learnt.
    Text(String),
    /// A prompt and what follows it, both raw text: no template is put around them.
    Completion {
        /// Text that is given.
        prompt: String,
        /// Text that is learnt.
        completion: String,
    },
    /// A conversation, to be rendered through the model's chat template. Alpaca, Dolly, ShareGPT and question/answer rows
    /// become one too.
    Chat(Vec<Message>),
}

/// One row of a dataset.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `id` or `custom_id` of the row (or the field that [`ReadOptions::id_field`] names), else its 0-based number. Unique in a file.
    pub id: String,
    /// 1-based line in a JSONL file, 1-based row in a Parquet file.
    pub line: usize,
    /// What it teaches.
    pub example: Example,
    /// The checkable final answer: an `answer` field, or what `#### x` or `\boxed{x}` marks in the target; `None` when the row is open-ended.
    pub answer: Option<String>,
    /// The row as it was.
    pub fields: Map<String, Value>,
}

/// How to read a dataset.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Stop after this many rows.
    pub limit: Option<usize>,
    /// Field that holds the row's id, instead of `id` or `custom_id`; every row must have it.
    pub id_field: Option<String>,
    /// Forgive a last line that was cut while being written (a resumed output); otherwise it is an error.
    pub allow_torn_tail: bool,
}

/// Reads a whole dataset. Errors as [`rows`], and when there is no row.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Row>> {
    rows(path, options)?.collect()
}

/// Streams the rows of a dataset. Errors name file, line, expected and found: text that is no UTF-8, a line that is no JSON
/// object, a torn last line, an unknown shape, a field of the wrong type, an id used twice, a file without rows.
pub fn rows(path: &Path, options: &ReadOptions) -> Result<Rows> {
    Ok(Rows {
        objects: objects(path, options.allow_torn_tail)?,
        path: path.to_path_buf(),
        options: options.clone(),
        seen: BTreeMap::new(),
        failed: false,
    })
}

/// Iterator of [`rows`]; ends after the first error.
pub struct Rows {
    objects: Objects,
    path: PathBuf,
    options: ReadOptions,
    seen: BTreeMap<String, usize>,
    failed: bool,
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        if self.failed || self.options.limit.is_some_and(|limit| self.seen.len() >= limit) {
            return None;
        }
        let row = self.objects.next()?.and_then(|(line, fields)| {
            let at = self.objects.place(line);
            let id = row_id(&self.path, &at, &fields, self.options.id_field.as_deref(), self.seen.len())?;
            note_id(&self.path, &at, line, &id, &mut self.seen)?;
            let (example, answer) = format::interpret(&self.path, &at, &fields)?;
            Ok(Row { id, line, example, answer, fields })
        });
        self.failed = row.is_err();
        Some(row)
    }
}

/// The id of an object: `id_field` (which must be there), `id` or `custom_id`, else `number`. `at` names the line in errors.
pub fn row_id(
    path: &Path,
    at: &str,
    fields: &Map<String, Value>,
    id_field: Option<&str>,
    number: usize,
) -> Result<String> {
    let names = id_field.map_or(&["id", "custom_id"] as &[&str], |_| &[]);
    let key = id_field.or_else(|| names.iter().copied().find(|name| fields.get(*name).is_some_and(|v| !v.is_null())));
    let Some(key) = key else { return Ok(number.to_string()) };
    match fields.get(key) {
        Some(Value::String(id)) => Ok(id.clone()),
        Some(Value::Number(id)) => Ok(id.to_string()),
        other => {
            let found = format::kind(other.unwrap_or(&Value::Null));
            Err(Error::format(path, format!("{at}, field {key:?}"), "a string or a number as the row's id", found))
        }
    }
}

/// Remembers an id; an error when it was used before. `seen` maps ids to their lines.
pub fn note_id(path: &Path, at: &str, line: usize, id: &str, seen: &mut BTreeMap<String, usize>) -> Result<()> {
    match seen.insert(id.to_string(), line) {
        None => Ok(()),
        Some(first) => {
            Err(Error::format(path, at, "an id that no other row has", format!("{id:?}, as in line {first}")))
        }
    }
}

/// Streams the JSON objects of a JSONL or Parquet file with their line (or row) numbers, whatever their shape: for task files
/// and prompts. Errors as [`rows`], except for shapes and ids.
pub fn objects(path: &Path, allow_torn_tail: bool) -> Result<Objects> {
    let mut file = File::open(path).map_err(Error::io(path, "open"))?;
    let mut head = Vec::new();
    Read::by_ref(&mut file).take(64).read_to_end(&mut head).map_err(Error::io(path, "read"))?;
    file.rewind().map_err(|e| match e.kind() {
        ErrorKind::NotSeekable => Error::format(path, "file", "one that can be read more than once", "a pipe"),
        _ => Error::io(path, "read")(e),
    })?;
    refuse_lfs_pointer(path, &head)?;
    refuse_other_formats(path, &head)?;
    if !head.starts_with(b"PAR1") && path.extension().is_none_or(|e| e != "parquet") {
        return Ok(Objects { source: Source::Jsonl(jsonl::Lines::new(file, path, allow_torn_tail)) });
    }
    #[cfg(feature = "parquet")]
    return Ok(Objects { source: Source::Parquet(parquet::Rows::open(file, path)?) });
    #[cfg(not(feature = "parquet"))]
    Err(Error::unsupported(path, "Parquet in this build", "build with --features parquet, or convert to JSONL"))
}

/// What users have that is neither JSONL nor Parquet, with the way to convert it.
fn refuse_other_formats(path: &Path, head: &[u8]) -> Result<()> {
    let (name, object) = (path.display(), head.trim_ascii_start().starts_with(b"{"));
    let table = |separator: &str| {
        format!(
            "one JSON object a line is: python3 -c \"import csv,json; [print(json.dumps(row)) for row in \
             csv.DictReader(open('{name}',newline='',encoding='utf-8-sig'){separator})]\" > rows.jsonl"
        )
    };
    let (what, instead) = match path.extension().and_then(OsStr::to_str) {
        _ if head.starts_with(&[0x1f, 0x8b]) => ("a gzip archive", format!("unpack it first: gzip -dk '{name}'")),
        _ if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => {
            ("a zstd archive", format!("unpack it first: zstd -dk '{name}'"))
        }
        Some("csv") if !object => ("CSV", table("")),
        Some("tsv") if !object => ("TSV", table(",delimiter=chr(9)")),
        _ => return Ok(()),
    };
    Err(Error::unsupported(path, what, instead))
}

/// Iterator of [`objects`].
pub struct Objects {
    source: Source,
}

enum Source {
    Jsonl(jsonl::Lines),
    #[cfg(feature = "parquet")]
    Parquet(parquet::Rows),
}

impl Objects {
    /// How an error names a line of this file: `line 7` or `row 7`.
    pub fn place(&self, line: usize) -> String {
        match self.source {
            Source::Jsonl(_) => format!("line {line}"),
            #[cfg(feature = "parquet")]
            Source::Parquet(_) => format!("row {line}"),
        }
    }
}

impl Iterator for Objects {
    type Item = Result<(usize, Map<String, Value>)>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.source {
            Source::Jsonl(lines) => lines.next(),
            #[cfg(feature = "parquet")]
            Source::Parquet(rows) => rows.next(),
        }
    }
}
