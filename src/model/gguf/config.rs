//! `config.json` and `generation_config.json` from a GGUF's metadata.

use super::dequantise::dequantise;
use super::metadata::{Metadata, Value};
use super::reader::GgufFile;
use crate::error::{Error, Result};
use serde_json::{Map, json};
use std::path::Path;

/// Sizes of a Llama model as GGUF metadata gives them.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// Rows of the embedding table; the vocabulary may be shorter (padding).
    pub vocab_size: usize,
}

/// No dimension of a language model reaches this; larger ones are damage, and products of two stay below 2^64.
const MAX_DIMENSION: u64 = 1 << 31;

fn dimension(metadata: &Metadata, key: &str) -> Result<Option<usize>> {
    let value = match metadata.get(key) {
        // Some writers give one number per block; equal ones mean the same as one number.
        Some(Value::Numbers { .. }) => {
            let values = metadata.integers(key)?.unwrap_or_default();
            match values.first() {
                Some(&first) if values.iter().all(|&v| v == first) => u64::try_from(first).ok(),
                _ => {
                    let what = format!("metadata {key}: a different number for each block");
                    return Err(Error::unsupported(metadata.path(), what, "one number for all blocks is"));
                }
            }
        }
        _ => metadata.unsigned(key)?,
    };
    match value {
        Some(v) if !(1..MAX_DIMENSION).contains(&v) => {
            let place = format!("metadata {key}");
            Err(Error::format(metadata.path(), place, "1 to 2^31 - 1", v.to_string()))
        }
        v => Ok(v.map(|v| v as usize)),
    }
}

impl Shape {
    pub fn read(file: &GgufFile) -> Result<Shape> {
        let (metadata, path) = (&file.metadata, file.path());
        let architecture = metadata.string("general.architecture")?;
        match metadata.require("general.architecture", "the model's architecture", architecture)? {
            "llama" => {}
            other => return Err(Error::unsupported(path, format!("architecture {other:?}"), "\"llama\" is")),
        }
        let need = |key: &str| -> Result<usize> {
            let value = dimension(metadata, key)?;
            metadata.require(key, "a positive integer", value)
        };
        if let Some(experts) = metadata.unsigned("llama.expert_count")?.filter(|&n| n > 0) {
            return Err(Error::unsupported(path, format!("a mixture of {experts} experts"), "dense models are"));
        }
        let hidden_size = need("llama.embedding_length")?;
        let n_heads = need("llama.attention.head_count")?;
        let n_kv_heads = dimension(metadata, "llama.attention.head_count_kv")?.unwrap_or(n_heads);
        if !n_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("a divisor of the {n_heads} query heads");
            let place = "metadata llama.attention.head_count_kv";
            return Err(Error::format(path, place, expected, n_kv_heads.to_string()));
        }
        let head_dim = match dimension(metadata, "llama.attention.key_length")? {
            Some(length) => length,
            None if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
            None => {
                let expected = format!("a divisor of the embedding length {hidden_size}");
                let place = "metadata llama.attention.head_count";
                return Err(Error::format(path, place, expected, n_heads.to_string()));
            }
        };
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(other) = dimension(metadata, key)?.filter(|&v| v != head_dim) {
                let what = format!("metadata {key} of {other} with heads of {head_dim}");
                return Err(Error::unsupported(path, what, "equal ones are"));
            }
        }
        if !head_dim.is_multiple_of(2) {
            let place = "metadata llama.attention.key_length";
            return Err(Error::format(path, place, "an even head size", head_dim.to_string()));
        }
        let embedding = file.tensors.get("token_embd.weight");
        let embedding = embedding.ok_or_else(|| Error::format(path, "token_embd.weight", "this tensor", "none"))?;
        Ok(Shape {
            hidden_size,
            intermediate_size: need("llama.feed_forward_length")?,
            num_hidden_layers: need("llama.block_count")?,
            n_heads,
            n_kv_heads,
            head_dim,
            vocab_size: embedding.shape[0],
        })
    }
}

/// The rope section of `config.json`: `null` or an object of `rope_scaling`.
fn rope_scaling(file: &GgufFile, shape: &Shape, theta: f64) -> Result<serde_json::Value> {
    let (metadata, path) = (&file.metadata, file.path());
    let factor = metadata.number("llama.rope.scaling.factor")?.or(metadata.number("llama.rope.scale_linear")?);
    let kind = metadata.string("llama.rope.scaling.type")?;
    let linear = match (kind, factor) {
        (Some("none"), _) | (None | Some("linear"), None | Some(0.0 | 1.0)) => serde_json::Value::Null,
        (None | Some("linear"), Some(factor)) if factor > 0.0 => json!({"rope_type": "linear", "factor": factor}),
        (None | Some("linear"), Some(factor)) => {
            let place = "metadata llama.rope.scaling.factor";
            return Err(Error::format(path, place, "a positive number", factor.to_string()));
        }
        (Some(other), _) => {
            let what = format!("metadata llama.rope.scaling.type {other:?}");
            return Err(Error::unsupported(path, what, "\"none\", \"linear\" and Llama 3's factors are"));
        }
    };
    let Some(tensor) = file.tensors.get("rope_freqs.weight") else { return Ok(linear) };
    if tensor.shape != [shape.head_dim / 2] || tensor.kind.block_size() != 1 {
        let expected = format!("{} floats", shape.head_dim / 2);
        let found = format!("{:?} of {}", tensor.shape, tensor.kind);
        return Err(Error::format(path, "rope_freqs.weight", expected, found));
    }
    let mut divisors = vec![0.0; shape.head_dim / 2];
    dequantise(tensor.kind, file.bytes(tensor), &mut divisors);
    match llama3_scaling(&divisors, theta) {
        Some(_) if !linear.is_null() => {
            Err(Error::unsupported(path, "rope_freqs.weight together with a scaling type", "one of the two is"))
        }
        Some(scaling) => Ok(scaling),
        None => {
            let what = "rope_freqs.weight with other divisors than Llama 3's";
            Err(Error::unsupported(path, what, "low_freq_factor 1, high_freq_factor 4 and 8192 positions are"))
        }
    }
}

/// Llama 3.1 to 3.3 were all extended from this many positions with these two factors; GGUF keeps only the resulting divisor of
/// each frequency, so the parameters are recognised rather than read.
const LLAMA3: (f64, f64, f64) = (8192.0, 1.0, 4.0);

/// The `rope_scaling` object that gives `divisors` (`[head_dim / 2]`); `null` when all are one, `None` when it is not Llama 3's rule.
fn llama3_scaling(divisors: &[f32], theta: f64) -> Option<serde_json::Value> {
    let factor = f64::from(divisors.iter().copied().fold(f32::MIN, f32::max));
    if divisors.iter().all(|&d| d == 1.0) {
        return Some(serde_json::Value::Null);
    }
    let (original, low, high) = LLAMA3;
    for (i, &divisor) in divisors.iter().enumerate() {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(i as f64 / divisors.len() as f64);
        let expected = if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let ramp = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - ramp) / factor + ramp)
        };
        // The writer computed in float32: a few units in the last place of the wavelength, amplified on the ramp.
        let off = (f64::from(divisor) - expected).abs();
        if off.is_nan() || off > 1e-4 * expected {
            return None;
        }
    }
    Some(json!({
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": original as u64,
    }))
}

/// A special token's id, checked against the vocabulary.
pub(super) fn special_id(metadata: &Metadata, key: &str, vocab_size: usize) -> Result<Option<u64>> {
    let key = format!("tokenizer.ggml.{key}_token_id");
    match metadata.unsigned(&key)? {
        Some(id) if id >= vocab_size as u64 => {
            let expected = format!("an id below {vocab_size}");
            Err(Error::format(metadata.path(), format!("metadata {key}"), expected, id.to_string()))
        }
        id => Ok(id),
    }
}

/// Which optional tensors the file has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub tied: bool,
    pub attention_bias: bool,
    pub mlp_bias: bool,
}

/// `config.json`. `torch_dtype` is PyTorch's name of the element type that the weights are written in.
pub(super) fn config_json(
    file: &GgufFile,
    shape: &Shape,
    options: Options,
    torch_dtype: &str,
) -> Result<Map<String, serde_json::Value>> {
    let metadata = &file.metadata;
    let theta = metadata.number("llama.rope.freq_base")?.unwrap_or(10_000.0);
    if theta <= 0.0 {
        let place = "metadata llama.rope.freq_base";
        return Err(Error::format(file.path(), place, "a positive number", theta.to_string()));
    }
    let eps_key = "llama.attention.layer_norm_rms_epsilon";
    let eps = metadata.number(eps_key)?.filter(|&eps| eps > 0.0);
    let eps = metadata.require(eps_key, "a positive number", eps)?;
    let context = dimension(metadata, "llama.context_length")?;
    let context = metadata.require("llama.context_length", "a positive integer", context)?;
    let id = |key| special_id(metadata, key, shape.vocab_size);
    let fields = json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": options.attention_bias,
        "attention_dropout": 0.0,
        "bos_token_id": id("bos")?,
        "eos_token_id": id("eos")?,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": context,
        "mlp_bias": options.mlp_bias,
        "model_type": "llama",
        "num_attention_heads": shape.n_heads,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.n_kv_heads,
        "pad_token_id": id("padding")?,
        "pretraining_tp": 1,
        "rms_norm_eps": eps,
        "rope_scaling": rope_scaling(file, shape, theta)?,
        "rope_theta": theta,
        "tie_word_embeddings": options.tied,
        "torch_dtype": torch_dtype,
        "use_cache": true,
        "vocab_size": shape.vocab_size,
    });
    Ok(fields.as_object().cloned().unwrap_or_default())
}

/// `generation_config.json`: every id that ends an output (end of text, of turn, of message).
pub(super) fn generation_config_json(metadata: &Metadata, shape: &Shape) -> Result<serde_json::Value> {
    let id = |key| special_id(metadata, key, shape.vocab_size);
    let mut eos: Vec<u64> = Vec::new();
    for key in ["eos", "eot", "eom"] {
        eos.extend(id(key)?.filter(|id| !eos.contains(id)));
    }
    let eos = match eos[..] {
        [] => serde_json::Value::Null,
        [one] => json!(one),
        _ => json!(eos),
    };
    Ok(json!({
        "_from_model_config": true,
        "bos_token_id": id("bos")?,
        "eos_token_id": eos,
        "pad_token_id": id("padding")?,
    }))
}

/// Names `path` in errors about the files that are written.
pub(super) fn json_bytes(path: &Path, value: &impl serde::Serialize) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::io(path, "serialise")(e.into()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_divisors_are_recognised() {
        // Llama 3.1: theta 500,000, heads of 128, factor 8. The first and last frequencies and one on the ramp by hand:
        // i = 32: wavelength 2 pi 500000^0.5 = 4442.88, ramp = (8192 / 4442.88 - 1) / 3 = 0.281283,
        // divisor = 1 / (0.718717 / 8 + 0.281283) = 2.694422.
        let divisors: Vec<f32> = (0..64)
            .map(|i| {
                let wavelength = 2.0 * std::f64::consts::PI * 500_000f64.powf(f64::from(i) / 64.0);
                match i {
                    32 => 2.694_422,
                    _ if wavelength < 2048.0 => 1.0,
                    _ if wavelength > 8192.0 => 8.0,
                    _ => {
                        (1.0 / ((1.0 - (8192.0 / wavelength - 1.0) / 3.0) / 8.0 + (8192.0 / wavelength - 1.0) / 3.0))
                            as f32
                    }
                }
            })
            .collect();
        let scaling = llama3_scaling(&divisors, 500_000.0).unwrap();
        assert_eq!(scaling["factor"], 8.0);
        assert_eq!(scaling["original_max_position_embeddings"], 8192);
        assert_eq!(llama3_scaling(&[1.0; 64], 500_000.0), Some(serde_json::Value::Null));
        assert_eq!(llama3_scaling(&divisors, 10_000.0), None, "other divisors are not mistaken for Llama 3's");
        assert_eq!(llama3_scaling(&[f32::NAN; 64], 10_000.0), None);
    }
}
