//! JSON lines: one object a line. CRLF, a byte-order mark and blank lines are accepted.

use crate::error::{Error, Result};
use crate::model::json::reason;
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line that is read, in bytes: four times the longest row that users were seen to have (a 64 MB log in one field),
/// so that a file without line breaks ends in an error and not in all of the memory.
const LONGEST_LINE: u64 = 256 << 20;

/// Streams the objects of a JSONL file.
pub(super) struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    allow_torn_tail: bool,
    buffer: Vec<u8>,
    line: usize,
    objects: usize,
    ended: bool,
}

impl Lines {
    pub(super) fn new(file: File, path: &Path, allow_torn_tail: bool) -> Lines {
        let reader = BufReader::with_capacity(1 << 20, file);
        Lines {
            reader,
            path: path.to_path_buf(),
            allow_torn_tail,
            buffer: Vec::new(),
            line: 0,
            objects: 0,
            ended: false,
        }
    }

    fn error(&self, expected: &str, found: impl Into<String>) -> Error {
        Error::format(&self.path, format!("line {}", self.line), expected, found)
    }

    /// The next object with its line; `None` at the end of a file that had one.
    fn read(&mut self) -> Result<Option<(usize, Map<String, Value>)>> {
        loop {
            self.buffer.clear();
            let mut limited = Read::by_ref(&mut self.reader).take(LONGEST_LINE);
            let read = limited.read_until(b'\n', &mut self.buffer).map_err(Error::io(&self.path, "read"))?;
            if read == 0 {
                if self.objects == 0 && !self.allow_torn_tail {
                    return Err(Error::format(&self.path, "file", "at least one JSON object", "no row"));
                }
                return Ok(None);
            }
            self.line += 1;
            let whole = self.buffer.last() == Some(&b'\n');
            if !whole && read as u64 == LONGEST_LINE {
                return Err(self.error(&format!("a line shorter than {LONGEST_LINE} bytes"), "a longer one"));
            }
            let mut text = self.buffer.as_slice();
            if self.line == 1 {
                text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
            }
            if text.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match parse(text) {
                Ok(object) => {
                    self.objects += 1;
                    return Ok(Some((self.line, object)));
                }
                Err(_) if !whole && self.allow_torn_tail => return Ok(None),
                Err((expected, found, cut)) if whole || !cut => return Err(self.error(expected, found)),
                Err((_, found, _)) => {
                    let found = format!("one that ends the file without a line break ({found}): was it cut short?");
                    return Err(self.error("a whole line", found));
                }
            }
        }
    }
}

/// One line as an object, or what was expected and found, and whether more text could make it one.
fn parse(line: &[u8]) -> Result<Map<String, Value>, (&'static str, String, bool)> {
    const OBJECT: &str = "a JSON object";
    let text = std::str::from_utf8(line).map_err(|e| {
        let at = e.valid_up_to();
        ("UTF-8 text", format!("byte 0x{:02x} at byte {} of the line", line[at], at + 1), e.error_len().is_none())
    })?;
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Array(_)) => {
            Err((OBJECT, "a list (one object a line is needed: jq -c '.[]' makes that)".into(), false))
        }
        Ok(other) => Err((OBJECT, super::format::kind(&other), false)),
        Err(e) if ["[", "{"].contains(&text.trim()) => {
            let (what, filter) = if text.trim() == "[" { ("a JSON list", ".[]") } else { ("JSON objects", ".") };
            Err((OBJECT, format!("{e} ({what} over many lines? jq -c '{filter}' makes one object a line)"), e.is_eof()))
        }
        Err(e) => Err((OBJECT, format!("{} at column {}", reason(&e), e.column()), e.is_eof())),
    }
}

impl Iterator for Lines {
    type Item = Result<(usize, Map<String, Value>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.read().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}
