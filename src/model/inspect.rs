//! What a model directory holds: shapes, sizes, costs, tokenizer; every tensor checked against the config.

use super::adapter::{self, Adapter, LoraConfig};
use super::safetensors::WeightFiles;
use super::{ChatTemplate, Config, GenerationConfig, Llama, Message, Tokenizer, json};
use crate::device::DType;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// All tensors that play one part in the model, in every block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Role {
    /// Name without the block (`self_attn.q_proj.weight`).
    pub role: String,
    /// How many.
    pub tensors: usize,
    /// Shape of each.
    pub shape: Vec<usize>,
    /// Element type; several are joined by `+`.
    pub dtype: String,
    /// Elements in all.
    pub parameters: u64,
    /// Bytes in all.
    pub bytes: u64,
}

/// What [`inspect`] finds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The model directory.
    pub path: PathBuf,
    /// Weight files and their bytes.
    pub files: Vec<(String, u64)>,
    /// Decoder blocks.
    pub num_hidden_layers: usize,
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features inside the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// The output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Context in tokens.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Stretching of the rotary frequencies, in words.
    pub rope_scaling: String,
    /// Parameters; a tied head counts once.
    pub parameters: u64,
    /// Parameters of one block.
    pub block_parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// FLOPs of a forward pass per token: twice all parameters.
    pub flops_per_token_params_2n: u64,
    /// FLOPs of a forward pass per token: the products with weights that are done, attention excluded.
    pub flops_per_token_matmul: u64,
    /// Cache bytes per token in bf16.
    pub kv_bytes_per_token_bf16: u64,
    /// Cache bytes per token in f32.
    pub kv_bytes_per_token_f32: u64,
    /// Tensors by part, in the order of the forward pass.
    pub roles: Vec<Role>,
    /// Ids of the tokenizer; `None` without one.
    pub tokenizer_vocab_size: Option<usize>,
    /// Special tokens by id.
    pub special_tokens: Vec<(u32, String)>,
    /// Ids that end an output.
    pub eos_token_ids: Vec<u32>,
    /// The model has a chat template.
    pub chat_template: bool,
    /// What is odd but accepted.
    pub remarks: Vec<String>,
}

/// What a directory with a PEFT adapter holds.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct AdapterReport {
    /// The adapter's directory.
    pub path: PathBuf,
    /// The model that it says it belongs to, where it says so.
    pub base_model: Option<String>,
    /// Rank, scale, projections and blocks.
    pub config: LoraConfig,
    /// Factor of the update.
    pub scale: f32,
    /// Blocks with an adapter on some projection.
    pub blocks: usize,
    /// Parameters of all factors.
    pub parameters: u64,
    /// FLOPs that it adds to a forward pass, per token.
    pub flops_per_token: u64,
}

/// A prompt as the model sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prompt {
    /// The text, the template rendered.
    pub text: String,
    /// Its token ids.
    pub ids: Vec<u32>,
    /// The tokens as the vocabulary spells them.
    pub tokens: Vec<String>,
}

/// Reads a model directory and checks every tensor's name, shape and dtype against the config. Values are not read; see
/// [`WeightFiles::check_values`].
pub fn inspect(dir: &Path) -> Result<Report> {
    let config = Config::load(dir)?;
    let files = WeightFiles::open(dir)?;
    let mut remarks = files.check(&config)?;
    let tokenizer = match dir.join("tokenizer.json").exists() {
        true => Some(Tokenizer::load(dir)?),
        false => None,
    };
    let generation = GenerationConfig::load(dir)?;
    remarks.extend(vocabulary_remarks(&config, tokenizer.as_ref(), &generation));
    Ok(Report {
        path: dir.to_path_buf(),
        files: file_sizes(&files)?,
        num_hidden_layers: config.num_hidden_layers,
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        num_attention_heads: config.heads.n_heads,
        num_key_value_heads: config.heads.n_kv_heads,
        head_dim: config.heads.head_dim,
        vocab_size: config.vocab_size,
        tie_word_embeddings: config.tie_word_embeddings,
        max_position_embeddings: config.max_position_embeddings,
        rope_theta: config.rope_theta,
        rope_scaling: config.rope_scaling.to_string(),
        parameters: config.parameters(),
        block_parameters: config.block_parameters(),
        weight_bytes: files.total_bytes(),
        flops_per_token_params_2n: config.flops_params_2n(),
        flops_per_token_matmul: config.flops_matmul(),
        kv_bytes_per_token_bf16: config.kv_bytes_per_token(DType::BF16),
        kv_bytes_per_token_f32: config.kv_bytes_per_token(DType::F32),
        roles: roles(&config, &files),
        tokenizer_vocab_size: tokenizer.as_ref().map(Tokenizer::vocab_size),
        special_tokens: tokenizer.as_ref().map(Tokenizer::special_tokens).unwrap_or_default(),
        eos_token_ids: generation.eos_token_ids,
        chat_template: ChatTemplate::load(dir)?.is_some(),
        remarks,
    })
}

/// Reads an adapter and checks every tensor against the model in `dir`.
pub fn inspect_adapter(dir: &Path, adapter: &Path) -> Result<AdapterReport> {
    let Adapter { config, loras } = Adapter::load(adapter, &Llama::load(dir)?)?;
    let json = json::read_object(&adapter.join(adapter::CONFIG))?;
    let parameters: usize = loras.values().map(|lora| lora.a.elements() + lora.b.elements()).sum();
    Ok(AdapterReport {
        path: adapter.to_path_buf(),
        base_model: json.get("base_model_name_or_path").and_then(Value::as_str).map(str::to_string),
        scale: config.scale(),
        config,
        blocks: loras.keys().map(|&(block, _)| block).collect::<BTreeSet<usize>>().len(),
        parameters: parameters as u64,
        flops_per_token: 2 * parameters as u64,
    })
}

/// A plain prompt as the model sees it.
pub fn prompt(dir: &Path, text: &str) -> Result<Prompt> {
    let tokenizer = Tokenizer::load(dir)?;
    let ids = tokenizer.encode(text, true)?;
    Ok(spelled(&tokenizer, text.to_string(), ids))
}

/// A conversation as the model sees it when it is to answer.
pub fn conversation(dir: &Path, messages: &[Message]) -> Result<Prompt> {
    let tokenizer = Tokenizer::load(dir)?;
    let text = ChatTemplate::require(dir)?.render(messages, true)?;
    let ids = tokenizer.encode(&text, false)?;
    Ok(spelled(&tokenizer, text, ids))
}

/// Reads a JSON file with a list of `{role, content}`, or an object with such a list as `messages`.
pub fn read_messages(path: &Path) -> Result<Vec<Message>> {
    let file: Value = json::read(path)?;
    let list = if file.is_object() { file["messages"].clone() } else { file };
    let found = json::kind(&list);
    let messages: Vec<Message> = serde_json::from_value(list)
        .map_err(|e| Error::format(path, "messages", "a list of {role, content}", format!("{found} ({e})")))?;
    match messages.is_empty() {
        true => Err(Error::format(path, "messages", "at least one message", "none")),
        false => Ok(messages),
    }
}

fn spelled(tokenizer: &Tokenizer, text: String, ids: Vec<u32>) -> Prompt {
    let tokens = ids.iter().map(|&id| tokenizer.token(id).unwrap_or_default()).collect();
    Prompt { text, ids, tokens }
}

fn file_sizes(files: &WeightFiles) -> Result<Vec<(String, u64)>> {
    let size = |path: &PathBuf| {
        let bytes = std::fs::metadata(path).map_err(Error::io(path, "read"))?.len();
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes))
    };
    files.shards.iter().map(size).collect()
}

fn roles(config: &Config, files: &WeightFiles) -> Vec<Role> {
    let mut order: Vec<String> = Vec::new();
    let mut roles: BTreeMap<String, Role> = BTreeMap::new();
    for (name, shape) in config.expected_tensors() {
        let Some(info) = files.tensors.get(&name) else { continue };
        let role = role(&name);
        let dtype = info.dtype.to_string();
        let entry = roles.entry(role.clone()).or_insert_with(|| {
            order.push(role.clone());
            Role { role, tensors: 0, shape: shape.clone(), dtype: dtype.clone(), parameters: 0, bytes: 0 }
        });
        if !entry.dtype.contains(&dtype) {
            entry.dtype = format!("{}+{dtype}", entry.dtype);
        }
        entry.tensors += 1;
        entry.parameters += shape.iter().product::<usize>() as u64;
        entry.bytes += info.len as u64;
    }
    order.iter().filter_map(|role| roles.remove(role)).collect()
}

/// `model.layers.7.mlp.up_proj.weight` plays the part `mlp.up_proj.weight`.
fn role(name: &str) -> String {
    let in_block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    in_block.map_or(name, |(_, role)| role).to_string()
}

fn vocabulary_remarks(config: &Config, tokenizer: Option<&Tokenizer>, generation: &GenerationConfig) -> Vec<String> {
    let rows = config.vocab_size;
    let mut remarks = Vec::new();
    match tokenizer {
        None => remarks.push("no tokenizer.json: the model takes token ids only".to_string()),
        Some(tokenizer) if tokenizer.max_id() as usize >= rows => {
            let (id, token) = (tokenizer.max_id(), tokenizer.token(tokenizer.max_id()).unwrap_or_default());
            remarks.push(format!(
                "tokenizer.json has ids up to {id} ({token:?}), the model's vocab_size is {rows}: text with such a token is refused"
            ));
        }
        Some(_) => {}
    }
    if generation.eos_token_ids.is_empty() {
        remarks.push("no eos_token_id: only the length limit and stop strings end an output".to_string());
    }
    let beyond = generation.eos_token_ids.iter().filter(|&&id| id as usize >= rows);
    remarks.extend(beyond.map(|id| format!("eos_token_id {id} is beyond the vocabulary of {rows} and can never come")));
    remarks
}
