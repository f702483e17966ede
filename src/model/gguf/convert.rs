//! A GGUF file as a Hugging Face model directory.

use super::config::{Shape, config_json, generation_config_json, json_bytes};
use super::reader::GgufFile;
use super::tokenizer::tokenizer_files;
use super::weights::Plan;
use crate::device::DType;
use crate::error::{Error, Result};
use crate::output::{StagedDir, refuse_inputs};
use serde::Serialize;
use std::path::Path;

/// Raised whenever the same GGUF would give other bytes; caches are keyed by it.
pub const CONVERTER_VERSION: u32 = 1;

/// What a conversion wrote.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Converted {
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Tensors written.
    pub tensors: usize,
    /// Parameters written; a tied head counts once.
    pub parameters: u64,
    /// Element type written, as PyTorch names it.
    pub dtype: &'static str,
    /// The head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Bytes of the tensors.
    pub bytes: u64,
}

/// Converts `gguf` into the model directory `out`, which must not exist unless `overwrite`; it appears whole or not at all.
///
/// `dtype`: F32, F16 or BF16; `None` keeps an unquantised file's own type and takes bfloat16 for a quantised one. Written are
/// `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json`, `tokenizer_config.json` and
/// `special_tokens_map.json`. Memory stays at a few megabytes beside the vocabulary.
///
/// # Errors
/// [`Error::Format`] for a damaged file, [`Error::Unsupported`] for another architecture, tensor format or tokenizer,
/// [`Error::NotFinite`] for a weight that is or becomes NaN or infinite.
pub fn convert(gguf: &Path, out: &Path, dtype: Option<DType>, overwrite: bool) -> Result<Converted> {
    refuse_inputs(out, [gguf])?;
    let file = GgufFile::open(gguf)?;
    let staged = StagedDir::create(out, overwrite)?;
    let converted = convert_into(&file, staged.path(), dtype)?;
    staged.commit()?;
    Ok(converted)
}

/// Writes the files of the model directory into the existing directory `dir`.
pub(in crate::model) fn convert_into(file: &GgufFile, dir: &Path, dtype: Option<DType>) -> Result<Converted> {
    let shape = Shape::read(file)?;
    let plan = Plan::new(file, &shape)?;
    let dtype = dtype.unwrap_or_else(|| plan.natural_dtype());
    let torch_dtype = match dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        DType::U32 => return Err(Error::usage("dtype", "f32, f16 or bf16", "u32")),
    };
    // Everything that may be refused comes before the weights.
    let config = config_json(file, &shape, plan.options, torch_dtype)?;
    let generation_config = generation_config_json(&file.metadata, &shape)?;
    let tokenizer = tokenizer_files(&file.metadata, shape.vocab_size, &config["max_position_embeddings"])?;
    let write = |name: &str, value: &serde_json::Value| {
        let path = dir.join(name);
        std::fs::write(&path, json_bytes(&path, value)?).map_err(Error::io(&path, "write"))
    };
    write("config.json", &serde_json::Value::Object(config))?;
    write("generation_config.json", &generation_config)?;
    write("tokenizer.json", &tokenizer.tokenizer)?;
    write("tokenizer_config.json", &tokenizer.config)?;
    write("special_tokens_map.json", &tokenizer.special_tokens_map)?;
    // The file must load here before anyone relies on it: this also tries what the vocabulary checks cannot see.
    crate::model::Tokenizer::load(dir)?;
    let bytes = plan.write(file, dir, dtype)?;
    Ok(Converted {
        num_hidden_layers: shape.num_hidden_layers,
        tensors: plan.len(),
        parameters: plan.parameters(),
        dtype: torch_dtype,
        tie_word_embeddings: plan.options.tied,
        bytes,
    })
}
