//! `generation_config.json`: where a model's output ends, and its default sampling.

use super::json;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// End-of-text ids and default sampling of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end an output.
    pub eos_token_ids: Vec<u32>,
    /// Id put before plain text, for models that have one.
    pub bos_token_id: Option<u32>,
    /// The model's makers sample (true) or decode greedily (false).
    pub do_sample: bool,
    /// Sampling temperature of the model's makers.
    pub temperature: Option<f32>,
    /// Nucleus of the model's makers.
    pub top_p: Option<f32>,
    /// Number of candidates of the model's makers.
    pub top_k: Option<u32>,
}

impl GenerationConfig {
    /// Reads `dir/generation_config.json`; ids that it lacks come from `dir/config.json`.
    pub fn load(dir: &Path) -> Result<GenerationConfig> {
        let (own_path, config_path) = (dir.join("generation_config.json"), dir.join("config.json"));
        let own = json::read_optional(&own_path)?.unwrap_or_default();
        let config = json::read_optional(&config_path)?.unwrap_or_default();
        let ids = |key: &str| -> Result<Vec<u32>> {
            match present(&own, key) {
                Some(value) => token_ids(value, key, &own_path),
                None => present(&config, key).map_or(Ok(Vec::new()), |value| token_ids(value, key, &config_path)),
            }
        };
        let number = |key: &str| -> Result<Option<f32>> {
            let Some(value) = present(&own, key) else { return Ok(None) };
            let number = value.as_f64().filter(|x| x.is_finite() && *x >= 0.0);
            let number = number.ok_or_else(|| Error::format(&own_path, key, "a number from 0", json::kind(value)))?;
            Ok(Some(number as f32))
        };
        Ok(GenerationConfig {
            eos_token_ids: ids("eos_token_id")?,
            bos_token_id: ids("bos_token_id")?.first().copied(),
            do_sample: present(&own, "do_sample") == Some(&Value::Bool(true)),
            temperature: number("temperature")?,
            top_p: number("top_p")?,
            top_k: number("top_k")?.map(|k| k as u32),
        })
    }
}

fn present<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

/// One id, or a list of them.
fn token_ids(value: &Value, key: &str, path: &Path) -> Result<Vec<u32>> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| Error::format(path, key, "a token id or a list of them", json::kind(value)))
    };
    match value {
        Value::Array(list) => list.iter().map(one).collect(),
        other => one(other).map(|id| vec![id]),
    }
}
