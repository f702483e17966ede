//! JSON files of a model directory, read so that every mistake is named.

use crate::error::{Error, Result};
use crate::input::refuse_lfs_pointer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde_json::{Map, Value};
use std::marker::PhantomData;
use std::path::Path;

/// Parses a JSON file into `T`; the error names the line and column.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    refuse_lfs_pointer(path, &bytes)?;
    let text = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
    serde_json::from_slice(text)
        .map_err(|e| Error::format(path, format!("line {} column {}", e.line(), e.column()), "JSON", reason(&e)))
}

/// What a parser found, without its own words for the place.
pub fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_string()
}

/// Reads a JSON object.
pub fn read_object(path: &Path) -> Result<Map<String, Value>> {
    match read(path)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::format(path, "file", "a JSON object", kind(&other))),
    }
}

/// As [`read_object`]; `None` when there is no such file.
pub fn read_optional(path: &Path) -> Result<Option<Map<String, Value>>> {
    match std::fs::exists(path).map_err(Error::io(path, "read"))? {
        true => read_object(path).map(Some),
        false => Ok(None),
    }
}

/// A value in few words, for the `found` of an error.
pub fn kind(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(map) => format!("an object of {} entries", map.len()),
        Value::String(text) if text.chars().count() > 60 => format!("a string of {} bytes", text.len()),
        other => other.to_string(),
    }
}

/// A JSON object in its own order that refuses a key given twice; `serde_json` alone would silently keep the last one.
pub struct UniqueMap<T>(pub Vec<(String, T)>);

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for UniqueMap<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: serde::Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = UniqueMap<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    if !seen.insert(key.clone()) {
                        return Err(serde::de::Error::custom(format!("duplicate key {key:?}")));
                    }
                    entries.push((key, value));
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}
