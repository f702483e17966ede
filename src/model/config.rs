//! `config.json` of a LlamaForCausalLM.

use crate::error::{Error, Result};
use crate::ops::attention::Heads;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Context extension factor.
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Context extension factor.
        factor: f64,
        /// Wavelengths above `original_max_position_embeddings / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position_embeddings / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context the model was first trained with, in tokens.
        original_max_position_embeddings: f64,
    },
}

/// Shape and options of a Llama model, and the JSON they came from.
#[derive(Clone, Debug)]
pub struct Config {
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features between gate/up and down projection.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads, key/value heads, features of a head.
    pub heads: Heads,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Longest sequence the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Added under the root of RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// The output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// q, k, v and o have biases.
    pub attention_bias: bool,
    /// gate, up and down have biases.
    pub mlp_bias: bool,
    /// The whole `config.json`, unknown fields included, in its own spelling.
    pub json: Map<String, Value>,
    /// Where it was read, for error messages.
    pub path: PathBuf,
}

impl Config {
    /// Reads `dir/config.json`.
    pub fn load(dir: &Path) -> Result<Config> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let json: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|e| Error::format(&path, format!("line {}", e.line()), "a JSON object", e.to_string()))?;
        Config::from_json(json, &path)
    }

    /// Interprets the fields of a `config.json`; `path` is named in errors.
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Config> {
        let size = |key: &str| -> Result<usize> {
            json.get(key).and_then(Value::as_u64).map(|v| v as usize).ok_or_else(|| {
                Error::format(path, key, "a positive integer", json.get(key).unwrap_or(&Value::Null).to_string())
            })
        };
        let flag = |key: &str| json.get(key).and_then(Value::as_bool).unwrap_or(false);
        let n_heads = size("num_attention_heads")?;
        let hidden_size = size("hidden_size")?;
        let rope = json.get("rope_parameters").or(json.get("rope_scaling")).and_then(Value::as_object);
        let number = |key: &str| rope.and_then(|r| r.get(key)).and_then(Value::as_f64);
        let kind = rope.and_then(|r| r.get("rope_type").or(r.get("type"))).and_then(Value::as_str).unwrap_or("default");
        let need = |key: &str| {
            number(key).ok_or_else(|| Error::format(path, format!("rope_scaling.{key}"), "a number", "none"))
        };
        let rope_scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: need("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                original_max_position_embeddings: need("original_max_position_embeddings")?,
            },
            other => {
                let what = format!("rope_scaling of type {other:?}");
                return Err(Error::unsupported(path, what, "default, linear and llama3 are"));
            }
        };
        Ok(Config {
            hidden_size,
            intermediate_size: size("intermediate_size")?,
            num_hidden_layers: size("num_hidden_layers")?,
            heads: Heads {
                n_heads,
                n_kv_heads: size("num_key_value_heads").unwrap_or(n_heads),
                head_dim: size("head_dim").unwrap_or(hidden_size / n_heads),
            },
            vocab_size: size("vocab_size")?,
            max_position_embeddings: size("max_position_embeddings")?,
            rms_norm_eps: json.get("rms_norm_eps").and_then(Value::as_f64).unwrap_or(1e-6) as f32,
            rope_theta: json.get("rope_theta").and_then(Value::as_f64).or(number("rope_theta")).unwrap_or(10_000.0),
            rope_scaling,
            tie_word_embeddings: flag("tie_word_embeddings"),
            attention_bias: flag("attention_bias"),
            mlp_bias: flag("mlp_bias"),
            json,
            path: path.to_path_buf(),
        })
    }

    /// Rotary frequencies in radians per position, `[head_dim / 2]`, scaling applied.
    pub fn inv_freq(&self) -> Vec<f32> {
        let dim = self.heads.head_dim as f64;
        let base = (0..self.heads.head_dim / 2).map(|i| self.rope_theta.powf(-2.0 * i as f64 / dim));
        base.map(|freq| match self.rope_scaling {
            RopeScaling::None => freq,
            RopeScaling::Linear { factor } => freq / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original,
            } => {
                let wavelength = 2.0 * std::f64::consts::PI / freq;
                if wavelength < original / high_freq_factor {
                    freq
                } else if wavelength > original / low_freq_factor {
                    freq / factor
                } else {
                    let ramp = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - ramp) * freq / factor + ramp * freq
                }
            }
        })
        .map(|f| f as f32)
        .collect()
    }
}
