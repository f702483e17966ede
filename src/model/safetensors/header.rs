//! The header of a safetensors file: eight bytes of length, then JSON that says where each tensor lies.
//! Format: <https://github.com/huggingface/safetensors#format>.

use crate::device::DType;
use crate::error::{Error, Result};
use crate::input::refuse_lfs_pointer;
use crate::model::json::UniqueMap;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Longest header that readers of the format accept, in bytes.
pub const MAX_HEADER: usize = 100_000_000;

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, slowest first.
    pub shape: Vec<usize>,
    /// Byte offset in the file.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

/// What the header of a file says.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Tensors in the order of their bytes.
    pub entries: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Reads and checks the header of a whole file: every byte after it belongs to exactly one tensor.
pub fn parse(path: &Path, file: &[u8]) -> Result<Header> {
    let wrong = |place: &str, expected: String, found: String| Error::format(path, place, expected, found);
    refuse_lfs_pointer(path, file)?;
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        let found = format!("a file of {} bytes", file.len());
        return Err(wrong("header", "8 bytes of header length".into(), found));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER as u64 {
        let found = format!("{length} (is this a safetensors file?)");
        return Err(wrong("header length", format!("at most {MAX_HEADER} bytes"), found));
    }
    let length = length as usize;
    if length > rest.len() {
        let found = format!("{length}: the file is cut short or is no safetensors file");
        return Err(wrong("header length", format!("at most the {} bytes that follow", rest.len()), found));
    }
    let (text, data) = rest.split_at(length);
    let text = std::str::from_utf8(text).map_err(|e| {
        let found = format!("byte {:#04x} at offset {}", text[e.valid_up_to()], 8 + e.valid_up_to());
        wrong("header", "UTF-8".into(), found)
    })?;
    let raw: UniqueMap<Value> = serde_json::from_str(text).map_err(|e| {
        let place = format!("header, line {} column {}", e.line(), e.column());
        wrong(&place, "a JSON object of tensors, each name once".into(), e.to_string())
    })?;
    let mut header = Header { metadata: BTreeMap::new(), entries: Vec::with_capacity(raw.0.len()) };
    for (name, value) in raw.0 {
        if name == "__metadata__" {
            header.metadata = serde_json::from_value(value)
                .map_err(|e| wrong("__metadata__", "strings by name".into(), e.to_string()))?;
        } else {
            header.entries.push(entry(path, name, value, 8 + length)?);
        }
    }
    header.entries.sort_by_key(|entry| (entry.start, entry.len));
    check_coverage(path, &header.entries, 8 + length, 8 + length + data.len())?;
    Ok(header)
}

fn entry(path: &Path, name: String, value: Value, data: usize) -> Result<Entry> {
    let wrong = |expected: String, found: String| Err(Error::format(path, format!("tensor {name}"), expected, found));
    let raw: RawEntry = match serde_json::from_value(value) {
        Ok(raw) => raw,
        Err(e) => return wrong("dtype, shape and data_offsets".into(), e.to_string()),
    };
    let dtype = match raw.dtype.as_str() {
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "U32" => DType::U32,
        other => {
            return Err(Error::unsupported(path, format!("tensor {name}: dtype {other}"), "F32, F16 and BF16 are"));
        }
    };
    let elements = raw.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d));
    let bytes = elements.and_then(|n| n.checked_mul(dtype.size() as u64)).filter(|&n| n <= isize::MAX as u64);
    let Some(bytes) = bytes else {
        return wrong("a shape whose bytes can be counted".into(), format!("shape {:?}, an overflow", raw.shape));
    };
    let (start, end) = raw.data_offsets;
    if end.checked_sub(start) != Some(bytes) {
        let expected = format!("{bytes} bytes for {dtype} {:?}", raw.shape);
        return wrong(expected, format!("data_offsets [{start}, {end}]"));
    }
    // A sum past usize cannot lie inside the file; saturating keeps it outside.
    let start = usize::try_from(start).unwrap_or(usize::MAX).saturating_add(data);
    let shape = raw.shape.into_iter().map(|d| d as usize).collect();
    Ok(Entry { name, dtype, shape, start, len: bytes as usize })
}

/// Each tensor must start where the one before it ends, and the last must end with the file.
fn check_coverage(path: &Path, entries: &[Entry], data: usize, file_len: usize) -> Result<()> {
    let mut end = data;
    let mut previous = "the header";
    for entry in entries {
        if entry.start != end {
            let what = if entry.start < end { "an overlap" } else { "a hole" };
            let (expected, found) = (end - data, entry.start.saturating_sub(data));
            let expected = format!("data from offset {expected}, where {previous} ends");
            return Err(Error::format(
                path,
                format!("tensor {}", entry.name),
                expected,
                format!("{what}: offset {found}"),
            ));
        }
        end = entry.start.saturating_add(entry.len);
        previous = &entry.name;
    }
    if end > file_len {
        let expected = format!("a file of {end} bytes, to the end of {previous}");
        return Err(Error::format(path, "file", expected, format!("{file_len} bytes: it is cut short")));
    }
    if end < file_len {
        let found = format!("{} trailing bytes", file_len - end);
        return Err(Error::format(path, "file", format!("its end at byte {end}, after {previous}"), found));
    }
    Ok(())
}
