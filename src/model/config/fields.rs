//! Typed reading of `config.json` fields. `null` counts as absent, as in `transformers`.

use crate::error::{Error, Result};
use crate::model::json::kind;
use serde_json::{Map, Value};
use std::path::Path;

/// The fields of one JSON object, and how errors name them.
pub struct Fields<'a> {
    pub json: &'a Map<String, Value>,
    pub path: &'a Path,
    /// Put before each key in errors (`rope_scaling.`).
    pub prefix: &'static str,
}

impl<'a> Fields<'a> {
    /// The value of `key` unless absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.json.get(key).filter(|value| !value.is_null())
    }

    /// [`Error::Format`] for `key`.
    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = self.json.get(key).map_or("nothing".to_string(), kind);
        Error::format(self.path, format!("{}{key}", self.prefix), expected, found)
    }

    /// [`Error::Unsupported`] for the value of `key`.
    pub fn unsupported(&self, key: &str, instead: impl Into<String>) -> Error {
        let value = self.json.get(key).map_or("nothing".to_string(), kind);
        Error::unsupported(self.path, format!("{}{key} = {value}", self.prefix), instead)
    }

    /// An integer of 1 to `max`, `None` when absent.
    pub fn optional_size(&self, key: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let size = value.as_u64().filter(|n| (1..=max as u64).contains(n));
        size.map(|n| Some(n as usize)).ok_or_else(|| self.wrong(key, format!("an integer from 1 to {max}")))
    }

    /// An integer of 1 to `max`.
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.optional_size(key, max)?.ok_or_else(|| self.wrong(key, format!("an integer from 1 to {max}")))
    }

    /// A finite number above zero, `None` when absent.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.map(Some).ok_or_else(|| self.wrong(key, "a number above 0"))
    }

    /// A finite number above zero.
    pub fn number(&self, key: &str) -> Result<f64> {
        self.optional_number(key)?.ok_or_else(|| self.wrong(key, "a number above 0"))
    }

    /// A boolean, false when absent.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// A string, `None` when absent.
    pub fn optional_str(&self, key: &str) -> Result<Option<&'a str>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a string")),
        }
    }

    /// [`Error::Unsupported`] unless `key` is absent or one of the `harmless` values.
    pub fn only(&self, key: &str, harmless: &[Value], instead: &str) -> Result<()> {
        match self.get(key) {
            Some(value) if !harmless.contains(value) => Err(self.unsupported(key, instead)),
            _ => Ok(()),
        }
    }
}
