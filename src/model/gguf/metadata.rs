//! The typed key-value pairs of a GGUF file.

use super::cursor::Cursor;
use crate::error::{Error, Result};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One metadata value. Integers and floats of all widths are widened without loss.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// uint8, uint16, uint32, uint64.
    Unsigned(u64),
    /// int8, int16, int32, int64.
    Signed(i64),
    /// float32.
    F32(f32),
    /// float64.
    F64(f64),
    /// bool.
    Bool(bool),
    /// string.
    String(String),
    /// Numbers or booleans, kept as the file has them and decoded on demand.
    Numbers {
        /// Type id of the elements.
        kind: u32,
        /// Elements, little-endian, without gaps.
        bytes: Vec<u8>,
    },
    /// Array of strings.
    Strings(Vec<String>),
    /// Array of arrays; no key of a Llama model has one, so the content is skipped.
    Nested,
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// Arrays inside arrays inside arrays: deeper than any file has, shallow enough for the stack.
const MAX_DEPTH: u32 = 4;

/// Bytes of a number or boolean of type `kind`; `None` for strings, arrays and unknown ids.
fn scalar_size(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

fn scalar(cursor: &mut Cursor, key: &str, kind: u32) -> Result<Value> {
    Ok(match kind {
        0 => Value::Unsigned(cursor.array::<1>(key)?[0].into()),
        1 => Value::Signed(i8::from_le_bytes(cursor.array(key)?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(cursor.array(key)?).into()),
        3 => Value::Signed(i16::from_le_bytes(cursor.array(key)?).into()),
        4 => Value::Unsigned(cursor.u32(key)?.into()),
        5 => Value::Signed(i32::from_le_bytes(cursor.array(key)?).into()),
        6 => Value::F32(f32::from_le_bytes(cursor.array(key)?)),
        7 => match cursor.array::<1>(key)?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(cursor.error(key, "a boolean of 0 or 1", other.to_string())),
        },
        10 => Value::Unsigned(cursor.u64(key)?),
        11 => Value::Signed(i64::from_le_bytes(cursor.array(key)?)),
        12 => Value::F64(f64::from_le_bytes(cursor.array(key)?)),
        other => return Err(cursor.error(key, "a value type of 0 to 12", other.to_string())),
    })
}

fn array(cursor: &mut Cursor, key: &str, depth: u32) -> Result<Value> {
    let kind = cursor.u32(key)?;
    let count = cursor.u64(key)?;
    if let Some(size) = scalar_size(kind) {
        let bytes = count.checked_mul(size as u64).ok_or_else(|| {
            cursor.error(key, "an array that fits into the file", format!("{count} elements of {size} bytes"))
        })?;
        return Ok(Value::Numbers { kind, bytes: cursor.take(key, bytes)?.to_vec() });
    }
    // A string takes 8 bytes at least, an array 12: a count beyond that is wrong before anything is reserved for it.
    let least = if kind == STRING { 8 } else { 12 };
    if count > cursor.remaining() as u64 / least {
        let found = format!("{count} elements with {} bytes left", cursor.remaining());
        return Err(cursor.error(key, "an array that fits into the file", found));
    }
    match kind {
        STRING => {
            let strings: Result<Vec<String>> = (0..count).map(|_| cursor.string(key).map(str::to_string)).collect();
            Ok(Value::Strings(strings?))
        }
        ARRAY if depth < MAX_DEPTH => {
            for _ in 0..count {
                array(cursor, key, depth + 1)?;
            }
            Ok(Value::Nested)
        }
        ARRAY => Err(cursor.error(key, format!("arrays nested at most {MAX_DEPTH} deep"), "deeper ones")),
        other => Err(cursor.error(key, "an element type of 0 to 12", other.to_string())),
    }
}

/// Reads the value of `key`.
pub(super) fn read_value(cursor: &mut Cursor, key: &str) -> Result<Value> {
    match cursor.u32(key)? {
        STRING => Ok(Value::String(cursor.string(key)?.to_string())),
        ARRAY => array(cursor, key, 1),
        kind => scalar(cursor, key, kind),
    }
}

impl Value {
    /// How an error message shows it.
    fn describe(&self) -> String {
        match self {
            Value::Unsigned(v) => v.to_string(),
            Value::Signed(v) => v.to_string(),
            Value::F32(v) => v.to_string(),
            Value::F64(v) => v.to_string(),
            Value::Bool(v) => v.to_string(),
            Value::String(v) => format!("{:?}", v.chars().take(60).collect::<String>()),
            Value::Numbers { .. } => "an array of numbers".to_string(),
            Value::Strings(_) => "an array of strings".to_string(),
            Value::Nested => "an array of arrays".to_string(),
        }
    }
}

/// All pairs of a file; the getters name file and key when the type is not the one asked for.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    pub(super) values: BTreeMap<String, Value>,
    pub(super) path: PathBuf,
}

impl Metadata {
    /// The file that the pairs come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found = self.get(key).map_or("no such key".to_string(), Value::describe);
        Error::format(&self.path, format!("metadata {key}"), expected, found)
    }

    /// `value`, or an error that says that `key` is missing and should hold `expected`.
    pub fn require<T>(&self, key: &str, expected: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.wrong(key, expected))
    }

    /// A string; `None` when the key is absent.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    /// A non-negative integer of any width.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Unsigned(v)) => Ok(Some(v)),
            Some(&Value::Signed(v)) if v >= 0 => Ok(Some(v as u64)),
            Some(_) => Err(self.wrong(key, "an integer of 0 or more")),
        }
    }

    /// A finite number as the shortest decimal that the file's float32 stands for: 9.999999747e-06 was written as 1e-05.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        let value = match self.get(key) {
            None => return Ok(None),
            Some(&Value::Unsigned(v)) => v as f64,
            Some(&Value::Signed(v)) => v as f64,
            Some(&Value::F64(v)) => v,
            // The shortest decimal of an f32 always parses.
            Some(&Value::F32(v)) => v.to_string().parse().unwrap_or(f64::from(v)),
            Some(_) => return Err(self.wrong(key, "a number")),
        };
        if value.is_finite() { Ok(Some(value)) } else { Err(self.wrong(key, "a finite number")) }
    }

    /// A boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong(key, "a boolean")),
        }
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Strings(v)) => Ok(Some(v)),
            Some(_) => Err(self.wrong(key, "an array of strings")),
        }
    }

    /// An array of int32 or uint32 (token types, per-block head counts).
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Numbers { kind: 4, bytes }) => {
                Ok(Some(words(bytes).map(|w| i64::from(u32::from_le_bytes(w))).collect()))
            }
            Some(Value::Numbers { kind: 5, bytes }) => {
                Ok(Some(words(bytes).map(|w| i64::from(i32::from_le_bytes(w))).collect()))
            }
            Some(_) => Err(self.wrong(key, "an array of 32-bit integers")),
        }
    }

    /// An array of float32.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Numbers { kind: 6, bytes }) => Ok(Some(words(bytes).map(f32::from_le_bytes).collect())),
            Some(_) => Err(self.wrong(key, "an array of float32")),
        }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.as_chunks::<4>().0.iter().copied()
}
