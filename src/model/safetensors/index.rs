//! `model.safetensors.index.json`: which shard holds which tensor.

use crate::error::{Error, Result};
use crate::model::json::{self, UniqueMap};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The index beside sharded weights.
pub struct Index {
    /// Shard file name of each tensor.
    pub weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap<Value>,
}

impl Index {
    /// Reads an index; shards must be bare file names. They may be symlinks, as in the Hugging Face cache.
    pub fn load(path: &Path) -> Result<Index> {
        let raw: RawIndex = json::read(path)?;
        let mut weight_map = BTreeMap::new();
        for (tensor, shard) in raw.weight_map.0 {
            let name = shard.as_str().filter(|name| is_bare_file_name(name));
            let Some(name) = name else {
                let place = format!("weight_map.{tensor}");
                let expected = "the name of a .safetensors file in the same directory";
                return Err(Error::format(path, place, expected, json::kind(&shard)));
            };
            weight_map.insert(tensor, name.to_string());
        }
        if weight_map.is_empty() {
            return Err(Error::format(path, "weight_map", "tensors", "none"));
        }
        Ok(Index { weight_map })
    }

    /// Shard file names in order.
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

fn is_bare_file_name(name: &str) -> bool {
    name.ends_with(".safetensors") && !name.contains(['/', '\\', '\0']) && !name.starts_with("..")
}
