//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

use super::lora::{Lora, Projection};
use super::safetensors::{TensorSpec, WeightFiles, header_bytes};
use super::{Config, Llama, json as json_file, pickle};
use crate::device::{DType, Tensor};
use crate::error::{Error, Result};
use crate::ops::philox;
use crate::output::write_file;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// File of the options.
pub const CONFIG: &str = "adapter_config.json";
/// File of the tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Shape of an adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Probability of zeroing an input element while training.
    pub lora_dropout: f64,
    /// Projections that get an adapter.
    pub target_modules: Vec<Projection>,
    /// Blocks that get one; `None`: all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Scale `alpha / sqrt(r)` instead of `alpha / r`.
    pub use_rslora: bool,
}

impl Default for LoraConfig {
    /// The defaults of the command line: rank 8, alpha 16, all seven projections of every block.
    fn default() -> LoraConfig {
        LoraConfig {
            r: 8,
            lora_alpha: 16.0,
            lora_dropout: 0.0,
            target_modules: Projection::ALL.to_vec(),
            layers_to_transform: None,
            use_rslora: false,
        }
    }
}

impl LoraConfig {
    /// The factor of the update.
    pub fn scale(&self) -> f32 {
        let r = self.r as f64;
        (self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }) as f32
    }

    /// Checks the options against a model of `blocks` blocks.
    pub fn check(&self, blocks: usize) -> Result<()> {
        if self.r == 0 {
            return Err(Error::usage("--lora-r", "a rank of 1 or more", "0"));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::usage("--lora-dropout", "a probability in [0, 1)", self.lora_dropout.to_string()));
        }
        if !self.lora_alpha.is_finite() {
            return Err(Error::usage("--lora-alpha", "a finite number", self.lora_alpha.to_string()));
        }
        if self.target_modules.is_empty() {
            return Err(Error::usage("--lora-target-modules", "at least one projection", "none"));
        }
        let layers = self.layers_to_transform.as_deref();
        match layers.and_then(|layers| layers.iter().find(|&&l| l >= blocks)) {
            Some(l) => Err(Error::usage("--lora-layers", format!("blocks below {blocks}"), l.to_string())),
            None if layers.is_some_and(<[usize]>::is_empty) => {
                Err(Error::usage("--lora-layers", "at least one block", "none"))
            }
            None => Ok(()),
        }
    }

    /// Every (block, projection) that gets an adapter, in the order of the forward pass.
    pub fn places(&self, blocks: usize) -> impl Iterator<Item = (usize, Projection)> + '_ {
        let here = move |l: &usize| self.layers_to_transform.as_ref().is_none_or(|layers| layers.contains(l));
        (0..blocks)
            .filter(here)
            .flat_map(|l| Projection::ALL.into_iter().filter(|p| self.target_modules.contains(p)).map(move |p| (l, p)))
    }

    /// Elements of the factors beside a model of that shape.
    pub fn parameters(&self, config: &Config) -> u64 {
        let sizes =
            self.places(config.num_hidden_layers).map(|(_, p)| config.projection_shape(p).iter().sum::<usize>());
        (self.r * sizes.sum::<usize>()) as u64
    }

    /// Reads `adapter_config.json`. An option that changes the numbers and is not supported is an error that names it.
    pub fn load(dir: &Path) -> Result<LoraConfig> {
        let path = dir.join(CONFIG);
        let json = json_file::read_object(&path)?;
        refuse_unsupported(&path, &json)?;
        let wrong = |key: &str, expected: &str| {
            Error::format(&path, key, expected, json.get(key).unwrap_or(&Value::Null).to_string())
        };
        let number = |key: &str| json.get(key).and_then(Value::as_f64).ok_or_else(|| wrong(key, "a number"));
        let r = json.get("r").and_then(Value::as_u64).filter(|&r| r > 0).ok_or_else(|| wrong("r", "a rank above 0"))?;
        let named = match json.get("target_modules") {
            Some(Value::String(all)) if all == "all-linear" => Projection::ALL.to_vec(),
            Some(Value::Array(list)) => {
                let parse = |v: &Value| v.as_str().and_then(|s| Projection::parse(s.rsplit('.').next().unwrap_or(s)));
                let parsed: Option<Vec<Projection>> = list.iter().map(parse).collect();
                parsed.ok_or_else(|| wrong("target_modules", "names of the seven projections, q_proj to down_proj"))?
            }
            _ => return Err(wrong("target_modules", "a list of projections or \"all-linear\"")),
        };
        let layers_to_transform = match json.get("layers_to_transform") {
            None | Some(Value::Null) => None,
            Some(Value::Number(n)) => n.as_u64().map(|n| vec![n as usize]),
            Some(value) => Some(
                serde_json::from_value(value.clone())
                    .map_err(|_| wrong("layers_to_transform", "a list of block numbers"))?,
            ),
        };
        Ok(LoraConfig {
            r: r as usize,
            lora_alpha: number("lora_alpha")?,
            lora_dropout: json.get("lora_dropout").and_then(Value::as_f64).unwrap_or(0.0),
            target_modules: Projection::ALL.into_iter().filter(|p| named.contains(p)).collect(),
            layers_to_transform,
            use_rslora: json.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The `adapter_config.json` that PEFT reads.
    pub fn to_json(&self, base: &str) -> Value {
        let modules: Vec<&str> = self.target_modules.iter().map(|p| p.name()).collect();
        json!({
            "auto_mapping": null,
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": whole_or_float(self.lora_alpha),
            "lora_dropout": self.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": {},
            "alpha_pattern": {},
            "revision": null,
            "target_modules": modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

fn whole_or_float(v: f64) -> Value {
    if v.fract() == 0.0 && v.abs() < 1e15 { json!(v as i64) } else { json!(v) }
}

/// Keys of `adapter_config.json` that change what is computed, with the values that mean "not used".
fn refuse_unsupported(path: &Path, config: &Map<String, Value>) -> Result<()> {
    /// Read here, or of no influence on the numbers of a finished adapter.
    const KNOWN: [&str; 19] = [
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "layers_to_transform",
        "use_rslora",
        "layers_pattern",
        "base_model_name_or_path",
        "revision",
        "auto_mapping",
        "inference_mode",
        "init_lora_weights",
        "peft_version",
        "task_type",
        "megatron_core",
        "qalora_group_size",
        "exclude_modules",
        "ensure_weight_tying",
        "peft_type",
    ];
    if config.get("peft_type").and_then(Value::as_str) != Some("LORA") {
        let found = config.get("peft_type").unwrap_or(&Value::Null);
        return Err(Error::unsupported(path, format!("peft_type {found}"), "LORA is"));
    }
    for (key, value) in config {
        let unused = match value {
            Value::Null | Value::Bool(false) => true,
            Value::String(s) => key == "bias" && s == "none",
            Value::Array(list) => list.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(true) | Value::Number(_) => false,
        };
        if !unused && !KNOWN.contains(&key.as_str()) {
            let instead = "plain LoRA and rank-stabilised LoRA on the seven projections are";
            return Err(Error::unsupported(path, format!("{key} = {value}"), instead));
        }
    }
    match config.get("exclude_modules") {
        None | Some(Value::Null) => Ok(()),
        Some(value) => {
            Err(Error::unsupported(path, format!("exclude_modules = {value}"), "name target_modules instead"))
        }
    }
}

/// An adapter: its options, and the factors of each (block, projection).
pub struct Adapter {
    /// Options.
    pub config: LoraConfig,
    /// Factors, in the order of the forward pass.
    pub loras: BTreeMap<(usize, Projection), Lora>,
}

impl Adapter {
    /// A new adapter as PEFT starts it: A uniform in ±sqrt(1 / in_features) (Kaiming with a = sqrt(5)), B zero, so that the
    /// model is unchanged at first. The numbers depend on (seed, block, projection) alone.
    pub fn new(config: LoraConfig, model: &Llama, seed: u64) -> Result<Adapter> {
        config.check(model.blocks.len())?;
        let scale = config.scale();
        let initial = |(l, p): (usize, Projection)| {
            let weight = &model.blocks[l].projection(p).weight;
            let (out, input) = (weight.rows(), weight.row_len());
            let mut a = Tensor::zeros(&[config.r, input], DType::F32);
            let bound = (1.0 / input as f64).sqrt();
            let stream = INIT_STREAM + (l * Projection::ALL.len() + p as usize) as u64;
            for (i, four) in a.f32_mut().chunks_mut(4).enumerate() {
                for (v, word) in four.iter_mut().zip(philox::block(seed, stream, i as u64)) {
                    *v = (bound * (2.0 * f64::from(philox::unit(word)) - 1.0)) as f32;
                }
            }
            ((l, p), Lora { a, b: Tensor::zeros(&[out, config.r], DType::F32), scale })
        };
        let loras = config.places(model.blocks.len()).map(initial).collect();
        Ok(Adapter { config, loras })
    }

    /// Reads an adapter's directory and checks it against `model`: a missing, unknown or misshapen tensor is named.
    pub fn load(dir: &Path, model: &Llama) -> Result<Adapter> {
        let config = LoraConfig::load(dir)?;
        let blocks = model.blocks.len();
        if let Some(l) = config.layers_to_transform.iter().flatten().find(|&&l| l >= blocks) {
            let expected = format!("blocks below {blocks}, as many as the model has");
            return Err(Error::format(&dir.join(CONFIG), "layers_to_transform", expected, l.to_string()));
        }
        let path = weights_path(dir)?;
        let files = WeightFiles::open_files(vec![path.clone()])?;
        let scale = config.scale();
        let mut loras = BTreeMap::new();
        for (l, p) in config.places(model.blocks.len()) {
            let weight = &model.blocks[l].projection(p).weight;
            let factor = |letter: char, shape: [usize; 2]| -> Result<Tensor> {
                let tensor = files.tensor(&tensor_name(l, p, letter))?;
                if tensor.shape() != shape {
                    let place = format!("tensor {}", tensor_name(l, p, letter));
                    return Err(Error::format(&path, place, format!("{shape:?}"), format!("{:?}", tensor.shape())));
                }
                Ok(tensor.to_f32())
            };
            let a = factor('A', [config.r, weight.row_len()])?;
            let b = factor('B', [weight.rows(), config.r])?;
            loras.insert((l, p), Lora { a, b, scale });
        }
        let known =
            |name: &String| loras.keys().any(|&(l, p)| ['A', 'B'].iter().any(|&c| tensor_name(l, p, c) == *name));
        if let Some(name) = files.tensors.keys().find(|name| !known(name)) {
            let expected = format!("tensors of the named projections in {} blocks", model.blocks.len());
            return Err(Error::format(&path, format!("tensor {name}"), expected, "one that belongs to none"));
        }
        Ok(Adapter { config, loras })
    }

    /// Writes both files into `dir`; each appears whole, the options last. `base` is the model's name or path.
    pub fn save<'a>(&'a self, dir: &Path, base: &str) -> Result<()> {
        let named = |(&(l, p), lora): (&(usize, Projection), &'a Lora)| {
            [(tensor_name(l, p, 'A'), &lora.a), (tensor_name(l, p, 'B'), &lora.b)]
        };
        save(dir, &self.config, base, self.loras.iter().flat_map(named).collect())
    }

    /// Attaches the factors to `model`, replacing what was there.
    pub fn attach(self, model: &mut Llama) -> LoraConfig {
        for ((l, p), lora) in self.loras {
            model.attach_lora(l, p, lora);
        }
        self.config
    }
}

/// The file of an adapter's tensors; [`Error::Unsupported`] with the way to convert when there is only a pickled one.
pub fn weights_path(dir: &Path) -> Result<PathBuf> {
    let (path, pickled) = (dir.join(WEIGHTS), dir.join("adapter_model.bin"));
    if !path.exists() && pickled.exists() { Err(pickle::refuse_adapter(&pickled)) } else { Ok(path) }
}

/// First stream of the initial factors; the masks of dropout start at 0 and stay below.
const INIT_STREAM: u64 = 1 << 62;

fn tensor_name(block: usize, projection: Projection, factor: char) -> String {
    format!("base_model.model.model.layers.{block}.{}.lora_{factor}.weight", projection.path())
}

/// Writes F32 factors with their names in PEFT's files, and the options.
pub(crate) fn save(dir: &Path, config: &LoraConfig, base: &str, factors: Vec<(String, &Tensor)>) -> Result<()> {
    let specs: Vec<TensorSpec> =
        factors.iter().map(|(name, tensor)| TensorSpec::new(name, DType::F32, tensor.shape())).collect();
    write_file(&dir.join(WEIGHTS), |out| {
        out.write_all(&header_bytes(&specs))?;
        factors.iter().try_for_each(|(_, tensor)| out.write_all(tensor.host().map_err(std::io::Error::other)?.bytes()))
    })?;
    write_file(&dir.join(CONFIG), |out| {
        serde_json::to_writer_pretty(&mut *out, &config.to_json(base))?;
        writeln!(out)
    })
}

impl Llama {
    /// [`Llama::load`], and [`Llama::with_adapter`] where an adapter is given.
    pub fn load_adapted(dir: &Path, adapter: Option<&Path>) -> Result<Llama> {
        let model = Llama::load(dir)?;
        match adapter {
            Some(adapter) => model.with_adapter(adapter),
            None => Ok(model),
        }
    }

    /// The model with a PEFT adapter beside its weights, for generation and evaluation.
    pub fn with_adapter(mut self, dir: &Path) -> Result<Llama> {
        Adapter::load(dir, &self)?.attach(&mut self);
        Ok(self)
    }
}
