//! `generation_config.json`: where a model's output ends, and its default sampling.

use crate::error::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// End-of-text ids and default sampling of a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// Ids that end an output.
    pub eos_token_ids: Vec<u32>,
}

impl GenerationConfig {
    /// Reads `dir/generation_config.json`, or `eos_token_id` of `dir/config.json` where there is none.
    pub fn load(dir: &Path) -> Result<GenerationConfig> {
        let own = dir.join("generation_config.json");
        let path = if own.exists() { own } else { dir.join("config.json") };
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let json: Value = serde_json::from_str(&text)
            .map_err(|e| Error::format(&path, format!("line {}", e.line()), "a JSON object", e.to_string()))?;
        let eos_token_ids = match &json["eos_token_id"] {
            Value::Array(ids) => ids.iter().filter_map(Value::as_u64).map(|id| id as u32).collect(),
            other => other.as_u64().map(|id| id as u32).into_iter().collect(),
        };
        Ok(GenerationConfig { eos_token_ids })
    }
}
