//! The tensors of a model against its config, and the search for values that are not finite.

use super::{TensorInfo, WeightFiles};
use crate::device::{DType, Tensor};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::model::Config;
use crate::progress::Progress;
use rayon::prelude::*;
use std::path::Path;

/// A tensor that old checkpoints carry and that is computed from the config.
fn is_derived(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
}

/// The block that a tensor belongs to.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

impl WeightFiles {
    /// Checks that the files hold every tensor that `config` implies, with its shape and a float dtype, and no other.
    ///
    /// Returns remarks on what is accepted though odd: an explicit `lm_head` beside tied embeddings (not used), rotary
    /// frequencies (recomputed).
    pub fn check(&self, config: &Config) -> Result<Vec<String>> {
        let expected = config.expected_tensors();
        self.check_layer_count(config)?;
        for (name, shape) in &expected {
            let Some(info) = self.tensors.get(name) else {
                let dir = self.shards.first().and_then(|path| path.parent()).unwrap_or(Path::new(""));
                return Err(Error::format(
                    dir,
                    format!("tensor {name}"),
                    format!("shape {shape:?}"),
                    self.absence(name),
                ));
            };
            if info.shape != *shape {
                let found = format!("shape {:?}", info.shape);
                let wanted = format!("shape {shape:?} as {} implies", config.path.display());
                return Err(Error::format(self.path(info), format!("tensor {name}"), wanted, found));
            }
            if info.dtype == DType::U32 {
                let place = format!("tensor {name}");
                return Err(Error::format(self.path(info), place, "F32, F16 or BF16", info.dtype.to_string()));
            }
        }
        let names: std::collections::BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let mut remarks = Vec::new();
        let mut derived = 0;
        for (name, info) in self.tensors.iter().filter(|(name, _)| !names.contains(name.as_str())) {
            if is_derived(name) {
                derived += 1;
            } else if name == "lm_head.weight" {
                remarks.push(self.tied_head(config, info)?);
            } else {
                return Err(self.unexpected(name, info, config));
            }
        }
        if derived > 0 {
            remarks.push(format!(
                "{derived} stored rotary frequency tables (rotary_emb.inv_freq) are not used; the config's are"
            ));
        }
        Ok(remarks)
    }

    fn check_layer_count(&self, config: &Config) -> Result<()> {
        let held = self.tensors.keys().filter_map(|name| Some(layer(name)? + 1)).max().unwrap_or(0);
        if held == config.num_hidden_layers || held == 0 {
            return Ok(());
        }
        let expected = format!("{held}, the blocks that the weights hold");
        Err(Error::format(&config.path, "num_hidden_layers", expected, config.num_hidden_layers.to_string()))
    }

    fn absence(&self, name: &str) -> String {
        let bare = name.trim_start_matches("model.");
        match self.tensors.keys().find(|other| other.ends_with(bare)) {
            Some(other) => format!("none of that name, but {other}"),
            None => format!("none of that name among {} tensors", self.tensors.len()),
        }
    }

    /// An explicit head beside tied embeddings: `transformers` uses the embedding table, and so do we.
    fn tied_head(&self, config: &Config, info: &TensorInfo) -> Result<String> {
        let shape = [config.vocab_size, config.hidden_size];
        if info.shape != shape {
            let (expected, found) = (format!("shape {shape:?}"), format!("shape {:?}", info.shape));
            return Err(Error::format(self.path(info), "tensor lm_head.weight", expected, found));
        }
        let same = self.tensor("lm_head.weight")?.bytes() == self.tensor("model.embed_tokens.weight")?.bytes();
        let how = if same { "equals" } else { "differs from" };
        Ok(format!("lm_head.weight is not used: tie_word_embeddings is true (it {how} the embedding table)"))
    }

    fn unexpected(&self, name: &str, info: &TensorInfo, config: &Config) -> Error {
        let option = match name.rsplit('.').next() {
            Some("bias") if name.contains("self_attn") => " (attention_bias is false)",
            Some("bias") if name.contains("mlp") => " (mlp_bias is false)",
            _ => "",
        };
        let expected = format!("only tensors that {} implies", config.path.display());
        let found = format!("a tensor of shape {:?} that no part of the model uses{option}", info.shape);
        Error::format(self.path(info), format!("tensor {name}"), expected, found)
    }

    /// Reads every value; [`Error::NotFinite`] names the first tensor and element that is NaN or infinite.
    pub fn check_values(&self) -> Result<()> {
        let progress = Progress::start("check values", self.total_bytes(), "bytes");
        for (name, info) in &self.tensors {
            interrupt::check()?;
            if let Some((element, value)) = first_not_finite(&self.tensor(name)?) {
                return Err(Error::NotFinite {
                    place: format!("{}: tensor {name}, element {element}", self.path(info).display()),
                    value,
                    instead: "the file is damaged or its training diverged; get it again".into(),
                });
            }
            progress.add(info.len as u64);
        }
        Ok(())
    }
}

/// Elements looked at by one task: large enough to hide the cost of a task, small enough to keep all cores busy.
const CHUNK: usize = 1 << 20;

/// The first element that is NaN or infinite, with its index; `None` when all are finite. U32 tensors are finite.
pub fn first_not_finite(tensor: &Tensor) -> Option<(usize, f32)> {
    fn first<T: Copy + Sync>(values: &[T], finite: impl Fn(T) -> bool + Sync) -> Option<usize> {
        let chunks = values.par_chunks(CHUNK).enumerate();
        // `find_map_first` keeps the answer independent of the number of threads.
        chunks.find_map_first(|(i, chunk)| Some(i * CHUNK + chunk.iter().position(|&x| !finite(x))?))
    }
    let element = match tensor.dtype() {
        DType::F32 => first(tensor.f32(), f32::is_finite),
        DType::BF16 => first(tensor.bf16(), half::bf16::is_finite),
        DType::F16 => first(tensor.f16(), half::f16::is_finite),
        DType::U32 => None,
    }?;
    let mut value = [0.0];
    tensor.read_f32(element, &mut value);
    Some((element, value[0]))
}
