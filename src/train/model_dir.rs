//! Model directories that training writes: weights in the source's dtypes or in F32, and the files beside them.

use super::trainer::Trainer;
use crate::device::{DType, Tensor};
use crate::error::{Error, Result};
use crate::model::Config;
use crate::model::safetensors::{SafetensorsWriter, TensorSpec, WeightFiles};
use crate::output::write_file;
use half::{bf16, f16};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;

/// Largest shard that is written, as in transformers.
const MAX_SHARD: u64 = 5_000_000_000;

/// What belongs to a model beside config and weights: tokenizer, templates, generation config, licence.
const BESIDE: [&str; 14] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "USE_POLICY.md",
];

/// Copies the tokenizer and what else belongs to a model, as far as the source has it.
pub fn copy_tokenizer(source: &Path, dir: &Path) -> Result<()> {
    for name in BESIDE {
        let from = source.join(name);
        if from.is_file() {
            let bytes = fs::read(&from).map_err(Error::io(&from, "read"))?;
            write_file(&dir.join(name), |out| out.write_all(&bytes))?;
        }
    }
    Ok(())
}

/// `values` as little-endian bytes of `dtype`, rounded to the nearest (ties to even). A value that does not fit is an error
/// that names `tensor`.
pub fn round_to(dtype: DType, tensor: &str, values: &[f32]) -> Result<Vec<u8>> {
    let not_finite = |value: f32| Error::NotFinite {
        place: format!("tensor {tensor} as {dtype}"),
        value,
        instead: "nothing was written; lower --learning-rate, or start from weights of a wider type".into(),
    };
    let check = |value: f32, kept: bool| if kept { Ok(()) } else { Err(not_finite(value)) };
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    for &value in values {
        match dtype {
            DType::BF16 => {
                let rounded = bf16::from_f32(value);
                check(value, rounded.is_finite())?;
                bytes.extend(rounded.to_le_bytes());
            }
            DType::F16 => {
                let rounded = f16::from_f32(value);
                check(value, rounded.is_finite())?;
                bytes.extend(rounded.to_le_bytes());
            }
            DType::F32 | DType::U32 => {
                check(value, value.is_finite())?;
                bytes.extend(value.to_le_bytes());
            }
        }
    }
    Ok(bytes)
}

/// Writes the weights in F32 and a config that says so: a checkpoint that other tools can load.
pub fn save_f32(source: &Path, trainer: &mut Trainer, dir: &Path) -> Result<()> {
    let mut config = Config::load(source)?.json;
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.into(), Value::from("float32"));
    save(trainer, dir, |_| DType::F32)?;
    write_file(&dir.join("config.json"), |out| Ok(serde_json::to_writer_pretty(out, &config)?))
}

/// Writes the weights in the dtypes that `source` has, and its config.
pub fn save_like(source: &Path, trainer: &mut Trainer, dir: &Path) -> Result<()> {
    let files = WeightFiles::open(source)?;
    save(trainer, dir, |name| files.tensors.get(name).map_or(DType::F32, |info| info.dtype))?;
    let path = source.join("config.json");
    let config = fs::read(&path).map_err(Error::io(&path, "read"))?;
    write_file(&dir.join("config.json"), |out| out.write_all(&config))
}

fn save(trainer: &mut Trainer, dir: &Path, dtype: impl Fn(&str) -> DType) -> Result<()> {
    let parameters: Vec<(String, &mut Tensor)> = trainer.parameters_mut()?;
    let specs = parameters.iter().map(|(name, t)| TensorSpec::new(name, dtype(name), t.shape())).collect();
    let mut writer = SafetensorsWriter::create(dir, specs, Some(MAX_SHARD))?;
    for (name, tensor) in parameters {
        let dtype = dtype(&name);
        for part in tensor.host()?.f32().chunks(1 << 20) {
            writer.append(&round_to(dtype, &name, part)?)?;
        }
    }
    writer.finish()
}

/// SHA-256 over config and, for each tensor, name, type, shape and its first and last 4 KiB: tells models apart without
/// reading gigabytes.
pub fn fingerprint(dir: &Path) -> Result<String> {
    let path = dir.join("config.json");
    let mut hash = Sha256::new();
    hash.update(fs::read(&path).map_err(Error::io(&path, "read"))?);
    let files = WeightFiles::open(dir)?;
    for (name, info) in &files.tensors {
        hash.update(format!("{name} {} {:?}\n", info.dtype, info.shape));
        let tensor = files.tensor(name)?;
        let bytes = tensor.bytes();
        hash.update(&bytes[..bytes.len().min(4096)]);
        hash.update(&bytes[bytes.len().saturating_sub(4096)..]);
    }
    Ok(hex(&hash.finalize()))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
