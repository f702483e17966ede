//! `config.json` of a LlamaForCausalLM: every option understood, or an error that names the one that is not.
//!
//! | file | subject |
//! |-|-|
//! | `mod.rs` | the options, and the JSON of a cut model |
//! | `rope.rs` | rotary positions and their scaling |
//! | `size.rs` | the tensors that the shape implies; parameters, FLOPs and cache bytes from them |
//! | `fields.rs` | typed reading of JSON fields |

mod fields;
mod rope;
mod size;

pub use rope::RopeScaling;

use super::json;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::ops::attention::Heads;
use fields::Fields;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Largest width that is taken for a size and not for a broken file; keeps every product of sizes inside 64 bits.
const MAX_WIDTH: usize = 1 << 20;
/// As [`MAX_WIDTH`], for the rows of the vocabulary.
const MAX_VOCAB: usize = 1 << 24;
/// As [`MAX_WIDTH`], for the number of blocks.
const MAX_LAYERS: usize = 1 << 14;
/// As [`MAX_WIDTH`], for positions, which are 32-bit.
const MAX_POSITIONS: usize = (1 << 31) - 1;

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
        Config::from_json(json::read_object(&path)?, &path)
    }

    /// Interprets the fields of a `config.json`; `path` is named in errors.
    ///
    /// Absent fields mean what they mean to `transformers`. [`Error::Format`] for a value that cannot be,
    /// [`Error::Unsupported`] for an option or architecture that is not implemented.
    pub fn from_json(json: Map<String, Value>, path: &Path) -> Result<Config> {
        let fields = Fields { json: &json, path, prefix: "" };
        check_architecture(&fields)?;
        check_options(&fields)?;
        let hidden_size = fields.size("hidden_size", MAX_WIDTH)?;
        let num_hidden_layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
        check_layer_types(&fields, num_hidden_layers)?;
        let (rope_theta, rope_scaling) = rope::parse(&json, path)?;
        Ok(Config {
            hidden_size,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers,
            heads: heads(&fields, hidden_size)?,
            vocab_size: fields.size("vocab_size", MAX_VOCAB)?,
            max_position_embeddings: fields.optional_size("max_position_embeddings", MAX_POSITIONS)?.unwrap_or(2048),
            rms_norm_eps: fields.optional_number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            path: path.to_path_buf(),
            json,
        })
    }

    /// Rotary frequencies in radians per position, `[head_dim / 2]`, scaling applied.
    pub fn inv_freq(&self) -> Vec<f32> {
        rope::inv_freq(self.heads.head_dim, self.rope_theta, self.rope_scaling)
    }

    /// The element type that the file names (`dtype` or `torch_dtype`); `None` when it names none or one that weights here
    /// cannot have. What counts is each tensor's own.
    pub fn dtype(&self) -> Option<DType> {
        let named = self.json.get("dtype").or(self.json.get("torch_dtype"));
        match named.and_then(Value::as_str)?.trim_start_matches("torch.") {
            "float32" => Some(DType::F32),
            "float16" => Some(DType::F16),
            "bfloat16" => Some(DType::BF16),
            _ => None,
        }
    }

    /// The `config.json` of the model that keeps only the blocks `kept` (0-based, in their new order): the number of blocks
    /// and every list with one entry per block rewritten; all else, unknown fields and spelling included, as it was.
    pub fn with_layers(&self, kept: &[usize]) -> Map<String, Value> {
        let mut cut = self.json.clone();
        for (key, value) in &mut cut {
            let per_layer = key.contains("layer");
            match value {
                Value::Array(list) if per_layer && list.len() == self.num_hidden_layers => {
                    *list = kept.iter().filter_map(|&layer| list.get(layer).cloned()).collect();
                }
                _ => {}
            }
        }
        cut.insert("num_hidden_layers".into(), kept.len().into());
        cut
    }
}

fn heads(fields: &Fields, hidden_size: usize) -> Result<Heads> {
    let n_heads = fields.size("num_attention_heads", MAX_WIDTH)?;
    let n_kv_heads = fields.optional_size("num_key_value_heads", MAX_WIDTH)?.unwrap_or(n_heads);
    if !n_heads.is_multiple_of(n_kv_heads) {
        return Err(fields.wrong("num_key_value_heads", format!("a divisor of num_attention_heads {n_heads}")));
    }
    let head_dim = match fields.optional_size("head_dim", MAX_WIDTH)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(n_heads) => hidden_size / n_heads,
        None => return Err(fields.wrong("num_attention_heads", format!("a divisor of hidden_size {hidden_size}"))),
    };
    if !head_dim.is_multiple_of(2) {
        let expected = "an even number (rotary positions turn pairs of features)";
        return Err(Error::format(fields.path, "head_dim", expected, head_dim.to_string()));
    }
    if n_heads * head_dim > MAX_WIDTH {
        let found = format!("{n_heads} heads of {head_dim}");
        return Err(Error::format(fields.path, "head_dim", format!("at most {MAX_WIDTH} features in all"), found));
    }
    Ok(Heads { n_heads, n_kv_heads, head_dim })
}

fn check_architecture(fields: &Fields) -> Result<()> {
    let instead = "LlamaForCausalLM is (Llama 2 to 3.3, TinyLlama, SmolLM2)";
    let architectures = match fields.get("architectures") {
        None => &Vec::new(),
        Some(value) => value.as_array().ok_or_else(|| fields.wrong("architectures", "a list of names"))?,
    };
    if !architectures.is_empty() && !architectures.iter().any(|a| a == "LlamaForCausalLM") {
        let names: Vec<String> = architectures.iter().map(json::kind).collect();
        return Err(Error::unsupported(fields.path, format!("architecture {}", names.join(", ")), instead));
    }
    match fields.optional_str("model_type")? {
        Some("llama") => {}
        None if !architectures.is_empty() => {}
        None => return Err(fields.wrong("model_type", "\"llama\"")),
        Some(_) => return Err(fields.unsupported("model_type", instead)),
    }
    if fields.get("auto_map").is_some() && fields.json["auto_map"].get("AutoModelForCausalLM").is_some() {
        return Err(fields.unsupported("auto_map", format!("code of its own; {instead}")));
    }
    Ok(())
}

/// Options that change what a Llama computes and that are not implemented, each with its harmless values.
fn check_options(fields: &Fields) -> Result<()> {
    let none: &[Value] = &[];
    let off: &[Value] = &[false.into()];
    let zero: &[Value] = &[0.into(), 0.0.into()];
    let one: &[Value] = &[1.into(), 1.0.into()];
    fields.only("hidden_act", &["silu".into(), "swish".into()], "silu is")?;
    fields.only("pretraining_tp", one, "1 is: every tensor whole")?;
    fields.only("quantization_config", none, "F32, F16 and BF16 weights are; dequantise the model first")?;
    fields.only("partial_rotary_factor", one, "rotation of the whole head (1.0) is")?;
    fields.only("rope_interleaved", off, "the half-split layout is")?;
    if fields.get("use_sliding_window") != Some(&Value::Bool(false)) {
        fields.only("sliding_window", none, "attention to the whole context is")?;
    }
    fields.only("attention_dropout", zero, "0 is")?;
    for key in ["num_local_experts", "num_experts", "n_routed_experts"] {
        fields.only(key, &[0.into(), 1.into()], "one MLP per block is")?;
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping", "clip_qkv", "query_pre_attn_scalar"] {
        fields.only(key, none, "plain attention and logits are")?;
    }
    for key in ["embedding_multiplier", "residual_multiplier", "logits_scaling"] {
        fields.only(key, one, "1 is")?;
    }
    for key in ["use_qk_norm", "qk_norm", "add_cross_attention", "is_encoder_decoder"] {
        fields.only(key, off, "a plain Llama decoder is")?;
    }
    fields.only("no_rope_layers", &[Value::Array(vec![])], "rotary positions in every block are")?;
    fields.only("pruned_heads", &[Value::Object(Map::new()), Value::Array(vec![])], "all heads of a block are")
}

/// `layer_types` must name full attention for each block.
fn check_layer_types(fields: &Fields, layers: usize) -> Result<()> {
    let Some(value) = fields.get("layer_types") else { return Ok(()) };
    let types = value.as_array().filter(|list| list.len() == layers);
    let types = types.ok_or_else(|| fields.wrong("layer_types", format!("a list of num_hidden_layers = {layers}")))?;
    match types.iter().enumerate().find(|(_, kind)| *kind != "full_attention") {
        None => Ok(()),
        Some((layer, kind)) => {
            let what = format!("layer_types[{layer}] = {}", json::kind(kind));
            Err(Error::unsupported(fields.path, what, "\"full_attention\" is"))
        }
    }
}
