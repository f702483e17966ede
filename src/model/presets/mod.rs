//! Random weights in known shapes, for benchmarks: bytes, FLOPs and speed of a model that need not be downloaded.
//!
//! | file | subject |
//! |-|-|
//! | `mod.rs` | the shapes, and writing a model directory |
//! | `normal.rs` | random values at memory speed |
//! | `tokenizer.rs` | a tokenizer of single bytes, so that such a model takes text |

mod normal;
mod tokenizer;

use super::Config;
use super::safetensors::{SafetensorsWriter, TensorSpec};
use crate::device::DType;
use crate::error::{Error, Result};
use crate::interrupt;
use crate::output::{StagedDir, parent, write_file};
use crate::progress::Progress;
pub(crate) use normal::Normal;
use serde_json::{Map, Value, json};
use std::path::Path;

/// A known shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preset {
    /// Name on the command line.
    pub name: &'static str,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    vocab_size: usize,
    context: usize,
    rope_theta: f64,
    /// `factor` of Llama 3's scaling (low 1, high 4, first trained with 8,192 tokens).
    rope_factor: Option<f64>,
    tied: bool,
    initializer_range: f64,
}

/// The shapes that `ratoon init` knows, from the published `config.json` files; `tiny` is made up for tests.
pub const PRESETS: [Preset; 4] = [
    Preset {
        name: "llama-3.1-8b",
        hidden_size: 4096,
        intermediate_size: 14336,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        vocab_size: 128_256,
        context: 131_072,
        rope_theta: 500_000.0,
        rope_factor: Some(8.0),
        tied: false,
        initializer_range: 0.02,
    },
    Preset {
        name: "llama-3.2-1b",
        hidden_size: 2048,
        intermediate_size: 8192,
        layers: 16,
        heads: 32,
        kv_heads: 8,
        vocab_size: 128_256,
        context: 131_072,
        rope_theta: 500_000.0,
        rope_factor: Some(32.0),
        tied: true,
        initializer_range: 0.02,
    },
    Preset {
        name: "smollm2-135m",
        hidden_size: 576,
        intermediate_size: 1536,
        layers: 30,
        heads: 9,
        kv_heads: 3,
        vocab_size: 49_152,
        context: 8192,
        rope_theta: 100_000.0,
        rope_factor: None,
        tied: true,
        initializer_range: 1.0 / 24.0,
    },
    Preset {
        name: "tiny",
        hidden_size: 64,
        intermediate_size: 160,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        vocab_size: 512,
        context: 512,
        rope_theta: 10_000.0,
        rope_factor: None,
        tied: true,
        initializer_range: 0.1,
    },
];

/// What may be chosen beside the shape.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Seed of the weights: the same seed gives the same bytes.
    pub seed: u64,
    /// F32, F16 or BF16.
    pub dtype: DType,
    /// Number of blocks, instead of the shape's own.
    pub layers: Option<usize>,
    /// Largest shard in bytes; `None`: one file.
    pub max_shard_size: Option<u64>,
    /// Replace an existing directory.
    pub overwrite: bool,
}

impl Default for InitOptions {
    fn default() -> InitOptions {
        InitOptions { seed: 0, dtype: DType::BF16, layers: None, max_shard_size: None, overwrite: false }
    }
}

impl Preset {
    /// The shape of that name; [`Error::Usage`] lists the names.
    pub fn named(name: &str) -> Result<Preset> {
        let names = PRESETS.map(|preset| preset.name).join(", ");
        let found = PRESETS.into_iter().find(|preset| preset.name == name);
        found.ok_or_else(|| Error::usage("--preset", format!("one of {names}"), format!("{name:?}")))
    }

    /// Its `config.json`.
    pub fn config_json(&self, layers: usize, dtype: DType) -> Map<String, Value> {
        let scaling = self.rope_factor.map(|factor| {
            json!({ "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192 })
        });
        let fields: [(&str, Value); 23] = [
            ("architectures", json!(["LlamaForCausalLM"])),
            ("model_type", json!("llama")),
            ("hidden_size", json!(self.hidden_size)),
            ("intermediate_size", json!(self.intermediate_size)),
            ("num_hidden_layers", json!(layers)),
            ("num_attention_heads", json!(self.heads)),
            ("num_key_value_heads", json!(self.kv_heads)),
            ("head_dim", json!(self.hidden_size / self.heads)),
            ("vocab_size", json!(self.vocab_size)),
            ("max_position_embeddings", json!(self.context)),
            ("rms_norm_eps", json!(1e-5)),
            ("rope_theta", json!(self.rope_theta)),
            ("rope_scaling", json!(scaling)),
            ("tie_word_embeddings", json!(self.tied)),
            ("attention_bias", json!(false)),
            ("mlp_bias", json!(false)),
            ("attention_dropout", json!(0.0)),
            ("hidden_act", json!("silu")),
            ("initializer_range", json!(self.initializer_range)),
            ("pretraining_tp", json!(1)),
            ("use_cache", json!(true)),
            ("eos_token_id", json!(tokenizer::EOS)),
            ("torch_dtype", json!(torch_name(dtype))),
        ];
        fields.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
    }

    /// Writes a model directory with random weights: matrices normal with the shape's `initializer_range`, norms 1. Memory stays
    /// at two buffers of 8 MB whatever the size. The tokenizer has one token per byte (ids 1 to 256, end of text 0).
    pub fn init(&self, out: &Path, options: &InitOptions) -> Result<Config> {
        if options.layers == Some(0) {
            return Err(Error::usage("--layers", "one block or more", "0"));
        }
        let json = self.config_json(options.layers.unwrap_or(self.layers), options.dtype);
        let config = Config::from_json(json, &out.join("config.json"))?;
        debug_assert!(config.vocab_size >= tokenizer::IDS);
        let tensors: Vec<TensorSpec> =
            config.expected_tensors().iter().map(|(name, shape)| TensorSpec::new(name, options.dtype, shape)).collect();
        let dir = StagedDir::create(out, options.overwrite)?;
        check_disk(out, tensors.iter().map(TensorSpec::size_bytes).sum())?;
        write_weights(dir.path(), tensors, self.initializer_range, options)?;
        let generation = json!({ "eos_token_id": tokenizer::EOS });
        let files = [
            ("config.json", Value::Object(config.json.clone())),
            ("generation_config.json", generation),
            ("tokenizer.json", tokenizer::byte_tokenizer()),
            ("tokenizer_config.json", tokenizer::tokenizer_config(self.context)),
        ];
        for (name, content) in files {
            write_file(&dir.path().join(name), |file| {
                serde_json::to_writer_pretty(&mut *file, &content)?;
                writeln!(file)
            })?;
        }
        dir.commit()?;
        Ok(config)
    }
}

fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::F32 | DType::U32 => "float32",
    }
}

/// [`Error::Budget`] before anything is written, when the file system has less than `needed` bytes left.
fn check_disk(out: &Path, needed: u64) -> Result<()> {
    let dir = parent(out);
    let disk = rustix::fs::statvfs(dir).map_err(|e| Error::io(dir, "ask for free space")(e.into()))?;
    let available = disk.f_bavail.saturating_mul(disk.f_frsize);
    if needed <= available {
        return Ok(());
    }
    let what = format!("{}: disk for the weights", out.display());
    Err(Error::Budget { what, needed, available, instead: "use fewer --layers or another disk".into() })
}

/// Values that are made while the ones before them are written.
const BUFFER: usize = 4 << 20;

fn write_weights(dir: &Path, tensors: Vec<TensorSpec>, std: f64, options: &InitOptions) -> Result<()> {
    let normal = Normal::new(std, options.dtype);
    let one = match options.dtype {
        DType::BF16 => half::bf16::ONE.to_le_bytes().to_vec(),
        DType::F16 => half::f16::ONE.to_le_bytes().to_vec(),
        DType::F32 | DType::U32 => 1f32.to_le_bytes().to_vec(),
    };
    let progress = Progress::start("init", tensors.iter().map(TensorSpec::size_bytes).sum(), "bytes");
    let mut writer = SafetensorsWriter::create(dir, tensors.clone(), options.max_shard_size)?;
    let (mut ready, mut next) = (Vec::new(), Vec::new());
    for (stream, tensor) in tensors.iter().enumerate() {
        let elements: usize = tensor.shape.iter().product();
        for start in (0..elements).step_by(BUFFER) {
            interrupt::check()?;
            next.resize(BUFFER.min(elements - start) * options.dtype.size(), 0);
            let make = || match tensor.shape.len() {
                1 => next.chunks_exact_mut(one.len()).for_each(|value| value.copy_from_slice(&one)),
                _ => normal.fill(&mut next, options.seed, stream as u64, start as u64),
            };
            let ((), written) = rayon::join(make, || writer.append(&ready));
            written?;
            progress.add(ready.len() as u64);
            std::mem::swap(&mut ready, &mut next);
        }
    }
    writer.append(&ready)?;
    progress.add(ready.len() as u64);
    writer.finish()
}
